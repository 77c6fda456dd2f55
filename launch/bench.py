"""Measure speed on this machine, beside the baselines, in one run.

python launch/bench.py shard
python launch/bench.py load --shards data/shards --json load.json
python launch/bench.py train --help
"""

import argparse
import importlib
import json
from pathlib import Path

from shards.common.atomic import write_text
from shards.common.command import InputError, command

BENCHES = {
    "shard": ("ldct.benchmarks.shard", "measure the sharder, beside the bare decode and the common preparation script"),
    "load": ("ldct.benchmarks.load", "measure batches and checkpoints, beside plain webdataset and a copy in memory"),
    "train": ("ldct.benchmarks.train", "measure training steps, beside the baseline and a matrix product"),
    "evaluate": (
        "ldct.benchmarks.evaluate",
        "measure an evaluation by its parts: networks, baselines, groups of metrics",
    ),
    "infer": ("ldct.benchmarks.infer", "measure whole slices, beside the baseline and a matrix product"),
    "draw": ("ldct.reports.draw", "draw a chart of what train --json kept, or of a table kept as JSON"),
    "accept": (
        "ldct.benchmarks.accept",
        "check and measure everything that one GPU can show, in 9 minutes; exit status 1 if a check fails",
    ),
}
"""Name -> module and what it does. Each module has add_arguments(parser) and run(options) -> dict."""


def main() -> int:
    """Parse, measure, print, keep; 1 if a check of accept failed."""
    about = "\n".join(f"  {name:8} {what}" for name, (_, what) in BENCHES.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{about}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=BENCHES, help="what to measure; its own --help lists its options")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of that")
    chosen = parser.parse_args()
    name, what = BENCHES[chosen.what]
    module = importlib.import_module(name)  # the sharder's bench and --help need no torch
    own = argparse.ArgumentParser(prog=f"{parser.prog} {chosen.what}", description=f"{what[0].upper()}{what[1:]}.")
    module.add_arguments(own)
    own.add_argument("--json", type=Path, metavar="FILE", help="keep the result")
    options = own.parse_args(chosen.options)
    if options.json and not options.json.parent.is_dir():  # said before the measurement and not after
        raise InputError(f"--json {options.json}: there is no folder {options.json.parent}; make it first")
    result = module.run(options)
    if options.json:
        write_text(options.json, json.dumps(result, indent=1) + "\n")
    return int(bool(result.get("failed")))


if __name__ == "__main__":
    command(main)
