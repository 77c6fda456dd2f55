"""Trainings in this process, and what disturbs them at a step."""

from conftest import tiny_flags

from ldct.config import parse
from ldct.training.signals import Latch
from ldct.training.step import Training
from ldct.training.trainer import train


def start(shards, folder, **changes):
    """Train a tiny run in ``folder``, or go on with it; the signal it stopped for."""
    return train(parse(tiny_flags(shards, folder, **changes)), Latch())


def after_step(monkeypatch, step, act):
    """Do ``act`` once, behind optimizer step number ``step``."""
    train_step = Training.train_step

    def wrapped(self, *args, **kwargs):
        result = train_step(self, *args, **kwargs)
        if self.step == step:
            monkeypatch.setattr(Training, "train_step", train_step)
            act()
        return result

    monkeypatch.setattr(Training, "train_step", wrapped)
