"""Every kind of damage is found and named."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from phantom import make_dataset

from ldct.config import DataConfig
from ldct.data.patches import Patches
from shards import build, manifest, verify
from shards.common.command import InputError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    source = make_dataset(folder / "in", slices=2)
    argv, sys.argv = (
        sys.argv,
        ["build", str(source), str(folder / "out"), "--val", "L096", "--test", "--shard-slices", "1"],
    )
    build.main()
    sys.argv = argv
    return {path.name: path.read_bytes() for path in (folder / "out").glob("*.*") if path.is_file()}


@pytest.fixture
def shards(pristine, tmp_path):
    for name, content in pristine.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def check(monkeypatch, capsys, folder, *options):
    monkeypatch.setattr(sys, "argv", ["verify.py", str(folder), *options])
    with pytest.raises(SystemExit) as error:
        verify.command(verify.main)
    return error.value.code, *capsys.readouterr()


def edit(folder, change):
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_whole_shards(shards, monkeypatch, capsys):
    status, out, _ = check(monkeypatch, capsys, shards)
    assert status == 0 and "4 shards with 4 slices are whole" in out
    assert check(monkeypatch, capsys, shards, "--workers", "2")[0] == 0


@pytest.mark.parametrize("where", [0, 300, 5000, -1])
def test_one_flipped_bit_anywhere(shards, monkeypatch, capsys, where):
    path = shards / "train-00001.tar"
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    status, out, _ = check(monkeypatch, capsys, shards)
    assert status == 1 and "train-00001.tar: sha256 differs" in out


def test_a_missing_a_short_and_an_extra_shard(shards, monkeypatch, capsys):
    (shards / "train-00000.tar").unlink()
    content = (shards / "val-00000.tar").read_bytes()
    (shards / "val-00000.tar").write_bytes(content[:-512])
    (shards / "train-00007.tar").write_bytes(content)
    status, out, _ = check(monkeypatch, capsys, shards)
    assert status == 1 and "3 problems" in out
    assert "train-00000.tar: No such file" in out and "train-00007.tar: not in the manifest" in out
    assert f"val-00000.tar: expected {len(content)} bytes, found {len(content) - 512}" in out


def record(fields):
    return fields["shards"][0]["records"][0]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: record(f).update(offset=record(f)["offset"] + 2), "its pixels do not lie at byte"),
        (lambda f: record(f).update(shape=[4, 2, 54, 55]), "expected int16 [4, 2, 54, 55]"),
        (lambda f: record(f).update(key="L067_0009"), "members are not the manifest's"),
        (lambda f: record(f).update(z=1.5), "patient or z differ"),
        (lambda f: record(f)["body"].__setitem__(0, 0.123), "body fractions do not fit"),
        (lambda f: f["counts"]["val"].update(slices=7), "val: the manifest counts"),
        (lambda f: f["split"]["val"].update(L999=["L999_0000"]), "val: the patients and slices named"),
        (lambda f: f["settings"].update(patch=32), "expected patches of (2, 32, 32)"),
        (lambda f: f["settings"].update(stride=54), "its patches do not lie 54 pixels apart"),
        (
            lambda f: f["settings"].update(seed=3),
            "the order of the training slices is not that of the manifest's seed 3",
        ),
        (lambda f: f["statistics"].update(mean_low=0.0), "the manifest's statistics are {"),
        (lambda f: f["shards"].append(f["shards"][0]), "train-00000.tar: 2 times in the manifest"),
        (lambda f: record(f).update(patient="L096"), "L096: in several splits: train, val"),
    ],
)
def test_a_manifest_that_does_not_fit(shards, monkeypatch, capsys, change, message):
    edit(shards, change)
    status, out, _ = check(monkeypatch, capsys, shards)
    assert status == 1 and message in out


def shard(fields):
    return fields["shards"][0]


UNTRUSTED = [
    (lambda f: shard(f).update(name="../../etc/passwd"), "a shard is called '../../etc/passwd', expected e.g. train-0"),
    (lambda f: shard(f).update(name="/etc/passwd"), "a shard is called '/etc/passwd'"),
    (lambda f: shard(f).update(name="train-00000.tar/../x"), "a shard is called"),
    (lambda f: shard(f).update(name=7), "a shard is called 7"),
    (lambda f: shard(f).update(split="val"), "train-00000.tar belongs to the split 'val'"),
    (lambda f: shard(f).update(bytes="many"), "its size has another type"),
    (lambda f: f.update(shards=[]), "it names no shards"),
    (lambda f: f.update(counts=[]), "its counts are no table"),
    (lambda f: f.update(split={"by": "patient", "train": 3}), "its split train is no table of patients and keys"),
    (lambda f: f.update(left_out=["x"]), "its left_out is no list of tables"),
    (lambda f: f.update(settings=3), "is not a shard manifest"),
    (lambda f: f["settings"].update(stride="55"), "its setting stride is '55', expected 1 or more"),
    (lambda f: f["settings"].update(patch=0), "its setting patch is 0, expected 1 or more"),
    (lambda f: f["settings"].pop("seed"), "lacks the setting seed"),
    (lambda f: record(f).update(key="a/b"), "a record is called 'a/b'"),
    (lambda f: record(f).update(key="a.b"), "a record is called 'a.b'"),
    (lambda f: record(f).update(z="top"), "patient or z has another type"),
    (lambda f: record(f).update(z=float("nan")), "patient or z has another type"),
    (lambda f: record(f).update(offset=-5), "its pixels would lie outside of the shard"),
    (lambda f: record(f).update(shape=[9999, 2, 55, 55]), "its pixels would lie outside of the shard"),
    (lambda f: record(f).update(shape=[-1, 2, 55, 55]), "offset or shape cannot be right"),
    (lambda f: record(f)["body"].pop(), "expected 4 body fractions, found 3"),
    (lambda f: record(f).update(extra=1), "is not a shard manifest"),
]


@pytest.mark.parametrize("change, message", UNTRUSTED)
def test_a_manifest_of_a_stranger_is_one_line_everywhere(shards, monkeypatch, capsys, change, message):
    edit(shards, change)
    status, _, err = check(monkeypatch, capsys, shards)
    assert status == 2 and message in err and err.count("\n") == 1
    if "lacks the setting" not in message:
        with pytest.raises(InputError):
            Patches(shards, DataConfig(min_body=0))


def test_a_manifest_nested_too_deep_is_one_line(shards, monkeypatch, capsys):
    (shards / "manifest.json").write_text("[" * 100_000)
    status, _, err = check(monkeypatch, capsys, shards)
    assert status == 2 and "is not a shard manifest" in err and err.count("\n") == 1


def test_a_shard_that_is_a_link_out_of_the_folder_is_not_opened(shards, monkeypatch, capsys, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "train-00000.tar"
    (shards / "train-00000.tar").rename(elsewhere)
    (shards / "train-00000.tar").symlink_to(elsewhere)
    status, _, err = check(monkeypatch, capsys, shards)
    assert status == 2 and "train-00000.tar is a link out of the folder; move the file into it" in err


def test_a_pipe_in_place_of_a_shard_does_not_hang(shards, monkeypatch, capsys):
    (shards / "train-00000.tar").unlink()
    os.mkfifo(shards / "train-00000.tar")
    status, out, _ = check(monkeypatch, capsys, shards)
    assert status == 1 and "train-00000.tar: no regular file" in out


def test_a_record_with_other_types_or_deep_nesting_is_a_line(shards, monkeypatch, capsys):
    for content in (b"[1]", b"[" * 100_000):
        path = shards / "val-00000.tar"
        with tarfile.open(path) as tar:
            array = tar.extractfile("L096_0000.slice.npy").read()
        with tarfile.open(path, "w") as tar:
            for name, data in (("L096_0000.slice.npy", array), ("L096_0000.json", content)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        data = path.read_bytes()
        (number,) = (i for i, entry in enumerate(manifest.load(shards).shards) if entry.name == path.name)
        sums = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        edit(shards, lambda f, number=number, sums=sums: f["shards"][number].update(sums))
        status, out, _ = check(monkeypatch, capsys, shards)
        assert status == 1 and "val-00000.tar: L096_0000: cannot be decoded" in out


def test_damage_that_a_new_checksum_hides_is_still_found(shards, monkeypatch, capsys):
    """The .npy header says another type; size and checksum of the manifest are made to fit."""
    path = shards / "train-00000.tar"
    content = path.read_bytes().replace(b"'<i2'", b"'<u2'", 1)
    path.write_bytes(content)
    edit(shards, lambda f: f["shards"][0].update(sha256=hashlib.sha256(content).hexdigest()))
    status, out, _ = check(monkeypatch, capsys, shards)
    assert status == 1 and "expected int16 [4, 2, 55, 55], found uint16" in out and "1 problem" in out


def test_a_record_that_webdataset_cannot_decode_is_named(shards, monkeypatch, capsys):
    """Its JSON is cut short; size and checksum of the manifest are made to fit."""
    path = shards / "val-00000.tar"
    content = path.read_bytes().replace(b'"z": ', b'"z"; ', 1)
    path.write_bytes(content)
    (number,) = (i for i, shard in enumerate(manifest.load(shards).shards) if shard.name == path.name)
    edit(shards, lambda f: f["shards"][number].update(sha256=hashlib.sha256(content).hexdigest()))
    status, out, _ = check(monkeypatch, capsys, shards)
    assert status == 1 and "val-00000.tar: L096_0000: cannot be decoded: " in out and "1 problem" in out


def test_a_pickle_among_the_members_is_not_opened(shards, monkeypatch, capsys, tmp_path):
    """webdataset's decoder would unpickle it, and a pickle runs what it likes."""
    path = shards / "val-00000.tar"
    with tarfile.open(path, "a") as tar:
        content = pickle.dumps(Trap(tmp_path / "sprung"))
        info = tarfile.TarInfo("L096_0000.pyd")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    content = path.read_bytes()
    (number,) = (i for i, shard in enumerate(manifest.load(shards).shards) if shard.name == path.name)
    sums = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit(shards, lambda f: f["shards"][number].update(sums))
    status, out, _ = check(monkeypatch, capsys, shards)
    assert status == 1 and "val-00000.tar: its 3 members are not the manifest's 2" in out
    assert not (tmp_path / "sprung").exists()


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_help_does_not_wait_for_torch():
    code = "import sys, shards.verify; assert not {'torch', 'webdataset'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_manifest_is_an_input_error(tmp_path, monkeypatch, capsys):
    status, _, err = check(monkeypatch, capsys, tmp_path)
    assert status == 2 and "expected" in err and "shards/build.py" in err


def test_the_fixture_is_what_it_says(shards):
    assert [shard.name for shard in manifest.load(shards).shards] == [
        "train-00000.tar", "train-00001.tar", "val-00000.tar", "val-00001.tar"
    ]  # fmt: skip
