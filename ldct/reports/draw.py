"""``launch/bench.py draw``: the chart of values that were measured and kept as JSON."""

import argparse
import json
from pathlib import Path
from typing import Any

from ldct.reports import speed_chart, table_chart
from shards.common.atomic import write_text
from shards.common.command import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``launch/bench.py draw``."""
    parser.add_argument(
        "result", type=Path, metavar="JSON", help="written by launch/bench.py train --json, or a table: {label, unit, "
        "columns, rows}"
    )  # fmt: skip
    parser.add_argument("chart", type=Path, metavar="SVG", help="where the chart goes")
    parser.add_argument(
        "--page", type=Path, metavar="MD", help="of a table: the page that shows it, brought up to date"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Read, draw, write.

    Raises
    ------
    InputError
        If the file cannot be read or holds something else, the page has no such table, or a file cannot be written.
    """
    try:
        result: dict[str, Any] = json.loads(options.result.read_text())
        is_table = "columns" in result
        chart = table_chart.draw(result, options.chart.stem) if is_table else speed_chart.draw(result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds something else"
        raise InputError(
            f"{options.result}: expected what launch/bench.py train --json writes, or a table: {why}"
        ) from None
    written = {options.chart: chart}
    if options.page:
        if not is_table:
            raise InputError(f"--page {options.page}: {options.result} is no table; leave the option out")
        try:
            written[options.page] = table_chart.in_page(result, options.page.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{options.page}: {error.strerror if isinstance(error, OSError) else error}") from None
    for path, text in written.items():
        try:
            write_text(path, text)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None
        print(path)
    return result
