"""Fewer launches: what a step starts on a GPU one by one, recorded and started at once, or compiled into less.

At 16 patches a GPU, the host takes longer to start a step's kernels than the GPU to run them.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldct.device import out_of_memory

WARM_UP = 3
"""Steps before the one that is recorded: cuDNN chooses its kernels, which it may not do while recording."""

TOLERANCE = 0.01
"""Largest relative difference, in loss and gradient, between the recorded passes and the same ones made plainly."""

COMPILES_ON = ("cuda",)
"""Kinds of devices. On a CPU torch.compile takes a minute at each start and gains nothing (docs/speed.md)."""

BACKEND = "inductor"
"""Of torch.compile."""

Passes = Callable[..., Tensor]
"""Forward and backward of tensors on the device, always of the same shapes; gives the loss, leaves the gradients."""


class RecordedPasses:
    """Forward and backward as a CUDA graph: recorded once, then started as a whole for every batch.

    The graph reads and writes where it did when it was recorded: batches are copied to its input, and the gradients it
    leaves are those of the parameters again. What follows them (norm, optimizer, average) is made plainly, since it
    depends on the step. Before its first use the graph is compared with the same passes made plainly; where they
    differ, or it cannot be recorded, it is given up with one line.

    Parameters
    ----------
    network : nn.Module
        Whose gradients are made; not wrapped in DDP, whose own would be recorded with them.
    passes : callable
        Makes them.
    """

    def __init__(self, network: nn.Module, passes: Passes) -> None:
        self.network, self.passes = network, passes
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.inputs: list[Tensor] = []
        self.gradients: list[Tensor | None] = []
        self.warm, self.given_up = 0, False
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The loss of ``inputs``, and their gradients in the parameters."""
        if self.given_up or self.warm < WARM_UP:
            self.warm += 1
            return self.passes(*inputs)
        return self._replay(*inputs) if self.graph else self._first(*inputs)

    def _replay(self, *inputs: Tensor) -> Tensor:
        assert self.graph
        for place, values in zip(self.inputs, inputs, strict=True):
            place.copy_(values, non_blocking=True)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        self.graph.replay()
        return self.loss.clone()  # the next batch's is written over it

    def _first(self, *inputs: Tensor) -> Tensor:
        """Record, and compare; whatever comes of it, the loss and gradients of ``inputs``."""
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        plain_loss = self.passes(*inputs)
        plain = self._take_gradients()
        plain_buffers = [buffer.clone() for buffer in self.network.buffers()]
        try:
            self._record(*inputs)
            self._set_buffers(buffers)  # both see batch norm's averages as they were
            loss = self._replay(*inputs)
            differences = apart([loss], [plain_loss]), apart(self._gradients(), plain)
            if all(difference <= TOLERANCE for difference in differences):  # none of them NaN either
                return loss
            self._give_up(f"recorded, loss and gradient differ from the plain ones by {differences}")
        except RuntimeError as error:
            first = error.__context__ or error  # where the end of the recording fails too, it says only that
            memory = out_of_memory(error) or out_of_memory(first)
            self._give_up("no memory for it" if memory else " ".join(str(first).split())[:200])
        self._set_buffers(plain_buffers)
        for parameter, gradient in zip(self.parameters, plain, strict=True):
            parameter.grad = gradient
        return plain_loss

    def _record(self, *inputs: Tensor) -> None:
        self.inputs = [torch.empty_like(values) for values in inputs]
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # only this thread's calls are recorded: the loader's goes on taking pinned memory
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.loss = self.passes(*self.inputs)
        finally:  # torch leaves the stream of a recording that failed
            torch.cuda.set_stream(stream)
        self.gradients, self.graph = [parameter.grad for parameter in self.parameters], graph

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def _take_gradients(self) -> list[Tensor]:
        """The gradients, which the parameters then have no more: the recorded ones get memory of their own."""
        gradients = self._gradients()
        for parameter in self.parameters:
            parameter.grad = None
        return gradients

    def _set_buffers(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self.network.buffers(), values, strict=True):
            buffer.copy_(value)

    def _give_up(self, why: str) -> None:
        self.graph, self.inputs, self.gradients, self.given_up = None, [], [], True
        note("train.cuda_graph", why)


def apart(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest relative distance of a tensor of ``a`` from its counterpart in ``b``; waits for the device.

    A tensor counts as no shorter than a thousandth of all together: what is nearly zero is mostly rounding. NaN where
    a value is, or where one list is longer.
    """
    if len(a) != len(b):
        return float("nan")
    distances = torch.stack([(x.double() - y.double()).norm() for x, y in zip(a, b, strict=True)])
    sizes = torch.stack([y.double().norm() for y in b])
    return float((distances / sizes.clamp(min=1e-3 * float(sizes.norm()) + 1e-30)).max())


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """``network`` through torch.compile, or as it is, with one line, where it is not worth it."""
    if device.type not in COMPILES_ON:
        note("train.compile", f"gains nothing on a {device.type.upper()}")
        return network
    return torch.compile(network, backend=BACKEND)  # type: ignore[return-value]


def failed_to_compile(error: RuntimeError) -> bool:
    """Whether ``error`` comes of torch.compile itself: no C compiler, no Triton, something it does not know."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import, once it is needed

    return isinstance(error, TorchDynamoException)


def note(field: str, why: str) -> None:
    """Say that ``field`` is not followed, in one line."""
    print(f"note: {field}: {why}; training goes on without it", file=sys.stderr)
