"""A text drawn again and again, on a terminal and through a pipe."""

import io
import os

import pytest

from slurm import screen


class Terminal(io.StringIO):
    """A terminal of 20 x 4 characters."""

    def isatty(self):
        return True


@pytest.fixture
def draw(monkeypatch):
    """What is written for texts that are drawn one after the other."""

    def drawn(stream, *texts):
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr(screen.shutil, "get_terminal_size", lambda: os.terminal_size((20, 4)))
        with screen.Screen() as shown:
            for text in texts:
                shown.draw(text)
        return stream.getvalue()

    return drawn


def test_a_terminal_is_drawn_over_in_place_and_keeps_the_last_text(draw):
    written = draw(Terminal(), "one\ntwo", "one " * 10 + "\ntwo\nthree\nfour\nfive")
    frames = written.split(screen.HOME)
    assert frames[0] == screen.ENTER
    assert frames[1] == "one\033[K\ntwo\033[K\n\033[J"
    last, _, after = frames[2].partition(screen.LEAVE)
    assert last == "one one one one one \033[K\ntwo\033[K\n... 3 more lines\033[K\n\033[J"
    assert after == "one " * 10 + "\ntwo\nthree\nfour\nfive\n"
    assert "\033[2J" not in written  # a screen that is cleared first flickers


def test_a_pipe_gets_plain_text(draw):
    assert draw(io.StringIO(), "one", "two") == "one\ntwo\n"
