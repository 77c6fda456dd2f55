"""Headers are remembered by path, size, time of change and first bytes, and read again where any of them differs."""

import json
import os

import pytest
from phantom import images, write_series, write_slice

from shards import headers
from shards.common.pool import Workers
from shards.dicom import Damaged, Unreadable, Unusable, read_slices
from shards.headers import Headers


@pytest.fixture
def paths(tmp_path):
    paths = write_series(tmp_path / "in", "L067", "full", 3)
    (tmp_path / "in/notes.txt").write_text("hello")
    (tmp_path / "in/short.dcm").write_bytes(paths[0].read_bytes()[:2000])
    return [*paths, tmp_path / "in/notes.txt", tmp_path / "in/short.dcm"]


@pytest.fixture
def read(tmp_path, paths, monkeypatch):
    """Read all headers with a memory; returns them and the names of the files that were opened for it."""
    opened = []
    monkeypatch.setattr(headers, "read_slices", lambda path: opened.append(path.name) or read_slices(path))

    def run():
        opened.clear()
        return list(Headers(Workers(1), tmp_path / "headers.json").read(paths)), list(opened)

    return run


def test_a_second_time_gives_the_same_without_reading(read, paths):
    first, opened = read()
    assert opened == [path.name for path in paths]
    again, opened = read()
    assert opened == []
    assert again[:3] == first[:3] == [read_slices(path) for path in paths[:3]]
    assert [type(reason) for reason in again[3:]] == [Unusable, Damaged]
    assert [str(reason) for reason in again[3:]] == [str(reason) for reason in first[3:]]


@pytest.mark.parametrize("what", ["time", "size", "content"])
def test_a_changed_file_is_read_again(read, paths, what):
    read()
    path, stat = paths[1], paths[1].stat()
    if what == "time":
        os.utime(path, ns=(1, 1))
    elif what == "size":
        write_slice(path, images("L067", "full", 1, 64)[0], z=7.0)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:  # the same size and time, but another image: its UID stands in the first bytes
        write_slice(path, images("L067", "full", 1)[0], z=-49.0, number=9, series="c")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == stat.st_size
    again, opened = read()
    assert opened == [path.name] and again[1] == read_slices(path)


def test_a_memory_that_is_broken_or_of_another_version_is_made_again(read, paths, tmp_path):
    first, _ = read()
    memory = tmp_path / "headers.json"
    for content in ("{", "[]", json.dumps(json.loads(memory.read_text()) | {"sharder": "0"})):
        memory.write_text(content)
        again, opened = read()
        assert len(opened) == len(paths) and again[:3] == first[:3]
        assert read()[1] == []


def test_what_could_not_be_read_is_not_remembered(read, paths):
    content = paths[0].read_bytes()
    paths[0].unlink()
    first, _ = read()
    assert isinstance(first[0], Unreadable)
    paths[0].write_bytes(content)
    assert read()[0][0] == read_slices(paths[0])
