"""Compare runs on one HTML page that opens without a network.

python launch/compare.py runs/demo -o report.html

Writes report.html, and its table as report.csv and report.tex; prints the table and the page's path last.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from shards.common.command import InputError, command


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "runs", nargs="*", type=Path, metavar="RUNS", default=[], help="run folders, or folders of runs"
    )
    source.add_argument("--wandb", metavar="ENTITY/PROJECT", help="read the runs from Weights & Biases instead")
    source.add_argument(
        "--wandb-report",
        metavar="ENTITY/PROJECT",
        help="make a report and a saved view on Weights & Biases of the runs there instead",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (%(default)s)")
    parser.add_argument(
        "--split",
        help="which evaluation to show: test, val, pairs, or a --name of evaluate.py (test where there is one)",
    )
    parser.add_argument(
        "--slices-mb",
        type=float,
        default=9.0,
        metavar="MB",
        help="how much of the page may be slices, the worst and the median first (%(default)g)",
    )
    parser.add_argument(
        "--require-gain",
        type=float,
        metavar="DB",
        help="exit 1 unless all runs beat the blur, and the low dose by DB",
    )
    parser.add_argument("--require-best-gain", type=float, metavar="DB", help="exit 1 unless the best run gains DB")
    return parser.parse_args()


def main() -> int:
    """Compare the folders given, or those that W&B has copies of."""
    options = arguments()
    if options.output.suffix != ".html":
        raise InputError(f"--output {options.output}: expected a name that ends in .html")
    if not options.slices_mb >= 0:
        raise InputError(f"--slices-mb {options.slices_mb:g}: expected megabytes, 0 or more")
    if options.wandb_report:
        if options.require_gain is not None or options.require_best_gain is not None:
            raise InputError(
                "--require-gain, --require-best-gain: expected runs or --wandb, found --wandb-report, which checks "
                "nothing; leave them out"
            )
        from ldct.metrics import protocols
        from ldct.reports import wandb_report

        print(*wandb_report.publish(options.wandb_report, options.split or "test", protocols.DEFAULT[0]), sep="\n")
        return 0
    if not options.wandb:
        return compare(options.runs, options)
    from ldct.runs import wandb_reader

    with tempfile.TemporaryDirectory() as folder:
        return compare(wandb_reader.fetch(options.wandb, Path(folder)), options)


def compare(roots: list[Path], options: argparse.Namespace) -> int:
    """Gather, render, write, print; 1 if the runs fall short of what is required."""
    from ldct.reports import comparison, significance, tables  # --help needs no torch
    from ldct.reports.page import alarms, build, render
    from shards.common.atomic import write_text

    split, others = comparison.choose_split(roots, options.split)
    page = build(roots, split)
    title = f"Comparison of {', '.join(dict.fromkeys(run.folder.resolve().parent.name for run in page.runs))}"
    files = {".html": render(page, title, int(options.slices_mb * 1e6))}
    if page.evaluation:
        files[".csv"] = tables.as_csv(page.evaluation, page.rows)
        files[".tex"] = tables.as_latex(page.evaluation, page.rows)
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in files.items():
            write_text(options.output.with_suffix(suffix), content)
    except OSError as error:
        raise InputError(f"cannot write {options.output}: {error.strerror}; choose another place with -o") from None
    for line in [*alarms(page), *(f"also evaluated: {other}; see it with --split {other}" for other in others)]:
        print(f"note: {line}")
    if page.evaluation:
        print(tables.as_text(page.evaluation, page.rows))
        print("", significance.as_text(page.evaluation, page.rows), tables.about(page.evaluation), sep="\n")
    print(options.output.resolve())
    missing = []
    if options.require_gain is not None or options.require_best_gain is not None:
        required = (options.require_gain or 0.0, options.require_best_gain or 0.0)
        missing = comparison.shortfalls(page.runs, page.evaluation, *required)
    for line in missing:
        print(f"not reached: {line}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    command(main)
