"""A process that hangs ends itself, and says where it hung."""

import faulthandler
import sys
import time
from types import TracebackType


class Watchdog:
    """Ends this process if ``alive`` is not called for ``limit_s`` seconds (0 = never), with exit status 1.

    The stacks of all threads go to standard error before. Python's faulthandler does it from a thread of its own that
    needs no interpreter, so a call that holds the GIL (a driver, a dead network disk) is ended as well.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s, self.armed = limit_s, 0.0

    def __enter__(self) -> "Watchdog":
        self.alive()
        return self

    def alive(self) -> None:
        """Count anew, at most once a second: every time a thread ends and another one starts."""
        if self.limit_s and time.monotonic() - self.armed >= min(1.0, self.limit_s / 10):
            faulthandler.dump_traceback_later(self.limit_s, exit=True, file=sys.__stderr__ or sys.stderr)
            self.armed = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.limit_s:
            faulthandler.cancel_dump_traceback_later()
