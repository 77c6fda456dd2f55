"""A chart of what ``launch/bench.py train --json`` kept: patches per second by network, batch size and variant."""

import math
from typing import Any

from ldct.config.networks import networks
from ldct.reports import charts

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
