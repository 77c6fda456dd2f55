"""Whole slices of a split."""

import numpy as np
import pytest
import webdataset

from ldct.data.slices import Slices
from shards.common.command import InputError


def test_slices_are_those_in_the_tar(tiny_shards):
    slices = Slices(tiny_shards, "val")
    assert len(slices) == 4
    urls = sorted(str(path) for path in tiny_shards.glob("val-*.tar"))
    plain = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    for number, inside in enumerate(plain):
        record, pixels = slices[number]
        assert record.key == inside["__key__"] and record.patient == inside["json"]["patient"] == "L096"
        assert pixels.shape == (2, 128, 128) and np.array_equal(pixels, inside["slice.npy"])
    assert [r.key for _, r in Slices(tiny_shards, "val", 2).chosen] == [slices[0][0].key, slices[3][0].key]
    with pytest.raises(InputError, match="no split 'nope'; they have: test, train, val"):
        Slices(tiny_shards, "nope")
