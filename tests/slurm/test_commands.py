"""Commands as jobs: on a real SLURM, with requeues, failures and cancellations in the middle."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from conftest import run_command
from phantom import make_dataset, write_series
from slurm_bed import job_of, ranks_of, step_of, until, wait_gone

from launch import sweep
from ldct.runs import folder as runs
from ldct.runs.folder import Status, read_status, write_status
from shards.common.command import InputError
from slurm import chain, commands, part_job, squeue, status, status_table, submission
from slurm.cluster import Cluster

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

    def state(self, name, part):
        return read_status(self.jobs / name / part).state

    def output(self, name, part="whole"):
        """What the last job of a part printed."""
        record, job = submission.latest(self.jobs / name)[part]
        return submission.log_of(self.jobs / name, record, job).with_suffix(".out").read_text()

    def queued(self, name):
        """Seconds in the queue of each part; empty while the accounting does not know all."""
        queued = {part.run.split("/")[1]: part.queued_s for part in status.reports([self.jobs / name])[0]}
        return {} if None in queued.values() else queued

    def shown(self, name):
        """What launch/status.py says of the parts of a command."""
        done = run_command("launch/status.py", "--json", self.jobs / name)
        return {part["run"].split("/")[1]: part for part in json.loads(done.stdout)}

    def job(self, name, part="whole"):
        return submission.latest(self.jobs / name)[part][1]

    def wait_finished(self, name, part="whole"):
        until(f"end of {name}/{part}", lambda: self.state(name, part) == "finished", 120)


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def content(folder):
    """Bytes of every file in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_build_in_parts_of_which_one_is_requeued_is_the_build_of_one_process(hurried, desk):
    make_dataset(desk.folder / "dicom", ("L067", "L096", "L109"), slices=4)
    build = ["shards/build.py", desk.folder / "dicom", desk.folder / "out", "--val", "L096", "--test", "L109",
             "--shard-slices", "2"]  # fmt: skip
    assert "--array=0-2%3" in desk.submit(SLURM, "--dry-run", "--parts", "3", *build) and not desk.jobs.exists()
    assert "submitted 1-of-3, 2-of-3, 3-of-3, whole as job" in desk.submit(SLURM, "--parts", "3", *build)
    job = desk.job("build", "2-of-3")
    process = until("part 2", lambda: (pids := ranks_of(job)) and psutil.Process(pids[0]).children(), every=0.05)[0]
    process.suspend()
    squeue.ask("scancel", "--signal=USR2", f"{job}.0")
    until("the other parts", lambda: {desk.state("build", "1-of-3"), desk.state("build", "3-of-3")} == {"finished"})
    assert desk.submit(SLURM, "--parts", "3", *build).endswith(
        "1-of-3 finished, 2-of-3 running, 3-of-3 finished, whole pending\nnothing to submit\n"
    )
    process.resume()
    desk.wait_finished("build")
    wait_gone(desk.job("build"))
    shown = desk.shown("build")
    assert {name: (part["state"], part["requeues"]) for name, part in shown.items()} == {
        "1-of-3": ("finished", 0), "2-of-3": ("finished", 1), "3-of-3": ("finished", 0), "whole": ("finished", 0)
    }  # fmt: skip
    waited = until("the accounting", lambda: desk.queued("build"))
    assert waited["2-of-3"] > waited["1-of-3"] >= 0  # its second wait is among them
    run_command(build[0], build[1], desk.folder / "straight", *build[3:])
    assert content(desk.folder / "out") == content(desk.folder / "straight")
    assert "nothing to submit: --again does it once more" in desk.submit(SLURM, "--parts", "3", *build)


def test_a_part_that_fails_is_named_and_alone_done_again(hurried, desk):
    for name in ("P1", "P2", "P3"):
        write_series(desk.folder / "full" / name, name, "full", 2, size=64)
    (desk.folder / "out").mkdir()
    (desk.folder / "out" / "P2").touch()  # a file where a folder should go
    simulate = ["--parts", "3", "shards/simulate.py", desk.folder / "full", desk.folder / "out", "--i0", "1e5"]
    desk.submit(SLURM, *simulate)
    wait_gone(desk.job("simulate"))
    states = {name: part["state"] for name, part in desk.shown("simulate").items()}
    assert states == {"1-of-3": "finished", "2-of-3": "failed", "3-of-3": "finished", "whole": "cancelled"}
    said = rf"1 x cannot write to {desk.folder}/out: .* \(exit status 2\)\n    simulate/2-of-3\n    log: "
    assert re.search(said, run_command("launch/status.py", desk.jobs).stdout)
    before = {path: path.stat().st_mtime_ns for path in desk.folder.glob("out/**/*.IMA")}
    assert len(before) == 8

    (desk.folder / "out" / "P2").unlink()
    assert "submitted 2-of-3, whole as job" in desk.submit(SLURM, *simulate)
    desk.wait_finished("simulate")
    assert len(list(desk.folder.glob("out/**/*.IMA"))) == 12
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "all 6 slices are there already" in desk.output("simulate")


@pytest.mark.timeout(600)
def test_a_sweep_ends_in_a_report_of_what_finished_and_says_what_did_not(hurried, bed, monkeypatch, capsys):
    values = {"loss.name": ["mse", "mse+vgg"], "loss.vgg_weights": "/nowhere", "train.steps": 80, "val.every": 80}
    argv = [*bed.files("chain", SLURM, {**values, "train.log_every": 10}), "--then", "evaluate,compare"]
    monkeypatch.setattr("sys.argv", ["sweep.py", *map(str, argv)])
    assert sweep.main() == 0
    assert re.search(r"behind them: evaluate as job (\d+), compare as job (\d+)$", capsys.readouterr().out.strip())
    good, bad = bed.folders("chain")
    report = bed.runs / "chain" / "jobs" / "compare" / "whole"
    until("training", lambda: step_of(good) >= 10, every=0.02)
    (rank,) = ranks_of(job_of(good)).values()
    os.kill(rank, signal.SIGSTOP)
    until("the failure", lambda: read_status(bad).state == "failed")
    wait_gone(job_of(bad))
    states = {run.run.split("/")[0]: run.state for run in status.reports([bed.runs])[0]}
    assert (states["evaluate"], states["compare"]) == ("pending", "pending")
    assert sweep.main() == 0  # the failed one alone is submitted, and what follows waits for both
    assert re.search(r"submitted 1 run as job .*\nbehind them: evaluate as job \d+, compare", capsys.readouterr().out)
    squeue.ask("scancel", "--signal=USR2", f"{job_of(good)}.0")
    os.kill(rank, signal.SIGCONT)
    until("the report", lambda: read_status(report).state == "finished", limit=450)
    assert (read_status(good).attempt, read_status(good).state, read_status(bad).state) == (2, "finished", "failed")
    assert (good / "eval" / "test.json").exists() and not (bad / "eval" / "test.json").exists()
    shown = status_table.show(*status.reports([bed.runs]))
    assert re.search(
        rf"2 runs: 1 finished, 1 failed; 2 parts of commands: 2 finished; .*\n1 x .*/nowhere.*\n    chain/{bad.name}\n",
        shown,
    ), shown
    assert bad.name in (bed.runs / "chain" / "report.html").read_text()


def test_parts_on_this_machine_and_one_of_them_fails_first(desk):
    for name in ("P1", "P2"):
        write_series(desk.folder / "full" / name, name, "full", 2, size=64)
    (desk.folder / "out").mkdir()
    (desk.folder / "out" / "P2").touch()
    here = {"executor": "local", "array_parallelism": 2}
    simulate = ["--parts", "2", "shards/simulate.py", desk.folder / "full", desk.folder / "out", "--i0", "1e5"]
    failed = desk.submit(here, *simulate, check=False)
    assert failed.returncode == 1 and "1 of 3 finished in " in failed.stdout
    assert re.search(r"failed: 2-of-2: cannot write to .*; log: /", failed.stdout)
    (desk.folder / "out" / "P2").unlink()
    assert "1-of-2 finished, 2-of-2 failed, whole new\n3 of 3 finished in " in desk.submit(here, *simulate)
    assert len(list(desk.folder.glob("out/**/*.IMA"))) == 8


def test_what_waits_is_cancelled_and_another_command_of_the_name_refused(cluster, desk):
    held = {**SLURM, "sbatch": {"hold": True}}
    desk.submit(held, "launch/compare.py", desk.folder, "-o", desk.folder / "report.html")
    job = desk.job("compare")
    assert desk.shown("compare")["whole"]["state"] == "pending"
    refused = desk.submit(held, "launch/compare.py", desk.folder / "other", check=False)
    assert refused.returncode == 2 and "jobs/compare is of another command (launch/compare.py " in refused.stderr
    assert "cancelled 1 SLURM jobs" in status.cancel([desk.jobs], status.reports([desk.jobs])[0])
    wait_gone(job)
    assert desk.shown("compare")["whole"]["state"] == "cancelled"


def test_an_option_of_the_submission_behind_the_command_is_refused():
    with pytest.raises(InputError, match=r"--dry-run is no option of shards/build.py; .* before the command"):
        commands.check(["shards/build.py", "a", "b", "--dry-run"], 1)
    assert commands.check(["launch/evaluate.py", "a", "--name", "b"], 1)[0].argv[-1] == "b"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--part=1/2"], "--part is what the jobs add"),
        (["--par", "1/2"], "--part is what the jobs add"),
        (["--pa=1/2"], "--part is what the jobs add"),
        (["--parts=2"], "--parts is no option of shards/build.py; give launch/submit.py's before"),
        (["--jobs=x"], "--jobs is no option of shards/build.py; give launch/submit.py's before"),
        (["--tset", "L506"], "--tset is no option of shards/build.py; python shards/build.py --help shows them"),
    ],
)
def test_an_option_that_would_fail_in_the_job_or_do_one_part_only_is_refused(arguments, says):
    with pytest.raises(InputError) as caught:
        commands.check(["shards/build.py", "a", "b", *arguments], 2)
    assert says in str(caught.value)


def test_options_are_taken_as_argparse_takes_them():
    given = ["shards/build.py", "--tes=L506", "--shard-s", "4", "--pat", "64", "--", "--odd", "b"]
    assert commands.check(["--", *given], 1)[0].argv == given
    options = ["accept", "--minutes", "3", "--only", "no waits"]
    checked, _ = commands.check(["launch/bench.py", *options], 1)
    assert str(checked) == "launch/bench.py accept --minutes 3 --only 'no waits'"
    assert commands.check(["launch/findings.py", "a", "--pa", "4"], 1)[0].argv[-1] == "4"


def test_a_module_that_is_no_command_is_refused():
    with pytest.raises(InputError, match=r"shards/split.py is no command; there are: launch/bench.py, .*shards/build"):
        commands.check(["shards/split.py", "x", "y"], 1)
    assert "shards/split.py" not in commands.known() and "launch/train.py" not in commands.known()


def test_a_command_of_which_nothing_came_gives_way_to_another(tmp_path):
    wrong, right = (commands.Command(["launch/compare.py", name]) for name in ("wrong", "right"))
    commands.begin(tmp_path, wrong)
    (tmp_path / "whole").mkdir()
    write_status(tmp_path / "whole", Status(state="failed"))
    commands.begin(tmp_path, right)
    assert commands.read(tmp_path) == right
    write_status(tmp_path / "whole", Status(state="finished"))
    with pytest.raises(InputError, match="is of another command"):
        commands.begin(tmp_path, wrong)


@pytest.mark.parametrize(
    ("parts", "says"), [(300, "300 new, whole new"), (2, "1-of-2 new, 2-of-2 new, whole new"), (1, "new")]
)
def test_many_parts_are_counted_and_one_has_no_name(tmp_path, parts, says):
    said = chain.dry_run(Cluster("local"), tmp_path, commands.Command(["shards/build.py"], parts=parts))
    assert said.splitlines()[0] == f"shards/build.py: {says}"


def test_only_what_can_use_a_gpu_asks_for_one():
    asks = {argv[0]: commands.check(argv, 1)[1] for argv in (["launch/bench.py", "accept"], ["launch/compare.py", "a"])}
    assert asks == {"launch/bench.py": True, "launch/compare.py": False}


def test_the_time_left_is_read_from_a_line_of_progress():
    for line, far in (
        ("build: 3/10 slices, 5.0/s, 12 s left\n", ("3", "10", "12")),
        ("build: 3/10 slices, 5.0/s, 12 s left, 8 MB/s\n", ("3", "10", "12")),
        ("build: 3/10 slices, 0/s, rate not known yet\n", ("3", "10", None)),
    ):
        assert part_job.PROGRESS.match(line).groups() == far


def test_the_heartbeat_goes_on_when_the_clock_is_put_back(tmp_path):
    status = part_job.PartStatus(tmp_path / "part")
    before = status.fields.heartbeat
    status.fields.heartbeat += 3600
    status.beat()
    assert before < read_status(tmp_path / "part").heartbeat <= time.time()


def test_steps_are_the_same_from_any_directory_and_go_on_with_moved_shards(tmp_path, monkeypatch):
    given = []
    for here in ("a", "b"):
        (tmp_path / here).mkdir()
        monkeypatch.chdir(tmp_path / here)
        given.append(chain.steps("evaluate,compare", tmp_path / "sweep", {"/shards"}))
    assert given[0] == given[1]
    folder = tmp_path / "sweep" / "jobs" / "evaluate"
    chain.place(folder, given[0]["evaluate"][0])
    moved = chain.steps("evaluate", tmp_path / "sweep", {"/moved"})["evaluate"][0]
    (part,) = chain.place(folder, moved)
    assert part.argv == commands.read(folder).argv and part.argv[-1] == "/moved"


def test_several_shards_are_refused_only_where_a_step_needs_them(tmp_path):
    assert list(chain.steps("compare", tmp_path, {"/a", "/b"})) == ["compare"]
    with pytest.raises(InputError, match="--then findings: the runs were trained on several shards"):
        chain.steps("compare,findings", tmp_path, {"/a", "/b"})


def test_only_jobs_of_slurm_are_waited_for(tmp_path):
    folder = tmp_path / "jobs"
    command = commands.Command(["shards/build.py"], parts=3)
    for executor, name, job in (("local", "1-of-3", "77"), ("slurm", "2-of-3", "78"), ("slurm", "3-of-3", "")):
        record, logs = submission.new(folder, executor, [name], folder)
        record.jobs[name] = job
        submission.save(record, logs)
    assert [chain.job_of(part) for part in commands.parts_of(folder, command)] == ["", "78", "", ""]


def test_the_whole_waits_for_a_part_that_hangs(tmp_path, monkeypatch):
    """Stands in for sbatch: a part hangs for a quarter of an hour before it is called so."""
    folder = tmp_path / "jobs"
    parts = commands.parts_of(folder, commands.Command(["shards/build.py"], parts=3))
    record, logs = submission.new(folder, "slurm", [part.name for part in parts[:3]], folder)
    record.jobs = {"1-of-3": "7_0", "2-of-3": "7_1", "3-of-3": ""}
    submission.save(record, logs)
    for part, state in zip(parts, ("finished", status.HUNG, "running", "new"), strict=True):
        part.state = state
    asked = []
    monkeypatch.setattr(chain, "submit", lambda cluster, folder, code, chosen, after: asked.append(after) or ["8"])
    assert chain.submit_parts(Cluster(), folder, parts, "") == ["8"]
    assert asked == ["afterok:7_1"]


def test_a_part_that_hangs_is_replaced_with_the_whole_that_waits_for_it(tmp_path, monkeypatch, capsys):
    """Stands in for SLURM's commands: a real part is called hung after three minutes."""
    folder = tmp_path / "jobs"
    command = commands.Command(["shards/build.py"], parts=2)
    parts = commands.parts_of(folder, command)
    record, logs = submission.new(folder, "slurm", [part.name for part in parts], folder)
    record.jobs = {"1-of-2": "7_0", "2-of-2": "7_1", "whole": "8"}
    submission.save(record, logs)
    queue = {"7_1": squeue.Job("RUNNING", 0, "", "", 1.0), "8": squeue.Job("PENDING", 0, "Dependency", "", 0.0)}
    monkeypatch.setattr(squeue, "live", lambda jobs=None: queue)
    for name, state in (("1-of-2", "finished"), ("2-of-2", "running")):
        (folder / name).mkdir()
        write_status(folder / name, Status(state=state, heartbeat=1.0))
    text = (folder / "2-of-2" / "status.json").read_text()
    (folder / "2-of-2" / "status.json").write_text(re.sub('"heartbeat": [0-9.]+', '"heartbeat": 1.0', text))
    done = []
    monkeypatch.setattr(squeue, "cancel", lambda jobs: done.append(("cancel", *jobs)))
    monkeypatch.setattr(chain.snapshot, "take", lambda folder: folder)

    def submit(cluster, folder, code, chosen, after):
        done.append((*(part.name for part in chosen), after))
        return ["9"]

    monkeypatch.setattr(chain, "submit", submit)
    assert chain.submit_command(Cluster(), folder, command, "", again=False) == 0
    assert "2-of-2 lost, its job runs, whole pending\nnothing to submit" in capsys.readouterr().out and done == []
    assert chain.submit_command(Cluster(), folder, command, "", again=False, restart_lost=True) == 0
    assert done == [("cancel", "8"), ("cancel", "7_1"), ("2-of-2", ""), ("whole", "afterok:9")]


@pytest.fixture
def here(monkeypatch):
    """Make a part that a process of this machine works on, whose launcher is gone; SLURM's jobs are 9, 9, ..."""
    monkeypatch.setattr(chain.snapshot, "take", lambda folder: folder)
    submitted = []
    monkeypatch.setattr(chain, "submit", lambda *given: submitted.append(given) or ["9"])
    with contextlib.ExitStack() as stack:

        def make(folder):
            record, logs = submission.new(folder.parent, "local", [folder.name], folder)
            sleep = [sys.executable, "-c", "import time; time.sleep(60)", record.id]
            process = stack.enter_context(subprocess.Popen(sleep))
            stack.callback(process.kill)
            record.jobs[folder.name] = str(process.pid)
            submission.save(record, logs)
            folder.mkdir()
            write_status(folder, Status(state="running"))
            return process.pid, submitted

        yield make


def test_a_step_that_hangs_on_this_machine_is_named_and_not_done_beside_it(tmp_path, monkeypatch, capsys, here):
    chained = {"compare": (commands.Command(["launch/compare.py", "a"]), False)}
    folder = tmp_path / "jobs" / "compare"
    pid, submitted = here(folder / "whole")
    monkeypatch.setattr(runs, "LOST_AFTER_S", -1.0)  # it hangs at once
    for do in (chain.follow, chain.follow_here):
        with pytest.raises(InputError, match=f"whole hangs in process {pid} .*; end it with kill -9"):
            do(Cluster("local"), tmp_path, chained, False, True)
    with pytest.raises(InputError, match="whole hangs in process"):
        chain.follow(Cluster(), tmp_path, chained, anew=True)
    assert not chain.follow_here(Cluster("local"), tmp_path, chained, anew=False)
    assert capsys.readouterr().out.startswith("compare: lost, its job runs; add --restart-lost\n0 of 1 finished")
    assert read_status(folder / "whole").state == "running" and submitted == []


def test_what_runs_on_this_machine_is_not_done_beside_itself_in_slurm(tmp_path, here):
    """A job of SLURM cannot wait for a process: what follows it would begin at once."""
    folder = tmp_path / "jobs" / "evaluate"
    _, submitted = here(folder / "whole")
    then = {name: (commands.Command([f"launch/{name}.py", "a"]), False) for name in ("evaluate", "compare")}
    chain.refuse_beside_processes(tmp_path, {}, [])
    with pytest.raises(InputError, match=f"{folder}/whole runs in a process of .*, and no job of SLURM can wait"):
        chain.refuse_beside_processes(tmp_path, then, [])
    command = commands.Command(["shards/build.py", "a"], parts=2)
    here(tmp_path / "build" / "1-of-2")
    with pytest.raises(InputError, match=r"1-of-2 runs in a process of .* end it with launch/status.py .* --cancel"):
        chain.submit_command(Cluster(), tmp_path / "build", command, "", again=False)
    assert submitted == [] and read_status(folder / "whole").state == "running"


def test_a_dry_run_refuses_what_the_real_call_refuses(tmp_path):
    commands.begin(tmp_path / "compare", commands.Command(["launch/compare.py", "a"]))
    (tmp_path / "compare" / "whole").mkdir()
    write_status(tmp_path / "compare" / "whole", Status(state="finished"))
    with pytest.raises(InputError, match="compare is of another command"):
        chain.dry_run(Cluster("local"), tmp_path / "compare", commands.Command(["launch/compare.py", "b"]))
