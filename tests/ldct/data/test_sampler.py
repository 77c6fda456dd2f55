"""Which patches make up which batch."""

import numpy as np
import pytest

from ldct.config import DataConfig
from ldct.data.sampler import Sampler


def sampler(count=1000, shards=10, seed=0, window=3, batch=16):
    return Sampler(np.repeat(np.arange(shards), count // shards), seed, window, batch)


def test_every_patch_comes_once_in_every_epoch():
    sequence = np.concatenate([sampler(batch=48)[step] for step in range(3 * 1000 // 48 + 1)])
    for epoch in range(3):
        assert np.array_equal(np.sort(sequence[epoch * 1000 : (epoch + 1) * 1000]), np.arange(1000))


def test_epochs_and_seeds_differ_and_repeat():
    a, b = sampler(), sampler()
    assert np.array_equal(a[5], b[5])
    assert not np.array_equal(a.epoch(0), a.epoch(1))
    assert not np.array_equal(a.epoch(0), sampler(seed=1).epoch(0))


def test_the_order_of_a_seed_is_the_same_in_every_version():
    """A run that was begun with an older version, of numpy too, goes on with the batches it would have had."""
    small = Sampler(np.array([0, 0, 2, 1, 1, 2, 3, 3, 0, 2]), seed=7, window=2, global_batch=4)
    assert small.epoch(0).tolist() == [0, 1, 9, 2, 8, 5, 6, 3, 7, 4]
    assert small.epoch(1).tolist() == [5, 8, 2, 1, 9, 0, 7, 3, 6, 4]
    assert [small[step].tolist() for step in (0, 2)] == [[0, 1, 9, 2], [7, 4, 5, 8]]


def test_no_window_shuffles_all_shards_at_once():
    assert np.array_equal(sampler(window=0).epoch(0), sampler(window=10).epoch(0))
    assert not np.array_equal(sampler(window=0).epoch(0), sampler(window=9).epoch(0))


@pytest.mark.parametrize(("window", "sizes"), [(3, [300, 300, 200, 200]), (4, [400, 300, 300]), (5, [500, 500])])
def test_windows_are_of_nearly_equal_size_and_at_most_as_many_shards_as_asked_for(window, sizes):
    shards = sampler(window=window).epoch(0) // 100
    parts = np.split(shards, np.cumsum(sizes)[:-1])
    assert [len(set(part)) for part in parts] == [size // 100 for size in sizes]
    assert sum(len(set(part)) for part in parts) == 10


def test_a_batch_larger_than_an_epoch_is_filled_from_the_next_ones():
    small = sampler(count=20, shards=2, batch=50)
    assert np.array_equal(np.bincount(small[0]), np.where(np.isin(np.arange(20), small.epoch(2)[:10]), 3, 2))


def test_a_batch_does_not_depend_on_what_was_asked_before():
    a, b = sampler(), sampler()
    for step in (200, 3, 77):
        a[step]
    assert np.array_equal(a[61], b[61])


def test_the_default_window_shuffles_almost_as_well_as_a_perfect_shuffle():
    """Spread of the batches' mean position, against that of a perfect shuffle of the same patches.

    The sharder spreads the slices over the shards, so a patch's value has a part of its slice and a part of its own;
    here half of the variance each. 200 shards of 64 slices with 40 patches, windows of the default 32 shards.
    """
    draw = np.random.default_rng(0)
    shards, per_slice, batch = 64, 40, 128
    slices = shards * 16
    value = np.repeat(draw.standard_normal(slices), per_slice) + draw.standard_normal(slices * per_slice)
    shard = np.repeat(np.arange(shards), 16 * per_slice)
    ours = Sampler(shard, 0, DataConfig().window_shards, batch)
    steps = len(value) // batch
    means = np.array([value[ours[step]].mean() for step in range(steps)])
    perfect = value.std() / np.sqrt(batch)
    assert means.std() == pytest.approx(perfect, rel=0.1)
    one_shard = Sampler(shard, 0, 1, batch)  # and the measure sees a bad one: batches from a single shard of 16 slices
    poor = np.array([value[one_shard[step]].mean() for step in range(steps)])
    assert poor.std() > 2 * perfect
