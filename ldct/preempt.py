"""SLURM's warnings, kept until the loop can act on them.

Imports nothing slow: a signal that comes before the latch is set kills the process.
"""

import os
import signal
from types import FrameType

NAMES = {signal.SIGUSR2: "SIGUSR2", signal.SIGTERM: "SIGTERM"}


class Latch:
    """Notes SIGUSR2 (requeue me) and SIGTERM (stop) instead of dying of them; acts on nothing itself.

    A handler runs between any two bytecodes, so it must not save, log or communicate. The loop asks at its step
    boundaries. Forked children inherit handlers; only the process that made the latch is noted.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.pid = os.getpid()
        self.previous = {number: signal.signal(number, self._note) for number in NAMES}

    def _note(self, number: int, frame: FrameType | None) -> None:
        # USR2 says more than TERM (requeue, not only stop), and the first USR2 may be followed by TERM
        if os.getpid() == self.pid and self.signal is not signal.SIGUSR2:
            self.signal = signal.Signals(number)

    def close(self) -> None:
        """From here on ignore both signals: the work is done and only its result is left to write."""
        for number in NAMES:
            signal.signal(number, signal.SIG_IGN)
