"""State, step, time left, and where the time went, of every run and command; failures grouped by what they say.

python launch/status.py runs/demo --watch
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

from shards.common.command import InputError, command
from slurm import status, status_table
from slurm.screen import Screen

EVERY_S = 5.0


def main() -> int:
    """Parse, report, and cancel if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUNS", help="folders with runs at any depth, e.g. runs or runs/demo"
    )
    parser.add_argument("--watch", action="store_true", help="show it again every 5 s until nothing waits or runs")
    parser.add_argument("--cancel", action="store_true", help="end what waits or runs, after asking")
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of the table")
    args = parser.parse_args()
    if args.json and (args.watch or args.cancel):
        raise InputError("--json prints once and changes nothing; leave out --watch and --cancel")

    if args.json:
        print(json.dumps([vars(run) for run in status.reports(args.runs)[0]], indent=1))
        return 0
    with contextlib.ExitStack() as stack:
        draw = stack.enter_context(Screen()).draw if args.watch else print
        while True:
            listed, silent = status.reports(args.runs)
            draw(status_table.show(listed, silent))
            live = sum(run.state in status.LIVE for run in listed)
            if not args.watch or not live:
                break
            time.sleep(EVERY_S)
    if args.cancel and live:
        parts = any(run.values is None for run in listed if run.state in status.LIVE)
        what = f"run{'s' * (live != 1)}" if not parts else "runs or parts of commands"
        print(f"cancel {live} {what}? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            print(status.cancel(args.runs, listed))
        else:
            print("nothing was cancelled")
    return 0


if __name__ == "__main__":
    command(main)
