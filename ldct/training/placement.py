"""Where a rank computes, and over which network it speaks to the others."""

import fcntl
import os
import socket
import struct
from collections.abc import Sequence

import torch

from ldct.device import hide_gpus_not_given, warn_of_unused_gpus
from shards.common.command import InputError

SIOCGIFADDR = 0x8915
"""ioctl of Linux: the address of an interface, from linux/sockios.h."""


def device_of(local_rank: int) -> torch.device:
    """The GPU of the rank ``local_rank`` of this node, or the CPU where there is none; made the current one."""
    hide_gpus_not_given()
    if local_rank == 0:
        warn_of_unused_gpus()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", gpu_index(local_rank, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def gpu_index(local_rank: int, visible: int) -> int:
    """The GPU among ``visible`` ones that the rank ``local_rank`` of its node takes.

    A scheduler may bind one GPU to each task (gpus-per-task, gpu-bind): then every task sees a single one, its own.
    That they are different ones is checked by check_gpus, when the ranks know of each other.

    Raises
    ------
    InputError
        If there are several GPUs but fewer than ranks.
    """
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise InputError(
            f"local rank {local_rank} has no GPU: this node shows {visible}; start at most {visible} tasks here"
        )
    return local_rank


def gpu_name(device: torch.device) -> str:
    """Host and UUID of a GPU: one name for one piece of hardware. Empty for a CPU."""
    if device.type != "cuda":
        return ""
    return f"{socket.gethostname()} GPU-{torch.cuda.get_device_properties(device).uuid}"


def check_gpus(names: Sequence[str]) -> None:
    """Raise an InputError if two ranks have the same GPU, or only some have one; ``names`` is gpu_name of every rank.

    To be asked before the ranks make a group: of nccl and gloo each would wait for ranks that the other has.
    """
    without = [str(rank) for rank, name in enumerate(names) if not name]
    if without and len(without) < len(names):
        raise InputError(
            f"ranks {', '.join(without)} see no GPU, the others do: expected the same of all; compare the nodes "
            "(nvidia-smi), and ask for as many GPUs as tasks on each"
        )
    for name in dict.fromkeys(filter(None, names)):
        sharing = [str(rank) for rank, other in enumerate(names) if other == name]
        if len(sharing) > 1:
            raise InputError(
                f"ranks {', '.join(sharing)} have one GPU ({name}): expected a GPU for each; ask for as many GPUs as "
                "tasks on a node, with --gpu-bind=none"
            )


def choose_interface(address: str) -> None:
    """Let gloo and NCCL speak over the interface that reaches ``address``, the host of rank 0, unless told another.

    gloo takes the address that the host's name resolves to. Where that is 127.0.1.1, as on many Debians, ranks of two
    nodes cannot find each other. NCCL leaves the loopback out by itself and takes InfiniBand's where there is one; of
    several others it takes the first, which may lead nowhere.

    Raises
    ------
    InputError
        If GLOO_SOCKET_IFNAME names an interface that this node does not have.
    """
    here = [name for _, name in socket.if_nameindex()]
    chosen = interface_to(address)
    told = os.environ.get("GLOO_SOCKET_IFNAME", chosen)
    for name in filter(None, told.split(",")):
        if name not in here:
            raise InputError(
                f"interface: expected one of {socket.gethostname()}, {', '.join(here)}, found {name!r} "
                "(GLOO_SOCKET_IFNAME); name another in the cluster file, or leave it out"
            )
    if told:
        os.environ["GLOO_SOCKET_IFNAME"] = told
    if chosen not in ("", "lo") and not any(name.startswith("ib") for name in here):
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={chosen}")  # = for this name only, not all that begin so


def interface_to(address: str) -> str:
    """Name of the network interface over which ``address`` is reached; empty if that cannot be told."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(address, 9, socket.AF_INET, socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # of a datagram socket: chooses the route, sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                try:
                    answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
                except OSError:  # an interface without an IPv4 address
                    continue
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    except OSError:
        pass
    return ""
