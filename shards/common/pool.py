"""Work spread over processes, in order, with little in flight."""

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

from shards.common.command import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which lets work in hand end; and die with the parent, however it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """``count`` processes for the length of a ``with`` block; with one, the work is done in this process.

    They are forked at once, while this process has one thread and no open file of its own, and so start without
    importing anything again (0.4 s). Leaving the block lets the work in hand end and drops the rest.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if self.count > 1:
            self.pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("fork"), _start_worker)
            self.pool.submit(int)  # the pool forks all its processes before its first task
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield ``function(item)`` for each item, in order.

        At most four items a worker are in flight, so memory does not grow with their number.

        Raises
        ------
        InputError
            If a worker was killed, as the system does when memory runs out.
        """
        if self.pool is None:
            yield from map(function, items)
            return
        waiting: collections.deque[Future[Result]] = collections.deque()
        try:
            for item in items:
                waiting.append(self.pool.submit(function, item))
                if len(waiting) >= 4 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise InputError(
                "a worker process was killed, most likely for lack of memory; run again with fewer --workers"
            ) from None
