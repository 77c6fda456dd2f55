"""Train one network here, or under torchrun; goes on where the run folder left off.

python launch/train.py --config configs/train/default.yaml --data.shards data/shards --run_dir runs/mine
"""

# the latch first: a signal that comes while torch is imported must not be lost
from ldct.preempt import Latch

latch = Latch()

import sys  # noqa: E402

from ldct import config as configuration  # noqa: E402
from shards.command import command  # noqa: E402

STOPPED = 75
"""Exit status of a run stopped by a signal (EX_TEMPFAIL of sysexits.h): run the same command again."""


def main() -> int:
    """Parse, train, and say what is left to do."""
    config = configuration.parse(sys.argv[1:])
    from ldct.train import train  # --help and a typo need no torch

    stopped = train(config, latch)
    if stopped is None:
        print(f"finished: {config.run_dir}")
        return 0
    print(f"stopped by {stopped.name} with a checkpoint; run the same command again to go on", file=sys.stderr)
    return STOPPED


if __name__ == "__main__":
    command(main)
