import math

import pytest
import torch
from conftest import tiny_flags
from torch import nn

from ldct.config import OptimConfig, parse
from ldct.data.patches import MappedStore
from ldct.training.optim import NEVER, Average, FiniteGuard, LearningRate, create
from ldct.training.ranks import Ranks
from ldct.training.step import Training


def test_cosine_rises_over_the_warm_up_and_falls_to_zero():
    learning_rate = LearningRate(OptimConfig(lr=1.0, warmup=4, schedule="cosine"), steps=12)
    assert [learning_rate.at(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert (
        learning_rate.at(4) == 1.0
        and learning_rate.at(8) == pytest.approx(0.5)
        and learning_rate.at(12) == pytest.approx(0.0)
    )
    assert learning_rate.at(20) == pytest.approx(0.0)  # and stays there


def test_a_run_that_is_all_warm_up_rises_to_its_end():
    learning_rate = LearningRate(OptimConfig(lr=1.0, warmup=4, schedule="cosine"), steps=4)
    assert (learning_rate.at(3), learning_rate.at(4), learning_rate.at(5)) == (1.0, 1.0, pytest.approx(0.0))


def test_plateau_warms_up_too_and_its_factor_is_the_one_asked_for():
    config = OptimConfig(lr=0.5, warmup=2, schedule="plateau", plateau_patience=1, plateau_factor=0.1)
    learning_rate = LearningRate(config, steps=10)
    assert learning_rate.state() == {"factor": 1.0, "best": -math.inf, "stalls": 0}
    learning_rate.validated(-5.0)
    learning_rate.validated(-6.0)
    assert [learning_rate.at(step) for step in (0, 1, 2)] == pytest.approx([0.25, 0.5, 0.05])
    assert learning_rate.state() == {"factor": pytest.approx(0.1), "best": -5.0, "stalls": 0}


def test_plateau_halves_after_the_patience_and_counts_anew():
    learning_rate = LearningRate(OptimConfig(lr=1.0, warmup=0, schedule="plateau", plateau_patience=2), steps=10)
    for value, expected in [(30, 1.0), (29, 1.0), (30, 0.5), (30, 0.5), (30, 0.25), (31, 0.25), (31, 0.25)]:
        learning_rate.validated(value)
        assert learning_rate.at(5) == expected
    other = LearningRate(OptimConfig(lr=1.0, warmup=0, schedule="plateau", plateau_patience=2), steps=10)
    other.restore(learning_rate.state())
    other.validated(31)
    assert other.at(5) == 0.125


def test_other_schedules_do_not_hear_of_stalls():
    learning_rate = LearningRate(OptimConfig(lr=1.0, warmup=0, schedule="constant", plateau_patience=1), steps=10)
    for _ in range(5):
        learning_rate.validated(1.0)
    assert learning_rate.at(9) == 1.0


def test_average_follows_the_formula_and_copies_counts():
    model, copy = (nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)) for _ in range(2))
    average = Average(model, copy, decay=0.5)
    start = model[0].weight.item()
    expected = start
    for step in range(20):
        with torch.no_grad():
            model[0].weight.fill_(step)
        model[1].num_batches_tracked.fill_(step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert copy[0].weight.item() == pytest.approx(expected, rel=1e-6)
    assert copy[1].num_batches_tracked.item() == 19
    assert not any(weight.requires_grad for weight in copy.parameters())
    assert model.training and not copy.training


def test_the_average_forgets_the_random_start_early():
    """Decay 1/10, 2/11 and 3/12 in the first three steps, as TensorFlow's; then at most what is asked for."""
    model, copy = (nn.Linear(1, 1, bias=False) for _ in range(2))
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = Average(model, copy, decay=0.999)
        model.weight.fill_(0.0)
        kept = []
        for step in (0, 1, 2, 10**6):
            before = copy.weight.item()
            average.update(step)
            kept.append(copy.weight.item() / before)
    assert kept == pytest.approx([1 / 10, 2 / 11, 3 / 12, 0.999], rel=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizers_by_name(name, kind):
    optimizer = create([nn.Parameter(torch.ones(2))], OptimConfig(name=name, lr=0.1, weight_decay=0.3))
    assert type(optimizer) is kind and optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["weight_decay"] == (0.3 if name == "adamw" else 0)
    assert optimizer.param_groups[0]["fused"] is True


@pytest.mark.parametrize("limit", [0, 1e-3, 1e3])
def test_the_optimizer_gets_clipped_gradients_and_the_step_tells_their_norm_before(tiny_shards, limit):
    run = Training(parse(tiny_flags(tiny_shards, "nowhere", optim__clip_norm=limit)), Ranks(60))
    got = []
    run.optimizer.register_step_pre_hook(lambda *_: got.extend(p.grad.norm() for p in run.parameters))
    norm = run.train_step(MappedStore(run.patches, torch.device("cpu")).fetch(run.sampler[0])).grad_norm.item()
    assert 1e-3 < norm < 1e3
    assert torch.stack(got).norm().item() == pytest.approx(limit if limit == 1e-3 else norm, rel=1e-3)
    assert all(parameter.grad is None for parameter in run.parameters)


def test_the_guard_keeps_the_first_step_that_was_not_finite():
    guard, fine = FiniteGuard(torch.device("cpu")), torch.tensor(1.0)
    guard.note(3, fine, fine)
    assert guard.firsts() == (NEVER, NEVER)
    guard.note(4, fine, torch.tensor(math.inf))
    guard.note(5, torch.tensor(math.nan), torch.tensor(math.nan))
    guard.note(6, torch.tensor(math.nan), fine)
    assert guard.firsts() == (5, 4)
    guard.note(2, torch.tensor(math.inf), torch.tensor(-math.inf))  # a run that goes back to a checkpoint
    assert guard.firsts() == (2, 2)


def test_the_guard_keeps_its_notes_on_the_device():
    """So that no step waits for them: torch's device without data stands for a GPU."""
    guard = FiniteGuard(torch.device("meta"))
    guard.note(3, torch.tensor(1.0, device="meta"), torch.tensor(1.0, device="meta"))
    assert guard.first.device.type == "meta"
