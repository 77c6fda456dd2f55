"""A chart of what ``launch/bench.py train --json`` kept: patches per second by network, batch size and variant."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from ldct.config.networks import networks
from ldct.reports import charts
from shards.common.atomic import write_text
from shards.common.command import InputError

BASELINE = "baseline"
"""The variant that is drawn in grey."""


def draw(result: dict[str, Any]) -> str:
    """The chart as SVG, of the variants that were measured at every batch size."""
    groups: dict[str, dict[str, float]] = {}
    for row in result["rows"]:
        group = groups.setdefault(f"{networks()[row['network']].label}\n{row['batch']}", {})
        rate = row["patches_per_s"]["median"]
        if not 0 < rate < math.inf:
            raise ValueError(f"{rate} patches/s")
        group[row["variant"]] = rate
    everywhere = [name for name in next(iter(groups.values())) if all(name in group for group in groups.values())]
    groups = {group: {name: rates[name] for name in everywhere} for group, rates in groups.items()}
    looks = charts.looks([name for name in everywhere if name != BASELINE])
    return charts.dots("speed", groups, looks, "patches/s", least=0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``launch/bench.py draw``."""
    parser.add_argument("result", type=Path, metavar="JSON", help="written by launch/bench.py train --json")
    parser.add_argument("chart", type=Path, metavar="SVG", help="where the chart goes")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Read, draw, write.

    Raises
    ------
    InputError
        If the file cannot be read or holds something else, or the chart cannot be written.
    """
    try:
        result = json.loads(options.result.read_text())
        chart = draw(result)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds something else"
        raise InputError(f"{options.result}: expected what launch/bench.py train --json writes: {why}") from None
    try:
        write_text(options.chart, chart)
    except OSError as error:
        raise InputError(f"{options.chart}: the chart cannot be written: {error.strerror}") from None
    print(options.chart)
    return result
