"""Builds that several processes share, at the same time, end in the bytes of one."""

import hashlib
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from phantom import make_dataset

from shards.build_state import STATE, part_locked
from shards.common.part import Part

SPLIT = ("--val", "L096", "--test", "L109", "--shard-slices", "2")


def start(source, out, *options):
    call = [sys.executable, str(ROOT / "shards/build.py"), *map(str, (source, out, *SPLIT, *options))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def said(process):
    """Exit status, standard output and standard error, when it has ended."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("[!.]*.*")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), ("L067", "L096", "L109"), slices=5)


def test_parts_at_the_same_time_and_then_the_whole(data, tmp_path):
    ended = [said(each) for each in [start(data, tmp_path / "parts", "--part", f"{i}/3") for i in (1, 2, 3)]]
    assert [status for status, *_ in ended] == [0, 0, 0], ended
    assert sorted(out.splitlines()[-1].partition("part ")[2] for _, out, _ in ended) == [
        f"{i}/3: 3 of 9 shards; no manifest yet" for i in (1, 2, 3)
    ]
    assert sum("kernel" in out for _, out, _ in ended) == 1  # one of them reports
    assert not (tmp_path / "parts" / "manifest.json").exists()
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.tar")}
    with part_locked(tmp_path / "parts" / STATE, Part(2, 3)):
        status, _, err = said(start(data, tmp_path / "parts"))
        assert status == 2 and "error: part-2-of-3 of this build is at work in " in err
    status, _, err = said(start(data, tmp_path / "parts"))
    assert status == 0, err
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert said(start(data, tmp_path / "one"))[0] == 0
    assert digests(tmp_path / "parts") == digests(tmp_path / "one")
    assert "all shards are there already" in said(start(data, tmp_path / "parts", "--part", "1/3"))[1]


def test_a_part_of_other_settings_is_refused_and_a_missing_one_is_made_up_for(data, tmp_path):
    assert said(start(data, tmp_path / "out", "--part", "1/2"))[0] == 0
    status, _, err = said(start(data, tmp_path / "out", "--part", "2/2", "--seed", "1"))
    assert status == 2 and "holds shards of other settings: seed was 0, is 1" in err
    assert said(start(data, tmp_path / "out"))[0] == 0
    assert len(list((tmp_path / "out").glob("*.tar"))) == 9 and (tmp_path / "out" / "manifest.json").exists()


def test_allow_knows_the_patients_in_every_part(data, tmp_path):
    for number in (1, 2):
        status, _, err = said(start(data, tmp_path / "out", "--part", f"{number}/2", "--allow", "L067"))
        assert status == 0, err
    status, _, err = said(start(data, tmp_path / "out", "--allow", "L999", "--part", "2/2"))
    assert status == 2 and "--allow L999: no such patient; there are L067, L096, L109" in err
