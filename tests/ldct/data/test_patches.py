"""Where patches lie, and the stores they are read from."""

import numpy as np
import pytest
import torch
import webdataset

from ldct.config import DataConfig
from ldct.data.patches import DeviceStore, MappedStore, Patches, open_store
from ldct.data.slices import Slices
from shards.common.command import InputError
from shards.manifest import load

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def patches(tiny_shards):
    return Patches(tiny_shards, DataConfig(min_body=0.3))


def read_with_webdataset(folder):
    """Every patch of the training shards as plain webdataset sees it: {(key, number): pixels}."""
    urls = sorted(str(path) for path in folder.glob("train-*.tar"))
    pixels_of = {}
    for record in webdataset.WebDataset(urls, shardshuffle=False).decode():
        for number, pixels in enumerate(record["pairs.npy"]):
            pixels_of[record["__key__"], number] = pixels
    return pixels_of


def test_offsets_lead_to_the_same_pixels_as_webdataset(tiny_shards, patches):
    plain = read_with_webdataset(tiny_shards)
    store = MappedStore(patches, CPU)
    got = store.fetch(np.arange(len(patches)))
    assert got.dtype == torch.int16 and got.shape == (len(patches), 2, 55, 55)
    for index in range(len(patches)):
        key, number = patches.name(index)[:-1].split("[")
        assert np.array_equal(got[index].numpy(), plain[key, int(number)])


def test_only_patches_with_body_are_taken(tiny_shards, patches):
    full = np.stack([pixels[1] for pixels in read_with_webdataset(tiny_shards).values()])
    body = (full > -500).mean((1, 2)).round(3)
    assert len(patches) == (body >= 0.3).sum() < len(body)
    assert len(Patches(tiny_shards, DataConfig(min_body=0))) == len(body) == 128
    with pytest.raises(InputError, match=r"data.min_body = 1.0; lower it"):
        Patches(tiny_shards, DataConfig(min_body=1.0))


def test_device_store_holds_what_the_mapped_one_reads(patches):
    some = np.array([3, 0, len(patches) - 1, 3])
    assert torch.equal(DeviceStore(patches, CPU).fetch(some), MappedStore(patches, CPU).fetch(some))
    assert isinstance(open_store(patches, "device", CPU), DeviceStore)
    assert isinstance(open_store(patches, "auto", CPU), MappedStore)


def test_a_shard_cut_off_while_it_is_read_is_named(tiny_shards, tmp_path):
    for path in tiny_shards.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    patches = Patches(tmp_path, DataConfig())
    store = MappedStore(patches, CPU)
    with open(patches.paths[0], "r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"train-00000.tar is cut off; run shards/verify.py"):
        store.fetch(np.arange(len(patches)))


def test_a_short_shard_is_found_before_training(tiny_shards, tmp_path):
    for path in tiny_shards.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with open(tmp_path / "train-00001.tar", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"train-00001.tar: expected \d+ bytes, found 1000; run shards/verify.py"):
        Patches(tmp_path, DataConfig())


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_shard_of_other_data_is_refused_though_its_name_and_size_are_the_same(tiny_shards, tmp_path, split):
    """One dataset's shard copied over another's: every training would run on it."""
    for path in tiny_shards.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / f"{split}-00000.tar"
    patient = next(record.patient for record in load(tmp_path).of_split(split)[0].records).encode()
    path.write_bytes(path.read_bytes().replace(patient + b"_", b"L999_"))
    message = rf"{split}-00000.tar: expected the record L\d+_\d+, found another: the shard of other data\?"
    with pytest.raises(InputError, match=message):
        Patches(tmp_path, DataConfig()) if split == "train" else Slices(tmp_path, split)
