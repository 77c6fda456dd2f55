"""The index says what the manifest says, is used only while it does, and is trusted no more than it."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from ldct.config import DataConfig
from ldct.data.patches import MappedStore, Patches, least_body
from shards import index, manifest, verify
from shards.common.command import InputError

FILES = (index.NAME, *index.ARRAYS)


@pytest.fixture
def shards(tiny_shards, tmp_path):
    for path in tiny_shards.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_every_record_is_that_of_the_manifest(shards):
    content, loaded = manifest.load(shards), index.load(shards)
    records = [record for shard in content.shards for record in shard.records]
    assert [loaded.record(number) for number in range(len(loaded.records))] == records
    for split in ("train", "val", "test"):
        keys = [loaded.record(number).key for number in loaded.of_split(split)]
        assert keys == [record.key for shard in content.of_split(split) for record in shard.records]
    assert isinstance(loaded.records, np.memmap) and isinstance(loaded.body, np.memmap)


def test_shards_without_an_index_get_the_one_that_their_build_would_have_made(shards):
    before = {name: (shards / name).read_bytes() for name in FILES}
    for name in FILES:
        (shards / name).unlink()
    pixels = MappedStore(patches := Patches(shards, DataConfig()), torch.device("cpu")).fetch(np.arange(5))
    assert {name: (shards / name).read_bytes() for name in FILES} == before
    assert torch.equal(MappedStore(patches, torch.device("cpu")).fetch(np.arange(5)), pixels)


def test_where_no_index_can_be_written_the_manifest_does(shards):
    for name in FILES:
        (shards / name).unlink()
    (shards / index.ARRAYS[0]).mkdir()
    assert len(Patches(shards, DataConfig(min_body=0))) == 128 and not (shards / index.NAME).exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [lambda b: b[:-2], lambda b: b"", lambda b: b[:-9] + b"x" + b[-8:], lambda b: b"{}"])
def test_a_damaged_index_is_made_again(shards, name, damage):
    before = (shards / name).read_bytes()
    (shards / name).write_bytes(damage(before))
    assert len(Patches(shards, DataConfig(min_body=0))) == 128
    assert (shards / name).read_bytes() == before


def test_the_index_of_another_manifest_is_not_used(shards):
    path = shards / "manifest.json"
    fields = json.loads(path.read_text())
    fields["shards"][0]["records"][0]["body"][0] = 0.999
    path.write_text(json.dumps(fields))
    assert index.load(shards).record(0).body[0] == 0.999


def forge(folder, **changes):
    """An index of somebody else's, whose hashes fit."""
    forged = dataclasses.replace(index.load(folder), **changes)
    index.save(forged, folder, manifest.digest(folder))


def test_an_index_of_a_stranger_is_one_line(shards):
    loaded = index.load(shards)
    first, *rest = loaded.shards
    forge(shards, shards=[dataclasses.replace(first, name="../../etc/passwd"), *rest])
    with pytest.raises(InputError, match=r"index.json: a shard is called '../../etc/passwd'.*; delete it, it is made"):
        Patches(shards, DataConfig())
    records = loaded.records.copy()
    records["offset"][0] = first.bytes
    forge_in = {"shards": loaded.shards, "records": records}
    index.save(dataclasses.replace(loaded, **forge_in), shards, manifest.digest(shards))
    with pytest.raises(InputError, match="the pixels of a record would lie outside of its shard"):
        Patches(shards, DataConfig())


def test_verify_compares_it_with_the_manifest(shards):
    content = manifest.load(shards)
    assert not list(verify.check_index(shards, content))
    records = index.load(shards).records.copy()
    records["z"][0] += 1
    forge(shards, records=records)
    assert list(verify.check_index(shards, content)) == [
        "index.json: does not fit the manifest; delete it, it is made again"
    ]


def test_a_rank_holds_twelve_bytes_for_a_patch(shards):
    """A list of Python's numbers took 64 and more."""
    patches = Patches(shards, DataConfig(min_body=0))
    store = MappedStore(patches, torch.device("cpu"))
    arrays = [value for holder in (patches, store) for value in vars(holder).values() if isinstance(value, np.ndarray)]
    assert sum(a.nbytes for a in arrays if len(a) == len(patches)) == 12 * len(patches)
    assert not [value for value in vars(store).values() if isinstance(value, list) and len(value) >= len(patches)]


def test_body_fractions_compare_as_the_numbers_they_are_written_as():
    for min_body in (0, 0.001, 0.29, 0.3, 0.3001, 0.57, 0.999, 1.0):
        kept = [k / 1000 >= min_body for k in range(1001)]
        assert kept == [k >= least_body(min_body) for k in range(1001)]
