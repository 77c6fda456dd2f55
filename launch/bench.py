"""Measure speed on this machine, beside the reference implementations, in one run.

python launch/bench.py shard
python launch/bench.py load --shards data/shards --json load.json
"""

import argparse
from pathlib import Path

from ldct import bench as load
from shards import bench as shard
from shards.command import command

BENCHES = {
    "shard": (shard, "the sharder, beside the bare decode and the common preparation script"),
    "load": (load, "batches and checkpoints, beside plain webdataset and a copy in memory"),
}
"""Each module has add_arguments(parser) and run(options) -> dict."""


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, (module, about) in BENCHES.items():
        sub = commands.add_parser(name, help=about, description=about)
        module.add_arguments(sub)
        sub.add_argument("--json", type=Path, metavar="FILE", help="keep the result")
    options = parser.parse_args()
    module, _ = BENCHES[options.what]
    result = module.run(options)
    if options.json:
        shard.write_json(result, options.json)


if __name__ == "__main__":
    command(main)
