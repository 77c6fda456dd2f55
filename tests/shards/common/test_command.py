"""How every command of the project ends."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from shards.common.command import Progress

COMMANDS = sorted(
    path.relative_to(ROOT) for folder in ("launch", "shards") for path in (ROOT / folder).glob("*.py")
    if "command(main)" in path.read_text()
)  # fmt: skip


def unread(*argv, stderr=subprocess.PIPE):
    """A command whose output nobody reads: exit status and what it said on standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, *map(str, argv)],
            stdout=writer,
            stderr=writer if stderr is None else stderr,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
            timeout=60,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("path", COMMANDS, ids=str)
def test_nobody_reads_on(path):
    status, said = unread(path, "--help")
    assert status in (0, 141)  # argparse itself passes over the error of a text longer than the buffer
    assert said == b""


PRINTS = """
import os, sys
from shards.common.command import InputError, command

def main():
    if sys.argv[1] == "lines":
        for number in range(100_000):
            print(number)
    elif sys.argv[1] == "error":
        raise InputError("wrong")
    else:
        reader, writer = os.pipe()
        os.close(reader)
        os.write(writer, b"x")

command(main)
"""


def test_a_pipe_that_closes_in_the_middle():
    assert unread("-c", PRINTS, "lines") == (141, b"")
    assert unread("-c", PRINTS, "error", stderr=None)[0] == 141


def test_another_pipe_that_breaks_is_an_error_as_it_was():
    done = subprocess.run([sys.executable, "-c", PRINTS, "other"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "BrokenPipeError: [Errno 32] Broken pipe"


def test_the_usual_ends():
    ends = "import sys; from shards.common.command import InputError, command; command(lambda: {})"
    for text, status, said in (("3", 3, ""), ("sys.exit(4)", 4, ""), ("None", 0, "")):
        done = subprocess.run([sys.executable, "-c", ends.format(text)], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (status, said)


def test_nothing_to_do_has_no_progress(capsys):
    with Progress("denoise", 0, "slices"):
        pass
    with Progress("denoise", 1, "slices") as progress:
        progress.update()
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["denoise: 1/1 slices"]


def test_the_end_is_told_once(capsys):
    with Progress("denoise", 2, "slices", every=0.0) as progress:
        progress.update()
        progress.update()
    with Progress("train", 1, "steps", every=0.0) as progress:
        progress.update()
        progress.note = "loss 1"  # news since the last line
    told = [line.split(", ") for line in capsys.readouterr().err.splitlines()]
    assert [line[0] for line in told] == ["denoise: 1/2 slices", "denoise: 2/2 slices", *["train: 1/1 steps"] * 2]
    assert told[-1][-1] == "loss 1"
