"""Cosine of ResNet-50 features, with random weights; the network against its layers written out."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from phantom import make_dataset

from shards import similarity
from shards.resnet50 import ResNet50

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("similarity")
    make_dataset(folder / "in", slices=2)
    done = run("build.py", folder / "in", folder / "out", "--val", "L096", "--test")
    assert done.returncode == 0, done.stderr
    return folder / "out"


def run(script, *arguments):
    call = [sys.executable, str(ROOT / "shards" / script), *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="module")
def network():
    """ResNet-50 with random weights and statistics."""
    torch.manual_seed(0)
    network = ResNet50()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1)
    return network.eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """File with its weights."""
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(network.state_dict(), path)
    return path


def features(weights, x):
    """The 2048 features (He 2016, table 1, column 50-layer, stride in the 3x3) from torchvision's names of weights."""

    def convolution(x, conv, norm, **kwargs):
        statistics = (weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(F.conv2d(x, weights[f"{conv}.weight"], **kwargs), *statistics)

    x = F.max_pool2d(F.relu(convolution(x, "conv1", "bn1", stride=2, padding=3)), 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(convolution(x, f"{name}.conv1", f"{name}.bn1"))
            y = F.relu(convolution(y, f"{name}.conv2", f"{name}.bn2", stride=stride, padding=1))
            if block == 0:
                x = convolution(x, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride)
            x = F.relu(convolution(y, f"{name}.conv3", f"{name}.bn3") + x)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def test_the_network_is_resnet_50_under_torchvisions_names(network):
    assert sum(weight.numel() for weight in network.parameters()) == 25_557_032  # as torchvision documents it
    assert len(network.state_dict()) == 320
    images = torch.randn(2, 3, 70, 61, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(network(images), features(network.state_dict(), images))


def rows(folder):
    with open(folder / "similarity.csv") as file:
        return list(csv.DictReader(file))


def test_slices_and_patches(shards, weights, tmp_path):
    done = run("similarity.py", shards, "--weights", weights)
    assert done.returncode == 0, done.stderr
    table = rows(shards)
    assert [(row["split"], row["patient"]) for row in table] == [("train", "L067")] * 2 + [("val", "L096")] * 2
    values = np.array([float(row["cosine"]) for row in table])
    assert ((values > 0.9) & (values < 1)).all()
    assert f"4 slices: least cosine {values.min():.4f}, mean {values.mean():.4f}" in done.stdout
    assert (shards / "similarity.png").read_bytes()[:4] == b"\x89PNG"
    done = run("similarity.py", shards, "--weights", weights, "--patches")
    assert done.returncode == 0 and "8 patches" in done.stdout
    assert [row["patch"] for row in rows(shards)] == ["0", "1", "2", "3"] * 2
    (tmp_path / "other.pth").write_bytes(b"no weights")
    done = run("similarity.py", shards, "--weights", tmp_path / "other.pth")
    assert done.returncode == 2 and "holds no weights of ResNet-50" in done.stderr


def test_missing_weights_say_how_to_get_them(shards, tmp_path):
    done = run("similarity.py", shards, "--weights", tmp_path / "none.pth")
    assert done.returncode == 2 and "no weights of ResNet-50 at" in done.stderr and done.stderr.count("\n") == 1
    assert "get https://download.pytorch.org/models/resnet50-0676ba61.pth" in done.stderr


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


def test_a_training_slice_is_put_together_from_its_patches():
    whole = np.random.default_rng(0).integers(0, 9, (2, 110, 110))
    corners = [[0, 0], [0, 55], [55, 0], [55, 55]]
    patches = np.stack([whole[:, r : r + 55, c : c + 55] for r, c in corners])
    np.testing.assert_array_equal(similarity.whole_slice(patches, {"origins": corners})[0], whole)
