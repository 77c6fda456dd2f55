"""Tables as text: for a terminal, and as CSV."""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import tabulate

tabulate.MIN_PADDING = 0  # else a column is two wider than its head


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """``rows`` of cells under ``head``, the columns numbered in ``left`` to the left and the others to the right."""
    sides = ["left" if column in left else "right" for column in range(len(head))]
    # no parsing of numbers: a cell has the digits that its column should show
    return tabulate.tabulate(rows, head, "plain", colalign=sides, disable_numparse=True)


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """``rows`` as CSV, the lines ended by a line feed."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
