"""Which series a network that ships may denoise: those like what it was trained on, and others only when forced."""

import dataclasses

from ldct.inference.pretrained import Card
from ldct.inference.scan import judge, measure_series
from ldct.inference.series import Series


def check(series: list[Series], card: Card, force: bool) -> tuple[list[Series], list[str]]:
    """Measure every series and hold it against the card of the network.

    Returns
    -------
    series
        In their order. What is far outside is left out, or with ``force`` gets a note that says so.
    lines
        For people: what was measured of each, and warnings.
    """
    checked, lines = [], []
    for each in series:
        where = each.slices[0].path.parent
        kernels = {piece.kernel for piece in each.slices}
        judgement = judge(measure_series(each.slices), card.ranges, kernels, card.kernels)
        lines.append(f"{where}: {judgement.line}")
        outside = "; ".join(judgement.outside)
        if judgement.refused and not force:
            reason = f"{where}: {card.name} was not trained on such a series ({outside}); --force denoises it"
            each = dataclasses.replace(each, left_out=each.left_out or reason)
        elif outside:
            lines.append(f"warning: {where}: {card.name} was not trained on such a series: {outside}")
            each = dataclasses.replace(each, note=f", not trained on such a series: {outside}" * judgement.refused)
        checked.append(each)
    return checked, lines
