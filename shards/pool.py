"""Work spread over processes, in order, with little in flight."""

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from shards.command import InputError

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


def each(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, computed in ``workers`` processes.

    Processes are spawned, so nothing (threads, locks, open files) leaks into them. With one worker the work is
    done here. At most four items a worker are in flight, so memory does not grow with the number of items.

    Raises
    ------
    InputError
        If a worker was killed, as the system does when memory runs out.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process was killed, most likely for lack of memory; run again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
