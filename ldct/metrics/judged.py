"""Which slices of a method are looked at first: its median and its worst."""

import math
from collections.abc import Iterable

from ldct.metrics import registry
from ldct.metrics.intervals import Measured
from ldct.metrics.names import metric as name_under

WHICH = ("median", "worst")


def median_and_worst(slices: Iterable[Measured], protocol: str) -> list[Measured]:
    """The median and the worst of ``slices`` by registry.JUDGED under ``protocol``; empty where none has a value.

    The median is a slice that was measured: of an even number the better of the middle two.
    """
    name = name_under(protocol, registry.JUDGED)
    ranked = [measured for measured in slices if not math.isnan(measured.values[name])]
    ranked.sort(key=lambda measured: measured.values[name], reverse=bool(registry.find(name).higher_is_better))
    return [ranked[(len(ranked) - 1) // 2], ranked[-1]] if ranked else []
