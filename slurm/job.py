"""What runs inside a job: the latch, the environment of the ranks, the training, and the way back into the queue.

This module imports nothing slow: until the latch is set, a warning signal of SLURM would be lost.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path

from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment

from ldct.runs.attempts import Superseded
from ldct.training.signals import STOPPED, Latch

PORTS = range(20_000, 32_000)
"""Below 32768, where Linux takes the ports of outgoing connections from."""


class Train:
    """The training of one run folder, as submitit pickles, calls and requeues it.

    Parameters
    ----------
    folder : str
        Run folder with config.yaml, as an absolute path that all nodes see. All other state is on disk there, so the
        same object continues a run as well as it starts one.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self) -> str:
        latch, began = Latch(), time.time()
        rank = export_environment()
        try:
            stopped = train(Path(self.folder), latch)
        except Superseded as error:
            print(error, file=sys.stderr)
            sys.exit(STOPPED)
        except Exception as error:
            if rank == 0:
                note_failure(Path(self.folder), error, began)
            raise
        if stopped is None:
            latch.close()
            return "finished"
        return leave(stopped, rank, latch)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit, on rank 0 and after the ranks have saved, for what to put back into the queue."""
        return DelayedSubmission(self)


def export_environment() -> int:
    """Export RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; return the rank.

    The port follows from the job's own number. submitit draws it at random from (array, task), which may meet the port
    of a neighbour on the same node; jobs of one array have consecutive numbers, so these ports differ. Runs of the
    local executor take the numbers of their processes: inside an allocation of SLURM all of them have its job id.
    """
    local = os.environ.get("SUBMITIT_EXECUTOR") == "local"
    number = os.environ["SUBMITIT_LOCAL_JOB_ID" if local else "SLURM_JOB_ID"]
    os.environ["MASTER_PORT"] = str(PORTS[int(number) % len(PORTS)])
    # set_cuda_visible_devices would set CUDA_VISIBLE_DEVICES to the local rank, and a job that was given GPU 1 would
    # end up on GPU 0
    return TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True).rank


def train(folder: Path, latch: Latch) -> signal.Signals | None:
    """Train the run in ``folder``; return the signal it stopped for, None if it finished.

    Raises
    ------
    InputError
        If the job was given GPUs that torch cannot use: it would train on the CPU, and hold the GPUs for days.
    """
    import torch

    from ldct.runs import folder as runs
    from ldct.training.trainer import train as train_run
    from shards.common.command import InputError

    given = os.environ.get("SLURM_GPUS_ON_NODE")
    if given and not torch.cuda.is_available():
        raise InputError(
            f"SLURM gave this job {given} GPUs, torch {torch.__version__} can use none; install a build of torch for "
            "the driver that nvidia-smi names, or set gpus_per_node: 0"
        )
    return train_run(runs.read_config(folder), latch)


def leave(stopped: signal.Signals, rank: int, latch: Latch) -> str:
    """End the process after all ranks have saved together.

    USR2 is SLURM's warning of a time limit or a preemption: rank 0 hands over to submitit's own handler, which counts
    time limits down, pickles, requeues and exits. After TERM nothing is requeued from here: it may be the user's
    scancel, and where SLURM itself requeues it does so without us.
    """
    if stopped is signal.SIGUSR2 and rank == 0:
        latch.previous[signal.SIGUSR2](signal.SIGUSR2, None)  # type: ignore[operator, misc]
    # the others leave with 0: a site's srun may take a bad status for a reason to kill rank 0
    sys.exit(STOPPED if rank == 0 and stopped is signal.SIGTERM else 0)


def note_failure(folder: Path, error: Exception, began: float) -> None:
    """Write to status.json why the run failed, where it failed before the loop could write it itself.

    What failed before its attempt began must not touch the status of another one that is alive.
    """
    from ldct.runs import folder as runs

    status = runs.read_status(folder)
    other = status.state == "running" and (status.host, status.pid) != runs.here()
    if status.heartbeat >= began - (2 * runs.HEARTBEAT_S if other else 0) and (other or status.state == "failed"):
        return
    status.state, status.job = "failed", runs.slurm_job()
    status.error = traceback.format_exception_only(error)[-1].strip()
    runs.write_status(folder, status)
