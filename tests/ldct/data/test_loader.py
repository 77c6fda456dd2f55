"""A rank's batches."""

import pytest
import torch

from ldct.config import DataConfig
from ldct.data.loader import Loader
from ldct.data.patches import MappedStore, Patches
from ldct.data.sampler import Sampler

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def patches(tiny_shards):
    return Patches(tiny_shards, DataConfig(min_body=0.3))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_global_batch_is_the_same_on_any_number_of_ranks(patches, world_size):
    batches = Sampler(patches.shard, 0, 2, 16)
    store = MappedStore(patches, CPU)
    ranks = [list(Loader(store, batches, rank, world_size, 2, 12)) for rank in range(world_size)]
    assert {len(batch) for batch in ranks} == {10}
    for number in range(10):
        together = torch.cat([batch[number] for batch in ranks])
        assert torch.equal(together, store.fetch(batches[number + 2]))


def test_an_error_in_the_thread_reaches_the_loop(patches):
    class Failing(MappedStore):
        def fetch(self, indices):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(iter(Loader(Failing(patches, CPU), Sampler(patches.shard, 0, 2, 4), 0, 1, 0, 3)))
