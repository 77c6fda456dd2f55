"""The two real series that a fresh machine can fetch by package name: downloaded, simulated, built, verified."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.dicom import read_slices
from shards.files import files_under
from shards.manifest import load
from shards.noise_level import noise_sd, soft_tissue
from shards.pairing import find_pairs
from shards.pixels import read_hu

pytestmark = pytest.mark.network
ROOT = Path(__file__).parents[2]


def run(script, *arguments):
    call = [sys.executable, str(ROOT / "shards" / script), *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def fetch(which, folder):
    """The sample; where there is no network the test is skipped with pip's reason."""
    done = run("sample.py", folder, "--which", which)
    if done.returncode:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    return folder


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory):
    return fetch("abdomen", tmp_path_factory.mktemp("abdomen") / "in")


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    return fetch("chest", tmp_path_factory.mktemp("chest") / "in")


def test_abdomen_header_and_hu(abdomen):
    slices = sorted((read_slices(path)[0] for path in abdomen.iterdir() if path.name != "SOURCE"), key=lambda s: s.z)
    assert len(slices) == 20 and (slices[0].z, slices[-1].z) == (-804.5, -766.5)
    about = {(s.shape, s.thickness, s.kvp, s.kernel, s.series_uid) for s in slices}
    assert about == {((512, 512), 3, 120, "Br38f/3", "")}
    values = np.stack([read_hu(piece)[0] for piece in slices])
    assert (values.min(), values.max()) == (-1024, 1839)
    assert noise_sd(values[8], soft_tissue(values[8])) == pytest.approx(10.6, abs=1.0)


def test_a_second_run_finds_the_sample(abdomen):
    before = {path: path.stat().st_mtime_ns for path in abdomen.iterdir()}
    assert "are there already" in run("sample.py", abdomen).stdout
    assert {path: path.stat().st_mtime_ns for path in abdomen.iterdir()} == before
    done = run("sample.py", abdomen, "--which", "chest")
    assert done.returncode == 2 and "another sample" in done.stderr


def test_abdomen_to_shards(abdomen, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for path in sorted(abdomen.iterdir())[:8]:  # eight slices keep it short
        (source / path.name).write_bytes(path.read_bytes())
    done = run("simulate.py", source, tmp_path / "dose", "--workers", 2)
    assert done.returncode == 0, done.stderr
    (patient,) = find_pairs(tmp_path / "dose").patients
    for pair in patient.pairs[::4]:
        full, low = read_hu(pair.full)[0], read_hu(pair.low)[0].astype(float)
        mask = soft_tissue(full)
        assert noise_sd(low - full, mask) == pytest.approx(np.sqrt(3) * noise_sd(full, mask), rel=0.15)
        assert abs((low - full)[mask].mean()) < 0.5
    done = run("build.py", tmp_path / "dose", tmp_path / "shards", "--split", "slabs", "--workers", 2)
    assert done.returncode == 0, done.stderr
    manifest = load(tmp_path / "shards")
    assert manifest.counts["train"] == {"patients": 1, "slices": 4, "pairs": 324} and manifest.split["by"] == "slab"
    air = np.mean([np.array(record.body) == 0 for record in manifest.shards[0].records])
    assert 0.3 < air < 0.6  # about 45 % of the patches of an abdomen slice are air
    assert run("verify.py", tmp_path / "shards").returncode == 0


def test_chest_is_signed_and_padded(chest):
    slices = sorted((piece for path in files_under(chest) if path.name != "SOURCE" for piece in read_slices(path)),
                    key=lambda s: s.z)  # fmt: skip
    assert len(slices) == 236 and {s.coding.signed for s in slices} == {True}
    steps = np.diff([s.z for s in slices])
    np.testing.assert_allclose(steps, 1.25, atol=0.01)
    values, clipped = read_hu(slices[100])
    assert values[0, 0] == -1024 and values.min() == -1024 and clipped == 0  # -3024 without regard to the padding
    assert values[200:300, 50:450].mean() > -1000
    assert (slices[0].mas, slices[0].kernel) == (9, "LUNG")


def test_chest_through_a_sharp_kernel_and_absurd_exposure(chest, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for path in sorted(chest.iterdir())[100:102]:
        (source / path.name).write_bytes(path.read_bytes())
    done = run("simulate.py", source, tmp_path / "dose", "--dose", "0.1-0.5", "--i0", "mas", "--workers", 2)
    assert done.returncode == 0 and "no believable Exposure, I0 = 300000" in done.stdout and "(sharp)" in done.stdout
    (patient,) = find_pairs(tmp_path / "dose").patients
    assert patient.variant == "1.25mm_sharp" and len(patient.pairs) == 2
    for pair in patient.pairs:
        assert 0.1 <= pair.dose <= 0.5
        full, low = read_hu(pair.full)[0], read_hu(pair.low)[0]
        assert ((low == -1024) == (full == -1024))[:20, :20].all() and (low[:20, :20] == -1024).all()
