"""A launch onto a disk that is full or read-only, or behind a pager that was left: one line, and nothing by halves."""

import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from slurm_bed import TINY

from launch import sweep
from shards.common.command import command
from slurm import squeue, submission

HELD = {"executor": "slurm", "partition": "low", "time_min": 30, "sbatch": {"hold": True}}
PAGE = 4096


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own; remounted with options by calling it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def launch(tmp_path, tiny_shards, monkeypatch, capsys):
    """Run launch/sweep.py in this process, as SLURM or as local runs; return exit status and standard error."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(TINY))
    parameters = {"config": {"value": str(tmp_path / "base.yaml")}, "data.shards": {"value": str(tiny_shards)}}
    content = {"method": "grid", "parameters": {**parameters, "train.seed": {"values": [0, 1]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))

    def run(runs, cluster):
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
        argv = ["sweep.py", tmp_path / "s.yaml", "--cluster", tmp_path / "cluster.yaml", "--runs", runs]
        monkeypatch.setattr("sys.argv", [*map(str, argv)])
        with pytest.raises(SystemExit) as end:
            command(sweep.main)
        return end.value.code, capsys.readouterr().err

    return run


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_disk_that_is_read_only(disk, launch):
    folder, remount = disk
    remount("ro")
    status, said = launch(folder / "runs", {"executor": "local"})
    assert (status, said) == (2, f"error: cannot write {folder}/runs: Read-only file system; choose another folder\n")


def test_a_disk_that_fills_up_at_any_point_of_a_launch(cluster, disk, launch):
    """One page more at each try, until everything fits."""
    folder, _ = disk
    filler, room = folder / "filler", 0
    while True:
        filler.write_bytes(b"")
        free = os.statvfs(folder).f_bavail
        filler.write_bytes(b"x" * (free - room) * PAGE)
        status, said = launch(folder / "runs", HELD)
        left = files(folder / "runs") if (folder / "runs").exists() else set()
        assert not [name for name in left if name.endswith(".tmp")], left
        if status == 0:
            break
        assert status == 2 and len(said.splitlines()) == 1 and "No space left on device; make room" in said, said
        assert not [name for name in left if "/logs/" in name], left
        assert all(f"{name}/config.yaml" in left for name in left if name.startswith("s/00") and name.count("/") == 1)
        room += 1 if room < 4 or any("/code/" in name for name in left) else 32  # the copy of the code is large
    jobs = [job for _, job in submission.latest(folder / "runs" / "s").values()]
    assert sorted(squeue.live()) == sorted(jobs) and len(jobs) == 2
    squeue.cancel(jobs)


def test_a_pager_that_was_left(tmp_path, launch, tiny_shards):
    launch(tmp_path / "none", {"executor": "nowhere"})  # writes the files
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"executor": "local"}))
    argv = [tmp_path / "s.yaml", "--cluster", tmp_path / "cluster.yaml", "--runs", tmp_path / "runs"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "launch/sweep.py", *map(str, argv)], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (2, "error: nobody reads the output any more; nothing was submitted\n")
    assert files(tmp_path / "runs") == {"s", "s/.lock"}
