"""A share of a command's work, for one of several jobs: ``--part I/N`` is every N-th item, from the I-th on."""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from shards.common.command import InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """Part ``number`` (from 1) of ``count``; the default is all of it."""

    number: int = 1
    count: int = 1

    def of(self, items: Iterable[Item]) -> list[Item]:
        """Its share of ``items``, which must come in the same order for every part. It may be empty."""
        return list(items)[self.number - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


ALL = Part()


def parse(text: str) -> Part:
    """I/N, e.g. 2/8.

    Raises
    ------
    InputError
        If it is not that.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part = Part(int(match[1]), int(match[2])) if match else Part(0)
    if not 1 <= part.number <= part.count:
        raise InputError(f"--part {text}: expected I/N with I from 1 to N, e.g. 2/8")
    return part


def add_argument(parser: argparse.ArgumentParser, about: str) -> None:
    """Give a command the option."""
    parser.add_argument("--part", type=parse, default=ALL, metavar="I/N", help=about)
