"""Python for the ranks of a job, one of which loses its power: python lost_rank.py -u -m MODULE ARGS...

Run N of the sweep is hit at PHASES[N], by SIGKILL.
"""

import os
import runpy
import signal
import sys
import time

PHASES = {
    "rendezvous": 1,
    "groups": 0,
    "first step": 1,
    "save": 0,
    "validation": 1,
    "end": 1,
}
"""Phase -> the rank that is lost in it."""


def die(*args, **kwargs):
    print(f"lost at {time.time()}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def prepare(phase):
    """Put the end of this process where ``phase`` begins."""
    import torch.distributed

    from ldct.training.recorder import Recorder
    from ldct.training.step import Training
    from ldct.training.validation import Validation

    if phase == "rendezvous":
        torch.distributed.rendezvous = die
    if phase == "groups":
        torch.distributed.init_process_group = die
    if phase == "first step":
        Training.train_step = die
    if phase == "save":
        Recorder.save = die
    if phase == "validation":
        run = Validation.run
        Validation.run = lambda self, model, stop: run(self, model, die)  # after its first slice
    if phase == "end":
        Recorder.close = die


if __name__ == "__main__":
    phase, lost = list(PHASES.items())[int(os.environ["SLURM_ARRAY_TASK_ID"])]
    if os.environ["SLURM_PROCID"] == str(lost):
        prepare(phase)
    module, sys.argv = sys.argv[3], sys.argv[3:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
