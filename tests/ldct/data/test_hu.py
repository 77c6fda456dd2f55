"""HU to network values and back."""

import torch

from ldct.data.hu import NORMALIZATIONS, denormalise, normalise


def test_normalizations_map_air_and_water_as_published_and_back():
    hu = torch.tensor([-1000, 0, 1500], dtype=torch.int16)
    assert normalise(hu, "hu1000").tolist() == [-1, 0, 1.5]
    assert normalise(hu, "hu500").tolist() == [-1, 1, 4]
    assert normalise(hu, "redcnn").tolist() == [24 / 4096, 0.25, 2524 / 4096]
    assert normalise(torch.tensor([-3024, 3071]), "hu1000").tolist() == [-1, 2]
    for normalization in NORMALIZATIONS:
        assert torch.allclose(denormalise(normalise(hu, normalization), normalization), hu.float(), atol=1e-3)
