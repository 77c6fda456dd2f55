import json

import pytest
from conftest import run_command, tiny_flags
from made import make_run
from phantom import make_dataset

from launch.evaluate import main
from shards.common.command import command


@pytest.fixture(scope="module")
def sweep(tiny_shards, tmp_path_factory):
    """A trained run and a made one."""
    folder = tmp_path_factory.mktemp("sweep")
    run_command("launch/train.py", *tiny_flags(tiny_shards, folder / "0-trained", data__min_body=0))
    make_run(folder / "1-made", tiny_shards, attention="both")
    return folder


def evaluate(*argv, **kwargs):
    return run_command("launch/evaluate.py", *argv, check=False, **kwargs)


def test_it_measures_prints_and_writes(sweep, tiny_shards):
    done = evaluate(sweep, "--shards", tiny_shards, "--protocol", "hu2000", "abd400")
    assert done.returncode == 0, done.stderr
    for text in ("RED-CNN", "RED-CNN + channel + spatial", "low dose", "Gaussian blur", "non-local means"):
        assert text in done.stdout
    assert done.stdout.startswith("hu2000: clip [-1000, 1000] HU, data range 2000")
    assert "4 slices of 1 patient (test; split by patient, named)" in done.stdout
    assert "no interval with fewer than 3 patients" in done.stdout
    content = json.loads((sweep / "0-trained" / "eval" / "test.json").read_text())
    assert content["protocols"] == ["hu2000", "abd400"]
    low = next(m for m in content["methods"] if m["name"] == "low dose")
    row = next(line for line in done.stdout.splitlines() if line.startswith("low dose"))
    assert f"{low['metrics']['hu2000/psnr']['mean']:.2f}" in row
    again = evaluate(sweep, "--shards", tiny_shards, "--protocol", "hu2000", "abd400")
    assert again.stdout == done.stdout
    assert "slices" not in again.stderr  # nothing was measured


def test_pairs_of_dicom_need_no_shards(sweep, tmp_path):
    make_dataset(tmp_path / "dicom", patients=("L001", "L002", "L003"), slices=2, size=128, seed=1)
    done = evaluate(sweep / "1-made", "--pairs", tmp_path / "dicom", "--protocol", "abd400")
    assert done.returncode == 0, done.stderr
    assert "6 slices of 3 patients (pairs; all pairs of dicom)" in done.stdout
    assert " ± " in done.stdout  # three patients: an interval
    content = json.loads((sweep / "1-made" / "eval" / "pairs.json").read_text())
    assert all(m["metrics"]["abd400/psnr"]["half"] > 0 for m in content["methods"])
    named = evaluate(sweep / "1-made", "--pairs", tmp_path / "dicom", "--protocol", "abd400", "--name", "site_b")
    assert "6 slices of 3 patients (site_b; all pairs of dicom)" in named.stdout and "replaces" not in named.stderr


@pytest.fixture
def here(capsys, monkeypatch):
    """The command in this process, which has torch already: (status, standard error)."""

    def run(*argv):
        monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, argv)])
        with pytest.raises(SystemExit) as stopped:
            command(main)
        return stopped.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--protocol", "abd"], "unknown metric protocol 'abd'; there are: abd400, hu2000"),
        (["--shards", "no/where"], "expected no/where/manifest.json, written by shards/build.py"),
        (["--device", "cuda:77"], "device cuda:77"),
        (["--device", "gpu"], "device gpu"),
        (
            ["--name", "test"],
            "--name test: expected letters, digits and _, at most 64, and none of train, val, test, pairs",
        ),
        (["--name", "a-slices"], "--name a-slices: expected letters"),
        (["--name", "a" * 65], "at most 64"),
    ],
)
def test_bad_input_is_one_line(sweep, tiny_shards, here, change, message):
    status, error = here(sweep, "--shards", tiny_shards, *change)
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_a_run_without_a_checkpoint_is_one_line(tiny_shards, tmp_path):
    run = make_run(tmp_path / "0-bare", tiny_shards)
    (run / "checkpoints" / "best.pt").unlink()
    done = evaluate(run, "--shards", tiny_shards)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "0-bare has no checkpoint to use: expected" in done.stderr


def test_shards_of_another_version_are_one_line(sweep, tiny_shards, tmp_path, here):
    text = (tiny_shards / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"version": 1', '"version": 9'))
    status, error = here(sweep, "--shards", tmp_path)
    assert (status, error.count("\n")) == (2, 1)
    assert "9" in error and "build the shards again" in error


def test_a_folder_that_cannot_be_written_is_one_line(tiny_shards, tmp_path, here):
    run = make_run(tmp_path / "0-blocked", tiny_shards)
    (run / "eval").write_text("")
    status, error = here(run, "--shards", tiny_shards, "--protocol", "abd400")
    assert status == 2
    assert error.splitlines()[-1].startswith("error: cannot write")
