"""What launch/status.py makes of run folders, records and logs."""

import json
import re
import time
from datetime import datetime, timedelta

import pytest
from conftest import run_command

from ldct.runs import folder as runs
from slurm import accounting, commands, squeue, status, status_table, submission


@pytest.fixture
def make(tmp_path):
    """Write a run folder; give it to a job of a SLURM submission."""

    def write(name, job="", log="", **fields):
        folder = tmp_path / "s" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("{}\n")
        if fields:
            runs.write_status(folder, runs.Status(steps=100, attempt=1, **fields))
        if job:
            record, logs = submission.new(folder.parent, "slurm", [name], folder)
            record.jobs[name] = job
            submission.save(record, logs)
            submission.log_of(folder.parent, record, job).write_text(log)
        return folder

    return write


@pytest.fixture
def cluster_says(monkeypatch):
    """Stand in for squeue and sacct, whose real answers tests/slurm/test_faults.py looks at."""

    def says(live, ended=None, costs=""):
        monkeypatch.setattr(squeue, "live", lambda jobs: live)
        monkeypatch.setattr(squeue, "ended", lambda jobs: {j: s for j, s in (ended or {}).items() if j in jobs})
        monkeypatch.setattr(accounting, "ask", lambda *command: costs)

    return says


def job(state, restarts=0, began=0.0, reason="None"):
    return squeue.Job(state, restarts, reason, "", began)


TRACEBACK = """submitit ERROR - Submitted job triggered an exception
Traceback (most recent call last):
  File "x.py", line 1, in <module>
    f()
ValueError: first

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "x.py", line 2, in <module>
    g()
torch.OutOfMemoryError: no memory left
srun: error: n1: task 0: Exited with exit code 1
"""


def test_states(make, cluster_says, tmp_path):
    make("000-new")
    make("001-pending", job="1_0")
    make("002-running", job="1_1", state="running", step=40, eta_s=12.0, patches_per_s=1000.0)
    make("003-requeued", job="1_2", state="stopped", step=30)
    make("004-finished", job="1_3", state="finished", step=100)
    make("005-failed", job="1_4", state="failed", error="ValueError: bad", log=TRACEBACK)
    make("006-gone", job="1_5", state="running", step=3)
    make("007-cancelled", job="1_6", state="stopped", step=3)
    make("008-never", job="1_7")
    make("009-died", job="1_8", state="running", step=3, log=TRACEBACK)
    make("010-timeout", job="1_9", state="running", step=3)
    live = {"1_0": job("PENDING"), "1_1": job("RUNNING"), "1_2": job("PENDING", restarts=2)}
    cluster_says(live, {"1_7": "CANCELLED", "1_8": "FAILED", "1_9": "TIMEOUT"})
    listed, silent = status.reports([tmp_path])
    assert silent == ""
    states = {run.run.split("-")[1]: (run.state, run.requeues, run.error) for run in listed}
    assert states == {
        "new": ("new", 0, ""),
        "pending": ("pending", 0, ""),
        "running": ("running", 0, ""),
        "requeued": ("requeued", 2, ""),
        "finished": ("finished", 0, ""),
        "failed": ("failed", 0, "ValueError: bad"),
        "gone": ("lost", 0, ""),
        "cancelled": ("stopped", 0, ""),
        "never": ("cancelled", 0, ""),
        "died": ("failed", 0, "torch.OutOfMemoryError: no memory left"),
        "timeout": ("failed", 0, "SLURM: TIMEOUT"),
    }
    shown = status_table.show(listed, silent)
    assert re.search(r"^s/003-requeued +requeued +2 +30/100 ", shown, re.MULTILINE)
    assert "0:00:12" in shown
    assert (
        "11 runs: 1 new, 1 pending, 1 running, 1 requeued, 1 finished, 3 failed, 1 lost, 1 stopped, 1 cancelled"
        in shown
    )


def test_why_runs_wait(make, cluster_says, tmp_path):
    """One that SLURM has suspended writes no heartbeat, and is not lost."""
    for number in range(3):
        make(f"00{number}-held", job=f"1_{number}")
    make("003-new", job="1_3")
    make("004-suspended", job="1_4", state="running", step=40)
    path = runs.attempts.path_of(tmp_path / "s" / "004-suspended", "status.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"heartbeat": 1.0}))
    held = {f"1_{number}": job("PENDING", reason="QOSMaxJobsPerUserLimit") for number in range(3)}
    make("005-requeued-behind-its-end", job="1_5", state="finished", step=100)
    queue = held | {"1_3": job("PENDING"), "1_4": job("SUSPENDED"), "1_5": job("PENDING", 1, reason="BeginTime")}
    cluster_says(queue)
    listed, silent = status.reports([tmp_path])
    assert [run.state for run in listed] == ["pending"] * 5 + ["finished"]
    told = [line for line in status_table.show(listed, silent).splitlines() if "SLURM says" in line]
    assert told == [
        "3 wait, SLURM says QOSMaxJobsPerUserLimit: s/000-held, s/001-held, s/002-held",
        "1 wait, SLURM says SUSPENDED: s/004-suspended",
    ]


@pytest.mark.parametrize(("content", "why"), [("", "empty"), ('{"state": "fini', "torn"), ("[]", "torn")])
def test_a_status_that_cannot_be_read_is_not_a_new_run(make, cluster_says, tmp_path, content, why):
    folder = make("0-torn", state="finished", step=100)
    (folder / runs.STATUS).write_text(content)
    make("1-new")
    cluster_says({})
    listed, _ = status.reports([tmp_path])
    assert [run.state for run in listed] == ["failed", "new"]
    assert listed[0].error == f"status.json unreadable ({why}); a restart goes on from the last checkpoint"


def test_a_running_run_without_heartbeat_is_lost(make, cluster_says, tmp_path):
    folder = make("000-silent", job="7", state="running", step=3)
    path = folder / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"heartbeat": 1.0}))
    cluster_says({"7": job("RUNNING", began=1.0)}, {"7": "RUNNING"})
    listed, silent = status.reports([tmp_path])
    assert [(run.state, run.error) for run in listed] == [("lost, its job runs", "")]
    assert "1 x no heartbeat, but its job runs; replace it with launch/sweep.py --restart" in status_table.show(
        listed, silent
    )

    # its job has only just been started again: the heartbeat is that of the last attempt
    cluster_says({"7": job("RUNNING", restarts=1, began=time.time())})
    assert [run.state for run in status.reports([tmp_path])[0]] == ["running"]


def test_a_step_that_hung_is_told_by_its_log(make, cluster_says, tmp_path):
    log = "srun: error\nTimeout (0:30:00)!\nThread 0x01 (most recent call first):\n  File x in y\n"
    make("000-hung", job="7", state="running", step=3, log=TRACEBACK + log)
    cluster_says({}, {"7": "FAILED"})
    (run,) = status.reports([tmp_path])[0]
    assert (run.state, run.error) == (
        "failed", "a step took longer than train.hang_s (0:30:00); the log has the stacks",
    )  # fmt: skip


def test_a_full_disk_and_a_folder_that_the_nodes_do_not_see_are_told(make, cluster_says, tmp_path):
    full = make("000-full", job="1_0", state="running", step=3)
    unseen = make("001-unseen", job="1_1")
    fatal = make("002-fatal", job="1_2", log="srun: fatal: SLURM_MEM_PER_CPU and SLURM_MEM_PER_NODE are exclusive.\n")
    log_of_full, log_of_unseen = (next(full.parent.glob(f"logs/*/1_{number}_0_log.err")) for number in range(2))
    log_of_full.with_suffix(".out").write_text(
        "submitit ERROR - Could not dump error:\n[Errno 28] No space left on device\n"
    )
    log_of_unseen.unlink()
    cluster_says({}, dict.fromkeys(("1_0", "1_1", "1_2"), "FAILED"))
    errors = {run.folder: (run.state, run.error) for run in status.reports([tmp_path])[0]}
    assert errors == {
        str(full): ("failed", "[Errno 28] No space left on device; make room, then submit again"),
        str(unseen): ("failed", f"SLURM: FAILED, without a log; can the nodes write to {log_of_unseen.parent}?"),
        str(fatal): ("failed", "srun: fatal: SLURM_MEM_PER_CPU and SLURM_MEM_PER_NODE are exclusive."),
    }


def test_the_first_rank_to_end_is_told_by_srun_where_no_rank_could_speak(make, cluster_says, tmp_path):
    earlier = "srun: error: n9: task 0: Killed\nsrun: Job step aborted: Waiting up to 7 seconds\n"
    log = "srun: error: n2: task 1: Killed\n[W socket.cpp] a rank speaks\nsrun: Force Terminated StepId=7.0\n"
    make("000-lost", job="7", state="running", step=3, log=earlier + "a rank speaks\n" + log)
    folder = make("001-exit", job="8", state="running", step=3, log=log.replace("Killed", "Exited with exit code 1"))
    (submission_folder,) = {path.parent for path in folder.parent.glob("logs/*/8_0_log.err")}
    (submission_folder / "8_1_log.err").write_text(TRACEBACK)
    cluster_says({}, {"7": "FAILED", "8": "FAILED"})
    said = [(run.state, run.error) for run in status.reports([tmp_path])[0]]
    assert said == [
        ("failed", "rank 1 (n2): Killed"),
        ("failed", "rank 1 (n2): torch.OutOfMemoryError: no memory left"),
    ]


def test_failures_are_grouped_by_what_they_say(make, cluster_says, tmp_path):
    for index in range(7):
        make(f"{index:03d}-a", job=f"1_{index}", state="failed", error="ValueError: bad")
    make("100-b", job="2", state="failed", error="RankLost: rank 3 ended")
    cluster_says({})
    listed, _ = status.reports([tmp_path])
    lines = status_table.failures(listed)
    assert lines[0].startswith("7 x ValueError: bad\n    s/000-a, s/001-a, s/002-a, s/003-a, s/004-a and 2 more\n")
    assert f"log: {listed[0].log}" in lines[0] and listed[0].log.endswith("1_0_0_log.err")
    assert lines[1].startswith("1 x RankLost: rank 3 ended\n")


def test_gpu_hours_count_gpus_over_all_attempts(make, cluster_says, tmp_path):
    make("000-gpu", state="finished", device="NVIDIA H100", train_s=1800.0, world_size=8)
    make("001-cpu", state="finished", device="cpu", train_s=1800.0, world_size=8)
    cluster_says({})
    listed, _ = status.reports([tmp_path])
    assert [run.gpu_hours for run in listed] == [4.0, None]
    assert "2 runs: 2 finished; 4.00 GPU-hours" in status_table.show(listed, "")


def test_what_runs_differ_in_stands_in_their_columns(make, cluster_says, tmp_path):
    for index, (name, seed) in enumerate([("redcnn", 0), ("unet", 0), ("unet", 1)]):
        folder = make(f"{index:03d}-1a2b3c{index:02d}", state="finished", step=100, train_s=200.0 * index)
        model = {"name": name, "channels": 8, "kernel": {"redcnn": 5, "unet": 3}[name]}  # as published, each its own
        given = {"model": model, "train": {"seed": seed}, "track": {"tags": [index]}, "run_dir": index}
        (folder / "config.yaml").write_text(json.dumps(given))
    cluster_says({})
    lines = status_table.show(*status.reports([tmp_path])).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["run", "model", "seed", "state", "step", "running"],
        ["s/000", "redcnn", "0", "finished", "100/100", "-"],
        ["s/001", "unet", "0", "finished", "100/100", "0:03:20"],
        ["s/002", "unet", "1", "finished", "100/100", "0:06:40"],
    ]


def test_where_the_time_went_and_what_the_allocation_cost(make, cluster_says, tmp_path):
    """Two starts of one task, on a node with 4 GPUs: the second waited 2 minutes and runs for an hour."""
    make("000-1a2b3c4d", job="7_1", state="running", device="NVIDIA H100", train_s=4000.0, saving_s=80.0,
         validating_s=400.0)  # fmt: skip
    now = datetime.now().replace(microsecond=0)
    clock = [f"{now - timedelta(seconds=ago):%Y-%m-%dT%H:%M:%S}" for ago in (5000, 4940, 3720, 3600)]
    tres = "billing=1,cpu=4,gres/gpu=4,node=1"
    says = f"7_1|{clock[0]}|{clock[1]}|{clock[2]}|{tres}\n7_1|{clock[2]}|{clock[3]}|Unknown|{tres}\n"
    cluster_says({"7_1": job("RUNNING", 1, began=time.time())}, costs=says + f"7_[2-3%1]|{clock[0]}|Unknown|Unknown|\n")
    (run,) = status.reports([tmp_path])[0]
    assert run.queued_s == 60 + 120
    assert run.gpu_hours == pytest.approx(4 * (1220 + 3600) / 3600, abs=0.02)
    head, cells = (re.split(r"  +", line) for line in status_table.show([run], "").splitlines()[:2])
    shown = dict(zip(head, cells, strict=True))
    assert (shown["queued"], shown["running"], shown["saving"], shown["validating"]) == (
        "0:03:00", "1:06:40", "2 %", "10 %"
    )  # fmt: skip
    assert accounting.spent(["7_3"])["7_3"].queued_s == pytest.approx(5000, abs=5)


def test_a_run_whose_evaluation_does_not_look_like_ct_is_flagged(make, cluster_says, tmp_path):
    for name, value in (("000-smooth", 0.05), ("001-good", 1.0)):
        folder = make(name, state="finished")
        (folder / "eval").mkdir()
        method = {"name": folder.name, "metrics": {"texture/high_band": {"mean": value, "half": None}}}
        (folder / "eval" / "test.json").write_text(json.dumps({"methods": [method]}))
    cluster_says({})
    shown = status_table.show(*status.reports([tmp_path]))
    assert "warning: smoothed: high band 0.05, expected 0.20 to 2.00: s/000-smooth" in shown
    assert "001-good" not in shown.split("runs:")[1]


def test_a_run_that_did_not_stay_the_same_is_flagged(make, cluster_says, tmp_path, monkeypatch):
    folder = make("000-a", state="finished", step=100)
    (folder / "config.yaml").write_text("train:\n  steps: 500\n")
    for attempt, code in enumerate([("a" * 40, ""), ("a" * 40, "+ changed"), ("a" * 40, "")]):
        monkeypatch.setattr(runs, "code_version", lambda code=code: dict(zip(("commit", "diff"), code, strict=True)))
        runs.write_provenance(folder, "0", attempt)
    cluster_says({})
    shown = status_table.show(*status.reports([tmp_path]))
    assert "warning: trained by 2 versions of the code: aaaaaaaa, aaaaaaaa with changes baca: s/000-a" in shown
    assert "warning: train.steps was edited: 500 in config.yaml, 100 when it trained: s/000-a" in shown


def test_a_run_that_waits_to_train_for_longer_is_not_called_edited(make, cluster_says, tmp_path):
    folder = make("000-a", job="7", state="finished", step=100)
    (folder / "config.yaml").write_text("train:\n  steps: 500\n")
    cluster_says({"7": job("PENDING")})
    (run,) = status.reports([tmp_path])[0]
    assert (run.state, run.flags) == ("pending", [])


def test_two_sweeps_of_one_name_have_a_table_each(make, cluster_says, tmp_path):
    for place in ("old", "new"):
        make("000-0a1b2c3d", state="finished", step=100)
        (tmp_path / place).mkdir()
        (tmp_path / "s").rename(tmp_path / place / "s")
    listed, _ = status.reports([tmp_path])
    assert sorted(run.run for run in listed) == ["new/s/000-0a1b2c3d", "old/s/000-0a1b2c3d"]
    assert len([line for line in status_table.show(listed, "").splitlines() if line.startswith("run ")]) == 2


def test_of_two_steps_of_one_name_that_of_the_sweep_alone_is_cancelled(make, cluster_says, tmp_path, monkeypatch):
    make("000-a", state="finished", step=100)
    (tmp_path / "s").rename(tmp_path / "other")
    make("000-a", state="finished", step=100)
    command = commands.Command(["launch/evaluate.py", "s"], str(tmp_path))
    for sweep, job_id in (("s", "7"), ("other", "8")):
        folder = tmp_path / sweep / "jobs" / "evaluate"
        commands.begin(folder, command)
        record, logs = submission.new(folder, "slurm", ["whole"], folder)
        record.jobs["whole"] = job_id
        submission.save(record, logs)
    cluster_says({"7": job("RUNNING")}, {"8": "COMPLETED"})
    asked = []
    monkeypatch.setattr(squeue, "cancel", asked.extend)
    listed, _ = status.reports([tmp_path])
    assert {run.run for run in listed if run.values is None} == {"other/evaluate/whole", "s/evaluate/whole"}
    status.cancel([tmp_path], listed)
    assert asked == ["7"]


def test_what_is_said_of_a_silent_command_is_no_advice_for_a_training(make, cluster_says, tmp_path):
    commands.begin(tmp_path / "jobs" / "build", commands.Command(["shards/build.py"], str(tmp_path)))
    (tmp_path / "jobs" / "build" / "whole").mkdir()
    runs.write_status(tmp_path / "jobs" / "build" / "whole", runs.Status(state="running"))
    (part,) = status.reports([tmp_path / "jobs"])[0]
    for state, says in (
        ("lost", "1 x no heartbeat, and no word of why: killed from outside, perhaps out of memory\n"),
        (status.HUNG, "1 x no heartbeat, but its job runs; replace it: what submitted it, with --restart-lost; or end"),
    ):
        part.state = state
        assert status_table.failures([part])[0].startswith(says)


def test_json_and_wrong_flags(make, tmp_path):
    make("000-a", state="finished", step=100, best={"step": 50, "psnr": 33.5})
    (run,) = json.loads(run_command("launch/status.py", "--json", tmp_path).stdout)
    assert (run["run"], run["state"], run["best"]) == ("s/000-a", "finished", {"step": 50, "psnr": 33.5})
    assert "psnr 33.50 at 50" in run_command("launch/status.py", tmp_path).stdout
    watched = run_command("launch/status.py", tmp_path, "--watch")  # ends, since nothing runs
    assert "1 run: 1 finished" in watched.stdout
    for argv, says in (
        ([tmp_path / "none"], "expected a folder of runs"),
        ([tmp_path, "--json", "--watch"], "--json prints once"),
    ):
        done = run_command("launch/status.py", *argv, check=False)
        assert done.returncode == 2
        assert says in done.stderr and len(done.stderr.splitlines()) == 1
