"""Charts of what was measured and kept, and that pages show what the files of docs/figures hold."""

import argparse
import json
import math
import re

import pytest
from conftest import ROOT, run_command

from ldct.reports import charts, draw, table_chart
from shards.common.command import InputError

KEPT = ROOT / "docs" / "figures" / "speed.json"
TABLES = [ROOT / "docs" / "figures" / f"{name}.json" for name in ("ranges", "training")]
TABLE = {"label": "R", "unit": "gain ($)", "columns": ["a", "b"], "rows": [["`x`", 1, 2.345], ["y", None, -3]]}


def options(result, chart, page=None):
    return argparse.Namespace(result=result, chart=chart, page=page)


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
    draw.run(options(tmp_path / "in.json", chart=tmp_path / "out.svg"))
    drawn = (tmp_path / "out.svg").read_text()
    assert all(text in drawn for text in ("RED-CNN", "U-Net", ">ours<", ">baseline<", "patches/s"))
    assert "fp32" not in drawn


@pytest.mark.parametrize("text", ["{}", "[1]", '{"rows": []}', "no JSON"])
def test_another_file_is_one_line(tmp_path, text):
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(InputError, match="it holds something else"):
        draw.run(options(tmp_path / "in.json", chart=tmp_path / "out.svg"))


@pytest.mark.parametrize("median", [0, -1.0, math.nan, math.inf, "fast", None])
def test_a_rate_that_is_none_is_one_line(tmp_path, median):
    result = json.loads(KEPT.read_text())
    result["rows"][0]["patches_per_s"]["median"] = median
    (tmp_path / "in.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="it holds something else"):
        draw.run(options(tmp_path / "in.json", chart=tmp_path / "out.svg"))


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    chart = tmp_path / "no" / "x.svg"
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        draw.run(options(KEPT, chart=chart))
    call = ("launch/bench.py", "draw", KEPT, tmp_path / "out.svg", "--json", tmp_path / "no" / "x.json")
    done = run_command(*call, check=False)
    assert done.returncode == 2 and "there is no folder" in done.stderr and not (tmp_path / "out.svg").exists()


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_recipes_show_what_was_kept(path):
    page, kept, drawn = (
        (ROOT / "docs" / "recipe.md").read_text(),
        json.loads(path.read_text()),
        path.with_suffix(".svg"),
    )
    assert table_chart.in_page(kept, page) == page
    assert all(row[0].replace("`", "") in drawn.read_text() for row in kept["rows"])


def test_a_table_is_drawn_and_put_into_its_page(tmp_path):
    (tmp_path / "in.json").write_text(json.dumps(TABLE))
    page = tmp_path / "page.md"
    page.write_text("before\n\n| R | a | b |\n| --- | ---: | ---: |\n| old | 0 | 0 |\n\n| other |\n")
    draw.run(options(tmp_path / "in.json", tmp_path / "out.svg", page))
    lines = ["| R | a | b |", "| --- | ---: | ---: |", "| `x` | 1.00 | 2.35 |", "| y | - | -3.00 |"]
    assert page.read_text() == "before\n\n" + "\n".join(lines) + "\n\n| other |\n"
    drawn = (tmp_path / "out.svg").read_text()
    assert all(f">{text}<" in drawn for text in ("x", "y", "a", "b", "gain ($)"))
    marks = [len(re.findall(f"<use .*fill: {colour}", drawn)) for colour in charts.COLOURS[:2]]
    assert marks == [1 + 1, 2 + 1]  # each with the legend's; a number that is not there is not drawn


def test_a_page_without_the_table_and_a_page_of_no_table_are_one_line(tmp_path):
    (tmp_path / "in.json").write_text(json.dumps(TABLE))
    (tmp_path / "page.md").write_text("| R | a |\n")
    with pytest.raises(InputError, match=r"page.md: expected a table that begins with \| R \| a \| b \|"):
        draw.run(options(tmp_path / "in.json", tmp_path / "out.svg", tmp_path / "page.md"))
    with pytest.raises(InputError, match="is no table; leave the option out"):
        draw.run(options(KEPT, tmp_path / "out.svg", tmp_path / "page.md"))
    assert not (tmp_path / "out.svg").exists()
