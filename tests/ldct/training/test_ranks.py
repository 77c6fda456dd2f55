"""Two gloo ranks, each a real process."""

import itertools
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import run_command, tiny_flags
from rank_process import Rank
from same_run import assert_same, lines

from ldct.runs import checkpoint
from ldct.runs.folder import read_status

NEVER = ("0", "-1", "TERM")
LOGS = tempfile.TemporaryDirectory(prefix="ranks-")
NUMBERS = itertools.count()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(flags, world_size=2, act=NEVER, port=None, only=None):
    """Start the ranks of a run, or ``only`` one, one of which acts as rank_process.Rank says."""
    port, ranks = port or free_port(), []
    for rank in range(world_size) if only is None else [only]:
        env = {"OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks.append(Rank(env, act, flags, f"{LOGS.name}/{next(NUMBERS)}"))
    return ranks


def run(flags, world_size=2, act=NEVER):
    """Exit statuses and messages of the ranks of a run."""
    statuses, errors = zip(*(rank.ended() for rank in start(flags, world_size, act)), strict=True)
    return list(statuses), errors


ASLEEP = {
    "slow": (2, ("0", "-1", "slow"), {"train__timeout_s": 5}),
    "killed 2 of 3": (3, ("2", "4", "SIGKILL"), {"train__global_batch": 9}),
    "killed 1": (2, ("1", "9", "SIGKILL"), {"train__save_every_s": 0.001}),
    "killed 0": (2, ("0", "9", "SIGKILL"), {"train__save_every_s": 0.001}),
    "failed 1": (2, ("1", "9", "fail"), {"train__save_every_s": 0.001}),
    "late": (2, ("1", "-1", "late"), {"train__timeout_s": 5}),
    "hangs": (2, ("1", "4", "hang"), {"train__timeout_s": 5}),
    "hangs alone": (1, ("0", "4", "hang"), {"train__hang_s": 5}),
}
"""Runs whose ranks mostly wait: their number, which of them does what, and what the run changes."""


def disturbed(flags, world_size, act):
    """Exit statuses and messages of ranks of which one ends, or hangs until the others have ended: a minute later."""
    ranks = start(flags, world_size, act)
    disturber = ranks[int(act[0])]
    try:
        if act[2] != "hang":
            disturber.join(120)
        ends = [rank.ended(60) for rank in ranks if rank is not disturber]
        if world_size > 1 and act[2] == "hang":
            disturber.kill()
        ends.insert(int(act[0]), disturber.ended(60))
    finally:
        for rank in ranks:
            rank.kill()
    statuses, errors = zip(*ends, strict=True)
    return list(statuses), errors


@pytest.fixture(scope="module", autouse=True)
def outcome(tiny_shards, tmp_path_factory):
    """Folder, exit statuses and messages of one of ASLEEP by its name. They go on side by side, from the first test."""
    folders = {name: tmp_path_factory.mktemp("asleep") for name in ASLEEP}
    with ThreadPoolExecutor(4) as pool:
        futures = {
            name: pool.submit(disturbed, tiny_flags(tiny_shards, folders[name], **changes), world_size, act)
            for name, (world_size, act, changes) in ASLEEP.items()
        }
        yield lambda name: (folders[name], *futures[name].result())
        for future in futures.values():
            future.cancel()


@pytest.fixture(scope="module")
def undisturbed(tiny_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-ranks")
    statuses, errors = run(tiny_flags(tiny_shards, folder))
    assert statuses == [0, 0], errors
    return folder


def test_one_rank_alone_writes(undisturbed):
    status = read_status(undisturbed)
    assert (status.world_size, status.attempt, status.state) == (2, 1, "finished")
    assert [line["step"] for line in lines(undisturbed)] == [0, 3, 6, 7, 9, 12, 14, 15, 18, 20, 20]


@pytest.mark.parametrize("act", [("1", "9", "SIGTERM"), ("0", "12", "SIGUSR2")], ids=["TERM-to-1", "USR2-to-0"])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(tiny_shards, tmp_path, undisturbed, act):
    """One step late: what ranks ask of each other goes round while they make the next step."""
    flags = tiny_flags(tiny_shards, tmp_path)
    statuses, errors = run(flags, act=act)
    assert statuses == [75, 75], errors
    assert all(f"stopped by {act[2]} with a checkpoint" in error for error in errors)
    assert checkpoint.newest(tmp_path / "checkpoints")["step"] == int(act[1]) + 1
    assert run(flags)[0] == [0, 0]
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize("name", ["killed 1", "killed 0", "failed 1"])
def test_a_rank_that_ends_is_named_by_the_other(tiny_shards, outcome, undisturbed, name):
    folder, statuses, errors = outcome(name)
    lost = int(name[-1])
    survivor = 1 - lost
    assert statuses[lost] == (-9 if "killed" in name else 1) and statuses[survivor] == 1
    assert f"RankLost: rank {lost}" in errors[survivor].splitlines()[-1]
    if survivor == 0:
        status = read_status(folder)
        assert status.state == "failed" and f"rank {lost} ({socket.gethostname()}, pid" in status.error
        assert ("ZeroDivisionError: broken on purpose) ended" in status.error) == ("failed" in name)
    else:  # rank 0 killed where it stood, its status still says running
        assert read_status(folder).state == "running"
        assert run(tiny_flags(tiny_shards, folder))[0] == [0, 0]
        assert_same(folder, undisturbed)


def test_every_survivor_names_the_one_that_ended_and_not_the_first_to_give_up(outcome):
    _, statuses, errors = outcome("killed 2 of 3")
    assert statuses == [1, 1, -9]
    said = [error.splitlines()[-1].partition("RankLost: ")[2] for error in errors[:2]]
    assert all(line.startswith(f"rank 2 ({socket.gethostname()}, pid ") for line in said), said


def test_a_rank_that_cannot_hear_of_the_lost_one_is_ended_with_its_name(tiny_shards, tmp_path):
    """As one whose device waits for gradients of the lost rank, in a call that nothing interrupts."""
    flags, port = tiny_flags(tiny_shards, tmp_path), free_port()
    (waiting,) = start(flags, 2, ("0", "4", "wait"), port, only=0)
    (lost,) = start(flags, 2, ("1", "4", "SIGKILL"), port, only=1)
    assert lost.ended()[0] == -9
    status, error = waiting.ended(60)
    assert status == 1
    assert f"RankLost: rank 1 ({socket.gethostname()}, pid {lost.pid}) ended" in error.splitlines()[-1]
    assert "in wait" in error  # the stacks


def test_a_rank_that_hangs_is_waited_for_only_so_long(outcome):
    _, statuses, errors = outcome("hangs")
    assert statuses[0] == 1 and "imed out" in errors[0].splitlines()[-1]


def test_a_rank_that_starts_late_is_waited_for(outcome, undisturbed):
    """Imports from a disk of many nodes take longer than a step may."""
    folder, statuses, errors = outcome("late")
    assert statuses == [0, 0], errors
    assert_same(folder, undisturbed)


def test_what_rank_0_does_alone_is_waited_for(outcome, undisturbed):
    """Reading and writing checkpoints, opening the folder, a line of metrics, a heartbeat, the pictures: each takes
    longer than a step may."""
    folder, statuses, errors = outcome("slow")
    assert statuses == [0, 0], errors
    slow = {line.split()[1] for line in errors[0].splitlines() if line.startswith("slow: ")}
    assert slow == {"_choose", "save", "pictures", "__enter__", "line", "heartbeat"}
    assert_same(folder, undisturbed)


def test_a_rank_of_another_run_at_the_same_port_is_sent_away(tiny_shards, tmp_path, undisturbed):
    flags, port = tiny_flags(tiny_shards, tmp_path / "run"), free_port()
    ranks = start(flags, port=port, only=0)
    (stray,) = start(tiny_flags(tiny_shards, tmp_path / "other"), port=port, only=1)
    status, error = stray.ended()
    assert status == 2
    assert error.startswith(f"error: port {port} of 127.0.0.1 belongs to another start or run, {tmp_path / 'run'}")
    assert len(error.splitlines()) == 1
    ranks += start(flags, port=port, only=1)
    ends = [rank.ended() for rank in ranks]
    assert [status for status, _ in ends] == [0, 0], ends
    assert_same(tmp_path / "run", undisturbed)


def test_a_step_that_hangs_ends_its_rank_and_says_where(outcome):
    folder, (status,), (error,) = outcome("hangs alone")
    assert status == 1
    assert "Timeout (0:00:05)!" in error
    assert "rank_process.py" in error and "in hang" in error
    assert read_status(folder).state == "running"  # nothing more could be written


def test_another_number_of_ranks_gives_the_same_curve(tiny_shards, tmp_path, undisturbed):
    """A run of two ranks that goes on with one: the same batches, equal within rounding."""
    flags = tiny_flags(tiny_shards, tmp_path)
    assert run(flags, act=("0", "10", "SIGTERM"))[0] == [75, 75]
    assert run(flags, world_size=1)[0] == [0]
    for line, other in zip(lines(tmp_path), lines(undisturbed), strict=True):
        assert line.keys() == other.keys()
        for key in line:
            assert line[key] == pytest.approx(other[key], rel=1e-3), key


def test_torchrun_starts_the_same_run(tiny_shards, tmp_path, undisturbed):
    flags = tiny_flags(tiny_shards, tmp_path)
    run_command("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "launch/train.py", *flags)
    assert_same(tmp_path, undisturbed)


def test_a_batch_that_does_not_divide_is_one_line(tiny_shards, tmp_path):
    statuses, errors = run(tiny_flags(tiny_shards, tmp_path, train__global_batch=9))
    assert statuses == [2, 2]
    assert "train.global_batch: expected a multiple of 2 (world size 2 x train.accumulate 1), found 9" in errors[0]
