"""Shards on a disk of the node: copied once, checked, shared, removed by the last to leave."""

import multiprocessing
import os
import shutil

import pytest
from conftest import tiny_flags
from same_run import assert_same

from ldct.config import differences, hash8, parse
from ldct.data.staging import PREFIX, staged
from ldct.runs.folder import read_config
from ldct.training.signals import Latch
from ldct.training.trainer import train
from shards.common.command import InputError


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


def test_a_run_is_the_same_from_a_copy(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path / "disk"))
    plain = parse(tiny_flags(tiny_shards, tmp_path / "plain"))
    local = parse(tiny_flags(tiny_shards, tmp_path / "staged", data__stage="$SCRATCH"))
    assert hash8(local) == hash8(plain) and differences(plain, local) == {}
    assert train(plain, Latch()) is None and train(local, Latch()) is None
    assert_same(tmp_path / "staged", tmp_path / "plain")
    assert read_config(tmp_path / "staged").data.shards == str(tiny_shards)
    assert copies(tmp_path / "disk") == []
