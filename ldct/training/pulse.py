"""Signs of life of the ranks, and who of them ended."""

import contextlib
import os
import socket
import threading
import time
from datetime import timedelta
from typing import Any

PULSE_S = 2.0
"""Seconds between two pulses of a rank."""


class Pulse:
    """Signs of life of every rank in the rendezvous store.

    A broken connection names an address, and a survivor that gives up looks broken to the next one. So every rank
    counts up a number every PULSE_S, whoever meets a failure looks whose numbers stand still, and the first to find
    them writes the names down for all. The store lives in rank 0 (or in torchrun): every rank reads those names as it
    counts, so that it has them when rank 0 is gone.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        # connections of its own: a store's calls wait for each other, and its timeout holds for all who use it
        self.store, self.rank, self.world_size = store.clone(), rank, world_size
        self.store.set_timeout(timedelta(seconds=10))
        self.store.set(f"host/{rank}", f"{socket.gethostname()}, pid {os.getpid()}")
        self.first = f"rank 0 ({os.environ['MASTER_ADDR']})"
        self.names: list[str] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._count, args=(store.clone(),), name="pulse", daemon=True)
        self.thread.start()

    def _count(self, store: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the store went away with rank 0; the loop will notice
            self.first = f"rank 0 ({store.get('host/0').decode()})"
            while not self.ended.wait(PULSE_S):
                store.add(f"pulse/{self.rank}", 1)
                if store.check(["lost"]):
                    self.names = store.get("lost").decode().split("; ")

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

    def close(self) -> None:
        """Stop the pulse."""
        self.ended.set()
