"""Recorded passes and compiled networks train the same, and are given up with one line where they cannot be.

There is no CUDA graph on a CPU: a stand-in for torch.cuda.CUDAGraph keeps what is recorded as a function, and runs it
on the memory it was recorded with. What the real one does is checked by launch/bench.py accept.
"""

import contextlib

import pytest
import torch
from conftest import tiny_flags

from ldct.config import parse
from ldct.data.patches import MappedStore
from ldct.training import launches
from ldct.training.ranks import Ranks
from ldct.training.step import Training

STEPS = 9


def make(shards, **changes):
    """A training whose step is recorded, though on a CPU, and made plainly in ``plain``."""
    config = parse(tiny_flags(shards, "nowhere", **changes))
    return Training(config, Ranks(60))


def recorded(shards, **changes):
    training = make(shards, **changes)
    training.recorded = launches.RecordedPasses(training.model, training._passes)
    return training


@pytest.fixture
def graph(monkeypatch):
    """The stand-in; ``fault`` changes what a replay leaves."""

    class Graph:
        fault, made = staticmethod(lambda gradients, loss: None), []

        def __init__(self):
            Graph.made.append(self)
            self.replays = 0

        def replay(self):
            passes = self.passes
            places = [parameter.grad for parameter in passes.parameters]
            for parameter in passes.parameters:
                parameter.grad = None
            passes.loss.copy_(passes.passes(*passes.inputs))
            for parameter, place in zip(passes.parameters, places, strict=True):
                place.copy_(parameter.grad)
                parameter.grad = place
            Graph.fault(places, passes.loss)
            self.replays += 1

    @contextlib.contextmanager
    def recording(graph, capture_error_mode):
        """Nothing that is recorded is computed: memory is left as it was."""
        assert capture_error_mode == "thread_local"
        yield

    def record(self, *inputs):
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        plain(self, *inputs)
        self._set_buffers(buffers)
        self.graph.passes = self
        self.loss.fill_(float("nan"))
        for gradient in self.gradients:
            gradient.fill_(float("nan"))

    plain = launches.RecordedPasses._record
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the stream")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(launches.RecordedPasses, "_record", record)
    return Graph


def train(training, watched=()):
    """Losses and norms of STEPS steps."""
    store = MappedStore(training.patches, torch.device("cpu"))
    steps = []
    for step in range(STEPS):
        result = training.train_step(store.fetch(training.sampler[step]), watch=step in watched)
        steps.append((result.loss, result.grad_norm))
    return [(loss.item(), norm.item()) for loss, norm in steps]


def assert_same(training, other):
    for name, value in training.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


@pytest.mark.parametrize(
    "changes",
    [
        {"model__attention": "both"},
        {"model__norm": "batch", "train__accumulate": 2},
        {"model__name": "unet", "model__depth": 2, "data__augment": False, "optim__ema": 0},
    ],
    ids=["attention", "batch-norm-accumulated", "unet-not-augmented"],
)
def test_recorded_passes_train_as_plain_ones_do(tiny_shards, graph, changes):
    """Also around steps that are watched, which are made plainly."""
    plain, other = make(tiny_shards, **changes), recorded(tiny_shards, **changes)
    assert train(other, watched=(1, 5)) == train(plain)
    assert_same(other, plain)
    (only,) = graph.made
    assert only.replays == STEPS - 2 - launches.WARM_UP


@pytest.mark.parametrize(
    "fault",
    [lambda gradients, loss: gradients[3].mul_(1.5), lambda gradients, loss: loss.mul_(float("nan"))],
    ids=["gradient", "loss"],
)
def test_passes_that_come_out_differently_are_not_used(tiny_shards, graph, capsys, fault):
    graph.fault = staticmethod(fault)
    plain, other = (start(tiny_shards, model__norm="batch") for start in (make, recorded))
    assert train(other) == train(plain)
    assert_same(other, plain)
    assert other.recorded.given_up and graph.made[0].replays == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: train.cuda_graph: recorded, loss and gradient differ from the plain ones by (")
    assert line.endswith("; training goes on without it")


def test_passes_that_cannot_be_recorded_are_made_plainly(tiny_shards, monkeypatch, capsys):
    """Without the stand-in: what torch says on a CPU."""
    plain, other = make(tiny_shards), recorded(tiny_shards)
    assert train(other) == train(plain)
    assert_same(other, plain)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: train.cuda_graph: ") and line.endswith("; training goes on without it")


def test_a_recording_that_fails_says_why_and_the_stream_is_as_before(tiny_shards, monkeypatch, capsys):
    """torch's own context then fails a second time, with words that say nothing, and leaves its stream the current."""
    streams = ["before"]

    @contextlib.contextmanager
    def recording(graph, capture_error_mode):
        streams.append("of the recording")
        try:
            raise RuntimeError("a copy from the host\ncannot be recorded")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    plain, other = make(tiny_shards), recorded(tiny_shards)
    assert train(other) == train(plain)
    assert_same(other, plain)
    assert streams == ["before", "of the recording", "before"]
    assert "graph: a copy from the host cannot be recorded; training goes on without it" in capsys.readouterr().err


def test_on_a_cpu_both_are_left_out_with_a_line(tiny_shards, capsys):
    training = make(tiny_shards, train__cuda_graph=True, train__compile="step")
    assert training.recorded is None and training.faster is training.parallel
    assert capsys.readouterr().err.splitlines() == [
        "note: train.cuda_graph: needs a GPU; training goes on without it",
        "note: train.compile: gains nothing on a CPU; training goes on without it",
    ]


def test_what_cannot_be_recorded_is_not_tried(tiny_shards, monkeypatch, capsys):
    """With attention torch's deterministic gradients of maxima are copied from the host, also in a recording."""
    training = make(tiny_shards, model__attention="both", train__deterministic=True)
    training.config.train.cuda_graph = True
    training.ranks.device = torch.device("cuda")
    assert training._recorded() is None
    assert "note: train.cuda_graph: with attention, train.deterministic" in capsys.readouterr().err


def test_a_compiled_network_trains_the_same(tiny_shards, monkeypatch):
    """Through torch.compile's own reading of the code, without a compiler behind it."""
    monkeypatch.setattr(launches, "COMPILES_ON", ("cpu",))
    monkeypatch.setattr(launches, "BACKEND", "eager")
    plain = make(tiny_shards, model__attention="both")
    other = make(tiny_shards, model__attention="both", train__compile="step")
    assert other.faster is not other.parallel
    assert train(other, watched=(1, 5)) == train(plain)
    assert_same(other, plain)


def test_a_network_that_does_not_compile_is_trained_as_it_is(tiny_shards, monkeypatch, capsys):
    def broken(graph, inputs):
        raise OSError("no C compiler")

    monkeypatch.setattr(launches, "COMPILES_ON", ("cpu",))
    monkeypatch.setattr(launches, "BACKEND", broken)
    plain, other = make(tiny_shards), make(tiny_shards, train__compile="step")
    assert train(other) == train(plain)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert "no C compiler" in line and line.endswith("; training goes on without it")


def test_gradients_without_ddp_are_averaged_over_the_ranks(tiny_shards, monkeypatch):
    """All of them in one message; each keeps its place and its format in memory."""
    training = make(tiny_shards)
    train(training)
    for parameter in training.model.parameters():
        values = torch.arange(parameter.numel()).view(parameter.shape)
        parameter.grad = torch.empty_like(parameter).copy_(values)
    before = {name: (p.grad, p.grad.clone()) for name, p in training.model.named_parameters()}
    messages = []

    def all_reduce(message):
        messages.append(message)
        message *= 5  # the other three ranks have four times as much together

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    training.ranks.world_size = 4
    training.ranks.average_gradients(training.parameters)
    assert len(messages) == 1
    for name, parameter in training.model.named_parameters():
        gradient, values = before[name]
        assert parameter.grad is gradient and gradient.stride() == parameter.stride()
        assert torch.equal(gradient, values * 1.25), name
