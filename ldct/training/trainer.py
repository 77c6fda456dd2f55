"""The training loop."""

import errno
import math
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldct import config as configuration
from ldct import models
from ldct.attention.statistics import collect
from ldct.config import Config
from ldct.data.augment import augment, augmentation_codes
from ldct.data.hu import normalise
from ldct.data.loader import Loader
from ldct.data.patches import Patches, open_store
from ldct.data.sampler import Sampler
from ldct.device import give_back, keep_freed
from ldct.metrics import names
from ldct.models.network import Network
from ldct.runs import checkpoint
from ldct.training import losses, optim
from ldct.training.ranks import Ranks
from ldct.training.recorder import Recorder
from ldct.training.signals import Latch
from ldct.training.validation import Validation, attention_lines
from shards.common.command import InputError


class NotFinite(Exception):
    """The loss or the gradient is NaN or infinite; the message names step, rank and patches."""


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
    ranks = Ranks(config.train.timeout_s)
    check(config, ranks.world_size)
    set_numerics(config)
    keep_freed()
    recorder = Recorder(config, ranks)
    if recorder.finished:
        return None
    try:
        with recorder, ranks.together():
            stopped = Training(config, ranks, latch, recorder).loop()
            recorder.close("stopped" if stopped else "finished")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"cannot write to {config.run_dir}: {error.strerror}; make room and run again") from None
    return stopped


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
    """Process-wide switches of torch."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.train.precision == "bf16"
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.backends.cudnn.benchmark = not config.train.deterministic
    if config.train.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


def seed_step(seed: int, step: int, rank: int) -> None:
    """Draw everything random of a step (dropout) from (seed, step, rank), so that no checkpoint needs random states."""
    torch.manual_seed(int(np.random.SeedSequence((seed, 2, step, rank)).generate_state(1)[0]))


class Training:
    """A run between its start and its end in this process: the state, and the loop that moves it."""

    def __init__(self, config: Config, ranks: Ranks, latch: Latch, recorder: Recorder) -> None:
        self.config, self.ranks, self.latch, self.recorder = config, ranks, latch, recorder
        shards = Path(config.data.shards)
        self.patches = Patches(shards, config.data)
        self.sampler = Sampler(
            self.patches.shard, config.train.seed, config.data.window_shards, config.train.global_batch
        )
        self.validation = Validation(config, ranks, self.patches.patch)

        torch.manual_seed(config.train.seed)
        self.model = self._network()
        self.average = optim.Average(self.model, self._network(), config.optim.ema) if config.optim.ema else None
        self.parallel = ranks.parallel(self.model, self.patches.patch)
        self.loss = losses.create(config.loss).to(ranks.device)
        self.optimizer = optim.create(list(self.model.parameters()), config.optim)
        self.rate = optim.LearningRate(config.optim, config.train.steps)
        self.guard = optim.FiniteGuard(ranks.device)
        self.clock = checkpoint.Clock(config.train.save_every_s)

        self.step = 0
        self.validated = -1
        """Step of the last validation."""
        self.skipped = 0
        """Steps left out because their gradient was not finite."""
        self.best: dict[str, float] = {}
        """Step and PSNR of the best validation."""
        self.loss_sum = torch.zeros((), device=ranks.device)
        """Sum of this rank's losses since the last line of metrics."""
        self.summed = 0
        """Steps in that sum."""
        self._restore()

    def _network(self) -> Network:
        """The network on the device; every rank draws the same weights."""
        model = models.create(self.config.model).to(self.ranks.device)
        return model.to(memory_format=torch.channels_last) if self.config.train.channels_last else model  # type: ignore[call-overload]

    def loop(self) -> signal.Signals | None:
        """Validate where it is due, make a step, log where it is due; until the last step or a signal."""
        store = open_store(self.patches, self.config.data.store, self.ranks.device)
        self.ranks.wait()
        ranks, last = self.ranks, self.config.train.steps
        self.loader = Loader(store, self.sampler, ranks.rank, ranks.world_size, self.step, last)
        batches = iter(self.loader)
        try:
            while True:
                if self._validation_due() and not self._validate():
                    break
                if self.step >= last:
                    self.latch.close()
                    self._save()
                    return None
                self._update(next(batches))
                if self._log_due(self.step):
                    self._log()
                if self._signalled():
                    break
            self._save()
            return self.stopped_by
        finally:
            self.loader.close()

    def _update(self, pairs: Tensor) -> None:
        """One optimizer step on ``pairs``, this rank's share of the global batch."""
        seed_step(self.config.train.seed, self.step, self.ranks.rank)
        with collect(self.model) if self._log_due(self.step + 1) else nullcontext() as self.attention:
            loss = self._backward(self._prepare(pairs))
        limit = self.config.optim.clip_norm or float("inf")
        self.norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)
        if self._applicable(loss):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate.at(self.step)
            self.optimizer.step()
            if self.average:
                self.average.update(self.step)
            self.loss_sum += loss
            self.summed += 1
        self.optimizer.zero_grad()
        self.step += 1
        self.recorder.stepped(self.step)

    def _prepare(self, pairs: Tensor) -> Tensor:
        """Patches in HU to network values on the device, turned and flipped; (n, 2, p, p), channel 0 the low dose."""
        config, ranks = self.config, self.ranks
        pairs = pairs.to(ranks.device, non_blocking=True)
        if config.data.augment:
            codes = augmentation_codes(config.train.seed, self.step, config.train.global_batch)
            pairs = augment(pairs, codes.chunk(ranks.world_size)[ranks.rank].to(ranks.device, non_blocking=True))
        return normalise(pairs, config.data.normalization)

    def _backward(self, pairs: Tensor) -> Tensor:
        """Gradients of the mean loss, averaged over the ranks; this rank's loss."""
        config = self.config.train
        total = torch.zeros((), device=pairs.device)
        self.parallel.train()
        parts = pairs.chunk(config.accumulate)
        for number, part in enumerate(parts):
            with self.ranks.averaging(self.parallel, number == len(parts) - 1):
                with torch.autocast(part.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    output = self.parallel(part[:, :1])
                loss = self.loss(output.float(), part[:, 1:]) / len(parts)
                loss.backward()
            total += loss.detach()
        return total

    def _applicable(self, loss: Tensor) -> bool:
        """Whether the step may be made. Without skip_nonfinite nothing here waits for the device."""
        if self.skipped < self.config.train.skip_nonfinite and not bool(self.norm.isfinite()):
            self.skipped += 1
            if self.ranks.first:
                print(f"warning: step {self.step}: gradient not finite, step left out", file=sys.stderr)
            return False
        self.guard.note(self.step, loss, self.norm)
        return True

    def _check_finite(self) -> None:
        """Raise NotFinite on every rank if any of them met a loss or a gradient that is not finite."""
        found = self.ranks.gather(self.guard.found())
        first = min(min(steps) for steps in found)
        if first == optim.NEVER:
            return
        guilty = [rank for rank, (loss, _) in enumerate(found) if loss == first]
        what = "loss" if guilty else "gradient"
        shares = np.array_split(self.sampler[first], self.ranks.world_size)
        names = [self.patches.name(index) for rank in guilty or range(len(found)) for index in shares[rank]]
        raise NotFinite(
            f"{what} not finite at step {first}, rank {', '.join(map(str, guilty)) or 'not known'}, patches "
            f"{', '.join(names[:8])}{f' and {len(names) - 8} more' if names[8:] else ''}; the checkpoints are from "
            f"before; lower optim.lr, look at these patches, or tolerate some steps with train.skip_nonfinite"
        )

    def _log_due(self, step: int) -> bool:
        return step % self.config.train.log_every == 0 or step == self.config.train.steps

    def _log(self) -> None:
        """A line of training metrics: mean loss since the last line; the last step's rate, gradient and attention."""
        self._check_finite()
        loss = self.ranks.mean(self.loss_sum) / self.summed if self.summed else math.nan
        self.loss_sum.zero_()
        self.summed = 0
        self.recorder.pace(self.loader.waited_s)
        self.loader.waited_s = 0.0
        line: dict[str, Any] = {
            names.TRAIN_LOSS: loss,
            names.LEARNING_RATE: self.rate.at(self.step - 1),
            names.GRAD_NORM: self.norm.item(),
        }
        line |= attention_lines(self.attention, self.ranks) if self.attention else {}
        self.recorder.line(line, note=f"loss {loss:.3g}, {self.recorder.status.patches_per_s:.0f} patches/s")

    def _validation_due(self) -> bool:
        due = self.step % self.config.val.every == 0 or self.step >= self.config.train.steps
        return due and self.validated != self.step

    def _validate(self) -> bool:
        """Validate, and keep the weights if they are the best so far; False if a signal came in between."""
        self._check_finite()
        model = self.average.copy if self.average else self.model
        metrics = self.validation.run(model.eval(), self._signalled)
        if metrics is None:
            return False
        value = metrics[names.validation(names.metric(self.config.val.protocol, "psnr"))]
        self.rate.validated(value)
        if value > self.best.get("psnr", -math.inf):  # never so for NaN
            self.best = {"step": self.step, "psnr": value}
            self._write(checkpoint.BEST, {"model": model.state_dict(), "metrics": metrics, "patch": self.patches.patch})
        if self.step >= self.config.train.steps:
            self._draw(model)
        self.validated = self.step
        self.recorder.status.best = self.best
        self.recorder.status.flags = self.validation.flags(metrics)
        self.recorder.line({**metrics, names.FLAGS: self.recorder.status.flags})
        give_back()
        self.recorder.pause()
        return True

    def _draw(self, model: Network) -> None:
        """Rank 0 puts pictures of features and attention into the run's eval folder."""
        if self.ranks.first:
            from ldct.attention.pictures import pictures  # matplotlib takes half a second, once

            folder = self.recorder.folder / "eval"
            folder.mkdir(exist_ok=True)
            pictures(model, self.validation.middle(), folder, self.patches.patch)

    def _signalled(self) -> bool:
        """Whether any rank was signalled, by agreement of all; also saves by the clock and keeps the heartbeat."""
        requeue = self.latch.signal is signal.SIGUSR2
        mine = 2.0 if requeue else float(self.latch.signal is not None)
        agreed, save_due = self.ranks.maximum([mine, float(self.ranks.first and self.clock.due())])
        if agreed:
            self.stopped_by = signal.SIGUSR2 if agreed == 2 else signal.SIGTERM
            return True
        if save_due:
            self._save()
        self.recorder.heartbeat()
        return False

    def _save(self) -> None:
        """A checkpoint of this step, unless the numbers are broken."""
        self._check_finite()
        content: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average.copy.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state(),
            "validated": self.validated,
            "skipped": self.skipped,
            "best": self.best,
            "loss_sums": self.ranks.gather(self.loss_sum.item()),
            "summed": self.summed,
            "lines": self.recorder.metrics.count,
        }
        self._write(checkpoint.step_name(self.step), content)
        self.ranks.wait()
        self.clock.saved()

    def _write(self, name: str, content: dict[str, Any]) -> None:
        """Rank 0 writes a checkpoint file, with what tells whose it is."""
        if self.ranks.first:
            own = {
                "step": self.step,
                "config": configuration.decisive(self.config),
                "manifest_sha256": self.recorder.manifest_sha256,
            }
            checkpoint.save(self.recorder.checkpoints, name, own | content)

    def _restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found, self.recorder.restored = self.recorder.restored, None
        if found is None:
            return
        self.model.load_state_dict(found["model"])
        if self.average:
            self.average.copy.load_state_dict(found["average"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.rate.restore(found["rate"])
        self.step, self.validated, self.skipped = found["step"], found["validated"], found["skipped"]
        self.best, self.summed = found["best"], found["summed"]
        sums = found["loss_sums"]
        same = len(sums) == self.ranks.world_size
        self.loss_sum.fill_(sums[self.ranks.rank] if same else sum(sums) / len(sums))
