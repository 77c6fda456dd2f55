import csv
import dataclasses
import io
import json
import re
import shutil
import xml.etree.ElementTree

import pytest
import torch
from made import make_run

from ldct.evaluation import datasets, evaluate
from ldct.evaluation.results import Evaluation, Result
from ldct.metrics import registry
from ldct.metrics.intervals import Measured
from ldct.reports import charts, comparison, page_charts, tables
from ldct.reports.labels import differing
from ldct.reports.page import alarms, build, cost, inserted, physics, ranking, render
from ldct.runs import folder as runs
from shards.common.command import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sweep(tiny_shards, tmp_path_factory):
    """Runs: a good one, one worse than the low dose, a failed one without checkpoint, one still running."""
    folder = tmp_path_factory.mktemp("runs") / "arms"
    good = make_run(folder / "0-good", tiny_shards, scale=0.0)
    worse = make_run(folder / "1-worse", tiny_shards, scale=5.0, attention="both")
    data = datasets.open_shards(tiny_shards, "test")
    evaluate.evaluate([good, worse], data, ["abd400", "hu2000"], CPU)
    failed = make_run(folder / "2-failed", tiny_shards, state="failed", name="unet", depth=3, attention="channel")
    status = runs.read_status(failed)
    status.error, status.step = "NotFinite: loss not finite at step 7", 7
    runs.write_status(failed, status)
    (failed / "checkpoints" / "best.pt").unlink()
    make_run(folder / "3-going", tiny_shards, state="running", attention="spatial")
    with open(worse / "metrics.jsonl", "a") as file:
        for place, depth, sd in ((1, 0.0, 0.01), (2, 0.5, 0.02), (3, 1.0, 0.3)):
            line = {"step": 20, f"val/attention/{place}/depth": depth, f"val/attention/{place}/channel_sd": sd}
            file.write(json.dumps(line) + "\n")
    return folder


@pytest.fixture(scope="module")
def page(sweep):
    return build([sweep], "test")


def test_what_is_wrong_stands_on_top(page):
    text = "\n".join(alarms(page))
    assert "RED-CNN + channel + spatial scores below: " in text and "low dose" in text
    assert "U-Net + channel is failed at step 7 of 20: NotFinite: loss not finite at step 7" in text
    assert "RED-CNN + spatial is running at step 20 of 20" in text
    assert "U-Net + channel has no evaluation" in text
    assert "RED-CNN is" not in text


def test_the_ranking_holds_runs_and_baselines_by_psnr(page):
    lines = ranking(page)
    psnr = [line["cells"][1][1] for line in lines]
    assert psnr == sorted(psnr, reverse=True)
    worst = lines[-1]["row"]
    assert worst.label == "RED-CNN + channel + spatial" and worst.worse and worst.gain.mean < 0
    names = {line["row"].name for line in lines}
    assert names == {"low dose", "Gaussian blur", "non-local means", "0-good", "1-worse"}


def test_what_no_protocol_changes_has_a_table_with_its_flags(page):
    metrics, lines = physics(page)
    assert [metric.key for metric in metrics] == [m.key for m in registry.METRICS if not m.per_protocol]
    for line in lines:
        for metric, (_, mean, flagged) in zip(metrics, line["cells"], strict=True):
            outside = bool(registry.outside({metric.key: mean}))
            assert flagged == (outside and line["row"].name != "low dose")
    assert len(lines) == len(page.rows)


def test_hours_of_gpus_are_told_of_runs_on_gpus_alone(page):
    run = page.runs[0]
    assert cost(run)["hours"] == "3 s"
    status = dataclasses.replace(run.status, device="NVIDIA H100", world_size=2, train_s=900.0)
    assert cost(dataclasses.replace(run, status=status))["hours"] == "0.5 GPU hours"


def test_the_inserted_disc_stands_by_method_the_best_first(page):
    assert inserted(page) == [] and "lesion-table" not in render(page, "", 10**6)
    run = page.runs[0]
    found = {"full dose": 2.0, "low dose": 1.0, run.folder.name: 1.5}
    by_method = {name: {"p": {"detectability": d, "contrast_kept": 0.5}} for name, d in found.items()}
    about = {"data": run.evaluation.data, "checkpoint_sha256": run.evaluation.results[-1].mark}
    path = run.folder / "eval" / "test-lesion.json"
    path.write_text(json.dumps({**about, "by_method": by_method}))
    try:
        lines = inserted(page)
        assert "lesion-table" in render(page, "", 10**6)
    finally:
        path.unlink()
    assert [(label, cells[0]) for label, cells in lines] == [
        ("full dose", ("2.00", 2.0)), ("RED-CNN", ("1.50", 1.5)), ("low dose", ("1.00", 1.0))]  # fmt: skip


def test_only_what_differs_is_listed(page):
    """Not the kernel, which each network has as published."""
    assert differing([run.config for run in page.runs]) == ["model.name", "model.attention"]


def test_the_page_needs_nothing_from_outside(page):
    html = render(page, "arms", 10**6)
    text = re.sub(r'base64,[A-Za-z0-9+/=]+|"data": "[^"]+"', "", html)
    assert set(re.findall(r"https?://[^\"'\s)<]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"<(script|img|link|iframe)[^>]+src=\"(?!data:)", html)
    assert "<link" not in html
    for text in ("not evaluated", "worse than the low dose", "failed", "clip [-160, 240] HU"):
        assert text in html


def test_text_from_runs_cannot_become_markup(sweep, tmp_path, tiny_shards):
    run = make_run(tmp_path / "0-x", tiny_shards, state="failed")
    status = runs.read_status(run)
    status.error = "<script>alert(1)</script>"
    runs.write_status(run, status)
    html = render(build([run], "test"), "<b>title</b>", 10**6)
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html
    assert "<b>title" not in html


def test_attention_by_depth_and_the_loss_in_groups(page):
    worse = next(run for run in page.runs if run.name == "1-worse")
    assert worse.attention("channel_sd") == {0.0: 0.01, 0.5: 0.02, 1.0: 0.3}
    assert page_charts.group_size(page.runs) == 2
    losses = page_charts.grouped(worse, charts.look(0), 2)
    assert losses.y[-1] == pytest.approx(1 / 21)
    drawn = page_charts.of(page.runs, page.evaluation, page.rows)
    assert {"validation", "loss", "patients", "slices", "channel_sd"} == drawn.keys() - {"spectrum", "edges", "dose"}
    ids = re.findall(r'\bid="([^"]+)"', "".join(drawn.values()))
    assert len(ids) == len(set(ids))  # charts on one page share no id


def test_the_csv_holds_every_number_in_full(page):
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(tables.as_csv(page.evaluation, page.rows)))}
    for result in page.evaluation.results:
        row = rows[result.name]
        assert float(row["hu2000/ssim"]) == result.means["hu2000/ssim"].mean
        assert row["hu2000/ssim_half"] == ""
    assert rows["0-good"]["label"] == "RED-CNN"


def test_the_latex_table_is_bold_where_a_run_is_best(page):
    text = tables.as_latex(page.evaluation, page.rows)
    psnr = page.evaluation.get("0-good").means["abd400/psnr"].mean
    assert rf"RED-CNN & \textbf{{{psnr:.2f}}}" in text
    assert text.count(r"\\") == 2 + len(page.rows)
    assert len({line.count("&") for line in text.splitlines() if line.endswith(r"\\")}) == 2  # head and rows
    assert tables._tex("a_b & 5 %") == r"a\_b \& 5 \%"


def test_numbers_under_different_conditions_are_not_put_side_by_side(sweep, tiny_shards, tmp_path):
    other = make_run(tmp_path / "9-other", tiny_shards)
    evaluate.evaluate([other], datasets.open_shards(tiny_shards, "test"), ["hu2000"], CPU)
    with pytest.raises(
        InputError, match=r"0-good and 9-other were evaluated on different protocols \(abd400, hu2000; hu2000\)"
    ):
        build([sweep, tmp_path], "test")


def test_runs_measured_on_different_slices_are_never_in_one_table(sweep):
    gathered = comparison.gather([sweep / "0-good", sweep / "1-worse"], "test")
    gathered[1].evaluation = dataclasses.replace(gathered[1].evaluation, data="f" * 64, note="of another site")
    with pytest.raises(InputError, match=r"different data \(4 slices of 1 patient \(test; split by .*; 4 slices of 1 "
                       r"patient \(test; of another site\), f{12}\); evaluate them together"):  # fmt: skip
        comparison.joined(gathered)


def test_of_metrics_that_differ_only_the_difference_is_shown(sweep, tiny_shards, tmp_path):
    other = make_run(tmp_path / "9-other", tiny_shards)
    evaluate.evaluate([other], datasets.open_shards(tiny_shards, "test"), ["abd400", "hu2000"], CPU)
    gathered = comparison.gather([sweep, other], "test")
    last = next(run for run in gathered if run.name == "9-other")
    for result in last.evaluation.results:
        for measured in result.slices:
            del measured.values["hu2000/ssim"]
    with pytest.raises(InputError, match=r"on different metrics \(hu2000/ssim; none of its own\)"):
        comparison.joined(gathered)


def evaluated(**psnr):
    """An evaluation with one slice per method; underscores are spaces."""
    results = [
        Result(name.replace("_", " "), "", [Measured("P", "k", {"abd400/psnr": value})], 1.0, "CPU")
        for name, value in psnr.items()
    ]
    return Evaluation("test", "", "", ["abd400"], results)


def named(page, *names):
    """Runs of these names."""
    return [dataclasses.replace(page.runs[0], name=name) for name in names]


@pytest.mark.parametrize(
    ("runs", "missing"),
    [
        ({"a": 32.1, "b": 33.5}, []),
        ({"a": 31.9, "b": 33.5}, ["a gains 1.90 dB over the low dose, expected 2 dB"]),
        ({"a": 32.1, "b": 32.2}, ["the best run gains 2.20 dB over the low dose, expected 3 dB"]),
        ({"a": float("nan"), "b": 34}, ["a gains nan dB", "a has nan dB, not more than the best Gaussian blur"]),
        ({"a": 34}, ["b is not evaluated"]),
    ],
)
def test_shortfalls_say_what_is_missing(page, runs, missing):
    measured = evaluated(**{"low_dose": 30, "Gaussian_blur": 30.5, **runs})
    lines = comparison.shortfalls(named(page, "a", "b"), measured, 2, 3)
    assert len(lines) == len(missing)
    assert all(part in line for part, line in zip(missing, lines, strict=True))


def test_a_blur_that_wins_is_a_shortfall(page):
    lines = comparison.shortfalls(named(page, "a"), evaluated(low_dose=30, Gaussian_blur=33, a=32.9), 2, 2)
    assert lines == ["a has 32.90 dB, not more than the best Gaussian blur's 33.00 dB (abd400)"]
    assert comparison.shortfalls(named(page, "a"), None, 0, 0) == ["no run is evaluated"]


def test_runs_of_one_name_keep_their_sweeps(tmp_path, tiny_shards):
    make_run(tmp_path / "a" / "0-x", tiny_shards)
    make_run(tmp_path / "b" / "0-x", tiny_shards, seed=1)
    gathered = comparison.gather([tmp_path], "test")
    assert [(run.name, run.label) for run in gathered] == [("a/0-x", "RED-CNN, seed 0"), ("b/0-x", "RED-CNN, seed 1")]


def test_sweeps_of_one_name_in_two_folders_are_kept_apart(tmp_path, tiny_shards):
    for place in ("old", "new"):
        make_run(tmp_path / place / "runs" / "s" / "0-x", tiny_shards)
    roots = [tmp_path / "old", tmp_path / "new" / "runs" / "s", tmp_path / "old" / ".." / "old"]  # one is given twice
    names = ["new/runs/s/0-x", "old/runs/s/0-x"]
    assert [run.name for run in comparison.gather(roots, "test")] == names


def test_runs_that_were_never_trained_are_an_error(tmp_path, tiny_shards):
    (make_run(tmp_path / "0-x", tiny_shards) / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="none of 1 runs has been trained or evaluated"):
        build([tmp_path], "test")


def test_the_split_that_was_evaluated_is_found(sweep, tmp_path):
    assert comparison.choose_split([sweep], None) == ("test", [])
    with pytest.raises(InputError, match=r"no run was evaluated on pairs; there is --split test \(2 runs\)"):
        comparison.choose_split([sweep], "pairs")
    shutil.copytree(sweep, tmp_path / "runs")
    for path in (tmp_path / "runs").glob("*/eval/test*"):
        shutil.copy(path, path.with_name(path.name.replace("test", "pairs")))
    assert comparison.choose_split([tmp_path / "runs"], None) == ("test", ["pairs"])
    for path in (tmp_path / "runs").glob("*/eval/test*"):
        path.unlink()
    assert comparison.choose_split([tmp_path / "runs"], None) == ("pairs", [])


@pytest.mark.parametrize("patient", ["P$a_{$", "<b>", "a & b", "$$", "\\alpha", "_x"])
def test_no_name_of_a_patient_breaks_a_chart(patient):
    slices = [Measured(name, name, {"abd400/psnr": 30.0}) for name in (patient, "B")]
    evaluation = Evaluation("test", "", "", ["abd400"], [Result(patient, "", slices, 1.0, "CPU")])
    rows = [dataclasses.replace(tables.rows(evaluated(low_dose=30), {})[0], name=patient, label=patient)]
    svg = page_charts.patients(evaluation, rows, {})
    assert patient in texts(svg)


def test_a_log_scale_still_has_its_powers_of_ten():
    svg = charts.curves("loss", [charts.Curve("a", charts.look(0), [1, 2], [1e-3, 1e-1])], "x", "y", log=True)
    assert "1" in "".join(texts(svg)) and not any("mathdefault" in text for text in texts(svg))


def texts(svg):
    """Everything that an SVG writes."""
    nodes = xml.etree.ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(node.itertext()).strip() for node in nodes]
