"""SLURM's warnings, kept until the loop can act on them.

Imports nothing slow: a signal that comes before the latch is set kills the process.
"""

import os
import signal
from types import FrameType

CAUGHT = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


STOPPED = 75
"""Exit status of a run that a signal stopped before its end: EX_TEMPFAIL of sysexits.h, "try again"."""


class Latch:
    """Notes SIGUSR2 (requeue me), SIGTERM and Ctrl-C (stop) instead of dying of them; acts on nothing itself.

    A handler runs between any two bytecodes, so it must not save, log or communicate. The loop asks at its step
    boundaries. Forked children inherit handlers; only the process that made the latch is noted. A second Ctrl-C
    interrupts at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.pid = os.getpid()
        self.previous = {number: signal.signal(number, self._note) for number in CAUGHT}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            return
        if number == signal.SIGINT and self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not signal.SIGUSR2:  # a requeue stays one when SLURM adds its SIGTERM
            self.signal = signal.Signals(number)

    def close(self) -> None:
        """From here on ignore all three: the work is done and only its result is left to write."""
        for number in CAUGHT:
            signal.signal(number, signal.SIG_IGN)
