"""A run from its start to its end in one process: the loop, and what it does between two steps."""

import math
import os
import signal
from typing import Any

import torch

from ldct.config import Config
from ldct.data.loader import Loader
from ldct.data.patches import DeviceStore, open_store
from ldct.data.staging import staged
from ldct.device import advising, full_precision, give_back, keep_freed
from ldct.metrics import names
from ldct.models.network import Network
from ldct.runs import checkpoint
from ldct.training.halving import Halving
from ldct.training.memory import check_fits
from ldct.training.ranks import Ranks
from ldct.training.recorder import Recorder
from ldct.training.signals import Latch
from ldct.training.step import StepResult, Training
from ldct.training.validation import Validation, attention_lines
from ldct.training.watchdog import Watchdog
from shards.common.command import NO_ROOM, InputError


def train(config: Config, latch: Latch) -> signal.Signals | None:
    """Train until the last step or until a signal, going on from the newest checkpoint in ``config.run_dir``.

    Called once in every rank's process.

    Returns
    -------
    signal.Signals or None
        None if the run is finished; else SIGUSR2 (requeue) or SIGTERM (stop): what all ranks stopped for, after a
        checkpoint of the last step.

    Raises
    ------
    InputError
        If configuration, shards or checkpoint do not fit each other, or a checkpoint cannot be written.
    NotFinite, RankLost
        If the numbers, or another rank, broke.
    """
    ranks = Ranks(config.train.timeout_s, os.path.abspath(config.run_dir))
    try:
        with advising(step_advice(config, ranks.world_size)), ranks.together():
            check(config, ranks.world_size)
            set_numerics(config)
            keep_freed()
            recorder = Recorder(config, ranks)
            if recorder.finished:
                return None
            with recorder, ranks.naming_lost(), staged(config) as local:
                ranks.wait()
                training = Training(local, ranks)
                check_fits(training)
                stop = Trainer(training, recorder, latch).run()
                recorder.close("stopped" if stop else "finished")
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise InputError(f"cannot write to {config.run_dir}: {error.strerror}; make room and run again") from None
    return stop


def step_advice(config: Config, world_size: int) -> str:
    """What to do where a step does not fit into the device's memory."""
    share = config.train.global_batch // world_size
    parts = next((n for n in range(config.train.accumulate + 1, share + 1) if share % n == 0), None)
    smaller = f"--train.accumulate={parts} (now {config.train.accumulate})" if parts else "a smaller train.global_batch"
    return (
        f"a step of {share // config.train.accumulate} patches at once does not fit into a rank's memory: "
        f"try {smaller}, which trains the same, or --data.store=mmap"
    )


def validation_advice(config: Config, patches_there: bool) -> str:
    """What to do where a validation does not fit beside the patches, if these are on the device too. It takes one slice
    at a time: fewer of them would not help."""
    if patches_there:
        more = f"try --data.store=mmap (now {config.data.store}), with which the run goes on as it was"
    else:
        more = f"use a device with more, or train another run with fewer model.channels (now {config.model.channels})"
    return f"a whole slice of the validation does not fit into a rank's memory beside the training: {more}"


def check(config: Config, world_size: int) -> None:
    """Raise an InputError for a configuration that cannot be trained on ``world_size`` ranks."""
    if not config.run_dir:
        raise InputError("expected --run_dir, the folder of the run")
    if not config.data.shards:
        raise InputError("expected --data.shards, a folder written by shards/build.py")
    parts = world_size * config.train.accumulate
    if config.train.global_batch % parts:
        raise InputError(
            f"train.global_batch: expected a multiple of {parts} (world size {world_size} x train.accumulate "
            f"{config.train.accumulate}), found {config.train.global_batch}"
        )


def set_numerics(config: Config) -> None:
    """Process-wide switches of torch. In bf16 too, what stays in fp32 (the image's convolution) is computed in fp32."""
    full_precision()
    if config.train.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(config.train.deterministic)  # imports the compiler, which takes seconds
    torch.backends.cudnn.benchmark = not config.train.deterministic
    if config.train.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


class Trainer:
    """The loop around ``training``, which goes on from the checkpoint that ``recorder`` found.

    Parameters
    ----------
    training : Training
        As it starts.
    recorder : Recorder
        The run's folder, open.
    latch : Latch
        Notes the signals that this process gets.
    """

    def __init__(self, training: Training, recorder: Recorder, latch: Latch) -> None:
        self.training, self.recorder, self.latch = training, recorder, latch
        self.config, self.ranks = training.config, training.ranks
        self.validation = Validation(self.config, self.ranks, training.patches.patch)
        self.watchdog = Watchdog(self.config.train.hang_s)
        self.clock = checkpoint.Clock(self.config.train.save_every_s)
        self.stop: signal.Signals | None = None
        """What all ranks agreed to stop for."""
        self.agreed = self._asked
        """Gives what the ranks ask for together. Several begin to agree before a step and read it behind, so that none
        waits for their messages: they stop one step after a signal, all of them after the same."""
        self.halving = Halving(recorder.folder)
        self.ends_early = False
        """Whether the run ends behind its siblings, as early_terminate of its sweep says."""
        self.patches_there = False
        """Whether the patches are in the device's memory."""
        self.validated = -1
        """Step of the last validation."""
        self.saved = -1
        """Step of the last checkpoint."""
        self.best: dict[str, float] = {}
        """Step and PSNR of the best validation."""
        if restored := recorder.take_restored():
            training.restore(restored)
            self.validated, self.best = restored["validated"], restored["best"]

    def run(self) -> signal.Signals | None:
        """Fetch, step, log, save, validate, until the last step or a signal; then save. Returns the signal."""
        training, ranks, last = self.training, self.ranks, self.config.train.steps
        store = open_store(training.patches, self.config.data.store, ranks.device)
        self.patches_there = isinstance(store, DeviceStore)
        ranks.wait()
        first = training.step + 1
        batches = Loader(store, training.sampler, ranks.rank, ranks.world_size, training.step, last)
        self.agreed = ranks.begin_maximum(self._asked)
        with batches, self.watchdog, ranks.in_loop():
            self._look_at_siblings()
            if not self.ends_early and self._validation_due():
                self._validate()
            while self._goes_on():
                batch = next(batches)
                result = training.train_step(batch, watch=self._log_due(training.step + 1))
                self.recorder.stepped(training.step)
                if training.step == first:
                    ranks.wait()  # each compiles and chooses its kernels in its own time
                if self._log_due(training.step):
                    self._log(result, batches.take_waited())
                self._attend()
                if self.stop is None and self._validation_due():
                    self._validate()
                if self._keep_due() and self.saved != training.step and self._goes_on():
                    self._save()
            if self.stop is None:
                self.agreed()
                self.latch.close()
            self._save()
        return self.stop

    def _goes_on(self) -> bool:
        return self.stop is None and not self.ends_early and self.training.step < self.config.train.steps

    def _log_due(self, step: int) -> bool:
        return step % self.config.train.log_every == 0 or step == self.config.train.steps

    def _keep_due(self) -> bool:
        every = self.config.train.keep_every_steps
        return bool(every) and self.training.step % every == 0

    def _log(self, result: StepResult, waited_s: float) -> None:
        """A line of training metrics: mean loss since the last line; the last step's learning rate, gradient and
        attention."""
        training = self.training
        training.check_finite()
        self.recorder.pace(waited_s)
        line: dict[str, Any] = {
            names.TRAIN_LOSS: training.mean_loss(),
            names.LEARNING_RATE: training.learning_rate.at(training.step - 1),
            names.GRAD_NORM: result.grad_norm.item(),
        }
        line |= attention_lines(result.attention, self.ranks) if result.attention else {}
        patches_per_s = self.recorder.status.patches_per_s
        with self.ranks.patiently():
            self.recorder.line(line, note=f"loss {line[names.TRAIN_LOSS]:.3g}, {patches_per_s:.0f} patches/s")

    def _attend(self) -> bool:
        """Between two steps, or two slices of a validation: stop, save by the clock, keep the heartbeat, as agreed on.
        Returns whether to stop."""
        self.watchdog.alive()
        stop, save_due, heartbeat_due = self.agreed()
        if stop:
            self.stop = signal.SIGUSR2 if stop == 2 else signal.SIGTERM
            return True
        if save_due:
            self._save()
        if heartbeat_due:
            with self.ranks.patiently():
                self.recorder.heartbeat()
        self.agreed = self.ranks.begin_maximum(self._asked)
        return False

    def _asked(self) -> list[float]:
        """What this rank asks of all: 2 for a requeue and 1 for a stop, a save, a heartbeat."""
        stop = 2.0 if self.latch.signal is signal.SIGUSR2 else float(self.latch.signal is not None)
        return [stop, float(self.ranks.first and self.clock.due()), float(self.recorder.heartbeat_due())]

    def _validation_due(self) -> bool:
        step, last = self.training.step, self.config.train.steps
        return (step % self.config.val.every == 0 or step >= last) and self.validated != step

    def _validate(self) -> None:
        """Validate, and keep the weights if they are the best so far; a signal breaks it off, to be made again."""
        self.training.check_finite()
        step, model = self.training.step, self.training.to_use
        with self.recorder.timing("validating_s"), advising(validation_advice(self.config, self.patches_there)):
            metrics = self.validation.run(model.eval(), self._attend)
        if metrics is None:
            return
        value = metrics[names.validation(names.metric(self.config.val.protocol, "psnr"))]
        self.training.learning_rate.validated(value)
        self.validated = step
        with self.ranks.patiently():
            if value > self.best.get("psnr", -math.inf):  # never so for NaN
                self.best = {"step": step, "psnr": value}
                patch = self.training.patches.patch
                self.recorder.save(checkpoint.BEST, {"model": model.state_dict(), "metrics": metrics, "patch": patch})
            if step >= self.config.train.steps:
                with advising(validation_advice(self.config, self.patches_there)):
                    self._picture(model)
            self.recorder.status.best = self.best
            self.recorder.status.flags = self.validation.flags(metrics)
            self.recorder.line({**metrics, names.FLAGS: self.recorder.status.flags})
        give_back()
        self.recorder.pause()
        self._look_at_siblings()

    def _look_at_siblings(self) -> None:
        """Rank 0 compares the run with the others of its sweep, where it is to end early behind them."""
        with self.ranks.patiently():
            ends = self.ranks.first and self.halving.ends()
        self.ends_early = bool(self.ranks.maximum([float(ends)])[0])
        self.recorder.status.stopped_early = self.training.step if self.ends_early else 0

    def _picture(self, model: Network) -> None:
        """Rank 0 puts pictures of features and attention into the run's eval folder."""
        if self.ranks.first:
            from ldct.attention.pictures import pictures  # matplotlib takes half a second, once

            folder = self.recorder.folder / "eval"
            folder.mkdir(exist_ok=True)
            pictures(model, self.validation.middle(), folder, self.training.patches.patch)

    def _save(self) -> None:
        """A checkpoint of this step, unless the numbers are broken."""
        self.training.check_finite()
        own = {"validated": self.validated, "best": self.best, "lines": self.recorder.metrics.count}
        content = self.training.state() | own
        with self.ranks.patiently(), self.recorder.timing("saving_s"):
            self.recorder.save(checkpoint.step_name(self.training.step), content)
        self.clock.saved()
        self.saved = self.training.step
