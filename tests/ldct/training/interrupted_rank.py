"""launch/train.py with one rank that does something at one step: python interrupted_rank.py RANK STEP ACT FLAGS..."""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

rank, step, act, *sys.argv[1:] = sys.argv[1:]


def hang():
    time.sleep(1000)


def fail():
    raise ZeroDivisionError("broken on purpose")


def do():
    if act in ("hang", "fail"):
        globals()[act]()
    else:
        os.kill(os.getpid(), signal.Signals[act])


if __name__ == "__main__":
    from ldct.training.trainer import Training

    update = Training._update

    def wrapped(self, pairs):
        update(self, pairs)
        if self.step == int(step) and self.ranks.rank == int(rank):
            do()

    Training._update = wrapped
    runpy.run_path(str(Path(__file__).resolve().parents[3] / "launch" / "train.py"), run_name="__main__")
