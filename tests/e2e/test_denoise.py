import numpy as np
import pydicom
import pytest
from conftest import run_command
from made import make_run
from phantom import make_dataset

from ldct.evaluation import datasets, results


@pytest.fixture(scope="module")
def run(tiny_shards, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "0-run", tiny_shards, scale=0.3, attention="both")


def test_the_files_hold_the_pixels_that_evaluate_measured(run, tiny_shards, tmp_path):
    make_dataset(tmp_path / "dicom", patients=("L143",), slices=4, size=128, seed=0)
    run_command("launch/evaluate.py", run, "--shards", tiny_shards, "--protocol", "abd400")
    for name in "abcd":
        (tmp_path / "dicom" / f"{name}.txt").write_text("no DICOM")
    done = run_command("launch/denoise.py", "--run", run, tmp_path / "dicom", tmp_path / "out")
    first = ", ".join(str(tmp_path / "dicom" / f"{name}.txt") for name in "abc")
    assert f"passed over 4 files: not DICOM: {first} and 1 more\n" in done.stdout
    assert "8 of 8 slices in 2 series denoised by redcnn of run 0-run" in done.stdout
    assert "slices/s on " in done.stdout
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
    assert compared == len(measured) == 2
    again = run_command("launch/denoise.py", "--run", run, tmp_path / "dicom", tmp_path / "out")
    assert "0 of 8 slices" in again.stdout


def test_export_and_use_without_the_run(run, tmp_path):
    make_dataset(tmp_path / "dicom", patients=("L143",), slices=1, size=128, seed=0)
    file = tmp_path / "model.pt2"
    run_command("launch/denoise.py", "--run", run, "--export", file)
    run_command("launch/denoise.py", "--run", file, tmp_path / "dicom", tmp_path / "by-file")
    run_command("launch/denoise.py", "--run", run, tmp_path / "dicom", tmp_path / "by-run")
    paths = sorted(path.relative_to(tmp_path / "by-run") for path in (tmp_path / "by-run").rglob("*.dcm"))
    assert len(paths) == 2
    for path in paths:
        run_hu, file_hu = (
            pydicom.dcmread(tmp_path / by / path).pixel_array.astype(int) for by in ("by-run", "by-file")
        )
        assert np.abs(run_hu - file_hu).max() <= 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--run", "no/run", "in", "out"], "no/run has no checkpoint to use"),
        (["--run", "no/run"], "expected IN and OUT, or --export FILE"),
    ],
)
def test_bad_input_is_one_line(argv, message):
    done = run_command("launch/denoise.py", *argv, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
