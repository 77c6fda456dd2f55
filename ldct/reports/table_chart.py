"""A table of measured values kept as JSON: its chart, and the same table in a page, so that both say one thing.

The JSON holds ``label`` (the head of the first column), ``unit``, ``columns`` and ``rows``: of each row its name, then
a number for each column, or null where there is none. What else stands in it (date, commands) is for its reader.
"""

from typing import Any

from ldct.reports import charts


def draw(table: dict[str, Any], name: str) -> str:
    """The chart as SVG: a line for each row, a colour for each column."""
    lines = {row[0].replace("`", ""): dict(zip(table["columns"], row[1:], strict=True)) for row in table["rows"]}
    return charts.lines_of_dots(name, lines, charts.looks(table["columns"]), table["unit"])


def in_page(table: dict[str, Any], page: str) -> str:
    """``page`` with the table in place of the one that has the same head.

    Raises
    ------
    ValueError
        If the page has no such table.
    """
    head = _line([table["label"], *table["columns"]])
    before, found, after = page.partition(head)
    if not found:
        raise ValueError(f"expected a table that begins with {head.strip()}")
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        del rest[0]
    rule = "| --- |" + " ---: |" * len(table["columns"]) + "\n"
    values = [[row[0], *("-" if value is None else f"{value:.2f}" for value in row[1:])] for row in table["rows"]]
    return before + head + rule + "".join(map(_line, values)) + "".join(rest)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
