import os
import signal
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import psutil
import pytest

from shards.common.command import InputError
from shards.common.pool import Workers

ROOT = Path(__file__).resolve().parents[3]
PARENT = """
import time
from shards.common.pool import Workers
with Workers(3) as workers:
    print(len(list(workers.each(abs, range(9)))), flush=True)
    time.sleep(60)
"""


def where(item):
    return item, os.getpid()


def die(item):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(item):
    raise OSError(28, "No space left on device", f"file {item}")


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order(processes):
    with Workers(processes) as workers:
        results = list(workers.each(where, range(50)))
    assert [item for item, _ in results] == list(range(50))
    pids = {pid for _, pid in results}
    assert pids == {os.getpid()} if processes == 1 else os.getpid() not in pids and len(pids) <= 3


def test_items_are_drawn_as_they_are_needed():
    drawn = []
    with Workers(2) as workers:
        results = workers.each(abs, (drawn.append(i) or i for i in count()))
        assert list(islice(results, 10)) == list(range(10))
    assert len(drawn) <= 10 + 4 * 2


def test_a_killed_worker_is_one_line():
    with Workers(2) as workers, pytest.raises(InputError, match=r"killed.*fewer --workers"):
        list(workers.each(die, range(4)))


def test_an_error_comes_out_as_it_was():
    with Workers(2) as workers, pytest.raises(OSError, match="No space left on device: 'file 0'"):
        list(workers.each(fail, range(4)))


def test_workers_die_with_their_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "9\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) == 3
    parent.kill()
    parent.wait()
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
