"""Folders that may be read and not written: one clear line, and nothing left behind."""

import contextlib
import os
import subprocess
import sys

import pytest
from conftest import ROOT, run_command
from made import make_run
from phantom import make_dataset


@contextlib.contextmanager
def sealed(folder):
    """Nothing can be written in ``folder`` and below."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for sealed_folder in folders:
        sealed_folder.chmod(0o555)
    try:
        yield
    finally:
        for sealed_folder in folders:
            sealed_folder.chmod(0o755)


def refused(plainly, folder, *argv):
    """The one line that a command says when it may not write in ``folder``, where it has left everything as it was."""
    before = sorted(folder.rglob("*"))
    with sealed(folder):
        done = subprocess.run(
            [*plainly, sys.executable, *map(str, argv)],
            cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert sorted(folder.rglob("*")) == before
    *progress, line = done.stderr.splitlines()
    assert done.returncode == 2 and all("rate not known yet" in line for line in progress), done.stdout + done.stderr
    return line


@pytest.fixture(scope="module")
def run(tiny_shards, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "0-run", tiny_shards)


def test_evaluate(plainly, run, tiny_shards):
    line = refused(plainly, run, "launch/evaluate.py", run, "--shards", tiny_shards)
    assert line.startswith("error: cannot write the results: [Errno 13] Permission denied: ")
    assert str(run / "eval") in line and line.endswith("give a folder of runs that is yours")


def test_evaluate_a_lesion_behind_a_measured_run(plainly, tiny_shards, tmp_path):
    """The results of a colleague, which can be read: nothing is computed for nothing."""
    run = make_run(tmp_path / "0-measured", tiny_shards)
    argv = ("launch/evaluate.py", run, "--shards", tiny_shards, "--protocol", "abd400")
    run_command(*argv)
    line = refused(plainly, run, *argv, "--lesion")
    assert line.startswith("error: cannot write the results: [Errno 13] Permission denied: ")


def test_compare(plainly, run, tmp_path):
    line = refused(plainly, tmp_path, "launch/compare.py", run, "-o", tmp_path / "report.html")
    assert line == (f"error: cannot write {tmp_path}/report.html: Permission denied; choose another place with -o")


def test_denoise(plainly, run, tmp_path):
    make_dataset(tmp_path / "in", patients=("L001",), slices=1, size=64, seed=0)
    (tmp_path / "out").mkdir()
    line = refused(plainly, tmp_path / "out", "launch/denoise.py", "--run", run, tmp_path / "in", tmp_path / "out")
    assert (
        line
        == f"error: cannot write to {tmp_path}/out: Permission denied; make room or choose another OUT, and run again"
    )


def test_export(plainly, run, tmp_path):
    line = refused(plainly, tmp_path, "launch/denoise.py", "--run", run, "--export", tmp_path / "model.pt2")
    assert line == f"error: cannot write {tmp_path}/model.pt2: Permission denied; choose another folder"
