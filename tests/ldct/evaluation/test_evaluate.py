import csv
import dataclasses
import json
import shutil
from functools import partial

import numpy as np
import pydicom
import pytest
import torch
from conftest import run_command
from made import make_run
from phantom import body, make_dataset

from ldct.evaluation import baselines, datasets, evaluate, results
from ldct.evaluation.measure import Pace, Planned, expected_seconds, run_methods, shown
from ldct.inference.denoiser import Denoiser
from ldct.metrics import protocols, registry
from ldct.metrics.slice_pair import SlicePair
from ldct.runs.folder import Status, write_status
from shards.common.command import InputError
from shards.common.part import Part
from shards.common.pool import Workers
from shards.manifest import Record

CPU = torch.device("cpu")
CHOSEN = ["abd400", "document55"]


@pytest.fixture(scope="module")
def measured(tiny_shards, tmp_path_factory):
    """Two made runs, measured: folder, data, evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / "0-aaaa", tiny_shards), make_run(folder / "1-bbbb", tiny_shards, attention="both")]
    data = datasets.open_shards(tiny_shards, "test")
    return runs, data, evaluate.evaluate(runs, data, CHOSEN, CPU)


def psnr_of(output, full):
    return registry.measure(SlicePair(output, full), protocols.get("abd400"))["abd400/psnr"]


def test_numbers_are_those_of_the_pixels(measured):
    runs, data, found = measured
    (low, full), denoiser = data.cases[1][1], Denoiser(runs[0], CPU)
    expected = registry.measure(SlicePair(denoiser(low), full), protocols.get("abd400"))
    result = found.get("0-aaaa")
    assert [measured.key for measured in result.slices] == [data.cases[i][0].key for i in range(4)]
    assert {name: result.slices[1].values[name] for name in expected} == expected
    psnr = [measured.values["abd400/psnr"] for measured in found.get("low dose").slices]
    low_dose = [psnr_of(*data.cases[i][1]) for i in range(4)]
    assert psnr == low_dose
    assert found.get("low dose").means["abd400/psnr"].mean == pytest.approx(np.mean(low_dose))


def test_the_blur_is_the_best_one_on_val(measured):
    _, data, found = measured
    chosen = float(found.get("Gaussian blur").detail.split()[1])
    images = [data.tuning[i][1] for i in (0, 2, 3)]

    def psnr(sigma):
        return np.mean([psnr_of(baselines.blur(low, sigma), full) for low, full in images])

    assert psnr(chosen) >= max(psnr(sigma) for sigma in np.arange(0.2, 3, 0.05)) - 0.001
    assert found.get("Gaussian blur").means["abd400/psnr"].mean > found.get("low dose").means["abd400/psnr"].mean


class Noisy:
    """Cases of one body and its noise of SD ``sd``."""

    def __init__(self, sd):
        full = body("P", 0).astype(np.int16)
        noise = np.random.default_rng(0).normal(0, sd, full.shape)
        self.pixels = np.stack([np.rint(full + noise).astype(np.int16), full])

    def __len__(self):
        return 1

    def __getitem__(self, number):
        return Record("k0", "P", 0.0, 0, list(self.pixels.shape)), self.pixels

    def acquisition(self, number):
        return datasets.Acquisition(None, None)


@pytest.mark.parametrize("sd", [2.0, 60.0, 250.0])
def test_non_local_means_is_at_its_best(sd):
    """Strengths too weak to change anything tie with each other; the best for much noise lies beyond the first ones."""
    cases, protocol = Noisy(sd), protocols.get("full4096")
    method, detail = baselines.create(baselines.MEANS, cases, protocol, "val", Workers(1))
    low, full = cases[0][1]

    def psnr(output):
        return registry.measure(SlicePair(output, full), protocol)["full4096/psnr"]

    best = max(psnr(baselines.non_local_means(low, strength)) for strength in sd * np.geomspace(0.25, 4, 33))
    assert psnr(method(low)) >= best - 0.02
    assert f"h {float(detail.split()[1]):g} HU" in detail and "limit" not in detail


def test_a_search_that_ends_at_its_limit_says_so():
    """Of an input without noise the weakest blur is the best."""
    _, detail = baselines.create(baselines.BLUR, Noisy(0.0), protocols.get("abd400"), "val", Workers(1))
    assert detail.endswith("on val, the limit of the search")


def test_non_local_means_keeps_edges_better_than_the_blur(measured):
    found = measured[2]
    assert found.get("non-local means").means["abd400/psnr"].mean > found.get("Gaussian blur").means["abd400/psnr"].mean


def test_what_is_written_is_read_back_equal(measured):
    runs, _, found = measured
    for run in runs:
        again = results.load(run, "test")
        assert [r.name for r in again.results] == [*baselines.NAMES, run.name]
        for result in again.results:
            expected = found.get(result.name)
            assert [s.key for s in result.slices] == [s.key for s in expected.slices]
            for a, b in zip(result.slices, expected.slices, strict=True):
                np.testing.assert_equal(a.values, b.values)
            assert result.pictures.keys() == expected.pictures.keys() == again.full.keys()
            for key, image in result.pictures.items():
                np.testing.assert_array_equal(image, expected.pictures[key])


def test_the_json_and_the_csv_hold_the_means(measured):
    runs, _, found = measured
    content = json.loads((runs[0] / "eval" / "test.json").read_text())
    assert content["protocol_definitions"]["abd400"] == protocols.get("abd400").text
    assert "no body mask" in content["region"]
    for method in content["methods"]:
        mean = found.get(method["name"]).means["abd400/ssim"].mean
        assert method["metrics"]["abd400/ssim"] == {"mean": mean, "half": None}
    with open(runs[0] / "eval" / "test-patients.csv") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["0-aaaa"]["abd400/psnr"]) == found.get("0-aaaa").means["abd400/psnr"].mean


def test_only_what_is_new_is_measured_again(measured, tiny_shards, monkeypatch, tmp_path):
    runs, data, found = measured
    asked = []
    run_methods = evaluate.run_methods
    monkeypatch.setattr(
        evaluate,
        "run_methods",
        lambda methods, *rest: (asked.extend(method.name for method in methods), run_methods(methods, *rest))[1],
    )
    again = evaluate.evaluate(runs, data, CHOSEN, CPU)
    assert asked == []
    assert again.get("1-bbbb").means == found.get("1-bbbb").means
    new = make_run(runs[0].parent / "2-cccc", tiny_shards, seed=5)
    evaluate.evaluate([*runs, new], data, CHOSEN, CPU)
    assert asked == ["2-cccc"]
    other = make_run(runs[0].parent / "other", tiny_shards, seed=6)
    (other / "checkpoints" / "best.pt").replace(new / "checkpoints" / "best.pt")
    evaluate.evaluate([*runs, new], data, CHOSEN, CPU)
    assert asked == ["2-cccc", "2-cccc"]
    slices = new / "eval" / "test-slices.csv"  # as if the last metric were a new one
    slices.write_text("".join(line.rpartition(",")[0] + "\n" for line in slices.read_text().splitlines()))
    evaluate.evaluate([new], data, CHOSEN, CPU)
    assert asked[2:] == ["2-cccc"]  # the runs beside it have the baselines
    away = new.rename(tmp_path / new.name)
    slices = away / "eval" / "test-slices.csv"
    slices.write_text("".join(line.rpartition(",")[0] + "\n" for line in slices.read_text().splitlines()))
    evaluate.evaluate([away], data, CHOSEN, CPU)
    assert asked[3:] == [*baselines.NAMES, "2-cccc"]


def test_baselines_are_not_looked_for_below_the_folders_beside_a_run(measured, tmp_path):
    """Above a run that stands alone may lie all that a group has."""
    runs, _, found = measured
    about = dataclasses.replace(found, results=[])
    alone = tmp_path / "alone"
    shutil.copytree(runs[0], tmp_path / "sweep" / runs[0].name)
    assert evaluate._of_neighbours([alone], about) is None
    assert evaluate._of_neighbours([tmp_path / "sweep" / "new"], about).results[-1].name == runs[0].name


def test_what_is_replaced_is_told_before_it_is_and_what_is_not_is_not(tiny_shards, two_pairs, tmp_path, capsys):
    """Other slices, then other protocols, under one name; another name keeps both."""
    run = make_run(tmp_path / "0-run", tiny_shards)
    first = datasets.open_pairs(two_pairs)
    make_dataset(tmp_path / "other", patients=("L001",), slices=1, size=64, seed=1)
    other = datasets.open_pairs(tmp_path / "other")
    evaluate.evaluate([run], first, ["abd400"], CPU)
    evaluate.evaluate([run], dataclasses.replace(other, split="site_b"), ["abd400"], CPU)
    assert "replaces" not in capsys.readouterr().err
    assert results.load(run, "pairs").data == first.digest and results.load(run, "site_b").data == other.digest
    evaluate.evaluate([run], first, ["hu2000"], CPU)
    what, keeps = "note: replaces what eval/pairs.json of a run holds:", "--name NAME keeps both"
    slices = "2 slices of 1 patient (pairs; all pairs of dicom)"
    assert f"{what} {slices} under abd400; {keeps}\n" in capsys.readouterr().err
    evaluate.evaluate([run], other, ["hu2000"], CPU)
    assert f"{what} {slices}; {keeps}\n" in capsys.readouterr().err


def test_a_torn_file_is_measured_again(measured):
    run = measured[0][0]
    path = run / "eval" / "test-slices.npz"
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    assert results.load(run, "test") is None
    path.write_bytes(content)
    assert results.load(run, "test") is not None


def test_shards_whose_bytes_changed_are_not_taken_for_those_measured_before(tiny_shards, tmp_path):
    """One pixel of the slices measured, then one of those that the baselines are tuned on."""
    for split in ("test", "val"):
        shards = tmp_path / split
        shutil.copytree(tiny_shards, shards)
        path, record = datasets.ShardSlices(shards, split).chosen[0]
        with open(path, "r+b") as file:
            file.seek(record.offset)
            file.write(b"\x11\x22")
        with pytest.raises(InputError, match=f"{split}-00000.tar has other bytes than when it was built: .*; copy it"):
            datasets.open_shards(shards, "test")


def test_dicom_pairs_give_what_their_shards_give(tmp_path, tiny_shards):
    make_dataset(tmp_path / "dicom", patients=("L143",), slices=4, size=128, seed=0)
    pairs, shards = datasets.open_pairs(tmp_path / "dicom"), datasets.open_shards(tiny_shards, "test")
    assert len(pairs.cases) == len(shards.cases) == 4
    for number in range(4):
        np.testing.assert_array_equal(pairs.cases[number][1], shards.cases[number][1])
        assert pairs.cases[number][0].patient == "L143"


def test_an_external_test_set_tunes_the_baselines_on_itself_and_says_so(tmp_path):
    make_dataset(tmp_path / "dicom", patients=("L143",), slices=2, size=128)
    run_command("shards/build.py", tmp_path / "dicom", tmp_path / "shards", "--split", "test")
    data = datasets.open_shards(tmp_path / "shards", "test")
    assert len(data.cases) == len(data.tuning) == 2 and data.tuned == "the slices measured"
    assert "an external test set" in data.note


def test_pairs_that_cannot_be_read_are_not_passed_over(two_pairs):
    path = sorted(two_pairs.glob("L143/quarter_1mm/*"))[0]
    path.unlink()
    path.symlink_to("gone")
    with pytest.raises(InputError, match=r"1 file cannot be read, e.g. L143/quarter_1mm/.*; put it right, or take it"):
        datasets.open_pairs(two_pairs)


@pytest.fixture
def two_pairs(tmp_path):
    """A folder with two DICOM pairs of 64 x 64 pixels of 0.7 mm."""
    return make_dataset(tmp_path / "dicom", patients=("L143",), slices=2, size=64, seed=0)


def test_the_digest_is_of_what_decides_the_numbers(two_pairs):
    """Other pixels, or the same under another rescale or geometry, in files of the same name and size."""
    path = sorted(two_pairs.glob("L143/quarter_1mm/*"))[0]
    content, size = path.read_bytes(), path.stat().st_size
    digests = {datasets.open_pairs(two_pairs).digest}
    changes = [
        lambda d: setattr(d, "PixelData", d.PixelData[::-1]),
        lambda d: setattr(d, "RescaleIntercept", -1023),
        lambda d: setattr(d, "RescaleSlope", 2),
        lambda d: setattr(d, "PatientID", "Anonymoux"),
    ]
    for change in changes[:3]:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)
        assert path.stat().st_size == size
        digests.add(datasets.open_pairs(two_pairs).digest)
        path.write_bytes(content)
    assert len(digests) == 4
    dataset = pydicom.dcmread(path)
    changes[3](dataset)
    dataset.save_as(path)
    assert datasets.open_pairs(two_pairs).digest in digests


def test_compressed_pixels_are_in_the_digest(two_pairs):
    digests = []
    for path in sorted(two_pairs.glob("L143/*/*")):
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.save_as(path)
    digests.append(datasets.open_pairs(two_pairs).digest)
    dataset.decompress()
    dataset.PixelData = dataset.PixelData[::-1]
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(path)
    digests.append(datasets.open_pairs(two_pairs).digest)
    assert digests[0] != digests[1]


def test_how_a_slice_was_taken_is_known(two_pairs, tiny_shards):
    quarter = datasets.Acquisition(spacing=0.7, dose=0.25)
    assert datasets.open_pairs(two_pairs).cases.acquisition(1) == quarter
    cases = datasets.open_shards(tiny_shards, "test").cases
    assert [cases.acquisition(number) for number in range(4)] == [quarter] * 4


class TwoSlices:
    """Cases of one small image."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return Record(f"k{number}", "P", 0.0, 0, [2, 40, 40]), np.zeros((2, 40, 40), np.int16)

    def acquisition(self, number):
        return datasets.Acquisition(None, None)


def test_a_protocol_that_does_not_fit_is_one_line():
    planned = Planned("x", "CPU", lambda: (baselines.unchanged, ""))
    with pytest.raises(InputError, match=r"document55 does not fit.*at least 55 x 55"):
        expected_seconds([planned], TwoSlices(), ["document55"], Workers(1), 1)


def test_methods_together_and_in_workers_measure_what_each_alone_measures(tiny_shards):
    cases = datasets.open_shards(tiny_shards, "test").cases

    def blurred(name, sigma, in_workers):
        return Planned(name, "CPU", lambda: (partial(baselines.blur, sigma=sigma), ""), in_workers)

    planned = [blurred("there", 1.0, True), blurred("here", 2.0, False)]
    pace = Pace({"there": 1.0, "here": 1.0}, 2 * len(cases))
    alone = [run_methods([method], cases, CHOSEN, Workers(1), pace)[0] for method in planned]
    with Workers(2) as workers:
        together = run_methods(planned, cases, CHOSEN, workers, pace)
    for one, other in zip(alone, together, strict=True):
        assert one.name == other.name
        for first, second in zip(one.slices, other.slices, strict=True):
            assert (first.patient, first.key) == (second.patient, second.key)
            np.testing.assert_equal(first.values, second.values)
        assert one.pictures.keys() == {cases[number][0].key for number in shown(len(cases))}
        np.testing.assert_equal(one.pictures, other.pictures)


def test_an_output_that_is_not_finite_is_an_error_and_writes_nothing(tiny_shards, tmp_path):
    broken = make_run(tmp_path / "1-broken", tiny_shards)
    path = broken / "checkpoints" / "best.pt"
    content = torch.load(path, weights_only=True)
    content["model"]["output.weight"].fill_(float("nan"))
    torch.save(content, path)
    good = make_run(tmp_path / "0-good", tiny_shards)
    data = datasets.open_shards(tiny_shards, "test")
    key = data.cases[0][0].key
    with pytest.raises(InputError, match=rf"run 1-broken, step 20, checkpoint \w+: its output for slice {key} is not"):
        evaluate.evaluate([good, broken], data, CHOSEN, CPU)
    assert list((broken / "eval").iterdir()) == list((good / "eval").iterdir()) == []  # before the minutes it takes


def test_the_progress_over_all_methods_is_in_time(capsys):
    """Of a quick method's slices and a slow one's, the slow one's are the work."""
    pace = Pace({"quick": 0.1, "slow": 0.9}, 10)
    for name in ("quick", "slow"):
        for _ in range(10):
            pace.count(name)
        print(name, pace.progress.done)
    assert capsys.readouterr().out.split() == ["quick", "10", "slow", "100"]


def test_runs_without_a_checkpoint_are_named_and_left_out(measured, tiny_shards, tmp_path, capsys):
    good = make_run(tmp_path / "sweep" / "0-good", tiny_shards)
    bad = make_run(tmp_path / "sweep" / "1-bad", tiny_shards, state="failed")
    (bad / "checkpoints" / "best.pt").unlink()
    assert evaluate.usable([tmp_path / "sweep"]) == [good]
    assert [evaluate.usable([tmp_path / "sweep"], Part(number, 2)) for number in (1, 2)] == [[good], []]
    assert "1-bad: no checkpoint yet (state: failed)" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"1-bad has no checkpoint.*launch/train.py"):
        evaluate.usable([bad])
    with pytest.raises(InputError, match="no run below"):
        evaluate.usable([tmp_path / "sweep" / "0-good" / "checkpoints"])


def test_a_run_that_is_not_finished_is_measured_and_named(tiny_shards, tmp_path, capsys):
    half = make_run(tmp_path / "0-half", tiny_shards, state="stopped")
    write_status(half, Status("stopped", step=7, steps=20))
    done = make_run(tmp_path / "1-done", tiny_shards)
    assert evaluate.usable([half, done]) == [half, done]
    assert (
        capsys.readouterr().err == f"note: {half} is stopped at step 7 of 20; measured is its best checkpoint so far\n"
    )
