"""Every kind of damage is found and named."""

import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from phantom import make_dataset

from shards import build, manifest, verify


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
        (lambda f: record(f).update(shape=[3, 2, 55, 55]), "expected int16 [3, 2, 55, 55]"),
        (lambda f: record(f).update(key="L067_0009"), "members are not the manifest's"),
        (lambda f: record(f).update(z=1.5), "patient or z differ"),
        (lambda f: record(f)["body"].pop(), "body fractions do not fit"),
        (lambda f: f["counts"]["val"].update(slices=7), "val: the manifest counts"),
        (lambda f: f["split"]["val"].update(L999=["L999_0000"]), "val: the patients and slices named"),
        (lambda f: f["settings"].update(patch=32), "expected patches of (2, 32, 32)"),
        (lambda f: f["shards"].append(f["shards"][0]), "train-00000.tar: 2 times in the manifest"),
        (lambda f: record(f).update(patient="L096"), "L096: in several splits: train, val"),
    ],
)
def test_a_manifest_that_does_not_fit(shards, monkeypatch, capsys, change, message):
    edit(shards, change)
    status, out, _ = check(monkeypatch, capsys, shards)
    assert status == 1 and message in out


def test_damage_that_a_new_checksum_hides_is_still_found(shards, monkeypatch, capsys):
    """The .npy header says another type; size and checksum of the manifest are made to fit."""
    path = shards / "train-00000.tar"
    content = path.read_bytes().replace(b"'<i2'", b"'<u2'", 1)
    path.write_bytes(content)
    edit(shards, lambda f: f["shards"][0].update(sha256=hashlib.sha256(content).hexdigest()))
    status, out, _ = check(monkeypatch, capsys, shards)
    assert status == 1 and "expected int16 [4, 2, 55, 55], found uint16" in out and "1 problems" in out


def test_a_record_that_webdataset_cannot_decode_is_named(shards, monkeypatch, capsys):
    """Its JSON is cut short; size and checksum of the manifest are made to fit."""
    path = shards / "val-00000.tar"
    content = path.read_bytes().replace(b'"z": ', b'"z"; ', 1)
    path.write_bytes(content)
    (number,) = (i for i, shard in enumerate(manifest.load(shards).shards) if shard.name == path.name)
    edit(shards, lambda f: f["shards"][number].update(sha256=hashlib.sha256(content).hexdigest()))
    status, out, _ = check(monkeypatch, capsys, shards)
    assert status == 1 and "val-00000.tar: L096_0000: cannot be decoded: " in out and "1 problems" in out


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
