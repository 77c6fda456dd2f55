"""Every example of CONTRIBUTING.md, applied to one copy of the code and run there."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, tiny_flags
from phantom import write_series

EXAMPLES = re.findall(r"^```diff\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)

CHECK = """
import json, sys
from pathlib import Path, PurePath
import numpy as np
from ldct import config, models
from ldct.config.networks import networks
from ldct.metrics import protocols, registry
from ldct.metrics.slice_pair import SlicePair
from ldct.training.signals import Latch
from ldct.training.trainer import train
from shards import layouts, noise_model, variation
from slurm.cluster import load

network = config.ModelConfig(name="dncnn", attention="both")
train(config.parse(sys.argv[1:]), Latch())
scan = noise_model.Scan(noise_model.SOFT, noise_model.SOFT, 1e4)
water = np.where(np.hypot(*np.mgrid[-32:32, -32:32]) < 25, 0, -1000)
def added():
    return float(noise_model.noise(water, 4.0, 120, scan, 1.0, 0.05, [(1.0, [0])])[1].std())
more = added()
noise_model.ELECTRONIC = 0.0
print(json.dumps({
    "parameters": [models.describe(config.ModelConfig(name="dncnn")).parameters, networks()["dncnn"].parameters],
    "stages": models.describe(network).stages,
    "metrics": registry.measure(SlicePair(water + 3.0, water), protocols.get("liver")),
    "recipe": variation.RECIPES["low"].dose,
    "noise": more / added(),
    "cluster": load(Path("configs/clusters/ours.yaml")).world_size,
    "layout": [layouts.place(PurePath(name), "L067").__repr__() for name in ("ND/1.dcm", "p/LD/1.dcm", "p/x/1.dcm")],
}))
"""


def apply(example, tree):
    """Change the files of ``tree`` as a diff of CONTRIBUTING.md says; its context must be there, once."""
    for path, body in re.findall(r"^\+\+\+ (\S+)\n((?:(?!\+\+\+ ).*\n)*)", example, re.MULTILINE):
        file, text = tree / path, ""
        if file.exists():
            text = file.read_text()
        for place in re.split(r"^@@\n", body, flags=re.MULTILINE):
            lines = [(line[:1], line[1:]) for line in place.splitlines()]
            before = "\n".join(content for sign, content in lines if sign != "+")
            after = "\n".join(content for sign, content in lines if sign != "-")
            assert text.count(before) == 1 or not (text or before), f"{path}: {before!r}"
            text = text.replace(before, after) if before else after + "\n"
        file.write_text(text)


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the code with every example applied."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("shards", "ldct", "slurm", "launch", "configs"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for example in EXAMPLES:
        apply(example, tree)
    return tree


def run(tree, *argv):
    done = subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_does_what_it_says(changed, tiny_shards, tmp_path):
    assert len(EXAMPLES) == 8
    flags = tiny_flags(tiny_shards, tmp_path / "run", model__name="dncnn", loss__name="huber", train__steps=2)
    result = json.loads(run(changed, "-c", CHECK, *flags, "--model.attention=both").splitlines()[-1])
    assert result["parameters"] == [555_137, 555_137]
    assert result["stages"] == 16
    assert result["metrics"]["liver/mae"] == pytest.approx(result["metrics"]["liver/rmse"], abs=2.0)
    assert result["metrics"]["liver/mae"] > 0
    assert result["recipe"] == [0.05, 0.15]
    assert 1.01 < result["noise"] < 10
    assert result["cluster"] == 2
    full, low, neither = result["layout"]
    assert full.startswith("Place(patient='L067', full=True") and low.startswith("Place(patient='p', full=False")
    assert neither == "None"
    assert "val/abd400/mae" in json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])


def test_shards_of_a_new_layout(changed, tmp_path):
    for patient in ("p1", "p2", "p3"):
        for dose, folder in (("full", "ND"), ("quarter", "LD")):
            write_series(tmp_path / "in" / patient / folder, patient, dose, 2, name="{index}.dcm")
    assert "ND and LD" in run(changed, "shards/build.py", tmp_path / "in", tmp_path / "out", "--report-only")
