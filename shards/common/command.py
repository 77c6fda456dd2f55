"""What every command line of the project shares: how it fails and how it shows progress."""

import errno
import io
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm


class InputError(Exception):
    """Something the user can put right. The message is one line: expected, found, what to do."""


def first_line(error: BaseException) -> str:
    """What an error says first; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def as_typed(path: Path) -> Path:
    """``path`` as one would type it here: relative where it lies below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


READER_GONE = 128 + signal.SIGPIPE
"""Exit status of a command whose output nobody reads any more, as of ``yes | head``."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def say(text: str, unheard: str) -> None:
    """Print ``text`` at once.

    Raises
    ------
    InputError
        If nobody reads it any more, as behind a pager that was left; its line is ``unheard``.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(f"nobody reads the output any more; {unheard}") from None


def command(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with its status.

    An InputError, a full disk and one that is read-only become one line and status 2, Ctrl-C one line and 130, and a
    closed pipe behind standard output or error (``... | head``, a pager that was left) ends the command without a word.
    A path that is no UTF-8 is printed with escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error is: a file's name may be any bytes
    try:
        try:
            status = main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
        except OSError as error:
            if error.errno not in (*NO_ROOM, errno.EROFS):
                raise
            advice = "choose another folder" if error.errno == errno.EROFS else "make room and run again"
            print(f"error: cannot write{_where(error)}: {error.strerror}; {advice}", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            status = 130
        finally:
            sys.stdout.flush()  # here, and not when nobody can catch its error any more
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _reader_gone(stream.fileno())]
        if not closed:
            raise  # it is another pipe that broke
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in closed:
            os.dup2(nowhere, stream.fileno())  # what is still buffered goes there at the exit
        sys.exit(READER_GONE)
    sys.exit(status)


def _where(error: OSError) -> str:
    return f" {error.filename}" if error.filename else ""


def _reader_gone(fd: int) -> bool:
    """Whether ``fd`` is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


class Progress:
    """A bar on a terminal; in a log a plain line at most every ``every`` seconds, and one at the end; of nothing, none.

    Parameters
    ----------
    what : str
        What is being done, e.g. "shards".
    total : int
        Number of units in all.
    unit : str
        What is counted, e.g. "slices".
    start : int
        Units already done before this process began (a resumed run).
    every : float
        Seconds between two lines in a log.
    """

    def __init__(self, what: str, total: int, unit: str, start: int = 0, every: float = 10.0) -> None:
        self.what, self.total, self.unit, self.every = what, total, unit, every
        self.done = self.start = start
        self.note = ""
        self.said: tuple[int, str] | None = None
        self.began = self.told = time.monotonic()
        shown = total and sys.stderr.isatty()
        self.bar = tqdm(desc=what, total=total, initial=start, unit=f" {unit}") if shown else None

    def update(self, units: int = 1, note: str | None = None) -> None:
        """Count ``units`` more; ``note`` (e.g. the loss, or MB/s) is shown behind the rate until another one comes."""
        self.done += units
        self.note = self.note if note is None else note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(units)
        elif time.monotonic() - self.told >= self.every:
            self._tell()

    def _tell(self) -> None:
        self.told = time.monotonic()
        rate = (self.done - self.start) / max(self.told - self.began, 1e-9)
        eta = f"{(self.total - self.done) / rate:.0f} s left" if rate else "rate not known yet"
        note = f", {self.note}" if self.note else ""
        line = f"{self.what}: {self.done}/{self.total} {self.unit}, {rate:.3g}/s, {eta}{note}"
        print(line, file=sys.stderr, flush=True)
        self.said = (self.done, self.note)

    def close(self) -> None:
        """End the bar, or tell where it came to."""
        if self.bar is not None:
            self.bar.close()
        elif self.total and self.said != (self.done, self.note):
            self._tell()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
