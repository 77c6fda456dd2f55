"""What the benches share."""

import itertools
import os

import pytest
import torch

from ldct.benchmarks import common
from shards.common.command import InputError


def test_variants_alternate_and_the_first_round_does_not_count():
    order = []

    def measured(name):
        order.append(name)
        return float(len(order))

    values = common.alternate({"a": lambda: measured("a"), "b": lambda: measured("b")}, 2)
    assert order == ["a", "b"] * 3
    assert values == {"a": [3, 5], "b": [4, 6]}


def process_and_numbers(start):
    """A variant that says where it runs, and breaks at its third repeat."""
    for number in itertools.count(start):
        if number == start + 2:
            os._exit(3)
        yield os.getpid(), number


def test_a_variant_has_a_process_of_its_own():
    with common.apart(process_and_numbers, 5) as ask, common.apart(process_and_numbers, 7) as other:
        (first, five), (second, seven), (again, six) = ask(), other(), ask()
        assert (five, six, seven) == (5, 6, 7)
        assert first == again and len({first, second, os.getpid()}) == 3
        with pytest.raises(InputError, match="process_and_numbers ended while it was measured"):
            ask()
    for process in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_spread_and_ratio():
    assert common.spread([4.0, 1.0, 3.0]) == {"median": 3.0, "low": 1.0, "high": 4.0}
    assert common.ratio([2, 9, 8], [1, 3, 2]) == 3  # of the rounds 2, 3 and 4; not 8 / 2


def test_a_matrix_product_counts_two_for_each_element_and_term(monkeypatch):
    monkeypatch.setattr(common, "seconds", lambda work, device: (work(), 0.5)[1])
    assert {name: rate() for name, rate in common.matrix_products(torch.device("cpu"), 8).items()} == {
        "fp32": 2048,
        "bf16": 2048,
    }


def test_a_command_that_fails_is_one_line():
    with pytest.raises(InputError, match=r"launch/train\.py failed with status 2: .*--run_dir"):
        common.call("launch/train.py")


def test_a_gpu_that_lets_one_process_in_is_told(monkeypatch):
    monkeypatch.setattr(common, "nvidia_smi", lambda field: ["Exclusive_Process"])
    common.share_device(torch.device("cpu"))
    with pytest.raises(InputError, match="EXCLUSIVE_PROCESS"):
        common.share_device(torch.device("cuda"))
    monkeypatch.setattr(common, "nvidia_smi", lambda field: [])
    common.share_device(torch.device("cuda"))
