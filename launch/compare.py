"""Compare runs on one HTML page that opens without a network.

python launch/compare.py runs/demo -o report.html

Writes report.html, and its table as report.csv and report.tex; prints the table and the page's path last.
"""

import argparse
from pathlib import Path

from shards.command import InputError, command


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders of runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (%(default)s)")
    parser.add_argument(
        "--split", choices=("test", "val", "pairs"), default="test", help="which evaluation to show (%(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    """Gather, render, write, print."""
    options = arguments()
    if options.output.suffix != ".html":
        raise InputError(f"--output {options.output}: expected a name that ends in .html")
    from ldct import report, tables  # --help needs no torch
    from shards.atomic import write_text

    page = report.build(options.runs, options.split)
    title = f"Comparison of {', '.join(dict.fromkeys(one.folder.resolve().parent.name for one in page.runs))}"
    files = {".html": report.render(page, title)}
    if page.found:
        files[".csv"] = tables.as_csv(page.found, page.rows)
        files[".tex"] = tables.as_latex(page.found, page.rows)
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in files.items():
            write_text(options.output.with_suffix(suffix), content)
    except OSError as error:
        raise InputError(f"cannot write {options.output}: {error.strerror}; choose another place with -o") from None
    for line in report.alarms(page):
        print(f"note: {line}")
    if page.found:
        print(tables.as_text(page.found, page.rows))
        print(tables.about(page.found))
    print(options.output.resolve())


if __name__ == "__main__":
    command(main)
