"""Tables of text for a terminal."""

from collections.abc import Collection, Sequence

import tabulate

tabulate.MIN_PADDING = 0  # else a column is two wider than its head


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """``rows`` of cells under ``head``, the columns numbered in ``left`` to the left and the others to the right."""
    sides = ["left" if column in left else "right" for column in range(len(head))]
    # no parsing of numbers: a cell has the digits that its column should show
    return tabulate.tabulate(rows, head, "plain", colalign=sides, disable_numparse=True)
