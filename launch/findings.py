"""Write what runs show, with a verdict on every claim, as a page of Markdown and its charts.

python launch/evaluate.py runs/attention --shards data/shards
python launch/findings.py runs/attention --shards data/shards -o docs/findings.md

With --split pairs, on what evaluate.py --pairs measured; the claims on depth need evaluate.py --ablate.
Intervals need at least three seeds and three test patients; without them every claim stays undecided.
"""

import argparse
from pathlib import Path

from shards.common.command import InputError, command


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders of runs")
    parser.add_argument("--shards", type=Path, required=True, help="the shards the runs were trained on")
    parser.add_argument(
        "--split",
        default="test",
        help="which evaluation counts: test, val, pairs, or a --name of evaluate.py (%(default)s)",
    )
    parser.add_argument(
        "--beside",
        default="test",
        metavar="SPLIT",
        help="a second evaluation, whose gain is shown beside where there is one (%(default)s)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("findings.md"), help="the page; charts go beside it (%(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    """Gather, render, write, and print the verdicts."""
    options = arguments()
    if options.output.suffix != ".md":
        raise InputError(f"--output {options.output}: expected a name that ends in .md")
    from ldct.reports import findings  # --help needs no torch
    from shards.common.atomic import write_text

    found = findings.gather(options.runs, options.shards, options.split, options.beside)
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        for name, content in findings.render(found, options.output.stem).items():
            write_text(options.output.with_name(name), content)
    except OSError as error:
        raise InputError(f"cannot write {options.output}: {error.strerror}; choose another place with -o") from None
    for claim in found.claims:
        print(f"{claim.verdict:13}  {claim.text}")
    print(options.output.resolve())


if __name__ == "__main__":
    command(main)
