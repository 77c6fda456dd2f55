"""A text that is shown again and again: in place on a terminal, one after the other elsewhere."""

import shutil
import sys
from types import TracebackType

ENTER, LEAVE = "\033[?1049h", "\033[?1049l"
"""To the terminal's second screen, and back to the first with what stood there."""

HOME, TO_END_OF_LINE, TO_END = "\033[H", "\033[K", "\033[J"


class Screen:
    """Draws texts in place while the ``with`` block lasts; the last one stays on the terminal behind it.

    Nothing is cleared before it is drawn over, so nothing flickers. What does not fit is counted in the last line.
    """

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.last = ""

    def __enter__(self) -> "Screen":
        if self.terminal:
            print(ENTER, end="", flush=True)
        return self

    def draw(self, text: str) -> None:
        """Show ``text``."""
        self.last = text
        if not self.terminal:
            print(text, flush=True)
            return
        width, height = shutil.get_terminal_size()
        lines = [line[:width] for line in text.splitlines()]
        if len(lines) > height - 1:
            lines = [*lines[: height - 2], f"... {len(lines) - height + 2} more lines"]
        print(HOME + "".join(f"{line}{TO_END_OF_LINE}\n" for line in lines) + TO_END, end="", flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.terminal:
            print(LEAVE + self.last, flush=True)
