"""Cosine of ResNet-50 features, with random weights of the real network from the real torchvision."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom import make_dataset

from shards import similarity

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("similarity")
    make_dataset(folder / "in", slices=2)
    done = run("build.py", "", folder / "in", folder / "out", "--val", "L096", "--test")
    assert done.returncode == 0, done.stderr
    return folder / "out"


def run(script, extra, *arguments):
    call = [sys.executable, str(ROOT / "shards" / script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(extra)]))}
    return subprocess.run(call, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def weights(torchvision, tmp_path_factory):
    """File with random weights of torchvision's ResNet-50."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(resnet50().state_dict(), path)
    return path


def rows(folder):
    with open(folder / "similarity.csv") as file:
        return list(csv.DictReader(file))


def test_slices_and_patches(shards, torchvision, weights, tmp_path):
    done = run("similarity.py", torchvision, shards, "--weights", weights)
    assert done.returncode == 0, done.stderr
    table = rows(shards)
    assert [(row["split"], row["patient"]) for row in table] == [("train", "L067")] * 2 + [("val", "L096")] * 2
    values = np.array([float(row["cosine"]) for row in table])
    assert ((values > 0.9) & (values < 1)).all()
    assert f"4 slices: least cosine {values.min():.4f}, mean {values.mean():.4f}" in done.stdout
    assert (shards / "similarity.png").read_bytes()[:4] == b"\x89PNG"
    done = run("similarity.py", torchvision, shards, "--weights", weights, "--patches")
    assert done.returncode == 0 and "8 tiles" in done.stdout
    assert [row["tile"] for row in rows(shards)] == ["0", "1", "2", "3"] * 2
    (tmp_path / "other.pth").write_bytes(b"no weights")
    done = run("similarity.py", torchvision, shards, "--weights", tmp_path / "other.pth")
    assert done.returncode == 2 and "holds no weights of ResNet-50" in done.stderr


def test_missing_weights_say_how_to_get_them(shards, tmp_path):
    done = run("similarity.py", "", shards, "--weights", tmp_path / "none.pth")
    assert done.returncode == 2 and "no weights of ResNet-50 at" in done.stderr and done.stderr.count("\n") == 1
    assert "torchvision.models.resnet50(weights='IMAGENET1K_V1')" in done.stderr


def test_equal_doses_have_cosine_one_and_others_less():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 5), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4),
                                  torch.nn.Flatten())  # fmt: skip
    full = np.random.default_rng(0).integers(-1000, 1000, (2, 40, 40)).astype(np.int16)
    pairs = np.stack([[full[0], full[0]], [full[0], full[1]]])
    same, other = similarity.cosines(network, pairs)
    assert same == pytest.approx(1, abs=1e-9) and other < 0.9999
    far = pairs.copy()
    far[far > 990] = 30000
    assert similarity.cosines(network, np.clip(far, None, 2000)) == pytest.approx(similarity.cosines(network, far))


def test_a_training_slice_is_put_together_from_its_tiles():
    whole = np.random.default_rng(0).integers(0, 9, (2, 110, 110))
    corners = [[0, 0], [0, 55], [55, 0], [55, 55]]
    tiles = np.stack([whole[:, r : r + 55, c : c + 55] for r, c in corners])
    np.testing.assert_array_equal(similarity.whole_slice(tiles, {"origins": corners})[0], whole)
