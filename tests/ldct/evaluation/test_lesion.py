"""A disc drawn into a phantom of flat soft tissue in white noise, behind methods whose answer is known."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from made import make_run
from scipy import ndimage

from ldct.data.hu import to_hu
from ldct.evaluation import lesion
from ldct.evaluation.baselines import BLUR, LOW, MEANS, again, blur
from ldct.evaluation.datasets import Acquisition
from ldct.evaluation.results import FULL, Evaluation, Result
from ldct.inference.denoiser import Denoiser
from ldct.metrics import noise_texture, observer
from ldct.metrics.intervals import Measured
from ldct.metrics.slice_pair import Target
from ldct.runs import reader, wandb_rows

SIZE, SPACING = 192, 0.7


def noisy(sd, seed):
    return np.rint(50 + np.random.default_rng(seed).normal(0, sd, (SIZE, SIZE))).astype(np.int16)


FULL_DOSE, LOW_DOSE = noisy(10, 0), noisy(20, 1)
LOW_DOSES = [noisy(20, seed) for seed in range(1, 7)]
TARGET = Target(FULL_DOSE, SPACING)
MATCHED = math.sqrt(np.square(observer.disc(32, SPACING)).sum()) / 20
"""d' of the disc in the low dose's white noise."""


def behind(method, output):
    return lesion.of_slice(method, LOW_DOSE, output, TARGET)


def test_pieces_lie_inside_and_their_blocks_do_not_overlap():
    places = lesion.locations(TARGET)
    assert len(places) == lesion.LOCATIONS
    assert all(0 <= at <= SIZE - lesion.PIECE for place in places for at in place)
    gaps = [max(abs(r - s), abs(c - d)) for i, (r, c) in enumerate(places) for s, d in places[:i]]
    assert min(gaps) >= 32


def test_in_the_low_dose_itself_it_is_the_matched_filters():
    found = behind(lambda pieces: pieces, LOW_DOSE)
    assert found[lesion.KEPT] == 1
    assert found[lesion.DETECTABILITY] == pytest.approx(MATCHED, rel=0.1)


def test_fading_all_contrast_loses_contrast_but_nothing_to_see():
    """Signal and noise are halved alike."""
    sharp = behind(lambda pieces: pieces, LOW_DOSE)[lesion.DETECTABILITY]
    for share in (0.5, 0.03):
        found = behind(lambda pieces, share=share: 50 + (pieces - 50.0) * share, 50 + (LOW_DOSE - 50) * share)
        assert found[lesion.KEPT] == pytest.approx(share)
        assert found[lesion.DETECTABILITY] == pytest.approx(sharp)


def over_noise(method):
    """Means of LESION behind ``method`` over low doses that differ in their noise."""
    found = [lesion.of_slice(method, low, method(low), TARGET) for low in LOW_DOSES]
    return [np.mean([values[key] for values in found]) for key in lesion.LESION]


def smooth(hu, sd):
    return ndimage.gaussian_filter(hu.astype(float), sd, axes=(-2, -1))


def test_a_method_that_removes_faint_things_is_not_flattered():
    """It keeps means and half of what is fine, edges with it, and takes what lies between: most of the disc."""
    seen, kept = over_noise(lambda hu: smooth(hu, 8) + 0.5 * (hu - smooth(hu, 2)))
    assert kept == pytest.approx(0.29, abs=0.01)
    assert seen < 0.85 * over_noise(lambda hu: hu)[0]


@pytest.mark.parametrize("sd", [1, 3, 6, 12, 25])
def test_no_blur_is_above_the_low_dose(sd):
    """In white noise that has the matched filter, and no linear filter is above it.

    The spectrum lacks the noise that varies slowly; so must the signal.
    """
    assert over_noise(lambda hu: smooth(hu, sd))[0] < over_noise(lambda hu: hu)[0]


def test_without_flat_tissue_or_the_size_of_a_pixel_it_is_nan():
    steep = np.tile(np.arange(SIZE) * 10, (SIZE, 1)).astype(np.int16)
    for target in (Target(FULL_DOSE), Target(steep, SPACING)):
        found = lesion.of_slice(lambda pieces: pieces, LOW_DOSE, LOW_DOSE, target)
        assert all(math.isnan(found[key]) for key in lesion.LESION)


def test_every_method_is_measured_and_written_with_its_run(tiny_shards, tmp_path):
    run = make_run(tmp_path / "0-none", tiny_shards, scale=0.02)
    (run / "eval").mkdir(exist_ok=True)
    low = [Measured("p", "a", {})]
    smooth = blur(LOW_DOSE, 1)
    results = [
        Result(name, detail, low, 1.0, "CPU", mark, {"a": image})
        for name, detail, mark, image in (
            (LOW, "the input as it is", "", LOW_DOSE),
            (BLUR, "SD 1 pixels, the best abd400 PSNR on val", "", smooth),
            (MEANS, "h 20 HU, the best abd400 PSNR on val", "", LOW_DOSE),
            (run.name, "", "f" * 64, LOW_DOSE),
        )
    ]
    evaluation = Evaluation(
        "test", "d" * 64, "", ["abd400"], results, {"a": FULL_DOSE}, {"a": Acquisition(SPACING, 0.25)}
    )
    found = lesion.measure([run], evaluation, torch.device("cpu"))
    kept = {name: of["p"][lesion.KEPT] for name, of in found.items()}
    disc = observer.disc(lesion.PIECE, SPACING)
    blurred = (ndimage.gaussian_filter(disc, 1) * disc).sum() / np.square(disc).sum()
    assert kept[FULL] == kept[LOW] == 1 and kept[BLUR] == pytest.approx(blurred, abs=0.02)
    assert kept.keys() == {FULL, LOW, BLUR, MEANS, run.name}
    network = Denoiser(run, torch.device("cpu"))
    assert np.array_equal(to_hu(network.unrounded(LOW_DOSE)), network(LOW_DOSE))
    assert found[run.name]["p"] == pytest.approx(lesion.of_slice(network.unrounded, LOW_DOSE, LOW_DOSE, TARGET))
    assert found[FULL]["p"][lesion.DETECTABILITY] == pytest.approx(2 * MATCHED, rel=0.1)
    written = json.loads((run / "eval" / "test-lesion.json").read_text())
    assert (written["by_method"], written["checkpoint_sha256"]) == (found, "f" * 64)
    assert lesion.load(run, evaluation) == found
    assert lesion.load(run, dataclasses.replace(evaluation, data="e" * 64)) == {} == lesion.load(tmp_path, evaluation)
    assert reader.evaluated(run) == {} == wandb_rows.evaluated(run)  # readers of evaluations pass it over
    told = [line.split("  ")[0] for line in lesion.as_text(found, {FULL: "as at full dose"}).splitlines()]
    assert told.index("as at full dose") < told.index(LOW)  # the best first


def test_slices_on_which_no_disc_fits_are_left_out(tiny_shards, tmp_path, recwarn):
    """Flat blocks only at the border: a piece does not fit around them."""
    run = make_run(tmp_path / "0-none", tiny_shards)
    (run / "eval").mkdir(exist_ok=True)
    full = np.tile(np.arange(SIZE) * 10, (SIZE, 1)).astype(np.int16)
    full[:60] = FULL_DOSE[:60]
    assert Target(full, SPACING).once(noise_texture.blocks_of)
    names = (LOW, "the input as it is"), (BLUR, "SD 1 pixels"), (MEANS, "h 20 HU"), (run.name, "")
    slices = [Measured("p", "a", {})]
    results = [Result(name, detail, slices, 1.0, "CPU", "f" * 64, {"a": full}) for name, detail in names]
    evaluation = Evaluation("test", "d" * 64, "", ["abd400"], results, {"a": full}, {"a": Acquisition(SPACING, 0.25)})
    found = lesion.measure([run], evaluation, torch.device("cpu"))
    assert lesion.as_text(found, {}).endswith("so no disc was drawn") and not recwarn
    written = json.loads((run / "eval" / "test-lesion.json").read_text())
    assert written["slices"] == [] and set(map(len, written["by_method"].values())) == {0}


def test_a_baseline_is_set_again_as_it_was():
    again_blurred = again(BLUR, "SD 0.72 pixels, the best")(LOW_DOSE)
    assert np.array_equal(to_hu(again_blurred), blur(LOW_DOSE, 0.72)) and again_blurred.dtype == np.float32
    assert again(LOW, "the input as it is")(LOW_DOSE) is LOW_DOSE
