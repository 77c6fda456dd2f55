"""With --pseudonyms nothing of a patient but the images gets into OUT or onto the terminal."""

import json
import os
import stat
import sys

import pydicom
import pytest
from phantom import write_series

from shards import build, verify
from shards.manifest import load
from shards.pseudonyms import Pseudonyms

NAMES = ["Doe^Jane", "4711234", "Müller Hans"]
SECRET = ["Doe", "Jane", "4711234", "Müller", "Hans", "MRN-", "IMG_"]


def main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["build.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        build.command(build.main)
    return error.value.code or 0, *capsys.readouterr()


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in Doe"
    for name in NAMES:
        for dose in ("full", "quarter"):
            part = folder / {"full": "nd", "quarter": "ld"}[dose] / name
            write_series(part, name, dose, 3, name="IMG_{index}_" + name + ".dcm", PatientID=f"MRN-{name}")
    (folder / "nd/4711234/4711234 notes.txt").write_text("x")
    (folder / "nd/4711234/IMG_2_4711234.dcm").unlink()
    return folder


def call(source, tmp_path, *more):
    globs = ("--full", "nd/{patient}/*", "--quarter", "ld/{patient}/*")
    return (source, tmp_path / "out", *globs, "--pseudonyms", tmp_path / "names.csv", *more)


def table(tmp_path):
    return dict(line.split(",") for line in (tmp_path / "names.csv").read_text().splitlines()[1:])


def secrets_in(text):
    return [secret for secret in SECRET if secret in text]


def test_no_name_path_or_uid_gets_out(source, tmp_path, monkeypatch, capsys):
    status, out, err = main(monkeypatch, capsys, *call(source, tmp_path))
    assert status == 0, err
    uids = {pydicom.dcmread(path).SeriesInstanceUID for path in source.rglob("*.dcm")}
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            content = path.read_bytes().decode(errors="replace")
            assert not secrets_in(content) and not [uid for uid in uids if uid in content], path
    assert not secrets_in(out.replace(str(tmp_path), "")) and not secrets_in(err.replace(str(tmp_path), ""))
    manifest = load(tmp_path / "out")
    pseudonyms = {record.patient for shard in manifest.shards for record in shard.records}
    assert pseudonyms == {"P0001", "P0002", "P0003"} == set(table(tmp_path).values())
    assert set(table(tmp_path)) == set(NAMES)
    assert {(out["what"], out["why"]) for out in manifest.left_out} == {
        ("1 file", "not DICOM"), ("1 file", "no full-dose slice at its z")
    }  # fmt: skip
    kept = (tmp_path / "names.left_out.csv").read_text()
    assert "nd/4711234/4711234 notes.txt,not DICOM" in kept
    assert stat.S_IMODE(os.stat(tmp_path / "names.csv").st_mode) == 0o600
    assert not list(verify.check_manifest(tmp_path / "out", manifest))


def test_the_table_is_kept_and_grows(source, tmp_path, monkeypatch, capsys):
    (tmp_path / "names.csv").write_text("patient,pseudonym\n4711234,P0002\n")
    status, _, err = main(monkeypatch, capsys, *call(source, tmp_path, "--val", "P0002"))
    assert status == 0, err
    assert table(tmp_path)["4711234"] == "P0002" and set(table(tmp_path).values()) == {"P0001", "P0002", "P0003"}
    assert list(load(tmp_path / "out").split["val"]) == ["P0002"]
    status, out, _ = main(monkeypatch, capsys, *call(source, tmp_path, "--val", "P0002"))
    assert status == 0 and "there already" in out
    status, _, err = main(monkeypatch, capsys, *call(source, tmp_path, "--val", "P0002", "--allow", "P0001"))
    assert status == 2 and "allow was None, is ['P0001']" in err
    status, _, err = main(monkeypatch, capsys, *call(source, tmp_path, "--val", "P0002")[:-4], "--val", "P0002")
    assert (status == 2 and "no such patient; there are 4711234" in err) or "pseudonyms was True, is None" in err


def test_copies_of_a_patient_stay_copies(tmp_path):
    names = Pseudonyms(tmp_path / "names.csv").names(["Doe-v00", "Doe-v01", "Roe"])
    assert names["Doe-v00"][:5] == names["Doe-v01"][:5] != names["Roe"][:5]
    assert [name[5:] for name in names.values()] == ["-v00", "-v01", ""]


def test_what_could_not_be_read_is_named_only_beside_the_table(source, tmp_path, monkeypatch, capsys):
    path = source / "nd/4711234/IMG_1_4711234.dcm"
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    status, _, err = main(monkeypatch, capsys, *call(source, tmp_path))
    pseudonym = table(tmp_path)["4711234"]
    assert status == 2 and f"{pseudonym}: something of it was not read, see names.left_out.csv" in err
    assert err.endswith(f"--allow {pseudonym}\n") and not secrets_in(err.replace(str(tmp_path), ""))
    status, _, err = main(monkeypatch, capsys, *call(source, tmp_path, "--allow", pseudonym))
    assert status == 0, err
    assert "4711234" not in json.dumps(json.loads((tmp_path / "out/pairing.json").read_text()))


@pytest.mark.parametrize(
    "content, message",
    [
        ("name,code\n", "whose first line is patient,pseudonym"),
        ("patient,pseudonym\na,b,c\n", "two columns"),
        ("patient,pseudonym\na,P 1\n", "pseudonym 'P 1': expected up to 48 letters"),
        ("patient,pseudonym\na,P1\nb,P1\n", "P1 or its patient stands there twice"),
    ],
)
def test_a_table_that_cannot_be_right_is_one_line(source, tmp_path, monkeypatch, capsys, content, message):
    (tmp_path / "names.csv").write_text(content)
    status, _, err = main(monkeypatch, capsys, *call(source, tmp_path))
    assert status == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_table_must_not_lie_in_out(source, tmp_path, monkeypatch, capsys):
    status, _, err = main(monkeypatch, capsys, source, tmp_path / "out", "--pseudonyms", tmp_path / "out/names.csv")
    assert status == 2 and "lies inside OUT" in err
