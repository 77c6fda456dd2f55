"""Devices by name; what becomes of freed memory, in processes of their own: what is set there lasts for their life."""

import subprocess
import sys

import pytest
import torch

from ldct import device
from ldct.device import pick_device
from ldct.training import placement
from shards.common.command import InputError

CHURN = """
import resource, sys
import torch
from ldct.device import give_back, keep_freed

def held():  # pages
    return int(open("/proc/self/statm").read().split()[1])

if sys.argv[1] == "keep":
    keep_freed()
for turn in range(60):
    if turn == 50:  # glibc 2.36 needs some turns until a freed piece fits
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 << 20, dtype=torch.uint8)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
full = held()
give_back()
print((full - held()) * 4096 >> 20)
"""


def churn(mode):
    """Pages mapped anew for each of many tensors of 64 MB, one after the other; MB given back at the end."""
    done = subprocess.run([sys.executable, "-c", CHURN, mode], capture_output=True, text=True, check=True)
    return tuple(map(int, done.stdout.split()))


def test_freed_memory_is_used_again_until_it_is_given_back():
    faults, given = churn("keep")
    assert faults < 16 and given >= 60
    faults, given = churn("as glibc does")
    assert faults >= 32 and given < 60  # 16,384 pages of 4 kB; 32 where the system has huge pages of 2 MB


@pytest.mark.parametrize("name", ["meta", "cuda:99", "abacus"])
def test_a_device_that_cannot_compute_is_one_line(name):
    with pytest.raises(InputError, match=rf"^device {name}: .*; expected auto, cpu, cuda or cuda:N$"):
        pick_device(name)


@pytest.mark.parametrize("entry", [lambda: pick_device("auto"), lambda: placement.device_of(0)], ids=["use", "train"])
def test_gpus_that_torch_cannot_use_are_told_in_one_line(tmp_path, monkeypatch, capsys, entry):
    """A driver that is too old, or a build of torch without CUDA: the work would go to the CPU without a word."""
    monkeypatch.setattr(device, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    assert entry().type == "cpu" and capsys.readouterr().err == ""
    (tmp_path / "nvidia0").touch()
    assert entry().type == "cpu"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: this machine has 1 NVIDIA GPU(s), but torch {torch.__version__}, built for ")
    assert placement.device_of(1).type == "cpu" and capsys.readouterr().err == ""  # one rank of a node says it
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert entry().type == "cpu" and capsys.readouterr().err == ""
