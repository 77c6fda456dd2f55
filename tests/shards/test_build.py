"""The command as its user runs it: what it writes, what it refuses, and that a kill changes no byte."""

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from phantom import images, make_dataset, write_series, write_slice

from shards import build, verify
from shards.build_state import locked
from shards.common.command import InputError
from shards.manifest import load
from shards.split import _position

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), ("L067", "L096", "L109"), slices=3)


def run(*arguments, **options):
    call = [sys.executable, str(ROOT / "shards/build.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.run(call, capture_output=True, text=True, env=environment, **options)


def main(monkeypatch, capsys, *arguments):
    """The command in this process: exit status, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["build.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        build.command(build.main)
    return error.value.code or 0, *capsys.readouterr()


SPLIT = ("--val", "L096", "--test", "L109")


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("[!.]*.*"))
            if path.name != "pairing.json"}  # fmt: skip


@pytest.fixture
def built(data, tmp_path, monkeypatch, capsys):
    status, _, err = main(monkeypatch, capsys, data, tmp_path / "out", *SPLIT, "--shard-slices", 2)
    assert status == 0, err
    return tmp_path / "out"


def test_what_is_written(data, built):
    manifest = load(built)
    assert [shard.name for shard in manifest.shards] == [
        "train-00000.tar", "train-00001.tar", "val-00000.tar", "val-00001.tar", "test-00000.tar", "test-00001.tar"
    ]  # fmt: skip
    assert manifest.counts == {
        "train": {"patients": 1, "slices": 3, "pairs": 12},
        "val": {"patients": 1, "slices": 3, "pairs": 0},
        "test": {"patients": 1, "slices": 3, "pairs": 0},
    }
    assert manifest.split["val"] == {"L096": ["L096_0000", "L096_0001", "L096_0002"]} and manifest.left_out == []
    assert manifest.split["by"] == "patient" and manifest.settings["patch"] == 55 and "pydicom" in manifest.sharder
    for shard in manifest.shards:
        content = (built / shard.name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard.sha256 and len(content) == shard.bytes
        for record in shard.records:  # the offsets lead to the very pixels
            array = np.frombuffer(content, "<i2", int(np.prod(record.shape)), record.offset).reshape(record.shape)
            index, patient = int(record.key[-4:]), record.patient
            low, full = (images(patient, dose, index + 1)[index] for dose in ("quarter", "full"))
            if shard.split == "train":
                assert array.shape == (4, 2, 55, 55)
                np.testing.assert_array_equal(array[1], [low[:55, 55:110], full[:55, 55:110]])
                np.testing.assert_allclose(record.body, (array[:, 1] > -500).mean((1, 2)), atol=5e-4)
            else:
                np.testing.assert_array_equal(array, [low, full])


def test_webdataset_reads_it_without_our_code(built):
    samples = list(webdataset.WebDataset(str(built / "train-{00000..00001}.tar"), shardshuffle=False).decode())
    assert sorted(sample["__key__"] for sample in samples) == ["L067_0000", "L067_0001", "L067_0002"]
    about = samples[0]["json"]
    assert samples[0]["pairs.npy"].shape == (4, 2, 55, 55) and samples[0]["pairs.npy"].dtype == np.int16
    assert about["origins"] == [[0, 0], [0, 55], [55, 0], [55, 55]] and len(about["body"]) == 4
    assert (about["patient"], about["kernel"], about["thickness"], about["dose"]) == ("L067", "B30f", 1.0, 0.25)
    assert about["sources"]["low"].startswith("L067/quarter_1mm/L067_QD")
    (whole,) = list(webdataset.WebDataset(str(built / "val-00000.tar"), shardshuffle=False).decode())
    assert whole["slice.npy"].shape == (2, 128, 128)


def test_statistics_are_those_of_the_training_patches(built):
    manifest = load(built)
    patches = np.concatenate([np.load(io.BytesIO(sample["pairs.npy"])) for sample in webdataset.WebDataset(
        str(built / "train-{00000..00001}.tar"), shardshuffle=False)]).astype(float)  # fmt: skip
    low, full = patches[:, 0], patches[:, 1]
    expected = {"mean_low": low.mean(), "sd_low": low.std(), "mean_full": full.mean(), "sd_full": full.std(),
                "rmse": np.sqrt(((low - full) ** 2).mean()), "pixels": low.size, "clipped": 0}  # fmt: skip
    assert manifest.statistics == pytest.approx(expected, abs=1e-3)


def test_training_slices_are_mixed_over_patients_and_others_in_order(data, tmp_path, monkeypatch, capsys):
    main(monkeypatch, capsys, data, tmp_path / "o", "--val", "--test", "--shard-slices", 9)
    (shard,) = load(tmp_path / "o").shards
    keys = [record.key for record in shard.records]
    assert keys != sorted(keys) and len({key[:4] for key in keys[:4]}) > 1
    main(monkeypatch, capsys, data, tmp_path / "p", "--val", "--test", "--shard-slices", 9, "--seed", 1)
    assert [record.key for record in load(tmp_path / "p").shards[0].records] != keys


def test_the_same_bytes_with_two_processes(data, built, tmp_path):
    done = run(data, tmp_path / "two", *SPLIT, "--shard-slices", 2, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "two") == digests(built)
    row = next(line for line in done.stdout.splitlines() if line.startswith("L067"))
    assert " ".join(row.split()).startswith("L067 3 3 3 -50 to -48 0.700 1 B30f 100 ")


def test_run_again_does_nothing_and_says_so(data, built, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    status, out, _ = main(monkeypatch, capsys, data, built, *SPLIT, "--shard-slices", 2)
    assert status == 0 and "all shards are there already" in out
    assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == before


def test_shards_lost_after_the_build_are_built_again(data, built, monkeypatch, capsys):
    before = digests(built)
    (built / "train-00001.tar").unlink()
    (built / "val-00000.tar").write_bytes(b"short")
    status, out, err = main(monkeypatch, capsys, data, built, *SPLIT, "--shard-slices", 2)
    assert status == 0 and "there already" not in out, err
    assert digests(built) == before
    (built / "manifest.json").write_text("{")
    status, _, err = main(monkeypatch, capsys, data, built, *SPLIT, "--shard-slices", 2)
    assert status == 0 and digests(built) == before, err


@pytest.mark.parametrize(
    "change", [lambda m: m.pop("shards"), lambda m: m["shards"][0].pop("records"), lambda m: m.update(shards=3)]
)
def test_a_manifest_with_parts_missing_is_one_line(built, change):
    path = built / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"is not a shard manifest; build the shards again"):
        load(built)


def test_a_broken_off_build_is_finished_to_the_same_bytes(data, built, monkeypatch, capsys):
    before = digests(built)
    (built / "manifest.json").unlink()
    (built / "train-00001.tar").unlink()
    (built / "val-00000.tar").write_bytes(b"short")
    (built / ".build/test-00000.tar.json").write_text("{")
    (built / "train-00001.tar.123.tmp").write_bytes(b"half")
    kept = (built / "train-00000.tar").stat().st_mtime_ns
    status, _, err = main(monkeypatch, capsys, data, built, *SPLIT, "--shard-slices", 2)
    assert status == 0, err
    assert digests(built) == before and (built / "train-00000.tar").stat().st_mtime_ns == kept


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_builds_end_in_the_bytes_of_an_undisturbed_one(tmp_path, workers):
    source = make_dataset(tmp_path / "in", ("L067", "L096"), slices=20)
    options = (source, tmp_path / "out", "--val", "L096", "--test", "--shard-slices", 2, "--workers", workers)
    call = [sys.executable, str(ROOT / "shards/build.py"), *map(str, options)]
    kills = 0
    for shards in (1, 4, 9):
        process = subprocess.Popen(call, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        while process.poll() is None and len(list((tmp_path / "out").glob("*.tar"))) < shards:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert not (tmp_path / "out/manifest.json").exists()
        for path in (tmp_path / "out").glob("*.tar"):
            assert path.stat().st_size % 10240 == 0 and path.stat().st_size > 10240
    assert kills == 3
    assert run(*options).returncode == 0
    assert run(source, tmp_path / "calm", *options[2:]).returncode == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "calm") and not list((tmp_path / "out").glob("*.tmp"))


def test_two_builds_into_one_folder(data, built, monkeypatch, capsys):
    with locked(built):
        status, _, err = main(monkeypatch, capsys, data, built, *SPLIT, "--shard-slices", 2)
    assert status == 2 and "another build is at work" in err and err.count("\n") == 1


def test_a_file_system_without_locks_is_not_another_build(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(InputError, match=r"its file system has no locks \(No locks available\); choose another"):
        locked(tmp_path).__enter__()


def test_other_settings_or_other_input_are_refused(data, built, monkeypatch, capsys):
    status, _, err = main(monkeypatch, capsys, data, built, *SPLIT, "--shard-slices", 2, "--patch", 32)
    assert status == 2 and "patch was 55, is 32" in err and "stride was 55, is 32" in err
    more = built.parent / "more"
    shutil.copytree(data, more)
    for dose in ("full", "quarter"):
        write_series(more / f"L143/{dose}_1mm", "L143", dose, 1)
    status, _, err = main(monkeypatch, capsys, more, built, *SPLIT, "--shard-slices", 2)
    assert status == 2 and "another state of the input" in err


def test_a_refused_build_leaves_nothing_and_its_advice_works(tmp_path, monkeypatch, capsys):
    """Seven patients, none of whose names falls into val."""
    names = [name for name in (f"P{i:03d}" for i in range(100)) if 0.2 < _position(name) < 0.8][:7]
    source = make_dataset(tmp_path / "in", names, slices=1)
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "new/out")
    assert status == 2 and "falls into val; name one: --val ID" in err
    assert not (tmp_path / "new").exists()
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "new/out", "--val", names[0], "--test", names[1])
    assert status == 0, err


def test_few_patients_say_how_they_are_split(data, tmp_path, monkeypatch, capsys):
    status, out, err = main(monkeypatch, capsys, data, tmp_path / "out")
    assert status == 0, err
    manifest = load(tmp_path / "out")
    assert [manifest.counts[split]["patients"] for split in ("train", "val", "test")] == [1, 1, 1]
    assert manifest.split["note"] in out and "of 3 patients the one of the lowest hash" in manifest.split["note"]


def test_an_external_test_set(data, tmp_path, monkeypatch, capsys):
    status, _, err = main(monkeypatch, capsys, data, tmp_path / "out", "--split", "test")
    assert status == 0, err
    manifest = load(tmp_path / "out")
    assert {shard.split for shard in manifest.shards} == {"test"} and manifest.counts["test"]["patients"] == 3
    assert not list(verify.check_manifest(tmp_path / "out", manifest))
    status, _, err = main(monkeypatch, capsys, data, tmp_path / "no", "--split", "test", "--val", "L067")
    assert status == 2 and "--split test chooses val and test by itself" in err and not (tmp_path / "no").exists()


def test_a_folder_with_something_else_is_left_alone(data, tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    status, _, err = main(monkeypatch, capsys, data, tmp_path, *SPLIT)
    assert status == 2 and "not empty" in err and "thesis.tex" in err


def test_a_slice_that_cannot_be_decoded_is_left_out_and_listed(data, tmp_path, monkeypatch, capsys):
    source = tmp_path / "in"
    shutil.copytree(data, source)
    path = sorted((source / "L067/quarter_1mm").iterdir())[1]
    content = bytearray(path.read_bytes())
    where = content.index(b"1.2.840.10008.1.2.1\0")
    content[where : where + 20] = b"1.2.840.10008.1.2.5\0"  # says RLE, holds plain pixels
    path.write_bytes(content)
    status, out, err = main(monkeypatch, capsys, source, tmp_path / "out", *SPLIT)
    assert status == 0, err
    manifest = load(tmp_path / "out")
    assert manifest.counts["train"]["slices"] == 2
    (left,) = manifest.left_out
    assert left["what"].startswith("L067_0001") and "cannot be decoded" in left["why"] and "left out L067_0001" in out


def test_a_full_disk_is_one_line_and_no_short_shard(data, tmp_path):
    """RLIMIT_FSIZE makes every write beyond 300 kB fail, as a full disk does."""
    code = ("import resource, signal, runpy, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000)); sys.argv = sys.argv[1:];"
            "runpy.run_path(sys.argv[0], run_name='__main__')")  # fmt: skip
    call = [sys.executable, "-c", code, str(ROOT / "shards/build.py"), str(data), str(tmp_path / "out"), *SPLIT]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "File too large" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".tar", ".tmp")] == []
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_disk_that_is_too_small_is_seen_before_work(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    status, _, err = main(monkeypatch, capsys, data, tmp_path / "out", *SPLIT)
    assert status == 2 and "the shards need 0.00 GB" in err and "GB free" in err


def test_tiling_options(data, tmp_path, monkeypatch, capsys):
    main(monkeypatch, capsys, data, tmp_path / "o", *SPLIT, "--patch", 32, "--stride", 24, "--tiling", "cover")
    manifest = load(tmp_path / "o")
    assert manifest.shards[0].records[0].shape == [25, 2, 32, 32] and manifest.counts["train"]["pairs"] == 75


def test_slices_smaller_than_a_patch_are_left_out(tmp_path, monkeypatch, capsys):
    source = make_dataset(tmp_path / "in", ("L067", "L096"), slices=1, size=128)
    for dose in ("full", "quarter"):
        write_slice(source / f"L143/{dose}_1mm/1.IMA", images("L143", dose, 1, 54)[0])
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "o", "--val", "L096", "--test")
    assert status == 0, err
    assert load(tmp_path / "o").left_out == [{"what": "L143_0000", "why": "smaller than a patch of 55 pixels"}]


@pytest.mark.parametrize(
    "options, message",
    [
        (("--patch", "0"), "--patch 0: expected 1 or more"),
        (("--stride", "-1"), "--stride -1: expected 1 or more"),
        (("--stride", "60", "--tiling", "cover"), "leaves gaps"),
        (("--full", "x/{patient}/*"), "--full and --quarter go together"),
        (("--split", "slabs", "--val", "L067"), "--split slabs chooses val and test by itself"),
        (("--split", "slabs"), "for one patient, found 3"),
        (("--allow", "L999"), "--allow L999: no such patient"),
    ],
)
def test_bad_options_are_one_line(data, tmp_path, monkeypatch, capsys, options, message):
    status, _, err = main(monkeypatch, capsys, data, tmp_path / "o", *options)
    last = err.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: ") and message in last


def test_wrong_folders(data, tmp_path, monkeypatch, capsys):
    status, _, err = main(monkeypatch, capsys, tmp_path / "nothing", tmp_path / "o")
    assert status == 2 and "found no folder" in err
    status, _, err = main(monkeypatch, capsys, data, data / "out")
    assert status == 2 and "lies inside IN" in err and not (data / "out").exists()


def test_report_only(data, tmp_path, monkeypatch, capsys):
    status, out, _ = main(monkeypatch, capsys, data, tmp_path / "o", "--report-only")
    assert (
        status == 0 and "L109" in out and sorted(path.name for path in (tmp_path / "o").iterdir()) == ["pairing.json"]
    )
    told = json.loads((tmp_path / "o/pairing.json").read_text())
    row = told["patients"][0]
    assert (row["patient"], row["full"], row["reduced"], row["paired"]) == ("L067", 3, 3, 3)
    assert (
        row["z"] == [-50, -48] and row["kvp"] == [100] and row["spacing"] == [0.7, 0.7] and row["dose"] == [0.25, 0.25]
    )
    assert row["noise_full"] == pytest.approx(10, rel=0.15) and row["noise_reduced"] == pytest.approx(20, rel=0.15)
    assert row["correlation"] > 0.98 and told["suspicious"] == {} and told["left_out"] == []
    status, _, err = main(monkeypatch, capsys, data, tmp_path / "o", *SPLIT)  # a build may follow into the same folder
    assert status == 0, err


def test_report_only_leaves_a_finished_folder_alone_and_waits_its_turn(data, built, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in built.glob("*") if path.is_file()}
    status, out, _ = main(monkeypatch, capsys, data, built, "--report-only", "--patch", 32)
    assert status == 0 and "holds shards: its pairing.json stays that of their build" in out
    assert {path: path.read_bytes() for path in built.glob("*") if path.is_file()} == before
    with locked(built):
        status, _, err = main(monkeypatch, capsys, data, built, "--report-only")
    assert status == 2 and "another build is at work" in err


def test_swapped_doses_stop_the_build_unless_allowed(data, tmp_path, monkeypatch, capsys):
    source = tmp_path / "in"
    shutil.copytree(data, source)
    (source / "L096/full_1mm").rename(source / "x")
    (source / "L096/quarter_1mm").rename(source / "L096/full_1mm")
    (source / "x").rename(source / "L096/quarter_1mm")
    status, out, err = main(monkeypatch, capsys, source, tmp_path / "o", *SPLIT)
    assert status == 2 and "L096: the reduced dose is less noisy than the full one" in err and "--allow L096" in err
    assert "-> 9." in out and not list((tmp_path / "o").glob("*.tar"))
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "o", *SPLIT, "--allow", "L096")
    assert status == 0, err


def test_another_patients_quarter_dose_stops_the_build(data, tmp_path, monkeypatch, capsys):
    source = tmp_path / "in"
    shutil.copytree(data, source)
    shutil.rmtree(source / "L067/quarter_1mm")
    write_series(source / "L067/quarter_1mm", "L096", "quarter", 3)
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "o", *SPLIT)
    assert status == 2 and "L067: has images or the study of L096: one patient under two names" in err
    assert "full and reduced dose do not show the same anatomy (correlation 0." in err


def test_slabs_of_one_patient(tmp_path, monkeypatch, capsys):
    source = make_dataset(tmp_path / "in", ("L067",), slices=10)
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "o")
    assert status == 2 and "--split slabs" in err
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "p", "--split", "slabs")
    manifest = load(tmp_path / "p")
    assert status == 0 and manifest.split["by"] == "slab" and manifest.counts["train"]["slices"] == 5
    assert [out["why"] for out in manifest.left_out] == ["gap between the slabs of two splits"] * 2
