"""Ranks of a run, each a process of its own."""

import os
import signal
import sys
import time
from pathlib import Path

from forked import Forked

SLOW_S = 7


class Rank(Forked):
    """launch/train.py with ``flags`` as a rank of a run; what it says goes to the new file ``log``.

    The rank numbered ``act[0]`` does ``act[2]`` behind step ``act[1]``: hang, wait, fail, or a signal to itself. Two
    acts know no step: late starts that rank SLOW_S late; slow makes it take SLOW_S for what it does alone, once each.
    """

    def __init__(self, environment, act, flags, log):
        self.act, self.log = act, log
        super().__init__(["launch/train.py", *flags], {**os.environ, **environment}, log, log, daemon=True)

    def prepare(self):
        number, step, act = self.act
        if os.environ["RANK"] == number:
            if act == "late":
                time.sleep(SLOW_S)
            elif act == "slow":
                slow()
            else:
                act_behind(int(step), act)

    def ended(self, timeout=120):
        """Exit status, and what it said."""
        self.join(timeout)
        if self.exitcode is None:
            self.kill()
            raise TimeoutError(f"still there after {timeout} s: {Path(self.log).read_text()}")
        return self.exitcode, Path(self.log).read_text()


def act_behind(step, act):
    """Do ``act`` behind optimizer step number ``step``."""
    from ldct.training.step import Training

    train_step = Training.train_step

    def wrapped(self, *args, **kwargs):
        result = train_step(self, *args, **kwargs)
        if self.step == step:
            if act in ("hang", "wait", "fail"):
                globals()[act]()
            else:
                os.kill(os.getpid(), signal.Signals[act])
        return result

    Training.train_step = wrapped


def hang():
    time.sleep(1000)


def wait():
    """As hang, but it is known after a moment that the device waits for nothing that will come."""
    from ldct.training import pulse

    pulse.GRACE_S = 2
    hang()


def fail():
    raise ZeroDivisionError("broken on purpose")


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
