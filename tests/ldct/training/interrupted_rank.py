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
    from ldct.training.step import Training

    train_step = Training.train_step

    def wrapped(self, *args, **kwargs):
        result = train_step(self, *args, **kwargs)
        if self.step == int(step) and self.ranks.rank == int(rank):
            do()
        return result

    Training.train_step = wrapped
    runpy.run_path(str(Path(__file__).resolve().parents[3] / "launch" / "train.py"), run_name="__main__")
