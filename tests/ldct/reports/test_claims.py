"""Verdicts where the truth is known: runs made up with effects that are there, are not, or cannot be told."""

import numpy as np
import pytest
from made_up import PATIENTS, PSNR, by_stage, make
from scipy import stats

from ldct.evaluation.attention import LOSS
from ldct.metrics.intervals import Interval, crossed
from ldct.reports import claims
from ldct.reports.arms import group, main_arms
from ldct.reports.claims import ALIKE, CONFIRMED, REFUTED, UNDECIDED, Claim, Quantity


def arms_of(*pairs, seeds=3, **common):
    """Arms from (fields, gain) pairs."""
    return group([make(seed, gain, **common, **fields) for fields, gain in pairs for seed in range(seeds)])


def verdict(tested, text):
    return next(claim for claim in claims.claims(tested, PSNR) if claim.text == text).verdict


REDCNN, UNET = {"model__name": "redcnn"}, {"model__name": "unet"}


@pytest.mark.parametrize(
    ("ahead", "noise", "expected"),
    [
        (0.5, 0.05, CONFIRMED),
        (-0.5, 0.05, REFUTED),
        (0.05, 0.5, UNDECIDED),
        (0.02, 0.01, ALIKE),
        (0.03, 0.001, ALIKE),  # surely not zero, and surely of no matter
    ],
)
def test_the_better_network(ahead, noise, expected):
    tested = arms_of((REDCNN, 1 + ahead), (UNET, 1.0), noise=noise)
    assert verdict(tested, "RED-CNN is better than U-Net") == expected


@pytest.mark.parametrize(("seeds", "patients"), [(2, 4), (1, 4), (3, 2), (3, 1)])
def test_too_few_seeds_or_patients_decide_nothing(seeds, patients):
    tested = arms_of((REDCNN, 9.0), (UNET, 1.0), seeds=seeds, patients=PATIENTS[:patients])
    assert verdict(tested, "RED-CNN is better than U-Net") == UNDECIDED


def test_a_network_may_have_its_own_sizes_and_skip_but_nothing_else():
    alike = arms_of((REDCNN | {"model__residual": True}, 2.0), (UNET | {"model__residual": False}, 1.0))
    assert verdict(alike, "RED-CNN is better than U-Net") == CONFIRMED
    other = arms_of((REDCNN, 2.0), (UNET | {"optim__lr": 1e-5}, 1.0))
    (claim, *_) = claims.claims(other, PSNR)
    assert (claim.verdict, claim.quantities) == (UNDECIDED, [])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model__init": "kaiming"}, "Kaiming initialisation"),
        ({"model__norm": "batch"}, "batch norm"),
        ({"loss__name": "mse+vgg"}, "the perceptual loss"),
    ],
)
@pytest.mark.parametrize(("gain", "expected"), [(0.5, CONFIRMED), (1.5, REFUTED)])
def test_variants(change, text, gain, expected):
    tested = arms_of((REDCNN, 1.0), (REDCNN | change, gain))
    assert verdict(tested, f"RED-CNN as published is better than with {text}") == expected
    assert sum(claim.verdict != UNDECIDED for claim in claims.claims(tested, PSNR)) == 1


@pytest.mark.parametrize("kind", ["channel", "spatial"])
@pytest.mark.parametrize(("gain", "expected"), [(0.02, CONFIRMED), (-0.5, CONFIRMED), (0.5, REFUTED), (0.1, UNDECIDED)])
def test_no_gain_from_attention(kind, gain, expected):
    """A gain below a tenth of a decibel is none."""
    noise = 0.1 if expected == UNDECIDED else 0.01
    tested = arms_of((REDCNN, 1.0), (REDCNN | {"model__attention": kind}, 1 + gain), noise=noise)
    assert verdict(tested, f"RED-CNN gains nothing from {kind} attention") == expected


@pytest.mark.parametrize(("gain", "expected"), [(-0.3, CONFIRMED), (0.3, REFUTED)])
def test_a_loss_by_attention(gain, expected):
    tested = arms_of((UNET, 1.0), (UNET | {"model__attention": "spatial"}, 1 + gain))
    assert verdict(tested, "U-Net loses by spatial attention") == expected
    assert verdict(tested, "U-Net loses by channel attention") == UNDECIDED


FALLING, RISING = np.array([0.30, 0.22, 0.15, 0.1, 0.05]), np.array([0.05, 0.06, 0.1, 0.2, 0.35])


def with_attention(fields, seeds=3, **stats):
    """One arm; each seed's statistics are the given ones, a little shifted, or those given for each seed."""
    patients = fields.pop("patients", PATIENTS)
    runs = []
    for seed in range(seeds):
        own = {name: v[seed] if isinstance(v, list) else v + 0.01 * (seed - 1) for name, v in stats.items()}
        runs.append(make(seed, by_stage=by_stage(patients, **own), **fields))
    return group(runs)


@pytest.mark.parametrize(
    ("name", "text", "weights", "expected"),
    [
        ("redcnn", "RED-CNN selects channels at shallow depth", FALLING, CONFIRMED),
        ("redcnn", "RED-CNN selects channels at shallow depth", RISING, REFUTED),
        ("unet", "U-Net selects channels at deep depth", RISING, CONFIRMED),
        ("unet", "U-Net selects channels at deep depth", FALLING, REFUTED),
        ("unet", "U-Net selects channels at deep depth", [RISING, FALLING, RISING], UNDECIDED),
    ],
)
def test_where_channels_are_selected(name, text, weights, expected):
    tested = with_attention({"model__name": name, "model__attention": "channel"}, weights=weights)
    assert verdict(tested, text) == expected
    fields = {"model__name": name, "model__attention": "channel"}
    assert verdict(with_attention(fields, 2, weights=FALLING), text) == UNDECIDED  # seeds
    assert verdict(with_attention(fields | {"patients": PATIENTS[:2]}, weights=FALLING), text) == UNDECIDED


def test_the_rise_is_that_of_a_line():
    run = make(by_stage=by_stage(weights=[0.1, 0.2, 0.3, 0.4, 0.5]))
    assert claims.slope(run) == pytest.approx(dict.fromkeys(PATIENTS, 0.4))
    assert claims.slope(make(by_stage=by_stage(weights=[0.1]))) == {}


def maps(first, last):
    """A statistic of five stages from its ends."""
    return np.linspace(first, last, 5)


@pytest.mark.parametrize(
    ("name", "text", "edges", "texture", "expected"),
    [
        ("redcnn", "RED-CNN show edges at shallow depth", maps(0.8, 0.1), maps(0.4, 0.6), CONFIRMED),
        ("unet", "U-Net show edges at shallow depth", maps(-0.8, 0.1), maps(-0.4, 0.6), CONFIRMED),
        ("unet", "U-Net show edges at shallow depth", maps(0.1, 0.1), maps(0.05, 0.6), REFUTED),
        ("redcnn", "RED-CNN show edges at shallow depth", maps(0.5, 0.1), maps(0.8, 0.6), REFUTED),
        ("redcnn", "RED-CNN show texture at deep depth", maps(0.8, 0.2), maps(0.4, 0.6), CONFIRMED),
        ("redcnn", "RED-CNN show texture at deep depth", maps(0.8, 0.7), maps(0.4, 0.5), REFUTED),
        ("unet", "U-Net are abstract at deep depth", maps(0.8, 0.1), maps(0.4, 0.1), CONFIRMED),
        ("unet", "U-Net are abstract at deep depth", maps(0.8, 0.1), maps(0.4, 0.6), REFUTED),
        ("unet", "U-Net are abstract at deep depth", [maps(0, x) for x in (0.1, 0.6, 0.2)], maps(0, 0.1), UNDECIDED),
    ],
)
def test_what_spatial_maps_follow(name, text, edges, texture, expected):
    tested = with_attention({"model__name": name, "model__attention": "spatial"}, edges=edges, texture=texture)
    assert verdict(tested, f"spatial maps of {text}") == expected


def test_a_map_that_is_constant_at_the_deepest_stage_says_nothing_of_it():
    """Its correlation is not defined there, and that of another stage does not stand for it."""
    given = by_stage(edges=maps(0.8, 0.1), texture=maps(0.4, 0.6))
    for statistic in ("spatial_edges", "spatial_texture"):
        del given[statistic][5]
    run = make(by_stage=given)
    assert claims.follows(run, "edges", 0) == dict.fromkeys(PATIENTS, 0.8)
    assert claims.follows(run, "edges", -1) == claims.prefers(run, "texture", -1) == {}


def test_both_kinds_count_where_there_is_no_arm_with_one():
    both = with_attention({"model__name": "redcnn", "model__attention": "both"}, weights=FALLING)
    alone = with_attention({"model__name": "redcnn", "model__attention": "channel"}, weights=RISING)
    text = "RED-CNN selects channels at shallow depth"
    assert verdict(both, text) == CONFIRMED
    assert verdict([*both, *alone], text) == REFUTED


def test_a_claim_needs_all_its_quantities():
    above, below = (Quantity("x", Interval(mean, 0.02, 9.0, 3, 3), True) for mean in (1.0, -1.0))
    open_, none = (Quantity("x", Interval(0.05, error, 9.0, 3, 3), True) for error in (0.1, None))
    for quantities, expected in [
        ([above, above], CONFIRMED),
        ([above, open_], UNDECIDED),
        ([above, none], UNDECIDED),
        ([open_, below], REFUTED),
        ([], UNDECIDED),
    ]:
        (claim,) = claims.decide([Claim("c", "s", quantities)])
        assert claim.verdict == expected


def test_all_quantities_must_be_of_no_difference():
    alike, apart = (Quantity("x", Interval(mean, 0.01, 9.0, 3, 3), True, matters=0.1) for mean in (0.03, 0.5))
    free = Quantity("x", Interval(0.03, 0.001, 9.0, 3, 3), True)
    assert [claims.decide([Claim("c", "s", q)])[0].verdict for q in ([alike], [alike, apart], [free])] == [
        ALIKE,
        CONFIRMED,
        CONFIRMED,
    ]


def test_verdicts_are_corrected_for_the_number_of_claims():
    """p = 0.02 decides alone; among five it needs to be below 0.01."""
    error = 1 / stats.t.isf(0.01, 9)
    quantity = Quantity("x", Interval(1.0, error, 9.0, 3, 3), True)
    (alone,) = claims.decide([Claim("c", "s", [quantity])])
    assert (alone.verdict, alone.p) == (CONFIRMED, pytest.approx(0.02))
    untested = [Claim("u", "s", []) for _ in range(9)]
    first, *_ = claims.decide([Claim("c", "s", [quantity]), *untested])
    assert first.verdict == CONFIRMED  # what was not tested does not count
    five = claims.decide([Claim("c", "s", [quantity]) for _ in range(5)])
    assert [claim.verdict for claim in five] == [UNDECIDED] * 5 and five[0].p == pytest.approx(0.1)


@pytest.mark.parametrize(("losses", "expected"), [((0.6, 0.1), CONFIRMED), ((0.1, 0.6), REFUTED), ((0.2, 0.2), ALIKE)])
def test_the_depth_at_which_the_choice_of_a_gate_matters(losses, expected):
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(3):
        by_stage = {
            stage: {patient: loss + rng.normal(0, 0.01) for patient in PATIENTS}
            for stage, loss in zip((1, 5), losses, strict=True)
        }
        runs.append(make(seed, model__attention="channel", by_stage={LOSS: by_stage}))
    tested = group(runs)
    assert verdict(tested, "the choice of RED-CNN's channel gates matters most at shallow depth") == expected
    by_depth = tested[0].by_depth(LOSS)
    assert list(by_depth) == [0.0, 1.0]
    assert np.mean(by_depth[0.0]) == pytest.approx(losses[0], abs=0.02)


def test_the_main_arms_are_those_of_the_recipe_with_most_kinds():
    kinds = [(name, {"model__attention": kind}) for name in (REDCNN, UNET) for kind in ("none", "both")]
    tested = arms_of(*((name | kind, 1.0) for name, kind in kinds), (REDCNN | {"optim__lr": 1e-5}, 2.0), seeds=1)
    assert [arm.label for arm in main_arms(tested)] == [
        "RED-CNN",
        "RED-CNN + channel + spatial",
        "U-Net",
        "U-Net + channel + spatial",
    ]


def test_the_interval_holds_the_truth_in_19_of_20():
    """Seeds and patients and their meeting each add their part; 3 seeds and 5 patients."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(600):
        values = rng.normal(0, 1, (3, 1)) + rng.normal(0, 1, (1, 5)) + rng.normal(0, 1, (3, 5))
        interval = crossed(values)
        held.append(abs(interval.mean) < interval.ci95_half_width)
    assert 0.94 < np.mean(held) < 1.0


def test_the_interval_by_hand():
    """Only seeds differ: Student's with two degrees of freedom."""
    interval = crossed(np.array([[1.0, 1, 1], [2, 2, 2], [4, 4, 4]]))
    assert interval.mean == pytest.approx(7 / 3)
    assert interval.ci95_half_width == pytest.approx(4.302653 * np.std([1, 2, 4], ddof=1) / np.sqrt(3))
    assert crossed(np.ones((3, 3))).ci95_half_width == 0


def test_differences_are_taken_seed_by_seed_and_patient_by_patient():
    (redcnn,) = arms_of((REDCNN, 1.0), seeds=4)
    (unet,) = arms_of((UNET, 0.0), seeds=3)
    difference = redcnn.interval(PSNR, unet.table(PSNR))
    assert (difference.seeds, difference.patients) == (3, 4)
    assert difference.mean == pytest.approx(1.0, abs=0.02)
    assert difference.ci95_half_width < 0.05 < redcnn.interval(PSNR).ci95_half_width


def test_arms_are_alike_in_all_but_the_seed():
    runs = [make(seed, data=data, track__wandb=w) for seed in (0, 1) for data in "ab" for w in ("disabled", "offline")]
    arms = group(runs)
    assert [sorted(arm.runs) for arm in arms] == [[0, 1], [0, 1]]
    assert [arm.label for arm in arms] == [f"RED-CNN, trained on shards {data}" for data in "ab"]
