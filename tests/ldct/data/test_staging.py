"""Shards on a disk of the node: copied once, checked, shared, removed by the last to leave."""

import errno
import multiprocessing
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import tiny_flags
from same_run import assert_same

from ldct.config import differences, hash8, parse
from ldct.data import staging
from ldct.data.staging import PREFIX, staged
from ldct.runs.folder import read_config
from ldct.training.signals import Latch
from ldct.training.trainer import train
from shards.common.command import InputError

Usage = namedtuple("Usage", "total used free")


def config_of(shards, stage):
    return parse(tiny_flags(shards, "nowhere", data__stage=stage))


def copies(stage):
    return sorted(path.name for path in stage.glob(f"{PREFIX}*/"))


def test_the_copy_is_shared_and_the_last_one_removes_it(tiny_shards, tmp_path):
    config = config_of(tiny_shards, tmp_path)
    with staged(config) as first:
        folder = tmp_path / copies(tmp_path)[0]
        assert first.data.shards == str(folder) and first.train == config.train
        for path in folder.glob("*.tar"):
            assert path.read_bytes() == (tiny_shards / path.name).read_bytes()
        assert {path.name[:5] for path in folder.glob("*.tar")} == {"train", "val-0"}  # nobody trains on test
        written = folder.stat().st_mtime_ns
        with staged(config) as second:
            assert second == first and folder.stat().st_mtime_ns == written
        assert folder.is_dir()
    assert copies(tmp_path) == []


def stage_and_die(config):
    with staged(config):
        os._exit(9)


def test_what_a_killed_process_left_is_used_or_removed_by_the_next(tiny_shards, tmp_path):
    other = tmp_path / "others"
    shutil.copytree(tiny_shards, other)
    text = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(text + "\n")
    spawn = multiprocessing.get_context("spawn")
    for shards in (tiny_shards, other):
        process = spawn.Process(target=stage_and_die, args=(config_of(shards, tmp_path / "disk"),))
        process.start()
        process.join()
        assert process.exitcode == 9
        assert len(copies(tmp_path / "disk")) == 1  # the second process removed the first one's
    with staged(config_of(other, tmp_path / "disk")):
        assert len(copies(tmp_path / "disk")) == 1
    assert copies(tmp_path / "disk") == []


def test_what_does_not_fit_or_differs_is_refused_and_removed(tiny_shards, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with (
            pytest.raises(InputError, match=r"take 0.0 GB, .* has 0.0 GB free; name a larger disk"),
            staged(config_of(tiny_shards, tmp_path / "disk")),
        ):
            pass
    broken = tmp_path / "broken"
    shutil.copytree(tiny_shards, broken)
    with open(broken / "train-00001.tar", "r+b") as file:
        file.seek(2000)
        file.write(b"?")
    with (
        pytest.raises(InputError, match=r"train-00001.tar differs from the manifest; run shards/verify.py"),
        staged(config_of(broken, tmp_path / "disk")),
    ):
        pass
    assert copies(tmp_path / "disk") == []


def test_the_part_that_a_killed_job_copied_takes_no_room_from_the_next(tiny_shards, tmp_path, monkeypatch):
    """The same job, requeued on the node: what it left is of its own shards."""
    with staged(config_of(tiny_shards, tmp_path)) as whole:
        size = sum(path.stat().st_size for path in Path(whole.data.shards).iterdir())
        folder = Path(whole.data.shards)
    folder.mkdir()
    (folder / "train-00000.tar.node.17.tmp").write_bytes(bytes(size // 2))  # killed while it copied

    def usage(path):
        used = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return Usage(int(1.2 * size), used, int(1.2 * size) - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with staged(config_of(tiny_shards, tmp_path)):
        assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])], ids=str)
def test_a_copy_from_which_something_was_removed_is_made_anew(tiny_shards, tmp_path, harm):
    """As a site's cleaner of old files does."""
    process = multiprocessing.get_context("spawn").Process(
        target=stage_and_die, args=(config_of(tiny_shards, tmp_path),)
    )
    process.start()
    process.join()
    (folder,) = tmp_path.glob(f"{PREFIX}*/")
    harm(folder / "train-00001.tar")
    with staged(config_of(tiny_shards, tmp_path)):
        assert (folder / "train-00001.tar").read_bytes() == (tiny_shards / "train-00001.tar").read_bytes()


def test_a_copy_that_somebody_reads_stays_whatever_comes_beside_the_shards(tiny_shards, tmp_path):
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    place = tmp_path / "place"
    place.mkdir()
    with staged(config_of(shards, place)) as first:
        read = Path(first.data.shards) / "train-00000.tar"
        before = read.stat().st_ino
        (shards / "similarity.csv").write_text("made later")
        (Path(first.data.shards) / "train-00001.tar").unlink()
        with staged(config_of(shards, place)) as second:
            assert second.data.shards == first.data.shards
        assert read.stat().st_ino == before  # not made anew
        assert (read.parent / "train-00001.tar").is_file()


def test_a_quota_that_is_reached_midway_is_one_line_and_leaves_nothing(tiny_shards, tmp_path, monkeypatch):
    plain, copied = staging.copy_file, []

    def full(source, target, progress):
        copied.append(source)
        if len(copied) == 3:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return plain(source, target, progress)

    monkeypatch.setattr(staging, "copy_file", full)
    expected = r"^data.stage: cannot copy the shards to .*: Disk quota exceeded; name a larger disk, or leave"
    with pytest.raises(InputError, match=expected), staged(config_of(tiny_shards, tmp_path)):
        pass
    assert copies(tmp_path) == []


def test_what_lies_in_memory_has_to_fit_into_the_jobs(tiny_shards, tmp_path, monkeypatch):
    """A process that puts more there than its job may have is killed without a word."""
    assert staging.in_memory(Path("/proc/self")) is False and staging.in_memory(Path("/dev/shm")) is True
    monkeypatch.setattr(staging, "in_memory", lambda folder: True)
    monkeypatch.setattr(staging, "free_memory", lambda: 1000)
    with (
        pytest.raises(InputError, match=r"has 0.0 GB free, in memory; name"),
        staged(config_of(tiny_shards, tmp_path)),
    ):
        pass


def test_a_variable_that_is_not_set_is_no_folder(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(InputError, match=r"^data.stage: expected a folder, found \$TMPDIR/x, of which .* not set"),
        staged(config_of(tiny_shards, "$TMPDIR/x")),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_the_same_from_a_copy(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path / "disk"))
    plain = parse(tiny_flags(tiny_shards, tmp_path / "plain"))
    local = parse(tiny_flags(tiny_shards, tmp_path / "staged", data__stage="$SCRATCH"))
    assert hash8(local) == hash8(plain) and differences(plain, local) == {}
    assert train(plain, Latch()) is None and train(local, Latch()) is None
    assert_same(tmp_path / "staged", tmp_path / "plain")
    assert read_config(tmp_path / "staged").data.shards == str(tiny_shards)
    assert copies(tmp_path / "disk") == []
