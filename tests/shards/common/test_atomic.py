"""Files that are written once, by one of several."""

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from shards.common.atomic import write_once


def no_links(*paths):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.fixture(params=["with hard links", "without hard links"])
def links(request, monkeypatch):
    """A file system with hard links, and one without."""
    if request.param == "without hard links":
        monkeypatch.setattr(os, "link", no_links)


def test_of_several_that_write_at_once_one_does(links, tmp_path):
    for attempt in range(20):
        path = tmp_path / f"{attempt}"
        with ThreadPoolExecutor(8) as pool:
            wrote = [*pool.map(write_once, [path] * 8, map(str, range(8)))]
        assert sum(wrote) == 1 and path.read_text() == str(wrote.index(True))
    assert sorted(os.listdir(tmp_path)) == sorted(map(str, range(20)))


def test_what_is_there_stays_and_a_new_file_has_the_mode(links, tmp_path):
    assert write_once(tmp_path / "key", "first", 0o600) and not write_once(tmp_path / "key", "second", 0o600)
    assert (tmp_path / "key").read_text() == "first" and (tmp_path / "key").stat().st_mode & 0o777 == 0o600


KILLED = """
import errno, os, signal, sys
from pathlib import Path
from shards.common.atomic import write_once

def no_links(*paths):
    raise OSError(errno.EPERM, "Operation not permitted")

os.link = no_links
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
write_once(Path(sys.argv[1]), "text")
"""


def test_a_process_killed_at_the_last_moment_leaves_nothing_under_the_name(monkeypatch, tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "key"]).returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    monkeypatch.setattr(os, "link", no_links)
    assert write_once(tmp_path / "key", "text") and (tmp_path / "key").read_text() == "text"


def test_any_other_refusal_is_told(monkeypatch, tmp_path):
    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        write_once(tmp_path / "key", "text")
    assert os.listdir(tmp_path) == []
