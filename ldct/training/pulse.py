"""Signs of life of the ranks, and who of them ended."""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PULSE_S = 2.0
"""Seconds between two pulses of a rank."""

GRACE_S = 15
"""Seconds for the loop to hear by itself that another rank ended."""

AT_WORK, DONE, BROKEN = 0, 1, 2
"""How a rank stands, as the others hear of it."""


class RankLost(RuntimeError):
    """Other ranks ended; the message names them."""


class Pulse:
    """Signs of life of every rank in the rendezvous store.

    A broken connection names an address, and a survivor that gives up looks broken to the next one. So every rank
    counts up a number every PULSE_S, whoever meets a failure looks whose numbers stand still, and the first to find
    them writes the names down for all. The store lives in rank 0 (or in torchrun): every rank reads those names as it
    counts, so that it has them when rank 0 is gone.

    The loop meets a failure where it speaks over gloo. On a GPU it may wait for what a lost rank was to send, for ever
    and in a call that nothing interrupts. So a thread of its own listens over gloo too (``listen``), and where the
    loop, while it is ``in_loop``, has not heard of an end within GRACE_S, the process is ended here.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        # connections of its own: a store's calls wait for each other, and its timeout holds for all who use it
        self.store, self.rank, self.world_size = store.clone(), rank, world_size
        self.store.set_timeout(timedelta(seconds=10))
        self.store.set(f"host/{rank}", f"{socket.gethostname()}, pid {os.getpid()}")
        self.first = f"rank 0 ({os.environ['MASTER_ADDR']})"
        self.names: list[str] = []
        self.in_loop, self.stands, self.ended = False, AT_WORK, threading.Event()
        self.listener: threading.Thread | None = None
        self.thread = threading.Thread(target=self._count, args=(store.clone(),), name="pulse", daemon=True)
        self.thread.start()

    def _count(self, store: Any) -> None:
        try:
            self.first = f"rank 0 ({store.get('host/0').decode()})"
            while not self.names and not self.ended.wait(PULSE_S):
                store.add(f"pulse/{self.rank}", 1)
                if store.check(["lost"]):
                    self.names = store.get("lost").decode().split("; ")
        except RuntimeError:  # the store went away with rank 0
            self.names = self.names or [self.first]
        deaf_s = 0
        while deaf_s < GRACE_S and not self.ended.wait(1):
            deaf_s = deaf_s + 1 if self.in_loop else 0
        if not self.ended.is_set():
            self._end()

    def _end(self) -> None:
        """End the process, with the stacks of all threads and a traceback that names the lost."""
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
        try:
            raise RankLost(f"{', '.join(self.names)} ended; this rank ({self.rank}) waited for what will not come")
        except RankLost:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

    def listen(self, group: Any) -> None:
        """Tell the others of the gloo ``group`` every PULSE_S how this rank stands, and hear the same of them."""
        self.listener = threading.Thread(target=self._listen, args=(group,), name="listener", daemon=True)
        self.listener.start()

    def _listen(self, group: Any) -> None:
        worst = torch.tensor(AT_WORK)
        with contextlib.suppress(RuntimeError):  # the connection to one that ended is closed
            while worst == AT_WORK:
                self.ended.wait(PULSE_S)
                worst.fill_(self.stands)
                dist.all_reduce(worst, dist.ReduceOp.MAX, group=group)
        if not self.ended.is_set() and worst != DONE:
            self.lost()

    def say(self, error: str) -> None:
        """Leave word of why this rank ends, for those who will miss it."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"error/{self.rank}", error)

    def lost(self) -> list[str]:
        """Names of the ranks that ended: of those found first, by whichever rank; empty if all are alive."""
        try:
            before = self._counts()
            time.sleep(2.5 * PULSE_S)
            still = [rank for rank, (a, b) in enumerate(zip(before, self._counts(), strict=True)) if a == b]
            names = [self._name(rank) for rank in still if rank != self.rank]
            if not names:
                return []
            self.names = self.store.compare_set("lost", "", "; ".join(names)).decode().split("; ")
            if self.rank == 0:
                time.sleep(2 * PULSE_S)  # the store ends with this rank: let the others read
            return self.names
        except RuntimeError:
            return self.names or [self.first]

    def _counts(self) -> list[int]:
        return [self.store.add(f"pulse/{rank}", 0) for rank in range(self.world_size)]

    def _name(self, rank: int) -> str:
        word = f": {self.store.get(f'error/{rank}').decode()}" if self.store.check([f"error/{rank}"]) else ""
        return f"rank {rank} ({self.store.get(f'host/{rank}').decode()}{word})"

    def close(self, stands: int = BROKEN) -> None:
        """Stop the pulse; the others hear how this rank ``stands``, DONE or BROKEN."""
        self.stands = stands
        self.ended.set()
        if self.listener:  # a process that ends while gloo waits for a message is aborted
            self.listener.join(None if stands == DONE else 3 * PULSE_S)
