"""Every command of README.md, run in a row as it stands there, on a real SLURM."""

import itertools
import os
import re
import shutil
import subprocess
import sys

import pydicom
import pytest
import yaml
from conftest import ROOT
from pages import blocks, commands, is_command
from phantom import images, make_dataset, write_slice
from slurm_bed import TINY

from ldct.runs.folder import find_runs, read_status
from shards import manifest

ELSEWHERE = {
    "make env": "made the environment in which these tests run",
    "make demo": "takes minutes: run by hand for each version, its table and picture stand in the README; "
    "tests/e2e/test_chain.py runs its commands in small",
}
SMALL = TINY | {"model": {**TINY["model"], "init_output": "same"}}
"""A run that begins badly, so that its 20 steps make it better."""
FIRST = {"model.name": "redcnn", "model.attention": "none", "train.seed": 0}
LISTING = re.compile(r"\S+ {2,}\S.*")
"""A line between fences that is no command: a folder, and what stands in it."""


@pytest.fixture
def desk(tmp_path):
    """The project's folder as the reader has it, with smaller networks, shorter runs and one of the forty runs."""
    for name in ("launch", "shards"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "train" / "default.yaml").write_text(yaml.safe_dump(SMALL))
    sweep = tmp_path / "configs" / "sweeps" / "attention.yaml"
    content = yaml.safe_load(sweep.read_text())
    content["parameters"] |= {field: {"values": [first]} for field, first in FIRST.items()}
    sweep.write_text(yaml.safe_dump(content))
    shutil.copy(ROOT / "configs" / "clusters" / "devcluster.yaml", tmp_path / "mine.yaml")
    make_dataset(tmp_path / "data" / "aapm", ("L067", "L333", "L506"), slices=2)
    for number, hu in enumerate(images("L506", "quarter", 2, size=320, full_sd=15.0), start=1):
        write_slice(tmp_path / "IN" / f"{number}.dcm", hu, z=number, number=number)
    return tmp_path


def typed(desk):
    """The commands, with the reader's own folders in the places that are left to him."""
    outs = itertools.count(1)
    for line in commands("README.md"):
        if line not in ELSEWHERE:
            line = line.replace("/data/", f"{desk}/data/").replace("attention/RUN", "attention/000-*")
            yield re.sub(r"\bOUT\b", lambda _: f"OUT{next(outs)}", line)


def test_they_run_in_a_row_as_they_stand(cluster, desk):
    script = "\n".join(["set -ex", *typed(desk)])
    done = subprocess.run(
        ["bash", "-c", script], cwd=desk, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [read_status(run).state for run in find_runs([desk / "runs"])] == ["finished"] * 2
    shards = manifest.load(desk / "data" / "shards")
    assert {split: shards.of_split(split)[0].records[0].patient for split in ("train", "val", "test")} == {
        "train": "L067", "val": "L333", "test": "L506"
    }  # fmt: skip
    assert "RED-CNN" in (desk / "report.html").read_text()
    for out in ("OUT1", "OUT2"):
        assert len([pydicom.dcmread(path) for path in (desk / out).rglob("*.dcm")]) == 2


def test_none_is_left_out():
    """A block is commands or a listing; those run elsewhere are still there (tests/e2e/test_pages.py: as targets)."""
    assert set(commands("README.md")) >= set(ELSEWHERE)
    others = [line for block in blocks("README.md") for line in block.splitlines() if not is_command(line.strip())]
    assert [line for line in others if not LISTING.fullmatch(line)] == []
