"""Which GPU a rank takes, and over which network it speaks. No GPU is needed to say so."""

import os
import socket

import pytest

from ldct.device import hide_gpus_not_given
from ldct.training import placement
from shards.common.command import InputError


def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_it_sees():
    assert [placement.gpu_index(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert [placement.gpu_index(rank, 1) for rank in range(4)] == [0, 0, 0, 0]  # --gpus-per-task=1
    with pytest.raises(InputError, match="local rank 2 has no GPU: this node shows 2; start at most 2 tasks here"):
        placement.gpu_index(2, 2)


def test_two_ranks_on_one_gpu_or_one_without_are_refused():
    placement.check_gpus(["a GPU-1", "a GPU-2", "b GPU-1"])
    placement.check_gpus(["", ""])
    with pytest.raises(InputError, match=r"ranks 0, 2 have one GPU \(a GPU-1\): expected a GPU for each"):
        placement.check_gpus(["a GPU-1", "a GPU-2", "a GPU-1"])
    with pytest.raises(InputError, match="ranks 1, 2 see no GPU, the others do: expected the same of all"):
        placement.check_gpus(["a GPU-1", "", "", "b GPU-1"])


def test_gloo_speaks_over_the_interface_that_reaches_rank_0(monkeypatch):
    assert placement.interface_to("127.0.0.1") == "lo"
    assert placement.interface_to("no.such.host.invalid") == ""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    placement.choose_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", ",".join(others))
    placement.choose_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == ",".join(others)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none7")
    with pytest.raises(InputError, match=rf"interface: expected one of {socket.gethostname()}, lo.*, found 'none7'"):
        placement.choose_interface("127.0.0.1")


def test_nccl_speaks_over_it_too_but_for_loopback_and_infiniband(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    placement.choose_interface("127.0.0.1")
    assert "NCCL_SOCKET_IFNAME" not in os.environ
    monkeypatch.setattr(placement, "interface_to", lambda address: "eno2")
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eno2"), (3, "ib0")])
    placement.choose_interface("10.0.0.1")
    assert "NCCL_SOCKET_IFNAME" not in os.environ
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eno2")])
    placement.choose_interface("10.0.0.1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=eno2"


@pytest.mark.parametrize(
    ("given", "visible"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0"}, None),
        ({"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "3"}, "3"),
    ],
)
def test_a_job_without_gpus_sees_none(monkeypatch, given, visible):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "CUDA_")):
            monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given.get("CUDA_VISIBLE_DEVICES", "x"))
    if "CUDA_VISIBLE_DEVICES" not in given:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    hide_gpus_not_given()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
