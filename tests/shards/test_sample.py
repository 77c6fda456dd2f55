"""What the download trusts: pip's word, the sha256, and plain files of the series' own folder."""

import io
import subprocess
import tarfile

import pytest

from shards import sample
from shards.common.command import InputError

SOURCE = sample.Source("pkg", "1.0", "0" * 64, "data/series", 2, "MIT", "nobody")


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, 4 if kind == tarfile.REGTYPE else 0
            info.linkname = "/etc/passwd"
            tar.addfile(info, io.BytesIO(b"DICM"))
    return path


def test_only_plain_files_of_the_folder_come_out_under_it(tmp_path):
    file, link = tarfile.REGTYPE, tarfile.SYMTYPE
    top = "pkg-1.0/data/series"
    members = [(f"{top}/{name}", file) for name in ("a", "b.dcm", "LICENSE", "../../../evil", "deep/d")]
    members += [(f"{top}/link", link), ("pkg-1.0/data/other/c", file)]
    out = tmp_path / "out"
    out.mkdir()
    assert sample.extract(archive(tmp_path / "x.tar.gz", members), SOURCE, out) == 2
    assert sorted(path.name for path in out.iterdir()) == ["a", "b.dcm"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.tar.gz"]


def test_another_archive_than_expected_is_not_used(tmp_path, monkeypatch):
    def pip(call, **options):
        archive(tmp_path / "pkg-1.0.tar.gz", [("pkg-1.0/data/series/a", tarfile.REGTYPE)])
        return subprocess.CompletedProcess(call, 0, "", "")

    monkeypatch.setattr(sample.subprocess, "run", pip)
    with pytest.raises(InputError, match=r"pkg-1.0.tar.gz: expected sha256 0000.*, found .*; not used"):
        sample.download(SOURCE, tmp_path)


def test_pips_own_words_are_passed_on(tmp_path):
    source = sample.Source("no such name", "1.0", "", "", 0, "", "")
    with pytest.raises(InputError, match=r"pip could not download no such name==1.0: .*it needs a package index"):
        sample.download(source, tmp_path)
