"""One optimizer step, and everything that it moves: network, optimizer, moving average, counters."""

import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldct import models
from ldct.attention.statistics import Collector, collect
from ldct.config import Config
from ldct.data.augment import augment, augmentation_codes
from ldct.data.hu import normalise
from ldct.data.patches import Patches
from ldct.data.sampler import Sampler
from ldct.models.network import Network
from ldct.runs import checkpoint
from ldct.training import launches, losses, optim
from ldct.training.ranks import Ranks


class NotFinite(Exception):
    """The loss or the gradient is NaN or infinite; the message names step, rank and patches."""


@dataclass(frozen=True)
class StepResult:
    """What one step gave. The tensors stay on the device: whoever reads one waits for it."""

    loss: Tensor
    """This rank's mean loss, a scalar."""
    grad_norm: Tensor
    """Norm of the gradient, averaged over the ranks and not yet clipped, a scalar."""
    attention: Collector | None
    """Attention statistics of this rank's patches, where they were asked for."""


class Training:
    """The state of a run, and the step that moves it. Needs no run folder: benchmarks make steps with it as they are.

    Parameters
    ----------
    config : Config
        The run.
    ranks : Ranks
        This process among the others of the run.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.patches = Patches(Path(config.data.shards), config.data)
        self.sampler = Sampler(
            self.patches.shard, config.train.seed, config.data.window_shards, config.train.global_batch
        )
        torch.manual_seed(config.train.seed)
        self.model = self._network()
        self.average = optim.Average(self.model, self._network(), config.optim.ema) if config.optim.ema else None
        self.recorded = self._recorded()
        self.parallel = self.model if self.recorded else ranks.parallel(self.model, self.patches.patch)
        compile_it = config.train.compile == "step"
        self.faster = launches.compiled(self.parallel, ranks.device) if compile_it else self.parallel
        """What a step computes with, unless its attention is watched, which needs hooks."""
        self.loss = losses.create(config.loss).to(ranks.device)
        self.parameters = list(self.model.parameters())  # to walk over the modules anew takes as long as a small layer
        self.optimizer = optim.create(self.parameters, config.optim)
        self.learning_rate = optim.LearningRate(config.optim, config.train.steps)
        self.guard = optim.FiniteGuard(ranks.device)

        self.step = 0
        """Steps made."""
        self.skipped = 0
        """Of these, steps without an update, because their gradient was not finite."""
        self.loss_sum = torch.zeros((), device=ranks.device)
        """Sum of this rank's losses since the last mean_loss."""
        self.summed = 0
        """Steps in that sum."""

    def _network(self) -> Network:
        """The network on the device; every rank draws the same weights."""
        model = models.create(self.config.model).to(self.ranks.device)
        if self.config.train.init_from:
            checkpoint.start_from(model, Path(self.config.train.init_from))
        return model.to(memory_format=torch.channels_last) if self.config.train.channels_last else model  # type: ignore[call-overload]

    def _recorded(self) -> launches.RecordedPasses | None:
        """A step's passes as a CUDA graph, where the run asks for it and it can be."""
        if not self.config.train.cuda_graph:
            return None
        if self.ranks.device.type != "cuda":
            launches.note("train.cuda_graph", "needs a GPU")
            return None
        if self.ranks.world_size > 1 and any(True for _ in self.model.buffers()):
            launches.note("train.cuda_graph", "with batch norm, ranks need DDP in every step")
            return None
        if self.config.train.deterministic and self.config.model.attention != "none":
            # of gradients through the gates' maxima: _scatter_via_index_put in torch's TensorAdvancedIndexing.cpp
            launches.note("train.cuda_graph", "with attention, train.deterministic copies from the host in every step")
            return None
        return launches.RecordedPasses(self.model, self._passes)

    @property
    def to_use(self) -> Network:
        """The network to validate and to keep: the moving average, if the run averages."""
        return self.average.copy if self.average else self.model

    def train_step(self, batch: Tensor, watch: bool = False) -> StepResult:
        """One optimizer step. Unless ``watch`` or train.skip_nonfinite asks for it, nothing here waits for the device.

        Parameters
        ----------
        batch : Tensor
            This rank's share of the global batch: int16 HU, (n, 2, p, p), channel 0 the low dose, on any device.
        watch : bool
            Also collect attention statistics.
        """
        seed_step(self.config.train.seed, self.step, self.ranks.rank, self.ranks.device)
        inputs = self._inputs(batch)
        with collect(self.model) if watch else nullcontext() as attention:
            if self.recorded and not watch:
                loss = self.recorded(*inputs)
            else:
                loss = self._passes(*inputs, network=self.parallel if watch else None)
        if self.recorded:
            self.ranks.average_gradients(self.parameters)
        limit = self.config.optim.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters, limit, foreach=True)
        if self._applicable(loss, norm):
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate.at(self.step)
            self.optimizer.step()
            if self.average:
                self.average.update(self.step)
            self.loss_sum += loss
            self.summed += 1
        self.optimizer.zero_grad()
        self.step += 1
        return StepResult(loss, norm, attention)

    def _inputs(self, batch: Tensor) -> list[Tensor]:
        """On the device: the batch, and its augmentation codes if there are any."""
        config, ranks = self.config, self.ranks
        inputs = [batch.to(ranks.device, non_blocking=True)]
        if config.data.augment:
            codes = augmentation_codes(config.train.seed, self.step, config.train.global_batch)
            inputs.append(codes.chunk(ranks.world_size)[ranks.rank].to(ranks.device, non_blocking=True))
        return inputs

    def _passes(self, pairs: Tensor, *codes: Tensor, network: nn.Module | None = None) -> Tensor:
        """Forward and backward of patches in HU, (n, 2, p, p), turned and flipped by ``codes``; the loss."""
        if codes:
            pairs = augment(pairs, *codes)
        pairs = normalise(pairs, self.config.data.normalization)
        try:
            return self._backward(pairs, network or self.faster)
        except RuntimeError as error:
            if self.faster is self.parallel or not launches.failed_to_compile(error):
                raise
            launches.note("train.compile", " ".join(str(error).split())[:200])
        self.faster = self.parallel
        self.optimizer.zero_grad()
        return self._backward(pairs, self.parallel)

    def _backward(self, pairs: Tensor, network: nn.Module) -> Tensor:
        """Gradients of the mean loss of network values, averaged over the ranks by DDP; this rank's loss."""
        config = self.config.train
        total = torch.zeros((), device=pairs.device)
        if not self.model.training:  # a validation came in between; else walking over all modules is waste
            self.parallel.train()
        parts = pairs.chunk(config.accumulate)
        for number, part in enumerate(parts):
            with self.ranks.averaging(self.parallel, number == len(parts) - 1):
                with torch.autocast(part.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    output = network(part[:, :1])
                loss = self.loss(output.float(), part[:, 1:]) / len(parts)
                loss.backward()
            total += loss.detach()
        return total

    def _applicable(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether the weights may be moved; a step that must not be tolerated is noted for check_finite."""
        if self.skipped < self.config.train.skip_nonfinite and not bool(norm.isfinite()):
            self.skipped += 1
            if self.ranks.first:
                print(f"warning: step {self.step}: gradient not finite, step left out", file=sys.stderr)
            return False
        self.guard.note(self.step, loss, norm)
        return True

    def check_finite(self) -> None:
        """Raise NotFinite on every rank if any of them met a loss or a gradient that is not finite."""
        self.ranks.meet()
        firsts = self.ranks.gather(self.guard.firsts())
        first = min(min(steps) for steps in firsts)
        if first == optim.NEVER:
            return
        guilty = [rank for rank, (loss, _) in enumerate(firsts) if loss == first]
        what = "loss" if guilty else "gradient"
        shares = np.array_split(self.sampler[first], self.ranks.world_size)
        names = [self.patches.name(index) for rank in guilty or range(len(firsts)) for index in shares[rank]]
        raise NotFinite(
            f"{what} not finite at step {first}, rank {', '.join(map(str, guilty)) or 'not known'}, patches "
            f"{', '.join(names[:8])}{f' and {len(names) - 8} more' if names[8:] else ''}; the checkpoints are from "
            f"before; lower optim.lr, look at these patches, or tolerate some steps with train.skip_nonfinite"
        )

    def mean_loss(self) -> float:
        """Mean loss of all ranks since the last call; nan where every step was left out."""
        mean = self.ranks.mean(self.loss_sum) / self.summed if self.summed else math.nan
        self.loss_sum.zero_()
        self.summed = 0
        return mean

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; on every rank, since it holds every rank's sum of losses."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.copy.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "rate": self.learning_rate.state(),
            "skipped": self.skipped,
            "loss_sums": self.ranks.gather(self.loss_sum.item()),
            "summed": self.summed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave, on any number of ranks."""
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.copy.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.learning_rate.restore(state["rate"])
        self.step, self.skipped, self.summed = state["step"], state["skipped"], state["summed"]
        sums = state["loss_sums"]
        same = len(sums) == self.ranks.world_size
        self.loss_sum.fill_(sums[self.ranks.rank] if same else sum(sums) / len(sums))


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Draw everything random of a step (dropout) from (seed, step, rank), so that no checkpoint needs random states."""
    drawn = int(np.random.SeedSequence((seed, 2, step, rank)).generate_state(1)[0])
    # torch.manual_seed would also seed devices that are not there, for which it formats the stack: 0.5 ms a step
    torch.default_generator.manual_seed(drawn)
    if device.type == "cuda" and torch.cuda.is_initialized():
        torch.cuda.default_generators[device.index or 0].manual_seed(drawn)
