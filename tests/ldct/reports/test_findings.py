"""The findings of a sweep whose truth is known, as pages."""

import dataclasses
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from conftest import ROOT, run_command
from made_up import PATIENTS, by_stage, make

from ldct import config as configuration
from ldct.evaluation import results
from ldct.evaluation.attention import LOSS
from ldct.metrics import names
from ldct.reports import findings
from ldct.reports.arms import group
from ldct.reports.claims import ATTENTION, CONFIRMED, DEPTH, NETWORKS, RECIPE, UNDECIDED
from ldct.runs import folder as runs
from shards import manifest
from shards.common.command import InputError

FALLING = np.array([0.30, 0.22, 0.15, 0.1, 0.05])


@pytest.fixture(scope="module")
def sweep(tiny_shards, tmp_path_factory):
    """A sweep on disk: RED-CNN ahead of U-Net by 0.5 dB, attention on RED-CNN idle, channels selected early."""
    folder = tmp_path_factory.mktemp("runs") / "attention"
    shards = tmp_path_factory.mktemp("shards")
    data = manifest.load(tiny_shards)
    data.counts["val"]["patients"] = 3  # other shards than tiny_shards
    manifest.save(data, shards)
    digest = manifest.digest(shards)
    arms = [("redcnn", "none", 1.5), ("redcnn", "both", 1.5), ("redcnn", "channel", 1.49), ("unet", "none", 1.0)]
    for name, attention, gain in arms:
        for seed in range(3):
            psnr = names.validation("abd400/psnr")
            losses = [{"step": s, names.TRAIN_LOSS: 1 / s, psnr: 30 + s / 10} for s in (1, 2, 3, 4)]
            run = make(seed, gain, model__name=name, model__attention=attention, model__channels=8)
            before = {"step": 0, psnr: 99.0}  # belongs to no group
            write(folder / run.name, run, [before, *losses, {"step": 20}], digest)
            if attention == "channel":
                ablate(folder / run.name, digest, FALLING + 0.01 * seed)
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


def ablate(folder, digest, weights):
    """What evaluate.py --ablate writes: the first stage is worth most, and selects most."""
    losses = {stage: dict.fromkeys(PATIENTS, 0.6 - 0.1 * stage) for stage in range(1, 6)}
    found = by_stage(weights=weights) | {LOSS: losses}
    content = {"data": digest, "protocol": "abd400", "checkpoint_sha256": "mark", "by_stage": found}
    (folder / "eval" / "test-attention.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def page(sweep):
    return findings.render(findings.gather([sweep[0]], sweep[1]), "findings")


def test_the_page_opens_with_the_answer(page):
    lines = page["findings.md"].splitlines()
    assert lines[:2] == ["# Findings", ""]
    assert lines[2:4] == ["On 8 slices of 4 patients:", ""]
    replies = dict(re.fullmatch(r"- \*\*(.*?)\*\* (.*)", line).groups() for line in lines[4:9])
    assert list(replies) == [NETWORKS, RECIPE, ATTENTION, DEPTH, "Decided"]
    db = r"0\.\d{3} ± 0\.\d{3} dB"
    assert re.fullmatch(rf'Confirmed: "RED-CNN is better than U-Net" \(\+{db}\)\.', replies[NETWORKS])
    assert replies[RECIPE] == "Undecided: 3 claims."
    idle = rf'Confirmed: "RED-CNN gains nothing from channel attention" \(-{db}\)\. Undecided: 3 claims\.'
    assert re.fullmatch(idle, replies[ATTENTION])
    assert 'selects channels at shallow depth"; "the choice of RED-CNN\'s channel gates matters most' in replies[DEPTH]
    assert re.match(
        r"are 4 of 18 claims; \d+ lack runs\. The best of 4 arms is RED-CNN[^:]*: \+1\.5\d ± 0\.0\d", replies["Decided"]
    )


def test_the_page_says_what_the_studys_faults_put_right_change(page):
    text = page["findings.md"]
    assert re.search(r"On patients never seen the difference is \+0\.5\d\d ± 0\.\d{3} dB\.\n", text)
    assert "- **Batch norm**" not in text  # no arm with it


@pytest.mark.parametrize(("channel", "more"), [(1.51, True), (1.0, False)])
def test_batch_norm_stands_beside_attention(tiny_shards, tmp_path, channel, more):
    """It explains what the study saw only where it does more than attention."""
    arms = [({}, 1.5), ({"model__norm": "batch"}, 1.2), ({"model__attention": "channel"}, channel)]
    for fields, gain in arms:
        for seed in range(3):
            run = make(seed, gain, model__name="redcnn", **fields)
            write(tmp_path / run.name, run, [], manifest.digest(tiny_shards))
    text = findings.render(findings.gather([tmp_path], tiny_shards), "findings")["findings.md"]
    (line,) = [line for line in text.splitlines() if line.startswith("- **Batch norm**")]
    assert re.search(r"minus the same with batch norm is \+0\.(29|30)\d ± 0\.\d{3} dB", line)
    change = r"\+0\.0[01]\d" if more else r"-0\.(49|50)\d"
    assert re.search(rf"minus the same without, {change} ± 0\.\d{{3}} dB to {change}", line)
    assert ("says nothing of attention" in line) == more
    assert "**Split**" not in text  # no U-Net


def test_the_answer_says_from_which_depth_on_gates_are_idle():
    def arms(*losses):
        worth = {stage: dict.fromkeys(PATIENTS, loss) for stage, loss in enumerate(losses, start=1)}
        return group([make(seed, model__attention="channel", by_stage={LOSS: worth}) for seed in range(3)])

    assert findings.idle_from(arms(0.4, -0.12, 0.02, -0.03, 0.0)) == (
        "From relative depth 0.50 on, what a gate chooses is worth at most 0.030 dB in any arm."
    )
    assert findings.idle_from(arms(0.0, 0.0, 0.0, 0.0, -0.2)) == ""
    assert findings.idle_from(group([make()])) == ""


def test_the_page_is_short(page):
    """One table of at most eight arms, two charts, one table of claims, at most five limits."""
    text = page["findings.md"]
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert [table.count("\n") - 2 for table in tables] == [4, 18]
    assert re.findall(r"\((findings-\w+\.svg)\)", text) == ["findings-gain.svg", "findings-gate_loss.svg"]
    limits = text[text.index("## Limits") :].split("Written by")[0]
    assert 1 <= limits.count("\n- ") <= 5
    assert "redcnn with 8 channels in place of 96, unet with 8 channels in place of 64. Full width: not" in limits
    assert "(findings-appendix.md)" in text


def test_the_main_table_has_the_arms_with_intervals(page):
    row = next(line for line in page["findings.md"].splitlines() if line.startswith("| RED-CNN |")).split(" | ")
    assert row[1] == "3"
    assert re.fullmatch(r"\+1\.5\d ± 0\.0\d", row[2])  # seeds spread by 0.02 dB, patients not at all
    assert re.fullmatch(r"0\.8[78]\d\d ± 0\.\d{4}", row[3])


def test_the_appendix_says_what_it_rests_on(page):
    text = page["findings-appendix.md"]
    assert "split by patient" in text and "Trained on 1 x cpu" in text
    assert "12 runs in 4 arms" in text and "At equal time" not in text
    assert re.search(r"Left out: \S+-7: running\.", text)
    assert text.count("worse than the low dose") == 3
    assert "sweep.py configs/sweeps/attention.yaml --cluster CLUSTER.yaml --set data.shards=SHARDS" in text
    assert "--set model.channels=8 --set train.steps=20\n" in text
    assert "not measured: there are no such runs" in text


def test_the_appendix_ranks_all_arms_and_baselines(page):
    text = page["findings-appendix.md"]
    ranking = next(line for line in text.splitlines() if line.startswith("| RED-CNN")).split(" | ")
    assert ranking[1:3] == ["3", "4"]
    assert re.fullmatch(r"\+1\.5\d ± 0\.0\d", ranking[3])
    assert re.fullmatch(r"35\.\d\d ± [345]\.\d\d", ranking[4])  # patients spread by 2 dB
    ranked = re.findall(r"^\| (RED-CNN[^|]*|U-Net|low dose) \| [3-]", text, re.M)
    assert ranked[-1] == "low dose" and ranked[-2] == "U-Net"


def test_the_appendix_has_attention_by_depth_and_groups(page):
    text = page["findings-appendix.md"]
    head = next(line for line in text.splitlines() if "depth 0.25" in line)
    assert head == "|  | depth 0.00 | depth 0.25 | depth 0.50 | depth 0.75 | depth 1.00 | agreement |"
    assert "| RED-CNN + channel | 0.310 ± 0.010 | 0.230 ± 0.010 |" in text
    assert "| RED-CNN + channel | 0.500 ± 0.000 | 0.400 ± 0.000 |" in text  # the losses without a gate's choice
    assert "| +1.00 |" in text  # seeds that differ by a constant agree
    assert "## By groups of 2 iterations" in text
    row = next(line for line in text.splitlines() if line.startswith("| 3 to 4 | 0."))
    assert row.split(" | ")[1] == f"{(1 / 3 + 1 / 4) / 2:.6f} ± 0.000000"
    assert re.findall(r"^\| (\S+ to \d) \| (3\d\.\d\d) ", text, re.M) == [("1 to 2", "30.15"), ("3 to 4", "30.35")]
    assert "99.00" not in text
    for name in re.findall(r"\]\((findings-\w+\.svg)\)", text):
        assert xml.etree.ElementTree.fromstring(page[name]).tag.endswith("svg")
    drawn = {f"findings-{name}.svg" for name in ("gain", "gate_loss", "channel_sd", "loss", "psnr")}
    assert drawn == page.keys() - {"findings.md", "findings-appendix.md"}


def test_the_commands_set_what_the_sweep_file_has_otherwise(tiny_shards, tmp_path):
    """document.yaml has a learning rate of 1e-5, which the default recipe has not, and the rest of it goes unsaid."""
    for name in ("document", "document_kaiming", "document_batchnorm"):
        values = configuration.flat(configuration.load(ROOT / f"configs/train/{name}.yaml"))
        fields = {key.replace(".", "__"): value for key, value in values.items() if "." in key}
        changed = {"optim__lr": 1e-3, "train__precision": "bf16", "model__channels": 8}
        run = make(**(fields | changed | {"train__seed": 0}))
        write(tmp_path / "redcnn_variants" / run.name, run, [], manifest.digest(tiny_shards))
    text = findings.render(findings.gather([tmp_path], tiny_shards), "findings")["findings-appendix.md"]
    (line,) = [line for line in text.splitlines() if line.startswith("python launch/sweep.py")]
    expected = "--set data.shards=SHARDS --set model.channels=8 --set optim.lr=0.001 --set train.precision=bf16"
    assert line == f"python launch/sweep.py configs/sweeps/redcnn_variants.yaml --cluster CLUSTER.yaml {expected}"


def test_arms_of_other_lengths_are_laid_beside_by_their_seconds(tiny_shards, tmp_path):
    """RED-CNN takes a second for 20 steps, U-Net two: with 40 steps RED-CNN takes as long."""
    digest = manifest.digest(tiny_shards)
    for name, steps, seconds, gain in [("redcnn", 20, 1, 1.0), ("unet", 20, 2, 1.2), ("redcnn", 40, 2, 1.5)]:
        for seed in range(3):
            run = make(seed, gain, model__name=name, train__steps=steps, train__global_batch=10)
            rate = steps * 10 / seconds
            lines = [{"step": step, "patches_per_s": rate} for step in (steps // 2, steps, steps)]
            lines.insert(0, {"step": 0, "patches_per_s": 0.0})
            write(tmp_path / f"{steps}-{run.name}", run, lines, digest)
    text = findings.render(findings.gather([tmp_path], tiny_shards), "findings")["findings-appendix.md"]
    section = text[text.index("## At equal time") :].split("## What")[0]
    rows = [line.split(" | ")[:4] for line in section.splitlines() if line.startswith(("| RED", "| U-"))]
    assert [[cell.removeprefix("| ") for cell in row[1:]] for row in rows] == [
        ["3", "20", "1"],
        ["3", "40", "2"],
        ["3", "20", "2"],
    ]
    assert rows[0][0].startswith("| RED-CNN") and rows[2][0].startswith("| U-Net")


def test_the_appendix_has_what_became_of_a_faint_disc(tiny_shards, tmp_path):
    digest = manifest.digest(tiny_shards)
    for seed, seen in ((0, 1.0), (1, 1.5)):
        run = make(seed, 1.0, model__name="redcnn", model__channels=8)
        write(tmp_path / run.name, run, [], digest)
        of_run = {p: {"detectability": seen, "contrast_kept": 0.5} for p in PATIENTS}
        full = {p: {"detectability": 2.0, "contrast_kept": 1.0} for p in PATIENTS}
        about = {"data": digest, "checkpoint_sha256": run.evaluation.results[-1].mark}
        path = tmp_path / run.name / "eval" / f"{run.evaluation.split}-lesion.json"
        path.write_text(json.dumps(about | {"by_method": {"full dose": full, run.name: of_run}}))
    appendix = findings.render(findings.gather([tmp_path], tiny_shards), "findings")["findings-appendix.md"]
    part = appendix.partition("## A faint disc")[2].splitlines()
    assert part[4] == "| full dose | - | 2.00 | 1.00 |"
    assert re.fullmatch(r"\| RED-CNN.* \| 2 \| 1\.25 \| 0\.50 \|", part[5])


def test_the_command_writes_the_pages_and_prints_the_verdicts(sweep, tmp_path):
    folder, shards = sweep
    done = run_command("launch/findings.py", folder, "--shards", shards, "-o", tmp_path / "docs" / "seen.md")
    verdicts = dict(reversed(re.split(r" {2,}", line, maxsplit=1)) for line in done.stdout.splitlines()[:-1])
    assert verdicts["RED-CNN is better than U-Net"] == CONFIRMED
    assert verdicts["RED-CNN gains nothing from channel attention"] == CONFIRMED
    assert verdicts["RED-CNN selects channels at shallow depth"] == CONFIRMED
    assert set(verdicts.values()) == {CONFIRMED, UNDECIDED} and list(verdicts.values()).count(CONFIRMED) == 4
    text = (tmp_path / "docs" / "seen.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| RED-CNN is better than U-Net"))
    assert re.search(
        r"\| 29\.13 against 28\.90 dB per patch \| \+0\.5\d\d ± 0\.\d{3} dB \| .* \*\*confirmed\*\* \|", row
    )
    assert (tmp_path / "docs" / "seen-channel_sd.svg").is_file()


def test_real_pairs_count_in_place_of_the_test_split(sweep, tmp_path):
    """Runs evaluated by evaluate.py --pairs: other slices than the shards', which they were trained on all the same."""
    _, shards = sweep
    run = make(0, 1.0)
    write(tmp_path / run.name, dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, split="pairs")),
          [], "of the pixels")  # fmt: skip
    found = findings.gather([tmp_path], shards, "pairs")
    assert (found.evaluation.split, found.evaluation.data) == ("pairs", "of the pixels")
    appendix = findings.render(found, "findings")["findings-appendix.md"]
    assert "--pairs PAIRS --ablate" in appendix and "--split pairs" in appendix
    with pytest.raises(InputError, match=r"no run was evaluated on test; there is --split pairs \(1 run\)"):
        findings.gather([tmp_path], shards)


@pytest.mark.parametrize("beside", ["test", "demo"])
def test_a_second_set_of_slices_stands_beside_real_pairs(beside, tiny_shards, tmp_path):
    """RED-CNN is ahead by 0.2 dB on the pairs and by 0.5 dB on the second set, which only seeds 0 and 1 have."""
    digest = manifest.digest(tiny_shards)
    for name, gain, second in [("redcnn", 1.2, 2.5), ("unet", 1.0, 2.0)]:
        for seed in range(3):
            run = make(seed, gain, model__name=name)
            pairs = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, split="pairs"))
            write(tmp_path / run.name, pairs, [], "of the pixels")
            if seed < 2:
                other = make(seed, second, model__name=name).evaluation
                other = dataclasses.replace(other, split=beside, data=digest if beside == "test" else "demo's")
                other.results[-1].name = run.name
                results.save(tmp_path / run.name, other)
    found = findings.gather([tmp_path], tiny_shards, "pairs", beside)
    pages = findings.render(found, "findings")
    page, appendix = pages["findings.md"], pages["findings-appendix.md"]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(("|  | s", "| RED-CNN |"))]
    assert rows[0][3] == f"gain on {beside}" and float(rows[1][3]) == pytest.approx(2.5, abs=0.03)
    assert (
        f"The gain beside it: 8 slices of 4 patients ({beside}; split by patient: made up); seeds 0, 1, means" in page
    )
    assert re.search(rf"seen the difference is \+0\.[12]\d\d .*; on {beside} it is \+0\.[45]\d\d dB\.", page)
    shown = {"test": "--shards SHARDS --split test", "demo": "--shards OTHER --name demo"}[beside]
    assert f"{shown} --protocol abd400" in appendix
    assert ("--split pairs --beside demo" in appendix) == (beside == "demo")


def test_a_second_set_that_is_not_there_or_of_other_shards_is_not_shown(tiny_shards, tmp_path):
    run = make(0, 1.0)
    pairs = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, split="pairs"))
    write(tmp_path / run.name, pairs, [], "of the pixels")
    assert findings.gather([tmp_path], tiny_shards, "pairs").second is None
    results.save(tmp_path / run.name, dataclasses.replace(run.evaluation, data="of other shards"))
    assert findings.gather([tmp_path], tiny_shards, "pairs").second is None


def test_bad_input_is_one_line(sweep, tiny_shards, tmp_path):
    folder, shards = sweep
    with pytest.raises(InputError, match=r"was evaluated on other shards \(manifest \w{12}\) than .*; give those"):
        findings.gather([folder], tiny_shards)
    write(tmp_path / "waiting", make(9), [], "d", state="running")
    with pytest.raises(InputError, match=r"none of 1 runs is finished and evaluated on test; run launch/evaluate\.py"):
        findings.gather([tmp_path], shards)
    done = run_command("launch/findings.py", folder, "--shards", shards, "-o", tmp_path / "x.html", check=False)
    assert done.returncode == 2 and "expected a name that ends in .md" in done.stderr
