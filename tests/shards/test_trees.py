"""Trees as people have them: nothing vanishes without a word, whatever the files are called."""

import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from phantom import images, make_dataset, write_series, write_slice

from shards import build, verify
from shards.manifest import load
from shards.matching import key_name, key_names
from shards.pairing import find_pairs


def main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["build.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        build.command(build.main)
    return error.value.code or 0, *capsys.readouterr()


def unreadable(monkeypatch, folder):
    """The folder as a user without permission meets it; root, whom the tests may run as, may read everything."""
    scandir = os.scandir

    def refuse(path):
        if path == os.fspath(folder):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.parametrize("inside, allow", [("L096", "L096"), ("L096/quarter_1mm", "L096")])
def test_a_folder_that_cannot_be_read_stops_the_build(tmp_path, monkeypatch, capsys, inside, allow):
    source = make_dataset(tmp_path / "in", ("L067", "L096", "L109"), slices=2)
    unreadable(monkeypatch, source / inside)
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out")
    last = err.strip().splitlines()[-1]
    assert status == 2 and f"L096: {inside}: the folder cannot be read: Permission denied" in last
    assert last.endswith(f"--allow {allow}")
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out", "--allow", allow)
    assert status == 0, err
    told = json.loads((tmp_path / "out/pairing.json").read_text())["suspicious"]
    assert "cannot be read" in told["L096"]


def test_a_file_that_cannot_be_read_stops_the_build(tmp_path, monkeypatch, capsys):
    source = make_dataset(tmp_path / "in", ("L067", "L096", "L109"), slices=2)
    path = sorted((source / "L067/full_1mm").iterdir())[0]
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert (
        status == 2 and f"L067: 1 file cannot be read, e.g. L067/full_1mm/{path.name}: cannot be read: No such" in err
    )


def test_a_patient_that_is_a_link_to_another_is_named(tmp_path, monkeypatch, capsys):
    source = make_dataset(tmp_path / "in", ("L067", "L109", "L143"), slices=2)
    (source / "L096").symlink_to(source / "L067")
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert status == 2 and "L096: L096: the same folder as L067, by a link" in err and err.endswith("--allow L096\n")


def test_a_loop_of_links_stops_nothing(tmp_path, monkeypatch, capsys):
    source = make_dataset(tmp_path / "in", ("L067", "L096", "L109"), slices=2)
    (source / "L067/up").symlink_to(source)
    status, out, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert status == 0 and "left out 1: a link to a folder above (L067/up)" in out, err


def test_input_that_changes_during_the_build_is_not_built(tmp_path, monkeypatch, capsys):
    source = make_dataset(tmp_path / "in", ("L067", "L096", "L109"), slices=2)
    path = sorted((source / "L096/full_1mm").iterdir())[0]
    write_shard = build.write_shard

    def meanwhile(plan):
        write_slice(path, images("L143", "full", 1)[0], z=-50.0)
        return write_shard(plan)

    monkeypatch.setattr(build, "write_shard", meanwhile)
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert status == 2 and f"1 of the files changed during the build, e.g. L096/full_1mm/{path.name}" in err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(build, "write_shard", write_shard)
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out", "--allow", "L096")
    assert status == 0, err


def test_a_junk_file_added_later_changes_nothing(tmp_path, monkeypatch, capsys):
    source = make_dataset(tmp_path / "in", ("L067", "L096", "L109"), slices=2)
    assert main(monkeypatch, capsys, source, tmp_path / "out")[0] == 0
    (source / "Thumbs.db").write_bytes(b"x")
    (source / "L067/full_1mm/notes.txt").write_text("x")
    status, out, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert status == 0 and "all shards are there already" in out, err
    os.utime(sorted((source / "L067/full_1mm").iterdir())[0], ns=(1, 1))
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert status == 2 and "another state of the input" in err


LONG = "K" * 90
NAMES = [b"caf\xe9", LONG.encode(), b'"quoted"', b"two\nlines", "Müller".encode(), b"a.b", b"a-b"]


def test_names_of_any_kind(tmp_path, monkeypatch, capsys):
    source = tmp_path / "in"
    for name in NAMES:
        folder = os.fsdecode(name)
        for dose, part in (("full", "nd"), ("quarter", "ld")):
            write_series(source / part / folder, folder.encode(errors="replace").decode(), dose, 2)
    (source / os.fsdecode(b"nd/notes\xff.txt")).write_text("x")
    globs = ("--full", "nd/{patient}/*", "--quarter", "ld/{patient}/*", "--val", "a.b", "--test", '"quoted"')
    status, out, err = main(monkeypatch, capsys, source, tmp_path / "out", *globs)
    assert status == 0, err
    manifest = load(tmp_path / "out")
    records = [record for shard in manifest.shards for record in shard.records]
    assert len({record.key for record in records}) == len(records) == 2 * len(NAMES)
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,90}", record.key) for record in records)
    assert {record.patient for record in records} == {
        r"caf\xe9", LONG, '"quoted"', r"two\nlines", "Müller", "a.b", "a-b"
    }  # fmt: skip
    assert f"in the names of records {LONG} is {key_name(LONG)}" in out and r"notes\xff.txt" in out
    assert not list(verify.check_manifest(tmp_path / "out", manifest))
    status, out, _ = main(monkeypatch, capsys, source, tmp_path / "out", *globs)
    assert status == 0 and "there already" in out


def test_keys_are_unique_even_where_a_name_is_anothers_key():
    assert key_names(["a-b", "L067"]) == {"a-b": "a-b", "L067": "L067"}
    names = ["a.b", key_name("a.b")]
    keys = key_names(names)
    assert len(set(keys.values())) == 2


def test_the_challenge_as_it_is_downloaded_lists_ready_made_commands(tmp_path, monkeypatch, capsys):
    source = tmp_path / "aapm"
    variants = {"3mm B30": "3mm", "3mm D45": "3mm_sharp", "1mm B30": "1mm", "1mm D45": "1mm_sharp"}
    for folder, variant in variants.items():
        for patient in ("L067", "L333", "L506"):
            for dose in ("full", "quarter"):
                write_series(source / folder / f"{dose}_{variant}" / patient / f"{dose}_{variant}", patient, dose, 2)
    call = (source, tmp_path / "out", "--val", "L333", "--test", "L506")
    status, out, err = main(monkeypatch, capsys, *call)
    assert status == 2 and "3mm_sharp (3 patients, 6 + 6 files)" in err and not (tmp_path / "out").exists()
    commands = [line.split() for line in out.splitlines()]
    assert sorted(words[-1] for words in commands) == sorted(variants.values())
    status, _, err = main(monkeypatch, capsys, *commands[0][2:])
    assert status == 0, err


def test_two_series_of_a_patient_are_chosen_by_kernel_or_thickness(tmp_path, monkeypatch, capsys):
    source = tmp_path / "in"
    for patient in ("C001", "C002", "C003"):
        for kernel, thickness in (("Br44", 1.0), ("Qr59", 3.0)):
            for dose, name in (("full", "Full"), ("quarter", "Low")):
                folder = source / patient / "study" / f"1.0-{name} Dose Images-1"
                write_series(folder, patient, dose, 2, name=f"{kernel}-{{index}}.dcm", ConvolutionKernel=kernel,
                             SliceThickness=thickness)  # fmt: skip
    status, out, err = main(monkeypatch, capsys, source, tmp_path / "out")
    assert status == 2 and "1mm Br44 (6 + 6 slices), 3mm Qr59 (6 + 6 slices)" in err
    assert "choose one, e.g. --series '1mm Br44'" in err and "--series '3mm Qr59'" in out
    for wanted in ("qr59", "3mm", "3mm Qr59"):
        patients = find_pairs(source, variant=wanted).patients
        assert {pair.full.kernel for patient in patients for pair in patient.pairs} == {"Qr59"}
        assert [len(patient.pairs) for patient in patients] == [2, 2, 2]
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out", "--series", "B30f")
    assert status == 2 and "--series B30f: " in err and "it has 1mm Br44, 3mm Qr59" in err


def test_a_copy_of_a_slice_counts_once(tmp_path):
    write_series(tmp_path / "L067/full_1mm", "L067", "full", 2)
    low = write_series(tmp_path / "L067/quarter_1mm", "L067", "quarter", 2)
    shutil.copy(low[0], low[0].with_name("zz copy.IMA"))
    pairing = find_pairs(tmp_path)
    assert len(pairing.patients[0].pairs) == 2
    (out,) = pairing.left_out
    assert out == {"what": "L067/quarter_1mm/zz copy.IMA", "why": "a copy of another reduced-dose slice"}


def test_spacing_that_is_equal_within_rounding_is_equal(tmp_path):
    """0.7034999 and 0.7035001 mm round to 0.703 and 0.704."""
    write_series(tmp_path / "L067/full_1mm", "L067", "full", 3, PixelSpacing=["0.7034999", "0.7034999"])
    write_series(tmp_path / "L067/quarter_1mm", "L067", "quarter", 3, PixelSpacing=["0.7035001", "0.7035001"])
    assert len(find_pairs(tmp_path).patients[0].pairs) == 3


def test_pixels_do_not_depend_on_the_memory_of_headers(tmp_path, monkeypatch, capsys):
    source = make_dataset(tmp_path / "in", ("L067", "L096", "L109"), slices=2)
    assert main(monkeypatch, capsys, source, tmp_path / "out")[0] == 0
    tars = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")}
    (tmp_path / "out/manifest.json").unlink()
    for path in (tmp_path / "out").glob("*.tar"):
        path.unlink()
    assert main(monkeypatch, capsys, source, tmp_path / "out")[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")} == tars
    assert np.frombuffer(tars["train-00000.tar"], np.uint8).any()
