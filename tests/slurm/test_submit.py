"""What SLURM makes of submissions; nothing here trains."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import pytest
from slurm_bed import job_of, until, wait_gone
from submitit.core.utils import DelayedSubmission, JobPaths

from launch import sweep
from shards.common.command import InputError
from slurm import squeue, status, submission
from slurm.cluster import Cluster
from slurm.submit import note_lost_answers

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


def test_a_job_of_which_sbatchs_answer_never_came_is_found(cluster, bed, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["sweep.py", *map(str, bed.files("unheard", HELD, {"train.seed": [0, 1, 2]}))])
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" >/dev/null\necho "timed out" >&2\nexit 1\n')
    sbatch.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        assert sweep.main() == 0
    said = capsys.readouterr().out
    assert "note: sbatch failed, but SLURM has the job: " in said and "submitted 3 runs as job " in said
    folder = bed.runs / "unheard"
    (record,) = submission.read_all(folder)
    jobs = dict(record.jobs)
    assert sorted(jobs.values()) == sorted(squeue.live(jobs.values())) and len(set(jobs.values())) == 3

    def given():
        """What the jobs will do; submitit writes it behind the answer."""
        pickles = {name: JobPaths(folder / "logs" / record.id, job).submitted_pickle for name, job in jobs.items()}
        return {name: Path(DelayedSubmission.load(path).function.folder).name for name, path in pickles.items()}

    assert given() == {name: name for name in jobs}
    for path in (folder / "logs" / record.id).glob("*_submitted.pkl"):
        path.unlink()
    submission.save(dataclasses.replace(record, jobs={}), folder / "logs" / record.id)  # the launcher was killed
    listed, _ = status.reports([folder])
    assert {Path(run.folder).name: run.job for run in listed} == jobs
    assert sweep.main() == 0
    array = jobs[record.runs[0]].split("_")[0]
    assert f"note: job {array} is of {record.id}, of which sbatch's answer never came" in capsys.readouterr().out
    assert submission.read_all(folder)[0].jobs == jobs and given() == {name: name for name in jobs}

    submission.save(dataclasses.replace(record, jobs={}), folder / "logs" / record.id)
    assert "cancelled 3 SLURM jobs" in status.cancel([folder], status.reports([folder])[0])
    until("they are gone", lambda: not squeue.live(jobs.values()))


def test_a_lost_answer_of_before_the_runs_were_given_anew_asks_for_no_slurm(monkeypatch, tmp_path):
    submission.new(tmp_path, "slurm", ["000-a"], tmp_path)
    record, logs = submission.new(tmp_path, "local", ["000-a"], tmp_path)
    record.jobs["000-a"] = "77"
    submission.save(record, logs)
    monkeypatch.setenv("PATH", "")
    note_lost_answers(Cluster("local"), tmp_path, [])


def test_a_run_that_left_the_sweep_gets_what_it_is_to_do_and_before_the_record(monkeypatch, tmp_path):
    """Stands in for squeue: a launcher is killed at a moment that no test can choose."""
    record, logs = submission.new(tmp_path, "slurm", ["000-a", "001-b"], tmp_path)
    entry = squeue.Job("PENDING", 0, "", record.id, 0.0)
    monkeypatch.setattr(squeue, "live", lambda jobs=None: {"7_0": entry, "7_1": entry})

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DelayedSubmission, "dump", killed)
        with pytest.raises(KeyboardInterrupt):
            note_lost_answers(Cluster(), tmp_path, [])
    note_lost_answers(Cluster(), tmp_path, [])
    assert submission.read_all(tmp_path)[0].jobs == {"000-a": "7_0", "001-b": "7_1"}
    pickles = [DelayedSubmission.load(JobPaths(logs, job).submitted_pickle) for job in ("7_0", "7_1")]
    assert [pickled.function.folder for pickled in pickles] == [str(tmp_path / name) for name in record.runs]


def test_the_last_submission_counts_also_where_an_earlier_ones_clock_was_ahead(tmp_path):
    for job, ahead_s in (("7", 7200), ("8", 3600), ("9", 0)):
        record, logs = submission.new(tmp_path, "slurm", ["000-a"], tmp_path)
        record.jobs["000-a"] = job
        record.time += ahead_s
        submission.save(record, logs)
        assert submission.latest(tmp_path)["000-a"][1] == job


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"id": "x", "executor"'])
def test_a_record_that_is_none_is_one_line(tmp_path, content):
    record, logs = submission.new(tmp_path, "slurm", ["000-a"], tmp_path)
    path = logs / submission.NAME
    path.write_text(path.read_text().replace("{", '{"of_another_version": 1,', 1))
    assert submission.read_all(tmp_path) == [record]
    path.write_text(content)
    with pytest.raises(InputError, match=f"not a record of what was submitted; end its jobs .* shows {record.id}"):
        submission.read_all(tmp_path)


def test_of_a_lost_record_only_what_was_not_given_anew_is_done(monkeypatch, tmp_path):
    """Stands in for squeue and scancel: the controller shows the job after the next launcher has asked for it."""
    lost, logs = submission.new(tmp_path, "slurm", ["000-a", "001-b"], tmp_path)
    anew, later = submission.new(tmp_path, "slurm", ["000-a"], tmp_path)
    anew.jobs["000-a"] = "8"
    submission.save(anew, later)
    entry = squeue.Job("PENDING", 0, "", lost.id, 0.0)
    monkeypatch.setattr(squeue, "live", lambda jobs=None: {"7_0": entry, "7_1": entry, "8": entry})
    cancelled = []
    monkeypatch.setattr(squeue, "cancel", lambda jobs: cancelled.extend(jobs))
    note_lost_answers(Cluster(), tmp_path, [])
    assert [path.name for path in logs.glob("*.pkl")] == ["7_1_submitted.pkl"] and cancelled == ["7_0"]
    assert {run: job for run, (_, job) in submission.latest(tmp_path).items()} == {"000-a": "8", "001-b": "7_1"}


def test_jobs_of_runs_that_left_the_sweep_file_are_named(cluster, bed, monkeypatch, capsys):
    for seeds in ([0, 1], [1, 2]):
        monkeypatch.setattr("sys.argv", ["sweep.py", *map(str, bed.files("edited", HELD, {"train.seed": seeds}))])
        assert sweep.main() == 0
    jobs = [job_of(folder) for folder in bed.folders("edited")]  # of seeds 0, 1, 2
    said = capsys.readouterr().out
    assert said.count("note: ") == 1 and f"does not have go on; to end them: scancel {jobs[0]}\n" in said
    assert "1 running or waiting, 1 to submit" in said
    squeue.cancel(jobs)


def test_a_step_that_waits_follows_the_shards(cluster, bed, monkeypatch, capsys, tmp_path):
    argv = [*map(str, bed.files("moved", HELD, {"train.seed": 0})), "--then", "evaluate,compare"]
    monkeypatch.setattr("sys.argv", ["sweep.py", *argv])
    assert sweep.main() == 0
    first = {name: job_of(bed.runs / "moved" / "jobs" / name / "whole") for name in ("evaluate", "compare")}
    assert sweep.main() == 0
    assert capsys.readouterr().out.endswith("nothing to submit\nevaluate, compare: nothing to submit\n")
    shutil.copytree(bed.shards, tmp_path / "copy")
    bed.shards = tmp_path / "copy"
    bed.files("moved", HELD, {"train.seed": 0})
    assert sweep.main() == 0
    said = capsys.readouterr().out
    assert re.search(r"nothing to submit\nbehind them: evaluate as job \d+, compare as job \d+\n$", said)
    until("the old ones are gone", lambda: not squeue.live(first.values()))
    squeue.cancel([job_of(bed.runs / "moved" / "jobs" / name / "whole") for name in first])
    squeue.cancel([job for _, job in submission.latest(bed.runs / "moved").values()])


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


def test_the_cluster_file_decides_and_not_the_shell_that_submits(cluster, bed, monkeypatch):
    """A user's defaults for sbatch, and what an allocation around the launcher would hand on to the job's srun."""
    of_a_user = {"PARTITION": "high", "TIMELIMIT": "1", "NO_REQUEUE": "1", "ARRAY_INX": "0-9", "OUTPUT": "/dev/null"}
    for name, value in {**of_a_user, "RESERVATION": "none", "JOB_NAME": "mine"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    for name, value in {"JOB_ID": "1", "MEM_PER_CPU": "100", "CPU_BIND": "quiet,corescores"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    free = {**HELD, "sbatch": {}, "mem_gb": 1, "setup": ["srun true", "false"]}
    monkeypatch.setattr("sys.argv", ["sweep.py", *map(str, bed.files("shell", free, {"train.seed": [0, 1]}))])
    with pytest.raises(InputError, match="reservation"):  # which the file leaves open
        sweep.main()
    monkeypatch.delenv("SBATCH_RESERVATION")
    assert sweep.main() == 0
    jobs = [job_of(folder) for folder in bed.folders("shell")]
    for job in jobs:
        wait_gone(job)
    shown = squeue.ask("scontrol", "show", "job", jobs[0])
    assert {"Partition=low", "TimeLimit=00:30:00", "Requeue=1", "JobName=shell"} <= set(shown.split())
    assert {run["error"] for run in bed.status("shell").values()} == {"setup line failed: false, exit status 1"}


def test_forgotten_jobs_are_gone_and_not_an_error(cluster):
    assert squeue.live(["1"]) == squeue.live(["1_0", "2"]) == squeue.live([]) == {}
