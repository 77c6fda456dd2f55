"""A lock on a file, held by real processes."""

import errno
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from shards.common.command import InputError
from shards.common.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from shards.common.lock import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path/lock."""
    command = [sys.executable, "-c", HOLD, tmp_path / "lock"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_holder_is_named_and_nothing_of_it_lost(holder, tmp_path):
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            locked(tmp_path / "lock", "someone else is here").__enter__()
        said = f"someone else is here (process {holder.pid} on {os.uname().nodename}); wait for it to end, or stop it"
        assert str(caught.value) == said


def test_a_killed_holder_leaves_no_lock(holder, tmp_path):
    holder.kill()
    holder.wait()
    with locked(tmp_path / "lock", "busy"):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on")
    with locked(tmp_path / "lock", "busy"):  # let go of, and taken again
        pass


def test_it_is_waited_for(holder, tmp_path):
    began = time.monotonic()
    with pytest.raises(InputError):
        locked(tmp_path / "lock", "busy", wait_s=0.5).__enter__()
    assert time.monotonic() - began >= 0.5
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
    with locked(tmp_path / "lock", "busy", wait_s=-1):
        assert holder.wait(10) == -9


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_one_line_and_not_a_busy_one(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(InputError, match=rf"its file system has no locks \({os.strerror(number)}\); choose another"):
        locked(tmp_path / "lock", "busy", wait_s=30).__enter__()


def test_a_folder_of_somebody_else_is_one_line(tmp_path, plainly):
    tmp_path.chmod(0o500)
    code = (
        "import sys; from pathlib import Path; from shards.common.command import command; "
        "from shards.common.lock import locked; command(lambda: locked(Path(sys.argv[1]), 'busy').__enter__())"
    )
    done = subprocess.run([*plainly, sys.executable, "-c", code, tmp_path / "lock"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith("Permission denied; choose a folder of your own\n")
