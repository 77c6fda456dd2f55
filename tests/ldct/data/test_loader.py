import numpy as np
import pytest
import torch
import webdataset

from ldct.config import DataConfig
from ldct.data.augment import augment, augmentation_codes
from ldct.data.hu import NORMALIZATIONS, denormalise, normalise
from ldct.data.loader import Loader
from ldct.data.patches import DeviceStore, MappedStore, Patches, open_store
from ldct.data.sampler import Sampler
from ldct.data.slices import Slices
from shards.common.command import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiles(tiny_shards):
    return Patches(tiny_shards, DataConfig(min_body=0.3))


def read_with_webdataset(folder):
    """Every tile of the training shards as plain webdataset sees it: {(key, tile): pixels}."""
    urls = sorted(str(path) for path in folder.glob("train-*.tar"))
    found = {}
    for record in webdataset.WebDataset(urls, shardshuffle=False).decode():
        for number, pixels in enumerate(record["pairs.npy"]):
            found[record["__key__"], number] = pixels
    return found


def test_offsets_lead_to_the_same_pixels_as_webdataset(tiny_shards, tiles):
    plain = read_with_webdataset(tiny_shards)
    store = MappedStore(tiles, CPU)
    got = store.fetch(np.arange(len(tiles)))
    assert got.dtype == torch.int16 and got.shape == (len(tiles), 2, 55, 55)
    for index in range(len(tiles)):
        key, number = tiles.name(index)[:-1].split("[")
        assert np.array_equal(got[index].numpy(), plain[key, int(number)])


def test_only_tiles_with_body_are_taken(tiny_shards, tiles):
    full = np.stack([pixels[1] for pixels in read_with_webdataset(tiny_shards).values()])
    body = (full > -500).mean((1, 2)).round(3)
    assert len(tiles) == (body >= 0.3).sum() < len(body)
    assert len(Patches(tiny_shards, DataConfig(min_body=0))) == len(body) == 128
    with pytest.raises(InputError, match=r"data.min_body = 1.0; lower it"):
        Patches(tiny_shards, DataConfig(min_body=1.0))


def test_device_store_holds_what_the_mapped_one_reads(tiles):
    some = np.array([3, 0, len(tiles) - 1, 3])
    assert torch.equal(DeviceStore(tiles, CPU).fetch(some), MappedStore(tiles, CPU).fetch(some))
    assert isinstance(open_store(tiles, "device", CPU), DeviceStore)
    assert isinstance(open_store(tiles, "auto", CPU), MappedStore)


def order(count=1000, shards=10, seed=0, window=3, batch=16):
    return Sampler(np.repeat(np.arange(shards), count // shards), seed, window, batch)


def test_every_tile_comes_once_in_every_epoch():
    sequence = np.concatenate([order(batch=48)[step] for step in range(3 * 1000 // 48 + 1)])
    for epoch in range(3):
        assert np.array_equal(np.sort(sequence[epoch * 1000 : (epoch + 1) * 1000]), np.arange(1000))


def test_epochs_and_seeds_differ_and_repeat():
    a, b = order(), order()
    assert np.array_equal(a[5], b[5])
    assert not np.array_equal(a.epoch(0), a.epoch(1))
    assert not np.array_equal(a.epoch(0), order(seed=1).epoch(0))


def test_the_order_of_a_seed_is_the_same_in_every_version():
    """A run that was begun with an older version, of numpy too, goes on with the batches it would have had."""
    sampler = Sampler(np.array([0, 0, 2, 1, 1, 2, 3, 3, 0, 2]), seed=7, window=2, global_batch=4)
    assert sampler.epoch(0).tolist() == [0, 1, 9, 2, 8, 5, 6, 3, 7, 4]
    assert sampler.epoch(1).tolist() == [5, 8, 2, 1, 9, 0, 7, 3, 6, 4]
    assert [sampler[step].tolist() for step in (0, 2)] == [[0, 1, 9, 2], [7, 4, 5, 8]]


def test_no_window_shuffles_all_shards_at_once():
    assert np.array_equal(order(window=0).epoch(0), order(window=10).epoch(0))
    assert not np.array_equal(order(window=0).epoch(0), order(window=9).epoch(0))


@pytest.mark.parametrize(("window", "sizes"), [(3, [300, 300, 200, 200]), (4, [400, 300, 300]), (5, [500, 500])])
def test_windows_are_of_nearly_equal_size_and_at_most_as_many_shards_as_asked_for(window, sizes):
    shards = order(window=window).epoch(0) // 100
    parts = np.split(shards, np.cumsum(sizes)[:-1])
    assert [len(set(part)) for part in parts] == [size // 100 for size in sizes]
    assert sum(len(set(part)) for part in parts) == 10


def test_a_batch_larger_than_an_epoch_is_filled_from_the_next_ones():
    small = order(count=20, shards=2, batch=50)
    assert np.array_equal(np.bincount(small[0]), np.where(np.isin(np.arange(20), small.epoch(2)[:10]), 3, 2))


def test_a_batch_does_not_depend_on_what_was_asked_before():
    a, b = order(), order()
    for step in (200, 3, 77):
        a[step]
    assert np.array_equal(a[61], b[61])


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_global_batch_is_the_same_on_any_number_of_ranks(tiles, world_size):
    batches = Sampler(tiles.shard, 0, 2, 16)
    store = MappedStore(tiles, CPU)
    ranks = [list(Loader(store, batches, rank, world_size, 2, 12)) for rank in range(world_size)]
    assert {len(batch) for batch in ranks} == {10}
    for number in range(10):
        together = torch.cat([batch[number] for batch in ranks])
        assert torch.equal(together, store.fetch(batches[number + 2]))


def test_the_default_window_shuffles_almost_as_well_as_a_perfect_shuffle():
    """Spread of the batches' mean position, against that of a perfect shuffle of the same tiles.

    The sharder spreads the slices over the shards, so a tile's value has a part of its slice and a part of its own;
    here half of the variance each. 200 shards of 64 slices with 40 tiles, windows of the default 32 shards.
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


def test_normalizations_map_air_and_water_as_published_and_back():
    hu = torch.tensor([-1000, 0, 1500], dtype=torch.int16)
    assert normalise(hu, "hu1000").tolist() == [-1, 0, 1.5]
    assert normalise(hu, "hu500").tolist() == [-1, 1, 4]
    assert normalise(hu, "redcnn").tolist() == [24 / 4096, 0.25, 2524 / 4096]
    assert normalise(torch.tensor([-3024, 3071]), "hu1000").tolist() == [-1, 2]
    for normalization in NORMALIZATIONS:
        assert torch.allclose(denormalise(normalise(hu, normalization), normalization), hu.float(), atol=1e-3)


def test_augmentation_is_the_eight_symmetries_of_a_square():
    tile = torch.arange(9).view(1, 1, 3, 3).repeat(8, 2, 1, 1)
    turned = augment(tile, torch.arange(8))
    seen = {tuple(t[0].flatten().tolist()) for t in turned}
    expected = {tuple(torch.rot90(flip, k).flatten().tolist()) for flip in (tile[0, 0], tile[0, 0].T) for k in range(4)}
    assert seen == expected and len(seen) == 8
    assert torch.equal(turned[:, 0], turned[:, 1])


def test_augmentation_codes_depend_on_seed_and_step_alone():
    assert torch.equal(augmentation_codes(0, 5, 64), augmentation_codes(0, 5, 64))
    assert not torch.equal(augmentation_codes(0, 5, 64), augmentation_codes(0, 6, 64))
    assert not torch.equal(augmentation_codes(0, 5, 64), augmentation_codes(1, 5, 64))
    assert sorted(set(augmentation_codes(0, 0, 512).tolist())) == list(range(8))


def test_slices_are_those_in_the_tar(tiny_shards):
    slices = Slices(tiny_shards, "val")
    assert len(slices) == 4
    urls = sorted(str(path) for path in tiny_shards.glob("val-*.tar"))
    plain = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    for number, inside in enumerate(plain):
        record, pixels = slices[number]
        assert record.key == inside["__key__"] and record.patient == inside["json"]["patient"] == "L096"
        assert pixels.shape == (2, 128, 128) and np.array_equal(pixels, inside["slice.npy"])
    assert [r.key for _, r in Slices(tiny_shards, "val", 2).found] == [slices[0][0].key, slices[3][0].key]
    with pytest.raises(InputError, match="no split 'nope'; they have: test, train, val"):
        Slices(tiny_shards, "nope")


def test_a_short_shard_is_found_before_training(tiny_shards, tmp_path):
    for path in tiny_shards.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with open(tmp_path / "train-00001.tar", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"train-00001.tar: expected \d+ bytes, found 1000; run shards/verify.py"):
        Patches(tmp_path, DataConfig())


def test_an_error_in_the_thread_reaches_the_loop(tiles):
    class Failing(MappedStore):
        def fetch(self, indices):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(iter(Loader(Failing(tiles, CPU), Sampler(tiles.shard, 0, 2, 4), 0, 1, 0, 3)))
