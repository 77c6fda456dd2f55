"""The ranks of a run: joining, agreeing at step boundaries, and naming a rank that died."""

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldct.training import placement
from ldct.training.pulse import DONE, Pulse, RankLost
from shards.common.command import InputError, first_line

PATIENCE = timedelta(minutes=30)
"""What ranks wait for each other where one may be slow for good reasons: imports, patches copied to a GPU, a save."""


class Ranks:
    """This process among the ranks of the run; with one rank everything here is local and free.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun and submitit set them. Gradients go
    over nccl on GPUs and gloo on CPUs; agreements always over a gloo group, so that they need not wait for the device
    and an ended rank is noticed by its closed connection.

    Two kinds of waiting: what all ranks do at once has ``timeout_s``, so that a rank that hangs is noticed; what one of
    them does alone, or each in its own time, is waited for with PATIENCE (``wait``, ``patiently``). nccl has PATIENCE
    too: its watchdog aborts the process, and gloo, which raises an error, has to be first.

    Parameters
    ----------
    timeout_s : float
        Seconds to wait for what all ranks do at once.
    run : str
        Which run this is a rank of, the same for all of them: its folder.

    Raises
    ------
    InputError
        If MASTER_PORT belongs to another run, or to another start of this one.
    """

    def __init__(self, timeout_s: float, run: str = "") -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.device = placement.device_of(int(os.environ.get("LOCAL_RANK", 0)))
        self.timeout = timedelta(seconds=timeout_s)
        if self.world_size == 1:
            return
        placement.choose_interface(os.environ["MASTER_ADDR"])
        store, _, _ = next(dist.rendezvous("env://", self.rank, self.world_size, timeout=PATIENCE))
        store = _own_part(store, self.rank, run)
        self.pulse = Pulse(store, self.rank, self.world_size)
        with self.naming_lost():
            self._join(store)

    def _join(self, store: Any) -> None:
        """Make the groups, once all have met at ``store``."""
        placement.check_gpus(_exchanged(store, placement.gpu_name(self.device), self.rank, self.world_size))
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("ranks", store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=PATIENCE if backend == "nccl" else self.timeout,
        )
        self.group = dist.new_group(backend="gloo", timeout=self.timeout)
        self.patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.pulse.listen(dist.new_group(backend="gloo", timeout=PATIENCE))

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the only one that writes."""
        return self.rank == 0

    def parallel(self, model: nn.Module, patch: int) -> nn.Module:
        """``model`` with its gradients averaged over the ranks; it is given patches with a side of ``patch`` pixels."""
        if self.world_size == 1:
            return model
        self.wait()
        return self.wrapped(model, patch)

    def wrapped(self, model: nn.Module, patch: int) -> nn.Module:
        """``model`` in DDP, ready for its first step.

        RED-CNN's gradients are 7.4 MB: the default bucket of 25 MB would send them all at the end; 2 MB overlap.
        """
        ids = [self.device.index] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=ids, bucket_cap_mb=2, gradient_as_bucket_view=True)
        # DDP lays its buckets out anew after its first backward, and the layout decides in which order gradients of
        # more than two ranks are added. Without a throw-away one, a resumed run would differ in its first step
        before = copy.deepcopy(model.state_dict())
        wrapped(torch.zeros(2, 1, patch, patch, device=self.device)).sum().backward()
        model.load_state_dict(before)
        model.zero_grad()
        return wrapped

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Average gradients over the ranks, all of them at once: for a network that is not wrapped in DDP."""
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        together /= self.world_size
        parts = together.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    @staticmethod
    def averaging(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward of one accumulated part: only with the ``last`` are gradients sent."""
        held = isinstance(model, DistributedDataParallel) and not last
        return model.no_sync() if held else contextlib.nullcontext()  # type: ignore[operator]

    def maximum(self, values: list[float]) -> list[float]:
        """Elementwise largest value over the ranks."""
        return self.begin_maximum(lambda: values)()

    def begin_maximum(self, ask: Callable[[], list[float]]) -> Callable[[], list[float]]:
        """Begin to agree on the elementwise largest value over the ranks of what ``ask`` gives now.

        Returns
        -------
        callable
            Gives the values agreed on, and waits for them where they are not there yet. One rank asks only then.
        """
        if self.world_size == 1:
            return ask
        shared = torch.tensor(ask(), dtype=torch.float64)
        work = dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.group, async_op=True)

        def agreed() -> list[float]:
            work.wait()
            return shared.tolist()

        return agreed

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every rank, in the order of the ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def mean(self, value: Tensor) -> float:
        """Mean of a scalar over the ranks, summed in the order of the ranks."""
        return sum(self.gather(value.item())) / self.world_size

    def meet(self) -> None:
        """Wait for all ranks over gloo. Whoever then waits for the device knows that every rank has sent its gradients;
        for those of a lost rank the device would wait for ever."""
        if self.world_size > 1:
            dist.barrier(group=self.group)

    def wait(self) -> None:
        """Wait for all ranks, with PATIENCE."""
        if self.world_size > 1:
            dist.barrier(group=self.patient)

    @contextlib.contextmanager
    def patiently(self) -> Iterator[None]:
        """Around what rank 0 does alone, however slow its disk: the others wait at the end, with PATIENCE."""
        with self.in_loop(False):
            yield
        self.wait()

    @contextlib.contextmanager
    def in_loop(self, whether: bool = True) -> Iterator[None]:
        """Around what has to hear soon of another rank's end: where it waits for its device and does not, the process
        is ended, with the name of the lost rank."""
        if self.world_size == 1:
            yield
            return
        before, self.pulse.in_loop = self.pulse.in_loop, whether
        try:
            yield
        finally:
            self.pulse.in_loop = before

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Leave the group at the end, as ``naming_lost`` does after an error.

        At a good end all stay until rank 0 has written its last word: SLURM ends a job soon after its first rank.
        """
        if self.world_size == 1:
            yield
            return
        with self.naming_lost():
            yield
            with contextlib.suppress(RuntimeError) if self.first else contextlib.nullcontext():
                self.wait()
        self.pulse.close(DONE)
        dist.destroy_process_group()

    @contextlib.contextmanager
    def naming_lost(self) -> Iterator[None]:
        """Turn a failed collective into a RankLost that names who ended.

        A rank that ends by its own error leaves the group at once, so that the others hear of it without delay.
        """
        try:
            yield
        except RankLost:
            raise
        except BaseException as error:
            if self.world_size == 1:
                raise
            lost = self.pulse.lost() if isinstance(error, RuntimeError | OSError) else []
            if not lost:
                self.pulse.say(f"{type(error).__name__}: {first_line(error)}")
            self.pulse.close()
            self._abort()
            if lost:
                raise RankLost(f"{', '.join(lost)} ended; this rank ({self.rank}) cannot go on") from error
            raise

    def _abort(self) -> None:
        """End nccl's communicators where work may be stuck in them: their destructors would wait for it, and
        destroy_process_group for ever."""
        if self.device.type == "cuda":
            torch.distributed.distributed_c10d._abort_process_group()  # no public function does it


def _own_part(store: Any, rank: int, run: str) -> Any:
    """The part of the rendezvous ``store`` that belongs to this start of ``run``.

    A rank that is left over from an earlier start, or of another run that was given the same port, would be taken for
    one of this run's: it is sent away instead.
    """
    starts = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SUBMITIT_LOCAL_JOB_ID", "TORCHELASTIC_RUN_ID")
    token = " ".join([run, *(f"{name}={os.environ[name]}" for name in starts if name in os.environ)])
    if rank == 0:
        store.set("run", token)
    try:
        owner = store.get("run").decode()
    except RuntimeError as error:
        where = os.environ["MASTER_ADDR"]
        raise RankLost(f"rank 0 ({where}) ended before this rank ({rank}) had joined") from error
    if owner != token:
        port = f"port {os.environ['MASTER_PORT']} of {os.environ['MASTER_ADDR']}"
        raise InputError(
            f"{port} belongs to another start or run, {owner}; this is {token}; end that one, or run again"
        )
    return dist.PrefixStore(token, store)


def _exchanged(store: Any, text: str, rank: int, world_size: int) -> list[str]:
    """``text`` of every rank, before there is a group. None goes on before all have read: the store lives in rank 0."""
    store.set(f"text/{rank}", text)
    texts = [store.get(f"text/{other}").decode() for other in range(world_size)]
    if store.add("readers", 1) == world_size:
        store.set("all read", "")
    store.wait(["all read"])
    return texts
