"""Commands as jobs: on a real SLURM, with requeues, failures and cancellations in the middle."""

import json

import psutil
import pytest
import yaml
from conftest import run_command
from phantom import write_series
from slurm_bed import ranks_of, until, wait_gone

from ldct.runs.folder import read_status
from slurm import squeue, status, submission

SLURM = {"executor": "slurm", "partition": "low", "time_min": 30}


class Desk:
    """Commands given in a folder of their own."""

    def __init__(self, folder):
        self.folder, self.jobs = folder, folder / "jobs"

    def submit(self, cluster, *argv, check=True):
        """launch/submit.py to its end; its standard output."""
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(cluster))
        argv = ["--cluster", self.folder / "cluster.yaml", "--jobs", self.jobs, *argv]
        done = run_command("launch/submit.py", *argv, check=check, timeout=240)
        return done.stdout if check else done

    def states(self, name):
        """What launch/status.py says of the parts of a command."""
        done = run_command("launch/status.py", "--json", self.jobs / name)
        return {part["run"].split("/")[1]: part for part in json.loads(done.stdout)}

    def job(self, name, part="whole"):
        return submission.latest(self.jobs / name)[part][1]

    def wait_finished(self, name, part="whole"):
        until(f"end of {name}/{part}", lambda: read_status(self.jobs / name / part).state == "finished", 120)


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def content(folder):
    """Bytes of every file below a folder, by name."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()}


def test_a_command_is_requeued_at_its_time_limit_and_goes_on(hurried, desk):
    write_series(desk.folder / "full", "P1", "full", 60, size=64)
    simulate = ["shards/simulate.py", desk.folder / "full", desk.folder / "out", "--dose", "0.25", "--i0", "1e5"]
    assert "--array" not in desk.submit(SLURM, "--dry-run", *simulate) and not desk.jobs.exists()
    assert "submitted whole as job" in desk.submit(SLURM, *simulate)
    job = desk.job("simulate")
    until("the first files", lambda: len(list(desk.folder.glob("out/*/quarter*/*.IMA"))) >= 2)
    (process,) = psutil.Process(ranks_of(job)[0]).children()
    process.suspend()
    assert desk.submit(SLURM, *simulate).endswith("whole running\nnothing to submit\n")
    squeue.ask("scancel", "--signal=USR2", f"{job}.0")
    process.resume()
    desk.wait_finished("simulate")
    wait_gone(job)
    part = desk.states("simulate")["whole"]
    assert (part["state"], part["step"], part["steps"], part["requeues"]) == ("finished", 60, 60, 1)
    assert not list(desk.folder.glob("out/**/*.tmp"))
    simulate[2] = desk.folder / "straight"
    run_command(*simulate)
    assert content(desk.folder / "out") == content(desk.folder / "straight")
    assert "nothing to submit: --again does it once more" in desk.submit(SLURM, *simulate[:2], desk.folder / "out",
                                                                         *simulate[3:])  # fmt: skip


def test_what_waits_is_cancelled_and_another_command_of_the_name_refused(cluster, desk):
    held = {**SLURM, "sbatch": {"hold": True}}
    desk.submit(held, "launch/compare.py", desk.folder, "-o", desk.folder / "report.html")
    job = desk.job("compare")
    assert desk.states("compare")["whole"]["state"] == "pending"
    refused = desk.submit(held, "launch/compare.py", desk.folder / "other", check=False)
    assert refused.returncode == 2 and "jobs/compare is of another command (launch/compare.py " in refused.stderr
    assert "cancelled 1 SLURM jobs" in status.cancel([desk.jobs], status.reports([desk.jobs])[0])
    wait_gone(job)
    assert desk.states("compare")["whole"]["state"] == "cancelled"
