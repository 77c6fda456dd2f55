"""The copy of the code that a sweep's jobs run."""

import json
import subprocess
import sys

from conftest import ROOT

from ldct.runs import folder as folders
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


def test_runs_that_go_on_with_other_code_are_named(tmp_path, monkeypatch):
    old, same, new = (tmp_path / name for name in ("000-old", "001-same", "002-new"))
    for folder, commit in ((old, "a" * 40), (same, "b" * 40)):
        folder.mkdir()
        monkeypatch.setattr(folders, "code_version", lambda commit=commit: {"commit": commit, "diff": ""})
        folders.write_provenance(folder, "0")
    monkeypatch.setattr(snapshot, "code_version", lambda: {"commit": "b" * 40, "diff": ""})
    said = "warning: 1 runs go on with other code (bbbbbbbb) than they began with: 000-old (aaaaaaaa)"
    assert snapshot.other_code([old, same, new]) == said
    assert snapshot.other_code([same, new]) == ""


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
