"""What SLURM makes of submissions; nothing here trains."""

from slurm_bed import until, wait_gone

from launch import sweep
from slurm import squeue, status, submission

HELD = {"executor": "slurm", "partition": "low", "time_min": 30, "sbatch": {"hold": True}, "array_parallelism": 6}
EIGHT = {"train.seed": list(range(8))}


def test_an_array_above_the_sites_limit_is_split_and_cancelled_in_one_request(cluster, bed, monkeypatch):
    assert squeue.largest_array() == 1001
    monkeypatch.setattr(squeue, "largest_array", lambda: 3)
    monkeypatch.setattr("sys.argv", ["sweep.py", *map(str, bed.files("split", HELD, EIGHT))])
    assert sweep.main() == 0
    jobs = [job for _, job in submission.latest(bed.runs / "split").values()]
    assert [len(record.runs) for record in submission.read_all(bed.runs / "split")] == [3, 3, 2]
    assert sorted(squeue.live(jobs)) == sorted(jobs) and len(set(jobs)) == 8

    asked = []
    monkeypatch.setattr(squeue, "ask", lambda *command, ask=squeue.ask, **more: asked.append(command) or ask(*command))
    listed, _ = status.reports([bed.runs / "split"])
    assert {run.state for run in listed} == {"pending"}
    status.cancel([bed.runs / "split"], listed)
    assert [len(command) for command in asked if command[0] == "scancel"] == [1 + 3]
    until("they are gone", lambda: not squeue.live(jobs))
    assert {run["state"] for run in bed.status("split").values()} == {"cancelled"}
    again = bed.launch("split", HELD, EIGHT, "--dry-run").stdout
    assert "8 runs, 0 finished, 0 running or waiting, 8 to submit" in again


def test_a_dry_run_asks_sbatch(cluster, bed):
    assert "SLURM would take it: Job " in bed.launch("dry", HELD, EIGHT, "--dry-run").stdout
    done = bed.launch("dry", {**HELD, "partition": "none"}, EIGHT, "--dry-run", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: SLURM would refuse this: ") and "partition" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_failing_setup_line_is_what_the_status_says(cluster, bed):
    bed.launch("setup", {**HELD, "sbatch": {}, "setup": ["source /nowhere/activate"]}, {"train.seed": 0})
    (folder,) = bed.folders("setup")
    wait_gone(submission.latest(folder.parent)[folder.name][1])
    (run,) = bed.status("setup").values()
    assert (run["state"], run["error"]) == ("failed", "setup line failed: source /nowhere/activate, exit status 1")


def test_forgotten_jobs_are_gone_and_not_an_error(cluster):
    assert squeue.live(["1"]) == squeue.live(["1_0", "2"]) == squeue.live([]) == {}
