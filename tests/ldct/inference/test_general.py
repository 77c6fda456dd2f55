"""The network that ships: its bytes, one golden slice, and that it does what it is for."""

import hashlib

import numpy as np
import pytest
import torch
from phantom import body, images

from ldct.inference import pretrained
from ldct.inference.denoiser import Denoiser

WEIGHTS = pretrained.find("redcnn-general")
SHA256 = "504680a6972bdddea1f9daf1a73d5864ed3886d34e2fdab137898d38b536d725"
GOLDEN = {(96, 96): 59, (60, 60): 51, (100, 130): 43, (96, 20): 48, (144, 96): 703, (30, 96): -92, (120, 60): 90}
"""Row and column to HU, of the denoised phantom."""


@pytest.fixture(scope="module")
def slices():
    low = images("L067", "quarter", 1, size=192)[0]
    return body("L067", 0, 192), low, Denoiser(WEIGHTS, torch.device("cpu"))(low)


def test_its_bytes():
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == pretrained.read_card(WEIGHTS).sha256 == SHA256


def test_a_golden_slice(slices):
    _, _, denoised = slices
    for (row, column), hu in GOLDEN.items():
        assert denoised[row, column] == pytest.approx(hu, abs=2)  # HU; other processors round otherwise


def test_it_takes_the_noise_and_leaves_the_rest(slices):
    """A body that it never saw, and noise of a texture that it never saw: most of it goes, no tissue moves."""
    clean, low, denoised = slices
    for hu in (-100, 50):
        inside = clean == hu
        assert abs(denoised[inside].mean() - low[inside].mean()) < 2
    flat = clean == 50
    assert denoised[flat].std() < 0.7 * low[flat].std()
    assert np.abs(denoised - clean).mean() < 0.75 * np.abs(low - clean).mean()
