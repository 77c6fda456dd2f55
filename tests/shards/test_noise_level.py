"""The noise of a slice in flat soft tissue."""

import numpy as np
import pytest
from phantom import images

from shards.noise_level import noise_sd, soft_tissue


def test_noise_measure_on_known_noise():
    hu = images("L067", "full", 1)[0]
    assert noise_sd(hu, soft_tissue(hu)) == pytest.approx(10, rel=0.15)
    assert np.isnan(noise_sd(hu, np.zeros(hu.shape, bool)))
