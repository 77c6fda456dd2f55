"""The copy of the code that a sweep's jobs run."""

import json
import subprocess
import sys

from conftest import ROOT

from slurm import snapshot


def test_one_copy_for_each_state_of_the_code(tmp_path):
    copy = snapshot.take(tmp_path)
    assert snapshot.take(tmp_path) == copy
    names = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert {
        "ldct/training/trainer.py",
        "slurm/job.py",
        "shards/manifest.py",
        "launch/train.py",
        "snapshot.json",
    } <= names
    assert not [name for name in names if "__pycache__" in name]
    assert (copy / "slurm" / "job.py").read_bytes() == (ROOT / "slurm" / "job.py").read_bytes()
    assert set(json.loads((copy / "snapshot.json").read_text())) == {"commit", "diff"}
    assert [path.name for path in (tmp_path / "code").iterdir()] == [copy.name]


def test_jobs_import_the_copy_from_whatever_folder_they_start_in(tmp_path):
    copy = snapshot.take(tmp_path)
    code = "import ldct.runs.folder, slurm.job; print(ldct.runs.folder.code_version()['commit'], slurm.job.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    commit, file = done.stdout.split()
    assert file == str(copy / "slurm" / "job.py")
    assert commit == json.loads((copy / "snapshot.json").read_text())["commit"]
