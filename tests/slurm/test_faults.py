"""Whatever happens on the cluster, a run ends like the undisturbed one, byte for byte.

All on a real SLURM with real trainings: 2 nodes x 2 tasks over gloo, and arrays of single tasks. The disturbances do
not depend on each other, so they run side by side, each on nodes of its own; a test looks at the outcome of one.
"""

import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from conftest import ROOT, run_command
from same_run import assert_same
from slurm_bed import (
    Bed,
    devcluster,
    job_of,
    ranks_of,
    slurmd_of,
    start_launcher,
    step_of,
    until,
    wait_finished,
    wait_gone,
    wait_step,
)

from launch import sweep
from ldct.runs import folder as runs
from ldct.runs.folder import read_status
from slurm import squeue, status, submission
from slurm.snapshot import PACKAGES
from slurm.sweep import HUNG

LONG = {"train.steps": 150, "train.save_every_s": 1.0, "train.timeout_s": 120.0, "train.log_every": 10}
"""A run that goes on for long enough to be disturbed; the same for all, so that all have the same end."""

DISTURB_AT = 20


def ddp(*nodes, **changes):
    """2 nodes x 2 tasks, on the named nodes only."""
    others = [f"n{number}" for number in range(1, 17) if f"n{number}" not in nodes]
    cluster = {"executor": "slurm", "partition": "low", "nodes": 2, "tasks_per_node": 2, "time_min": 30}
    return {**cluster, "signal_lead_s": 90, "exclude": ",".join(others), **changes}


def single(*nodes, **changes):
    return {**ddp(*nodes), "nodes": 1, "tasks_per_node": 1, **changes}


def slurm(*command):
    return squeue.ask(*command)


def log_text(folder):
    """All that the jobs of a sweep said."""
    return "".join(path.read_text() for path in sorted(folder.parent.glob("logs/*/*_log.*")))


def restarted(folder, times=1):
    job = job_of(folder)
    until(f"requeue of {folder.parent.name}", lambda: (j := squeue.live().get(job)) and j.restarts >= times)


def start(bed, name, cluster, **kwargs):
    """Submit a sweep of one run and wait until it trains; return its folder."""
    bed.launch(name, cluster, LONG, **kwargs)
    (folder,) = bed.folders(name)
    wait_step(folder, DISTURB_AT)
    return folder


def undisturbed(bed):
    folder = start(bed, "undisturbed", ddp("n1", "n2"))
    wait_finished(folder)
    return folder


def time_limit(bed):
    """SLURM's own warning before a time limit. The ranks sleep until it comes: it brings a SIGCONT with it."""
    folder = start(bed, "limit", ddp("n3", "n4"))
    job = job_of(folder)
    for pid in ranks_of(job).values():
        os.kill(pid, signal.SIGSTOP)
    elapsed = time.time() - squeue.live()[job].began
    slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={int(elapsed // 60) + 2}")
    restarted(folder)
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    wait_finished(folder)
    return folder


def preemption(bed):
    """A job of a higher partition takes both nodes, and the run waits for them."""
    folder = start(bed, "preempted", ddp("n5", "n6"))
    hold = bed.folder / "hold"
    hold.touch()
    wrap = f"while [ -e {hold} ]; do sleep 0.2; done"
    flags = ["-p", "high", "-N2", "-w", "n[5-6]", "--exclusive", "-o", "/dev/null", "--wrap", wrap]
    high = slurm("sbatch", "--parsable", *flags).strip()
    until("the high job", lambda: squeue.live()[high].state == "RUNNING")
    restarted(folder)
    (waiting,) = bed.status("preempted").values()
    again = bed.launch("preempted", ddp("n5", "n6"), LONG)
    hold.unlink()
    wait_finished(folder)
    return folder, waiting, again.stdout


def operator_requeue(bed):
    """scontrol requeue, of a run whose launcher's code is broken by then."""
    root = bed.folder / "project"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    folder = start(bed, "requeued", ddp("n7", "n8"), root=root)
    (root / "ldct" / "training" / "trainer.py").write_text("raise RuntimeError('edited after submission')\n")
    slurm("scontrol", "requeue", job_of(folder))
    restarted(folder)
    wait_finished(folder)
    return folder


def node_loss(bed):
    """One of two nodes loses its power; a third one is there."""
    folder = start(bed, "lost", ddp("n9", "n10", "n11"))
    victim = slurm("scontrol", "show", "hostnames", slurm("squeue", "-h", "-o", "%N", "-j", job_of(folder)).strip())
    victim = victim.split()[1]
    devcluster("crash", victim)
    try:
        restarted(folder)
        wait_finished(folder)
    finally:
        devcluster("boot", victim)
    return folder, victim


def killed_rank(bed):
    """kill -9 of one rank: the step ends with it, and the next launcher submits the run again."""
    folder = start(bed, "killed", ddp("n12", "n13"))
    job = job_of(folder)
    os.kill(ranks_of(job)[3], signal.SIGKILL)
    wait_gone(job)
    (failed,) = bed.status("killed").values()
    again = bed.launch("killed", ddp("n12", "n13"), LONG)
    wait_finished(folder)
    return folder, failed, again.stdout


def eight(bed):
    """An array of 8 with parallelism 3, from two launchers at once."""
    cluster, values = single("n14", array_parallelism=3), {**LONG, "train.steps": 80, "train.seed": list(range(8))}
    argv = bed.files("eight", cluster, values)
    launchers = [start_launcher(*argv) for _ in range(2)]
    said = [launcher.communicate(timeout=120)[0] for launcher in launchers]
    folders = bed.folders("eight")
    most = 0
    while not all(read_status(folder).state == "finished" for folder in folders):
        jobs = squeue.live()
        most = max(most, sum(jobs[j].state == "RUNNING" for f in folders if (j := job_of(f)) in jobs))
        time.sleep(0.5)
    return folders, said, most


def cancelled(bed):
    """One task of an array is warned, one cancelled, then all; the launcher finishes what is missing."""
    cluster, values = single("n14"), {**LONG, "train.steps": 80, "train.seed": [0, 1, 2]}
    bed.launch("cancelled", cluster, values)
    folders = bed.folders("cancelled")
    jobs = [job_of(folder) for folder in folders]
    asleep = {}  # each until it is disturbed: the first to train must not be through before the last one starts
    while len(asleep) < 3:
        for folder, job in zip(folders, jobs, strict=True):
            if job not in asleep and step_of(folder) >= DISTURB_AT:
                asleep[job] = ranks_of(job)[0]
                os.kill(asleep[job], signal.SIGSTOP)
        time.sleep(0.1)
    slurm("scancel", "--signal=USR2", f"{jobs[0]}.0")
    os.kill(asleep[jobs[0]], signal.SIGCONT)
    slurm("scancel", jobs[1])  # brings its own SIGCONT
    wait_gone(jobs[1])
    restarted(folders[0])
    slurm("scancel", jobs[0].split("_")[0])
    for job in jobs:
        wait_gone(job)
    states = [bed.status("cancelled")[folder.name]["state"] for folder in folders]
    again = bed.launch("cancelled", cluster, values)
    wait_finished(*folders)
    return folders, states, again.stdout


def cut_off(bed):
    """A node is cut off while its rank sleeps; SLURM starts the run again elsewhere; then the rank wakes up."""
    values = {**LONG, "train.steps": 80, "train.seed": 0}
    bed.launch("cutoff", single("n15", "n16"), values)
    (folder,) = bed.folders("cutoff")
    wait_step(folder, DISTURB_AT)
    (rank,) = ranks_of(job_of(folder)).values()
    os.kill(rank, signal.SIGSTOP)
    node = slurm("squeue", "-h", "-o", "%N", "-j", job_of(folder)).strip()
    daemon = slurmd_of(node)
    daemon.suspend()
    try:
        slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=cut")
        restarted(folder)
        until("the second attempt", lambda: read_status(folder).attempt == 2)
        os.kill(rank, signal.SIGCONT)
        until("the end of the first one", lambda: not psutil.pid_exists(rank))
    finally:
        daemon.resume()
    wait_finished(folder)
    until(f"{node} is back", lambda: slurm("sinfo", "-h", "-n", node, "-p", "low", "-o", "%T").strip() == "idle")
    return folder


def hung(bed):
    """A rank that sleeps for ever: nothing but its heartbeat tells. The launcher replaces its job."""
    values = {**LONG, "train.steps": 80, "train.seed": 0}
    bed.launch("hung", single("n14"), values)
    (folder,) = bed.folders("hung")
    wait_step(folder, DISTURB_AT)
    job, (rank,) = job_of(folder), ranks_of(job_of(folder)).values()
    os.kill(rank, signal.SIGSTOP)
    with pytest.MonkeyPatch.context() as patch:  # in this process alone, which trains nothing
        patch.setattr(runs, "LOST_AFTER_S", 3.0)
        until("it is missed", lambda: status.reports([folder.parent])[0][0].state == HUNG)
        patch.setattr("sys.argv", ["sweep.py", *map(str, bed.files("hung", single("n14"), values)), "--restart-lost"])
        assert sweep.main() == 0
    wait_finished(folder)
    wait_gone(job)
    return folder


def useless_gpu(bed):
    """A job with a GPU, and a torch that cannot use it."""
    bed.launch("useless", single("n14", gpus_per_node=1), LONG)
    (folder,) = bed.folders("useless")
    wait_gone(job_of(folder))
    until("the accounting", lambda: status.reports([folder.parent])[0][0].gpu_hours)
    return bed.status("useless")[folder.name]


SCENARIOS = [undisturbed, time_limit, preemption, operator_requeue, node_loss, killed_rank, eight, cancelled]
SCENARIOS += [useless_gpu, cut_off, hung]


@pytest.fixture(scope="module")
def outcome(request, hurried, tiny_shards, tmp_path_factory):
    """Outcome of a scenario by its function; those of the chosen tests run side by side, as many as 2 cores carry."""
    named = {name for item in request.session.items for name in item.function.__code__.co_names}
    bed = Bed(tmp_path_factory.mktemp("faults"), tiny_shards)
    with ThreadPoolExecutor(4) as pool:
        futures = {scenario: pool.submit(scenario, bed) for scenario in SCENARIOS if scenario.__name__ in named}
        yield lambda scenario: futures[scenario].result()
        for future in futures.values():
            future.cancel()


@pytest.mark.timeout(400)
def test_time_limit(outcome):
    folder = outcome(time_limit)
    assert_same(folder, outcome(undisturbed))
    assert read_status(folder).attempt == 2
    assert "Caught signal SIGUSR2" in log_text(folder)
    assert "Requeued job" in log_text(folder)


@pytest.mark.timeout(400)
def test_preemption_by_a_higher_partition(outcome):
    folder, waiting, again = outcome(preemption)
    assert_same(folder, outcome(undisturbed))
    assert read_status(folder).attempt == 2
    assert (waiting["state"], waiting["requeues"], waiting["error"]) == ("requeued", 1, "")
    assert "nothing to submit" in again


@pytest.mark.timeout(400)
def test_requeue_by_the_operator_runs_the_code_it_was_submitted_with(outcome):
    folder = outcome(operator_requeue)
    assert_same(folder, outcome(undisturbed))
    assert read_status(folder).attempt == 2


@pytest.mark.timeout(400)
def test_node_loss(outcome):
    folder, victim = outcome(node_loss)
    assert_same(folder, outcome(undisturbed))
    assert read_status(folder).attempt == 2
    assert read_status(folder).host != victim


@pytest.mark.timeout(400)
def test_killed_rank(outcome):
    folder, failed, again = outcome(killed_rank)
    assert_same(folder, outcome(undisturbed))
    assert failed["state"] == "failed", failed
    assert failed["error"]
    assert os.path.exists(failed["log"])
    assert "1 to submit" in again


@pytest.mark.timeout(400)
def test_array_with_parallelism_and_two_launchers(outcome):
    folders, said, most = outcome(eight)
    assert most == 3
    assert sorted("submitted 8 runs" in text for text in said) == [False, True], said
    assert sum("nothing to submit" in text for text in said) == 1, said
    jobs = {job.split("_")[0] for _, job in submission.latest(folders[0].parent).values()}
    assert len(jobs) == 1
    assert [read_status(folder).attempt for folder in folders] == [1] * 8


@pytest.mark.timeout(400)
def test_cancelled_task_and_array(outcome):
    folders, states, again = outcome(cancelled)
    assert states == ["stopped"] * 3
    assert "3 to submit" in again
    for folder, other in zip(folders, outcome(eight)[0], strict=False):
        assert_same(folder, other)


@pytest.mark.timeout(400)
def test_a_node_that_was_only_cut_off(outcome):
    folder = outcome(cut_off)
    assert_same(folder, outcome(eight)[0][0])
    assert read_status(folder).attempt == 2
    said = f"attempt 2 of {folder} has begun and goes on with it; this one, attempt 1, ends"
    assert [line for line in log_text(folder).splitlines() if "attempt" in line] == [said]


@pytest.mark.timeout(400)
def test_a_run_that_hangs_is_seen_and_replaced(outcome):
    folder = outcome(hung)
    assert_same(folder, outcome(eight)[0][0])
    assert read_status(folder).attempt == 2
    assert len(submission.read_all(folder.parent)) == 2


@pytest.mark.timeout(400)
def test_controller_down(outcome, hurried, tiny_shards, tmp_path):
    """While the controller is away runs go on, nothing is submitted by halves, and status still reads the folders."""
    reference = outcome(undisturbed)
    bed = Bed(tmp_path, tiny_shards)
    folder = start(bed, "alone", ddp("n1", "n2"))
    devcluster("restart-controller", "--stop")
    try:
        refused = bed.launch("other", single("n14"), {"train.seed": [0, 1]}, check=False)
        shown = run_command("launch/status.py", bed.runs / "alone")
    finally:
        devcluster("restart-controller", "--start")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: SLURM") and len(refused.stderr.splitlines()) == 1
    assert submission.read_all(bed.runs / "other") == []
    assert "without SLURM's word" in shown.stdout and "alone/000 " in shown.stdout
    assert not [job for job in squeue.live().values() if job.state == "PENDING"]
    wait_finished(folder)
    assert_same(folder, reference)
    assert read_status(folder).attempt == 1


@pytest.mark.timeout(400)
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPUs here; the case is one where it cannot")
def test_a_gpu_that_torch_cannot_use_is_an_error_and_not_a_run_on_the_cpu(outcome):
    shown = outcome(useless_gpu)
    assert (shown["state"], shown["step"]) == ("failed", 0)
    assert "SLURM gave this job 1 GPUs, torch" in shown["error"]
    assert 0 < shown["gpu_hours"] < 0.1  # of the allocation: it never trained
