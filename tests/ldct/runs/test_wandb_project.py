"""A project on W&B: its page without hand work, runs read back from it, and its own sweeps."""

import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, run_command
from PIL import Image
from wandb_server import finish, python

from ldct import config as configuration
from ldct.evaluation.results import Evaluation, Result, save
from ldct.metrics import registry
from ldct.metrics.intervals import Measured
from ldct.runs import folder as runs
from ldct.runs import wandb_rows
from shards.common.atomic import write_text


@pytest.fixture(scope="module")
def shown(tmp_path_factory, home, server):
    """A finished run with everything a run folder can hold, sent by hand; its folder."""
    folder = tmp_path_factory.mktemp("runs") / "attention-depth" / "003-0123abcd"
    (folder / "eval").mkdir(parents=True)
    config = configuration.from_dict(
        {
            "model": {"name": "unet", "attention": "both"},
            "track": {"wandb": "online", "project": "ct", "tags": ["paper"]},
        }
    )
    write_text(folder / "config.yaml", configuration.to_yaml(config))
    metrics = runs.Metrics(folder)
    metrics.append(
        {"step": 0, "val/abd400/psnr": 30.0, "val/abd400/rmse": 9.0, "val/abd400/ssim": 0.5, "val/flags": ["x"]}
    )
    metrics.append({"step": 5, "train/loss": 0.25, "train/lr": float("nan")})
    attention = {"channel_sd": 0.1, "channel_mean": 0.5, "channel_histogram": [0.5, 0.25, 0.25, 0.0], "depth": 0.0}
    metrics.append({"step": 5} | {f"attention/1/{name}": value for name, value in attention.items()})
    metrics.append({"step": 7, "val/attention/1/channel_sd": 0.1, "val/attention/1/depth": 0.0})
    metrics.append({"step": 9, "val/abd400/psnr": 34.0, "val/abd400/rmse": 6.0, "val/abd400/ssim": 0.75})
    metrics.append({"step": 12, "val/abd400/psnr": 33.0, "val/abd400/rmse": 7.0, "val/abd400/ssim": 0.8})
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "eval" / "attention.png")
    names = ("abd400/psnr", "abd400/ssim", "abd400/rmse", "texture/frequency", "texture/high_band")
    values = dict(zip(names, (33.5, 0.9, 5.5, float("nan"), 0.5), strict=True))
    low = dict(zip(names, (29.5, 0.6, 9.5, 0.25, 1.0), strict=True))
    blur = low | {"abd400/psnr": 30.5}
    methods = [("low dose", low, -200), ("Gaussian blur", blur, 0), ("non-local means", blur, 0)]
    methods.append((folder.name, values, 40))
    measured = [
        Result(
            name,
            "",
            [Measured("L067", "L067_000", means)],
            3.0,
            "CPU",
            pictures={"L067_000": np.full((4, 4), hu, np.int16)},
        )
        for name, means, hu in (
            ("low dose", low, -200),
            ("Gaussian blur", blur, 0),
            ("non-local means", blur, 0),
            (folder.name, values, 40),
        )
    ]
    full = {"L067_000": np.full((4, 4), 240, np.int16)}
    save(folder, Evaluation("test", "0" * 64, "", ["abd400"], measured, full))
    power = "per_mm,full dose,low dose,non-local means,003-0123abcd\n0.05,9,90,5,8\n0.1,4,40,3,2.5\n"
    write_text(folder / "eval" / "test-noise-power.csv", power)  # ldct/evaluation/curves.py writes it
    runs.write_status(folder, runs.Status("finished", 12, 12, world_size=2, device="H200", train_s=3600.0))
    status, out, errors = finish(python(server.url, home, "-m", "ldct.runs.wandb_mirror", folder))
    assert (status, out) == (0, ""), errors
    return folder


def test_a_project_page_compares_runs_without_hand_work(shown, server):
    run = server.runs["003-0123abcd"]
    assert (run.project, run.exit, run.preempting) == ("ct", 0, False)
    assert run.head == {
        "groupName": "attention-depth",
        "jobType": "train",
        "displayName": "003-0123abcd",
        "tags": ["unet", "attention-both", "paper"],
    }
    written = yaml.safe_load((shown / "config.yaml").read_text())
    assert run.values == {key: written[key] for key in ("data", "model", "loss", "optim", "train", "val")}
    summary = run.summary
    assert summary["val/abd400/psnr"] == {"max": 34, "last": 33}
    assert summary["val/abd400/ssim"] == {"max": 0.8, "last": 0.8}
    assert summary["val/abd400/rmse"] == {"min": 6, "last": 7}
    assert summary["train/loss"] == {"min": 0.25, "last": 0.25}
    baselines = ("eval/test/Gaussian_blur/", "eval/test/non_local_means/")
    blur = {key: value for key, value in summary.items() if key.startswith(baselines)}
    assert len(blur) == 10 and blur["eval/test/Gaussian_blur/abd400/psnr"] == 30.5
    assert {key: value for key, value in summary.items() if key.startswith("eval/") and key not in blur} == {
        "eval/test/abd400/psnr": 33.5, "eval/test/abd400/ssim": 0.9, "eval/test/abd400/rmse": 5.5,
        "eval/test/texture/high_band": 0.5, "eval/test/low_dose/abd400/psnr": 29.5,
        "eval/test/low_dose/abd400/ssim": 0.6, "eval/test/low_dose/abd400/rmse": 9.5,
        "eval/test/low_dose/texture/frequency": 0.25, "eval/test/low_dose/texture/high_band": 1,
        "eval/test/data": "0" * 12,
    }  # fmt: skip
    own = {key: summary[key] for key in ("state", "train_s", "world_size", "device", "flags")}
    assert own == {"state": "finished", "train_s": 3600, "world_size": 2, "device": "H200", "flags": []}
    assert [row["step"] for row in run.history] == [0, 5, 5, 7, 9, 12, 12, 12, 12, 12]


def test_values_of_other_slices_under_the_same_name_are_emptied():
    before = {
        "eval/test/data": "a",
        "eval/test/abd400/psnr": 1.0,
        "eval/pairs/data": "b",
        "eval/pairs/hu2000/psnr": 2.0,
    }
    other_protocol = {"eval/pairs/data": "b", "eval/pairs/abd400/psnr": 3.0}
    assert wandb_rows.told(before, other_protocol) == before | other_protocol
    other_slices = {"eval/pairs/data": "c", "eval/pairs/abd400/psnr": 3.0}
    assert wandb_rows.told(before, other_slices) == before | other_slices | {"eval/pairs/hu2000/psnr": None}
    assert wandb_rows.told(before, {}) == before


def test_pictures_and_histograms_are_media(shown, server):
    run = server.runs["003-0123abcd"]
    histogram = run.history[2]["attention/1/channel_histogram"]
    expected = {"_type": "histogram", "values": [0.5, 0.25, 0.25, 0], "bins": [0, 0.25, 0.5, 0.75, 1]}
    assert histogram == expected
    assert "train/lr" not in run.history[1]  # it was not finite
    assert {key for key in run.history[2] if key.startswith("attention/")} == {
        "attention/1/channel_sd",
        "attention/1/channel_histogram",
    }
    assert not any(key.startswith("val/attention/") for key in run.history[3])
    picture = run.history[6]["pictures/attention"]
    assert (picture["_type"], picture["width"], picture["height"]) == ("image-file", 8, 8)
    assert run.files[picture["path"]] == (shown / "eval" / "attention.png").read_bytes()


def metrics_of(run):
    """Exact names that the client told the server about, with the axis and the options of each."""
    told = json.loads(run.config)["_wandb"]["value"]["m"]  # by the numbers of the client's fields, axes counted from 1
    axes = [entry.get("1") for entry in told]
    return {entry["1"]: (axes[entry["5"] - 1], 2 in entry["6"]) for entry in told if "1" in entry and "5" in entry}


def test_noise_power_is_a_line_over_its_own_frequencies(shown, server):
    run = server.runs["003-0123abcd"]
    rows = [{k: v for k, v in row.items() if k.startswith("spectra/")} for row in run.history[8:]]
    methods = ("full_dose", "low_dose", "non_local_means", "network")
    assert rows == [
        {"spectra/test/per_mm": x} | {f"spectra/test/{name}": y for name, y in zip(methods, ys, strict=True)}
        for x, ys in ((0.05, (9, 90, 5, 8)), (0.1, (4, 40, 3, 2.5)))
    ]
    assert not any(key.startswith("spectra/") for key in run.summary)
    told = metrics_of(run)
    assert {told[f"spectra/test/{name}"] for name in methods} == {("spectra/test/per_mm", False)}
    assert told["spectra/test/per_mm"] == ("step", True)  # no panel of its own


def test_a_page_opens_on_loss_psnr_and_pictures(shown, server):
    """W&B makes a panel of every key by itself but for those that it is told to hide."""
    run = server.runs["003-0123abcd"]
    told = metrics_of(run)
    hidden = {name for name, (_, is_hidden) in told.items() if is_hidden}
    assert hidden == {"attention/1/channel_sd", "attention/1/channel_histogram", "spectra/test/per_mm"}
    assert {told[name] for name in ("attention/1/channel_sd", "train/loss", "val/abd400/psnr")} == {
        ("step", True), ("step", False)}  # fmt: skip


def test_slices_stand_side_by_side_under_one_window(shown, server):
    run = server.runs["003-0123abcd"]
    slices = run.history[7]["pictures/test-slices"]
    shown_as = "RMSE 5.50 HU: L067_000; low dose, 003-0123abcd, full dose; -160 to 240 HU"
    assert slices["captions"] == [f"median, {shown_as}", f"worst, {shown_as}"]
    pixels = np.asarray(Image.open(io.BytesIO(run.files[slices["filenames"][0]])))
    assert pixels.shape[:2] == (4, 12)
    columns = pixels.reshape(4, 12, -1)[0, ::4, 0]
    assert columns.tolist() == [0, 127, 255]  # -200, 40 and 240 HU
    assert run.summary["pictures/test-slices"]["captions"] == slices["captions"]


FETCH = (
    "import sys; from pathlib import Path; from shards.common.command import command; "
    "from ldct.runs.wandb_reader import fetch; "
    "command(lambda: print(*fetch(sys.argv[1], Path(sys.argv[2]))))"
)


def test_runs_are_read_back_as_the_folders_they_were(shown, server, home, tmp_path):
    server.runs["003-0123abcd"].files["003-0123abcd/eval/../../../escaped.json"] = b"{}"
    status, out, errors = finish(python(server.url, home, "-c", FETCH, "me/ct", tmp_path / "got"))
    assert status == 0, errors
    folder = tmp_path / "got" / "attention-depth" / "003-0123abcd"
    assert out.split() == [str(folder)]
    names = {path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file()}
    tables = {
        f"eval/test{ending}" for ending in (".json", "-slices.csv", "-patients.csv", "-slices.npz", "-noise-power.csv")
    }
    assert names == {"config.yaml", "metrics.jsonl", "status.json", "eval/attention.png"} | tables
    assert all((folder / name).read_bytes() == (shown / name).read_bytes() for name in names)
    assert not list(tmp_path.glob("**/escaped.json"))


def test_compare_makes_its_report_from_wandb(shown, server, home, tmp_path):
    page = tmp_path / "report.html"
    status, out, errors = finish(python(server.url, home, "launch/compare.py", "--wandb", "me/ct", "-o", page))
    assert status == 0, errors
    assert out.splitlines()[-1] == str(page)
    assert "003-0123abcd" in page.read_text() and "33.50" in out


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        ("me", "expected ENTITY/PROJECT, found 'me'"),
        ("me/nothing", "cannot read me/nothing from W&B: Could not find project"),
    ],
)
def test_a_project_that_cannot_be_read_is_one_line(server, home, tmp_path, project, expected):
    status, _, errors = finish(python(server.url, home, "-c", FETCH, project, tmp_path))
    assert (status, errors.count("\n")) == (2, 1), errors
    assert expected in errors


def test_another_run_of_the_same_name_is_not_mixed_in(shown, server, home, tmp_path):
    folder, before = tmp_path / "attention-depth" / shown.name, len(server.runs[shown.name].history)
    folder.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "status.json"):
        (folder / name).write_bytes((shown / name).read_bytes())
    status, _, errors = finish(python(server.url, home, "-m", "ldct.runs.wandb_mirror", folder))
    assert status == 2
    assert f"error: W&B's project ct has another run called {shown.name}, with {before} rows; delete it there" in errors
    assert len(server.runs[shown.name].history) == before


# ---- sweeps


def test_wandb_sweep_takes_our_files(server, home):
    files = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
    assert files
    code = "import sys; from wandb.cli.cli import cli; [cli(['sweep', f], standalone_mode=False) for f in sys.argv[1:]]"
    status, _, errors = finish(python(server.url, home, "-c", code, *files, WANDB_PROJECT="ct"))
    assert status == 0, errors
    assert "warn" not in errors.lower(), errors
    assert list(server.sweeps.values()) == [yaml.safe_load(file.read_text()) for file in files]


def test_wandb_agent_trains_a_run_of_the_sweep(server, home, tiny_shards, tmp_path):
    """With the command of docs/wandb.md, the shards and sizes of this test added."""
    text = re.search(r"^command:\n(?:  - .*\n)+", (ROOT / "docs" / "wandb.md").read_text(), re.MULTILINE)[0]
    sizes = ["--model.channels=2", "--train.steps=1", "--train.global_batch=4", "--val.slices=1"]
    command = text.replace("data/shards", str(tiny_shards)).replace("runs/", f"{tmp_path}/runs/")
    content = yaml.safe_load((ROOT / "configs" / "sweeps" / "demo.yaml").read_text())
    content["command"] = [*yaml.safe_load(command)["command"], *sizes]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    here = {"WANDB_DIR": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    status, _, errors = finish(python(server.url, home, "-m", "wandb", "sweep", "-p", "ct", tmp_path / "sweep.yaml"))
    assert status == 0, errors
    name = re.search(r"wandb agent (\S+)", errors)[1]
    chosen = {"config": "configs/train/demo.yaml", "model.name": "unet", "model.attention": "both"}
    server.to_run.append(("agentrun", chosen))
    status, out, errors = finish(python(server.url, home, "-m", "wandb", "agent", "--count", "1", name, **here))
    assert status == 0, out + errors
    run = server.runs["agentrun"]
    assert (run.exit, run.head["groupName"]) == (0, "agents"), out + errors
    assert (run.values["model"]["name"], run.values["model"]["attention"]) == ("unet", "both")
    assert runs.read_status(tmp_path / "runs" / "agents" / "agentrun").state == "finished"


def test_every_name_that_is_sent_is_in_the_docs(shown, server):
    """Of all runs of this file, the one that the agent trained with attention at every stage too."""
    text = (ROOT / "docs" / "wandb.md").read_text()
    table = text[text.index("## What is there under which name") : text.index("## Sweeps by W&B")]
    patterns = [re.sub("[A-Z]+", "[^/]+", re.escape(name)) for name in re.findall("`([^`]+)`", table)]
    sent = {key for run in server.runs.values() for row in (*run.history, run.summary) for key in row}
    own = {key for key in sent if not key.startswith("_")}
    assert {"train/loss", "pictures/test-slices", "attention/1/spatial_edges", "spectra/test/per_mm"} <= own
    assert [key for key in sorted(own) if not any(re.fullmatch(pattern, key) for pattern in patterns)] == []
    attention = [key for key in server.runs["agentrun"].history[1] if "attention" in key]
    assert len(attention) < 30


def test_the_best_is_told_of_every_metric_of_the_registry():
    """A new metric needs no line here to reach the summary."""
    told = wandb_rows.goals(configuration.from_dict({}))
    assert {told[f"val/abd400/{key}"] for key in ("psnr", "ssim")} == {"max"} and told["val/abd400/rmse"] == "min"
    assert told.keys() == {"train/loss", *(f"val/{name}" for name in registry.names_under("abd400"))}


def panels(grids):
    """Kind and settings of the panels of some grids that the server got, by title."""
    found = [panel for grid in grids for panel in grid["panels"]]
    return {panel["config"].get("chartTitle", "pictures"): (panel["viewType"], panel["config"]) for panel in found}


def test_a_report_and_a_view_show_what_the_runs_sent(shown, server, home):
    status, out, errors = finish(python(server.url, home, "launch/compare.py", "--wandb-report", "me/ct"))
    assert status == 0, errors
    view_url, report_url = out.splitlines()
    assert report_url.startswith(f"{server.url}/me/ct/reports/") and view_url.startswith(f"{server.url}/me/ct?nw=")
    (view,), (report,), run = server.views, server.reports, server.runs[shown.name]
    assert (report["projectName"], report["entityName"], report["displayName"]) == ("ct", "me", "Comparison of ct")
    grids = [block["metadata"] for block in json.loads(report["spec"])["blocks"] if block["type"] == "panel-grid"]
    drawn = panels([grid["panelBankSectionConfig"] for grid in grids])
    history = {key for row in run.history for key in row}
    lines = {key for kind, config in drawn.values() if kind == "Run History Line Plot" for key in config["metrics"]}
    spectra = {f"spectra/test/{method}" for method in ("full_dose", "low_dose", "network")}
    assert lines == {"val/abd400/psnr", "train/loss"} | spectra <= history
    assert {config.get("xAxis") for _, config in drawn.values() if spectra & {*config.get("metrics", [])}} == {
        "spectra/test/per_mm"}  # fmt: skip
    bars = {key for kind, config in drawn.values() if kind == "Bar Chart" for key in config["metrics"]}
    assert {f"eval/test/abd400/{metric}" for metric in ("psnr", "ssim", "rmse")} <= bars & run.summary.keys()
    assert drawn["pictures"][1]["mediaKeys"] == ["pictures/test-slices"]
    pattern = drawn["channel_sd"][1]["metricRegex"]
    assert [key for key in history if re.fullmatch(pattern, key)] == ["attention/1/channel_sd"]
    assert_the_view_has_the_same(json.loads(view["spec"])["section"]["panelBankConfig"]["sections"], drawn)


def assert_the_view_has_the_same(sections, drawn):
    """The sections of the view in the order that a reader needs, attention last and closed; ``drawn``: the report's."""
    shown = [(section["name"], section["isOpen"]) for section in sections if section["panels"]]
    opened = [(name, True) for name in ("Training", "Pictures", "Image quality", "Noise")]
    assert shown == [*opened, ("Attention", False)]
    assert panels(sections).keys() == drawn.keys()
    assert list(panels(sections[:1])) == ["training loss", "validation PSNR (dB)"]


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        ("ct", "--wandb-report: expected ENTITY/PROJECT, found 'ct'"),
        ("me/nothing", "no report in me/nothing: Could not"),
    ],
)
def test_a_report_without_a_project_is_one_line(server, home, project, expected):
    status, _, errors = finish(python(server.url, home, "launch/compare.py", "--wandb-report", project))
    assert (status, errors.count("\n")) == (2, 1), errors
    assert expected in errors and not [report for report in server.reports if report["projectName"] == "nothing"]
    assert not [view for view in server.views if view["projectName"] == "nothing"]


def test_a_report_there_requires_no_gain():
    done = run_command("launch/compare.py", "--wandb-report", "me/ct", "--require-gain", "1", check=False)
    assert done.returncode == 2 and "found --wandb-report, which checks nothing; leave them out" in done.stderr
