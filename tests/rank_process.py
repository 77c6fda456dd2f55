"""Ranks of a run, each a process with the output of launch/train.py, forked from one that has imported torch."""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path

SLOW_S = 7
TRAIN = Path(__file__).resolve().parents[1] / "launch" / "train.py"
FORKS = multiprocessing.get_context("forkserver")
"""Starts processes from a server that has no threads and computes nothing: a rank is there at once, not in seconds."""
FORKS.set_forkserver_preload(["ldct.training.trainer", "torch._dynamo"])  # which optimizers import at their first step


class Rank(FORKS.Process):
    """launch/train.py with ``flags`` as a rank of a run; what it says goes to the new file ``log``.

    The rank numbered ``act[0]`` does ``act[2]`` behind step ``act[1]``: hang, wait, fail, or a signal to itself. Two
    acts know no step: late starts that rank SLOW_S late; slow makes it take SLOW_S for what it does alone, once each.
    """

    def __init__(self, environment, act, flags, log):
        super().__init__(daemon=True)
        self.environment, self.act, self.flags, self.log = environment, act, flags, log
        self.start()

    def run(self):
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))  # noqa: SIM115 (until the end)
        os.environ.update(self.environment)
        number, step, act = self.act
        if os.environ["RANK"] == number:
            if act == "late":
                time.sleep(SLOW_S)
            elif act == "slow":
                slow()
            else:
                act_behind(int(step), act)
        sys.argv = ["train.py", *self.flags]
        runpy.run_path(str(TRAIN), run_name="__main__")

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
