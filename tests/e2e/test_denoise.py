import functools
import os
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from conftest import ROOT, run_command
from made import make_run
from phantom import make_dataset, write_series

from ldct.evaluation import datasets, results
from ldct.inference import pretrained


@pytest.fixture
def denoise(call):
    return functools.partial(call, "launch/denoise.py")


@pytest.fixture(scope="module")
def run(tiny_shards, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "0-run", tiny_shards, scale=0.3, attention="both")


def test_the_files_hold_the_pixels_that_evaluate_measured(denoise, run, tiny_shards, tmp_path):
    make_dataset(tmp_path / "dicom", patients=("L143",), slices=4, size=128, seed=0)
    run_command("launch/evaluate.py", run, "--shards", tiny_shards, "--protocol", "abd400")
    for name in "abcd":
        (tmp_path / "dicom" / f"{name}.txt").write_text("no DICOM")
    argv = ["--run", run, tmp_path / "dicom", tmp_path / "out"]
    assert "4 of 4 slices in 1 series denoised by redcnn of run 0-run" in denoise(*argv, "--part", "2/2")[1]
    status, said, _ = denoise(*argv)
    assert status == 0
    first = ", ".join(str(tmp_path / "dicom" / f"{name}.txt") for name in "abc")
    assert f"passed over 4 files: not DICOM: {first} and 1 more\n" in said
    assert "4 of 8 slices in 2 series denoised by redcnn of run 0-run" in said
    assert "slices/s on " in said
    measured = results.load(run, "test").get("0-run").pictures
    records = [record for record, _ in map(datasets.open_shards(tiny_shards, "test").cases.__getitem__, range(4))]
    files = {}
    for path in (tmp_path / "out").rglob("*.dcm"):
        if "quarter" in str(path) or "_QD_" in path.name:
            dataset = pydicom.dcmread(path)
            files[float(dataset.ImagePositionPatient[2])] = dataset.pixel_array * 1.0 + float(dataset.RescaleIntercept)
    compared = 0
    for record in records:
        if record.key in measured:
            np.testing.assert_array_equal(files[record.z], measured[record.key])
            compared += 1
    assert compared == len(measured) == 4
    again = denoise(*argv)[1]
    assert "0 of 8 slices" in again and "; the other 8 were there\n" in again


def test_export_and_use_without_the_run(denoise, run, tmp_path):
    make_dataset(tmp_path / "dicom", patients=("L143",), slices=1, size=128, seed=0)
    file = tmp_path / "model.pt2"
    assert denoise("--run", run, "--export", file)[0] == 0
    assert denoise("--run", file, tmp_path / "dicom", tmp_path / "by-file")[0] == 0
    assert denoise("--run", run, tmp_path / "dicom", tmp_path / "by-run")[0] == 0
    paths = sorted(path.relative_to(tmp_path / "by-run") for path in (tmp_path / "by-run").rglob("*.dcm"))
    assert len(paths) == 2
    for path in paths:
        run_hu, file_hu = (
            pydicom.dcmread(tmp_path / by / path).pixel_array.astype(int) for by in ("by-run", "by-file")
        )
        assert np.abs(run_hu - file_hu).max() <= 1


@pytest.fixture(scope="module")
def weights(run, tiny_shards, tmp_path_factory):
    """The run as a network that ships, made by its command."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "about.yaml").write_text("".join(f"{key}: phantoms\n" for key in pretrained.TOLD))
    argv = [run, "redcnn-tiny", "--shards", tiny_shards, "--about", folder / "about.yaml", "--folder", folder]
    done = run_command("-m", "ldct.inference.pretrained", *argv)
    assert done.stdout.startswith(f"{folder / 'redcnn-tiny.safetensors'}: ")
    return folder / "redcnn-tiny.safetensors"


def descriptions(folder):
    """DerivationDescription of each series below ``folder``, each of one kind."""
    texts = {}
    for path in sorted(folder.rglob("*.dcm")):
        texts.setdefault(path.parent.name, set()).add(str(pydicom.dcmread(path).DerivationDescription))
    return {name: text for name, (text,) in texts.items()}


def test_a_network_that_ships_knows_what_it_was_trained_on(denoise, weights, tmp_path):
    """The quarter dose is like its training, the full dose and pixels of 0.3 mm are not."""
    make_dataset(tmp_path / "in", patients=("L143",), slices=2, size=128, seed=0)
    write_series(tmp_path / "in" / "small", "L143", "quarter", 2, PixelSpacing=[0.3, 0.3])
    argv = ["--model", weights, tmp_path / "in", tmp_path / "out"]
    status, said, errors = denoise(*argv)
    assert status == 2
    full, small = (tmp_path / "in" / name for name in ("L143/full_1mm", "small"))
    assert f"error: 2 of 3 series left out: {full}: redcnn-tiny was not trained on such a series (noise " in errors
    assert f"{small}: redcnn-tiny was not trained on such a series (" in errors
    assert "pixels 0.30 mm, trained on 0.70 to 0.70: a small field of view?" in errors
    assert list(descriptions(tmp_path / "out")) == ["quarter_1mm"]
    assert "; pixels 0.70 mm (0.70 to 0.70); body " in said and "; kernel B30f (B30f)" in said

    assert denoise(*argv, "--force")[0] == 0
    described = descriptions(tmp_path / "out")
    assert described["quarter_1mm"].startswith("denoised by redcnn-tiny, redcnn, weights ")
    assert ", in spite of: redcnn-tiny was not trained on such a series (noise " in described["full_1mm"]
    assert "not trained on" not in described["quarter_1mm"]


def test_strength_is_named_by_the_derived_series(denoise, weights, tmp_path):
    make_dataset(tmp_path / "in", patients=("L143",), slices=1, size=128, seed=0)
    (tmp_path / "in" / "L143" / "full_1mm").rename(tmp_path / "full")
    for strength in ("0.5", "1"):
        argv = ["--model", weights, "--strength", strength, tmp_path / "in", tmp_path / strength]
        assert denoise(*argv)[0] == 0
    (half,), (whole,) = ([pydicom.dcmread(path) for path in (tmp_path / s).rglob("*.dcm")] for s in ("0.5", "1"))
    (low,) = [pydicom.dcmread(path) for path in (tmp_path / "in").rglob("*.IMA")]
    expected = (low.pixel_array.astype(float) + whole.pixel_array) / 2
    assert np.abs(half.pixel_array - expected).max() <= 0.5
    assert (
        half.SeriesDescription == "CT denoised redcnn-tiny 50%" and whole.SeriesDescription == "CT denoised redcnn-tiny"
    )
    assert half.DerivationDescription == f"{whole.DerivationDescription}, strength 0.5"
    assert half.SeriesInstanceUID != whole.SeriesInstanceUID


def test_a_network_that_ships_is_evaluated_on_pairs(weights, tmp_path):
    make_dataset(tmp_path / "pairs", patients=("L143",), slices=2, size=128, seed=0)
    script, environment = ROOT / "launch" / "evaluate.py", os.environ | {"PYTHONPATH": str(ROOT)}
    argv = [sys.executable, script, "--model", weights, "--pairs", tmp_path / "pairs", "--protocol", "abd400"]
    done = subprocess.run([*map(str, argv)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    psnr = results.load(tmp_path / "runs" / "pretrained" / "redcnn-tiny", "pairs").get("redcnn-tiny").means
    assert psnr["abd400/psnr"].mean > 20


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--run", "no/run", "in", "out"], "no/run has no checkpoint to use"),
        (["--run", "no/run"], "expected IN and OUT, or --export FILE"),
        (["--model", "none-such", "in", "out"], "no network 'none-such'; those that ship: "),
    ],
)
def test_bad_input_is_one_line(denoise, argv, message):
    status, _, errors = denoise(*argv)
    assert (status, errors.count("\n")) == (2, 1)
    assert message in errors
