"""The chart of a measured speed, and that docs/speed.md shows what docs/figures/speed.json holds."""

import argparse
import json
import math

import pytest
from conftest import ROOT, run_command

from ldct.reports import speed_chart
from shards.common.command import InputError

KEPT = ROOT / "docs" / "figures" / "speed.json"


def test_the_page_shows_what_was_kept():
    rows = {(row["network"], row["variant"], row["batch"]): row for row in json.loads(KEPT.read_text())["rows"]}
    page = (ROOT / "docs" / "speed.md").read_text()
    for network, label, variant in (
        ("redcnn", "RED-CNN, patches/s trained, batch 16", "ours"),
        ("unet", "U-Net, patches/s trained, batch 16", "ours"),
        ("redcnn", "RED-CNN with attention everywhere, batch 16", "ours, attention both"),
    ):
        here, common = rows[network, variant, 16], rows[network, "baseline", 16]
        line = next(line for line in page.splitlines() if line.startswith(f"| {label} |"))
        cells = [cell.split()[0] for cell in line.strip("| ").split(" | ")[1:]]
        rates = (here["patches_per_s"]["median"], common["patches_per_s"]["median"], here["ratio"])
        assert [float(cell) for cell in cells] == list(rates)


def test_it_draws_the_variants_that_every_batch_size_has(tmp_path):
    result = json.loads(KEPT.read_text())
    result["rows"].append({**result["rows"][0], "variant": "ours, fp32"})
    (tmp_path / "in.json").write_text(json.dumps(result))
    speed_chart.run(argparse.Namespace(result=tmp_path / "in.json", chart=tmp_path / "out.svg"))
    drawn = (tmp_path / "out.svg").read_text()
    assert all(text in drawn for text in ("RED-CNN", "U-Net", ">ours<", ">baseline<", "patches/s"))
    assert "fp32" not in drawn


@pytest.mark.parametrize("text", ["{}", "[1]", '{"rows": []}', "no JSON"])
def test_another_file_is_one_line(tmp_path, text):
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(InputError, match="writes: it holds something else"):
        speed_chart.run(argparse.Namespace(result=tmp_path / "in.json", chart=tmp_path / "out.svg"))


@pytest.mark.parametrize("median", [0, -1.0, math.nan, math.inf, "fast", None])
def test_a_rate_that_is_none_is_one_line(tmp_path, median):
    result = json.loads(KEPT.read_text())
    result["rows"][0]["patches_per_s"]["median"] = median
    (tmp_path / "in.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="writes: it holds something else"):
        speed_chart.run(argparse.Namespace(result=tmp_path / "in.json", chart=tmp_path / "out.svg"))


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    chart = tmp_path / "no" / "x.svg"
    with pytest.raises(InputError, match="the chart cannot be written: No such file or directory"):
        speed_chart.run(argparse.Namespace(result=KEPT, chart=chart))
    call = ("launch/bench.py", "draw", KEPT, tmp_path / "out.svg", "--json", tmp_path / "no" / "x.json")
    done = run_command(*call, check=False)
    assert done.returncode == 2 and "there is no folder" in done.stderr and not (tmp_path / "out.svg").exists()
