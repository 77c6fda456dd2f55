"""launch/train.py with one rank that does something at one step: python interrupted_rank.py RANK STEP ACT FLAGS...

Two acts know no step: late starts that rank SLOW_S late; slow makes it take SLOW_S for what it does alone, once each.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

rank, step, act, *sys.argv[1:] = sys.argv[1:]


def hang():
    time.sleep(1000)


SLOW_S = 7


def slow_once(owner, name):
    """Make the function ``name`` of ``owner`` take SLOW_S at its first call."""
    plain, calls = getattr(owner, name), []

    def slowed(*args, **kwargs):
        calls.append(name)
        if len(calls) == 1:
            print(f"slow: {name}", file=sys.stderr)
            time.sleep(SLOW_S)
        return plain(*args, **kwargs)

    setattr(owner, name, slowed)


def slow():
    """A slow disk under everything that rank 0 reads and writes alone."""
    from ldct.attention import pictures
    from ldct.runs import checkpoint, folder
    from ldct.training.recorder import Recorder

    folder.HEARTBEAT_S = 0
    slow_once(checkpoint, "save")
    slow_once(pictures, "pictures")
    slow_once(Recorder, "_choose")
    slow_once(Recorder, "__enter__")
    slow_once(Recorder, "line")
    slow_once(Recorder, "heartbeat")


def fail():
    raise ZeroDivisionError("broken on purpose")


def do():
    if act in ("hang", "fail"):
        globals()[act]()
    else:
        os.kill(os.getpid(), signal.Signals[act])


if __name__ == "__main__":
    mine = os.environ["RANK"] == rank
    if mine and act == "late":
        time.sleep(SLOW_S)
    if mine and act == "slow":
        slow()
    from ldct.training.step import Training

    train_step = Training.train_step

    def wrapped(self, *args, **kwargs):
        result = train_step(self, *args, **kwargs)
        if self.step == int(step) and self.ranks.rank == int(rank):
            do()
        return result

    Training.train_step = wrapped
    runpy.run_path(str(Path(__file__).resolve().parents[3] / "launch" / "train.py"), run_name="__main__")
