"""The networks that ship: their bytes, one golden slice, and that they do what they are for."""

import hashlib

import numpy as np
import pytest
import torch
from phantom import body, images

from ldct.inference import pretrained
from ldct.inference.denoiser import Denoiser

SHA256 = {
    "redcnn-general": "4f85e534bbcd815f4c7242f8c5c6d2dbe3f2c865e3da52ccd5c588d7369d9534",
    "redcnn-small": "37d5d3e720f47409ce520417d39e92d56e2f7fea065019fd32ce8090f890b66b",
}
PIXELS = [(96, 96), (60, 60), (100, 130), (96, 20), (144, 96), (30, 96), (120, 60)]
"""Rows and columns of the denoised phantom."""
GOLDEN = {
    "redcnn-general": [59, 51, 61, 46, 697, -87, 91],
    "redcnn-small": [59, 51, 48, 45, 693, -95, 92],
}
"""HU there."""


@pytest.fixture(scope="module")
def slices():
    return body("L067", 0, 192), images("L067", "quarter", 1, size=192)[0]


@pytest.fixture(scope="module", params=SHA256)
def network(request):
    return Denoiser(pretrained.find(request.param), torch.device("cpu"))


def test_these_are_all():
    assert {path.stem for path in pretrained.FOLDER.glob("*.safetensors")} == SHA256.keys()
    assert sum(path.stat().st_size for path in pretrained.FOLDER.iterdir()) < 4e6


def test_its_bytes(network):
    weights = pretrained.find(network.name)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert sha256 == pretrained.read_card(weights).sha256 == SHA256[network.name]


def test_a_golden_slice(network, slices):
    denoised = network(slices[1])
    for (row, column), hu in zip(PIXELS, GOLDEN[network.name], strict=True):
        assert denoised[row, column] == pytest.approx(hu, abs=2)  # HU; other processors round otherwise


def test_it_takes_the_noise_and_leaves_the_rest(network, slices):
    """A body that it never saw, and noise of a texture that it never saw: most of it goes, no tissue moves."""
    clean, low = slices
    denoised = network(low)
    for hu in (-100, 50):
        inside = clean == hu
        assert abs(denoised[inside].mean() - low[inside].mean()) < 3  # HU; with the edge of the ring of fat
    flat = clean == 50
    assert denoised[flat].std() < 0.7 * low[flat].std()
    assert np.abs(denoised - clean).mean() < 0.75 * np.abs(low - clean).mean()
