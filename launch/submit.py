"""Run a command of this project as a job, or as several that each do a part of it.

python launch/submit.py --cluster mine.yaml --parts 8 shards/build.py /data/aapm /data/shards --val L333 --test L506
python launch/submit.py --cluster mine.yaml launch/evaluate.py runs/demo --shards data/shards
"""

import argparse
import os
import re
from pathlib import Path

from shards.common.command import InputError, command
from shards.common.lock import locked
from slurm import chain, commands
from slurm.cluster import load
from slurm.submission import check_folder


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="Run again after an "
        "interruption or a failure: finished parts are skipped, running and waiting ones are left alone."
    )  # fmt: skip
    parser.add_argument("--cluster", type=Path, required=True, help="YAML file; see configs/clusters")
    parser.add_argument("--parts", type=int, default=1, metavar="N", help="jobs that share the work (%(default)s)")
    parser.add_argument(
        "--after", metavar="JOB", help="begin when these jobs of SLURM have ended well, e.g. 12 or 12,13"
    )
    parser.add_argument("--name", help="folder below jobs/ (default: the command's name, e.g. build)")
    parser.add_argument("--again", action="store_true", help="also what is finished, for new data")
    parser.add_argument(
        "--restart-lost", action="store_true", help="end jobs that run without a heartbeat, and do their parts again"
    )
    parser.add_argument("--dry-run", action="store_true", help="check and show, submit nothing")
    parser.add_argument("--jobs", type=Path, default=Path("jobs"), help="folder of all commands, default: jobs")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="e.g. shards/build.py IN OUT")
    return parser.parse_args()


def main() -> int:
    """Parse, show, submit."""
    args = arguments()
    cluster = load(args.cluster)
    checked, gpu = commands.check(args.command, args.parts)
    cluster = cluster.for_command(gpu)
    if args.after and (cluster.executor == "local" or not re.fullmatch(r"\d+(_\d+)?([,:]\d+(_\d+)?)*", args.after)):
        raise InputError(f"--after: expected numbers of SLURM's jobs, and a cluster with SLURM, found {args.after!r}")
    after = f"afterok:{args.after.replace(',', ':')}" if args.after else ""
    name = args.name or Path(checked.argv[0]).stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"--name: expected letters, digits, '.', '_' and '-' (it names a folder), found {name!r}")
    folder = Path(os.path.abspath(args.jobs / name))
    check_folder(folder)
    if args.dry_run:
        print(chain.dry_run(cluster, folder, checked))
        return 0
    wait_s = 0 if cluster.executor == "local" else 120
    with locked(folder / ".lock", f"another launcher works on {folder}", wait_s):
        commands.begin(folder, checked)
        return chain.submit_command(cluster, folder, checked, after, args.again, args.restart_lost)


if __name__ == "__main__":
    command(main)
