"""Verdicts where the truth is known: runs made up with effects that are there, are not, or cannot be told."""

import dataclasses
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from conftest import run_command

from ldct import config as configuration
from ldct.evaluation import results
from ldct.evaluation.baselines import NAMES
from ldct.evaluation.results import Evaluation, Result
from ldct.metrics import registry
from ldct.metrics.intervals import Interval, Measured, crossed, over_seeds
from ldct.reports import claims, findings
from ldct.reports.claims import CONFIRMED, REFUTED, UNDECIDED, Quantity
from ldct.reports.comparison import Run
from ldct.runs import folder as runs
from ldct.runs.folder import Status
from shards import manifest
from shards.common.command import InputError

PSNR = "abd400/psnr"
PATIENTS = ("L067", "L096", "L109", "L143")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def measured(gain, seed, patients=PATIENTS, noise=0.01):
    """Two slices of each patient: patients differ by decibels, seeds by hundredths, as in life."""
    rng = np.random.default_rng([seed, round(1000 * abs(gain))])
    found = []
    for number, patient in enumerate(patients):
        for index in range(2):
            psnr = 30 + 2 * number + index + gain + 0.02 * (seed - 1) + rng.normal(0, noise)
            values = dict.fromkeys(registry.names(["abd400"]), 1.0)
            values |= {PSNR: psnr, "abd400/ssim": psnr / 40, "abd400/rmse": 400 / 10 ** (psnr / 20)}
            found.append(Measured(patient, f"{patient}_{index}", values))
    return found


def attention_line(weights=None, edges=None, texture=None):
    """The last validation's statistics, each given by depth."""
    line = {"step": 20}
    for stat, values in (("channel_sd", weights), ("spatial_edges", edges), ("spatial_texture", texture)):
        for place, value in enumerate(values if values is not None else [], start=1):
            line |= {f"val/attention/{place}/depth": DEPTHS[place - 1], f"val/attention/{place}/{stat}": float(value)}
    return line


def make(seed=0, gain=1.0, patients=PATIENTS, noise=0.01, line=None, data="d", **fields):
    """A finished run that gains ``gain`` dB; ``fields`` of the configuration as section__field."""
    nested = {"train": {"seed": seed, "steps": 20}}
    for name, value in fields.items():
        section, field = name.split("__")
        nested.setdefault(section, {})[field] = value
    config = configuration.from_dict(nested)
    name = f"{configuration.hash8(config)}-{seed}"
    found = Evaluation("test", "d", "split by patient: made up", ["abd400"])
    found.results = [Result(each, "made", measured(-0.1, 0, patients), 1.0, "CPU") for each in NAMES]
    found.results[0].slices = measured(0.0, 1, patients, noise=0.0)
    found.results.append(Result(name, "made", measured(gain, seed, patients, noise), 1.0, "CPU", "mark"))
    status = Status(state="finished", step=20, steps=20, device="cpu")
    provenance = [{"manifest_sha256": data}]
    return Run(
        folder=None,
        name=name,
        label=name,
        config=config,
        status=status,
        metrics=[line] if line else [],
        provenance=provenance,
        evaluation=found,
    )


def arms_of(*arms, seeds=3, **common):
    """Arms from (fields, gain) pairs."""
    return claims.group([make(seed, gain, **common, **fields) for fields, gain in arms for seed in range(seeds)])


def verdict(made, text, patients=4):
    (claim,) = [claim for claim in claims.claims(made, PSNR, patients) if claim.text == text]
    return claim.verdict


REDCNN, UNET = {"model__name": "redcnn"}, {"model__name": "unet"}


@pytest.mark.parametrize(("ahead", "expected"), [(0.5, CONFIRMED), (-0.5, REFUTED), (0.0, UNDECIDED)])
def test_the_better_network(ahead, expected):
    made = arms_of((REDCNN, 1 + ahead), (UNET, 1.0), noise=0.05)
    assert verdict(made, "RED-CNN is better than U-Net") == expected


@pytest.mark.parametrize(("seeds", "patients"), [(2, 4), (1, 4), (3, 2), (3, 1)])
def test_too_few_seeds_or_patients_decide_nothing(seeds, patients):
    made = arms_of((REDCNN, 9.0), (UNET, 1.0), seeds=seeds, patients=PATIENTS[:patients])
    assert verdict(made, "RED-CNN is better than U-Net") == UNDECIDED


def test_a_network_may_have_its_own_sizes_and_skip_but_nothing_else():
    alike = arms_of((REDCNN | {"model__residual": True}, 2.0), (UNET | {"model__residual": False}, 1.0))
    assert verdict(alike, "RED-CNN is better than U-Net") == CONFIRMED
    other = arms_of((REDCNN, 2.0), (UNET | {"optim__lr": 1e-5}, 1.0))
    (claim, *_) = claims.claims(other, PSNR, 4)
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
    made = arms_of((REDCNN, 1.0), (REDCNN | change, gain))
    assert verdict(made, f"RED-CNN as published is better than with {text}") == expected
    assert sum(claim.verdict != UNDECIDED for claim in claims.claims(made, PSNR, 4)) == 1


@pytest.mark.parametrize("kind", ["channel", "spatial"])
@pytest.mark.parametrize(("gain", "expected"), [(0.02, CONFIRMED), (-0.5, CONFIRMED), (0.5, REFUTED), (0.1, UNDECIDED)])
def test_no_gain_from_attention(kind, gain, expected):
    """A gain below a tenth of a decibel is none."""
    noise = 0.1 if expected == UNDECIDED else 0.01
    made = arms_of((REDCNN, 1.0), (REDCNN | {"model__attention": kind}, 1 + gain), noise=noise)
    assert verdict(made, f"RED-CNN gains nothing from {kind} attention") == expected


@pytest.mark.parametrize(("gain", "expected"), [(-0.3, CONFIRMED), (0.3, REFUTED)])
def test_a_loss_by_attention(gain, expected):
    made = arms_of((UNET, 1.0), (UNET | {"model__attention": "spatial"}, 1 + gain))
    assert verdict(made, "U-Net loses by spatial attention") == expected
    assert verdict(made, "U-Net loses by channel attention") == UNDECIDED


FALLING, RISING = np.array([0.30, 0.22, 0.15, 0.1, 0.05]), np.array([0.05, 0.06, 0.1, 0.2, 0.35])


def with_attention(fields, seeds=3, **stats):
    """One arm; each seed's statistics are the given ones, a little shifted, or those given for each seed."""
    made = []
    for seed in range(seeds):
        mine = {name: v[seed] if isinstance(v, list) else v + 0.01 * (seed - 1) for name, v in stats.items()}
        made.append(make(seed, line=attention_line(**mine), **fields))
    return claims.group(made)


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
    made = with_attention({"model__name": name, "model__attention": "channel"}, weights=weights)
    assert verdict(made, text) == expected
    assert verdict(made, text, patients=2) == UNDECIDED
    assert verdict(with_attention({"model__name": name, "model__attention": "channel"}, 2, weights=FALLING), text) == (
        UNDECIDED
    )


def test_the_rise_is_that_of_a_line():
    run = make(line=attention_line(weights=[0.1, 0.2, 0.3, 0.4, 0.5]))
    assert claims.slope(run) == pytest.approx(0.4)
    assert np.isnan(claims.slope(make(line=attention_line(weights=[0.1]))))


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
    made = with_attention({"model__name": name, "model__attention": "spatial"}, edges=edges, texture=texture)
    assert verdict(made, f"spatial maps of {text}") == expected


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
        assert claims.Claim("c", "s", quantities).verdict == expected


def test_the_interval_holds_the_truth_in_19_of_20():
    """Seeds and patients and their meeting each add their part; 3 seeds and 5 patients."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(600):
        values = rng.normal(0, 1, (3, 1)) + rng.normal(0, 1, (1, 5)) + rng.normal(0, 1, (3, 5))
        found = crossed(values)
        held.append(abs(found.mean) < found.ci95_half_width)
    assert 0.94 < np.mean(held) < 1.0


def test_the_interval_by_hand():
    """Only seeds differ: Student's with two degrees of freedom."""
    found = crossed(np.array([[1.0, 1, 1], [2, 2, 2], [4, 4, 4]]))
    assert found.mean == pytest.approx(7 / 3)
    assert found.ci95_half_width == pytest.approx(4.302653 * np.std([1, 2, 4], ddof=1) / np.sqrt(3))
    assert over_seeds([1, 2, 4], 3).ci95_half_width == pytest.approx(found.ci95_half_width)
    assert crossed(np.ones((3, 3))).ci95_half_width == 0


def test_differences_are_taken_seed_by_seed_and_patient_by_patient():
    (one,) = arms_of((REDCNN, 1.0), seeds=4)
    (two,) = arms_of((UNET, 0.0), seeds=3)
    found = one.interval(PSNR, two.table(PSNR))
    assert (found.seeds, found.patients) == (3, 4)
    assert (
        found.mean == pytest.approx(1.0, abs=0.02) and found.ci95_half_width < 0.05 < one.interval(PSNR).ci95_half_width
    )


def test_arms_are_alike_in_all_but_the_seed():
    made = [make(seed, data=data, track__wandb=w) for seed in (0, 1) for data in "ab" for w in ("disabled", "offline")]
    arms = claims.group(made)
    assert [sorted(arm.runs) for arm in arms] == [[0, 1], [0, 1]]
    assert [arm.label for arm in arms] == [f"RED-CNN, trained on shards {data}" for data in "ab"]


@pytest.fixture(scope="module")
def sweep(tiny_shards, tmp_path_factory):
    """A sweep on disk: RED-CNN ahead of U-Net by 0.5 dB, attention on RED-CNN idle, channels selected early."""
    folder = tmp_path_factory.mktemp("runs") / "attention"
    shards = tmp_path_factory.mktemp("shards")
    data = manifest.load(tiny_shards)
    data.counts["val"]["patients"] = 3
    manifest.save(data, shards)
    digest = manifest.digest(shards)
    arms = [("redcnn", "none", 1.5), ("redcnn", "both", 1.5), ("redcnn", "channel", 1.49), ("unet", "none", 1.0)]
    for name, attention, gain in arms:
        for seed in range(3):
            line = attention_line(weights=FALLING + 0.01 * seed) if attention in ("channel", "both") else {"step": 20}
            losses = [
                {"step": s, "train/loss": 1 / s, "val/abd400/psnr": 30 + s / 10, "val/low_dose/abd400/psnr": 29.0}
                for s in (1, 2, 3, 4)
            ]
            one = make(seed, gain, model__name=name, model__attention=attention, model__channels=8)
            before = {"step": 0, "val/abd400/psnr": 99.0}  # belongs to no group
            write(folder / one.name, one, [before, *losses, line], digest)
    waiting = make(7)
    write(folder / waiting.name, waiting, [], digest, state="running")
    return folder, shards


def write(folder, run, lines, digest, state="finished"):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(configuration.to_yaml(run.config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["worse than the low dose"] if run.config.model.attention == "both" else []
    runs.write_status(folder, dataclasses.replace(run.status, state=state, flags=flags))
    runs.write_provenance(folder, digest)
    results.save(folder, dataclasses.replace(run.evaluation, data=digest))


@pytest.fixture(scope="module")
def page(sweep):
    return findings.render(findings.gather([sweep[0]], sweep[1]), "findings")


def test_the_page_says_what_it_rests_on(page):
    text = page["findings.md"]
    assert "split by patient" in text and "Trained on 1 x cpu" in text
    assert "12 runs in 4 arms" in text
    assert (
        "redcnn with 8 channels in place of 96, unet with 8 channels in place of 64. Full width: not measured" in text
    )
    assert re.search(r"Left out: \S+-7: running\.", text)
    assert text.count("worse than the low dose") == 3
    assert (
        "python launch/sweep.py configs/sweeps/attention.yaml --cluster CLUSTER.yaml --set data.shards=SHARDS" in text
    )
    assert "--set model.channels=8 --set train.steps=20\n" in text


def test_the_page_ranks_with_intervals(page):
    text = page["findings.md"]
    ranking = next(line for line in text.splitlines() if line.startswith("| RED-CNN")).split(" | ")
    assert ranking[1:3] == ["3", "4"]
    assert re.fullmatch(r"\+1\.5\d ± 0\.0\d", ranking[3])  # seeds spread by 0.02 dB, patients not at all
    assert re.fullmatch(r"35\.\d\d ± [345]\.\d\d", ranking[4])  # patients spread by 2 dB
    names = re.findall(r"^\| (RED-CNN[^|]*|U-Net|low dose) \| [3-]", text, re.M)
    assert names[-1] == "low dose" and names[-2] == "U-Net"


def test_the_page_has_attention_by_depth_and_groups(page):
    text = page["findings.md"]
    head = next(line for line in text.splitlines() if "depth 0.25" in line)
    assert head == "|  | depth 0.00 | depth 0.25 | depth 0.50 | depth 0.75 | depth 1.00 |"
    assert "| RED-CNN + channel | 0.310 ± 0.010 | 0.230 ± 0.010 |" in text
    assert "## By groups of 2 iterations" in text
    row = next(line for line in text.splitlines() if line.startswith("| 3 to 4 | 0."))
    assert row.split(" | ")[1] == f"{(1 / 3 + 1 / 4) / 2:.6f} ± 0.000000"
    assert re.findall(r"^\| (\S+ to \d) \| (3\d\.\d\d) ", text, re.M) == [("1 to 2", "30.15"), ("3 to 4", "30.35")]
    assert "99.00" not in text
    for name in re.findall(r"\]\((findings-\w+\.svg)\)", text):
        assert xml.etree.ElementTree.fromstring(page[name]).tag.endswith("svg")
    assert {f"findings-{name}.svg" for name in ("channel_sd", "loss", "psnr")} == page.keys() - {"findings.md"}


def test_the_command_writes_the_page_and_prints_the_verdicts(sweep, tmp_path):
    folder, shards = sweep
    done = run_command("launch/findings.py", folder, "--shards", shards, "-o", tmp_path / "docs" / "seen.md")
    found = dict(reversed(re.split(r" {2,}", line, maxsplit=1)) for line in done.stdout.splitlines()[:-1])
    assert found["RED-CNN is better than U-Net"] == CONFIRMED
    assert found["RED-CNN gains nothing from channel attention"] == CONFIRMED
    assert found["RED-CNN selects channels at shallow depth"] == CONFIRMED
    assert set(found.values()) == {CONFIRMED, UNDECIDED} and list(found.values()).count(CONFIRMED) == 3
    text = (tmp_path / "docs" / "seen.md").read_text()
    assert "| RED-CNN is better than U-Net | 29.13 against 28.90 dB per tile | **confirmed** |" in text
    assert "not measured: there are no such runs" in text
    assert (tmp_path / "docs" / "seen-channel_sd.svg").is_file()


def test_bad_input_is_one_line(sweep, tiny_shards, tmp_path):
    folder, shards = sweep
    with pytest.raises(InputError, match=r"was evaluated on other shards \(manifest \w{12}\) than .*; give those"):
        findings.gather([folder], tiny_shards)
    write(tmp_path / "waiting", make(9), [], "d", state="running")
    with pytest.raises(InputError, match=r"none of 1 runs is finished and evaluated; run launch/evaluate\.py"):
        findings.gather([tmp_path], shards)
    done = run_command("launch/findings.py", folder, "--shards", shards, "-o", tmp_path / "x.html", check=False)
    assert done.returncode == 2 and "expected a name that ends in .md" in done.stderr
