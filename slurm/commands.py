"""A command of this project as jobs: its folder, its parts, and which of them are still to be done.

jobs/NAME/command.json    the command, where it was given, and into how many parts it is split
jobs/NAME/2-of-4/         a part: status.json, in the words of a run's
jobs/NAME/whole/          the command without --part: alone, or behind its parts, to gather what they made
jobs/NAME/logs, code      as for a sweep
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ldct.runs import folder as runs
from shards.common.atomic import write_text
from shards.common.command import InputError
from slurm import squeue, submission
from slurm.part_job import RunPart
from slurm.sweep import CLOSED, state_of

NAME = "command.json"
WHOLE = "whole"
ROOT = Path(__file__).resolve().parents[1]

ELSEWHERE = {
    "launch/train.py": "launch/sweep.py submits trainings",
    "launch/sweep.py": "it submits by itself; run it on a login node",
    "launch/submit.py": "it submits by itself; run it on a login node",
    "launch/status.py": "run it on a login node",
}
"""Commands that are no jobs, and what to do."""

OWN = ("--cluster", "--parts", "--after", "--name", "--again", "--restart-lost", "--dry-run", "--jobs")
"""Options of launch/submit.py, which it takes before the command only."""


@dataclass(frozen=True)
class Command:
    """A command line of this project, checked."""

    argv: list[str]
    """Script, relative to the project, and its arguments."""
    cwd: str = field(default_factory=os.getcwd)
    """Folder that relative paths in it start from."""
    parts: int = 1
    """Parts that it is split into."""

    def __str__(self) -> str:
        return shlex.join(self.argv)


@dataclass
class Part:
    """A part of a command, or the whole of it: what one job does."""

    name: str
    """2-of-4, or whole."""
    folder: Path
    """Its folder, absolute."""
    argv: list[str]
    """Script and arguments."""
    cwd: str
    state: str = "new"
    """See slurm.sweep.state_of."""
    size: int = 1
    """What Local counts: parts."""

    @property
    def open(self) -> bool:
        """Whether it is to be submitted: not finished, and nothing works on it."""
        return self.state not in CLOSED

    @property
    def done(self) -> int:
        """1 if it is finished."""
        return int(runs.read_status(self.folder).state == "finished")

    def job(self) -> RunPart:
        """What submitit pickles and calls."""
        return RunPart(str(self.folder), self.argv, self.cwd)


def check(argv: list[str], parts: int) -> tuple[Command, bool]:
    """A command line that can be a job in ``parts`` parts, and whether it can use a GPU: by its own --help.

    Raises
    ------
    InputError
        If it is none of this project's commands, is no job, or cannot be split.
    """
    argv = argv[1:] if argv[:1] == ["--"] else argv
    script = os.path.relpath(ROOT / argv[0], ROOT) if argv else ""
    if not re.fullmatch(r"(shards|launch)/\w+\.py", script) or not (ROOT / script).is_file():
        raise InputError(f"expected a command such as shards/build.py DICOM SHARDS, found {' '.join(argv) or 'none'!r}")
    if script in ELSEWHERE:
        raise InputError(f"{script} is no job: {ELSEWHERE[script]}")
    if parts < 1:
        raise InputError(f"--parts: expected at least 1, found {parts}")
    options = options_of(script)
    check_options(script, argv[1:], options)
    if parts > 1 and "--part" not in options:
        raise InputError(f"{script} has no --part: it cannot be split; leave out --parts")
    # the --help of bench.py does not show the options of what it measures
    return Command([script, *argv[1:]], parts=parts), "--device" in options or script == "launch/bench.py"


@functools.cache
def options_of(script: str) -> frozenset[str]:
    """The options that ``script`` --help shows.

    Raises
    ------
    InputError
        If it fails, or the script is no command.
    """
    shown = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True)
    if shown.returncode:
        raise InputError(f"{script} --help ends with an error: {' '.join(shown.stderr.split())[-200:]}")
    if not shown.stdout.startswith("usage:"):
        raise InputError(f"{script} is no command; there are: {', '.join(known())}")
    return frozenset(re.findall(r"--[\w-]+", shown.stdout))


def known() -> list[str]:
    """The commands that can be jobs."""
    paths = sorted([*ROOT.glob("shards/*.py"), *ROOT.glob("launch/*.py")])
    scripts = [path.relative_to(ROOT).as_posix() for path in paths if "\nif __name__ ==" in path.read_text()]
    return [script for script in scripts if script not in ELSEWHERE]


def check_options(script: str, arguments: list[str], options: frozenset[str]) -> None:
    """Raise an InputError if an option among ``arguments`` is none of the ``options`` that ``script`` --help shows, or
    is --part; argparse also takes an option's beginning, and --option=value."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for word in (text.partition("=")[0] for text in before if text.startswith("--")):
        if word in OWN and word not in options:
            raise InputError(f"{word} is no option of {script}; give launch/submit.py's before the command")
        if word == "--part" or ("--part".startswith(word) and "--part" in options - {word}):
            raise InputError("--part is what the jobs add; say how many parts with --parts, before the command")
        # the --help of bench.py does not show the options of what it measures
        if script != "launch/bench.py" and not any(option.startswith(word) for option in options):
            raise InputError(f"{word} is no option of {script}; python {script} --help shows them")


def begin(folder: Path, command: Command) -> None:
    """Make the folder of ``command``, or go on with the one that is there.

    Raises
    ------
    InputError
        If it is another command's, of which a part is finished, running or waiting.
    """
    refuse_other(folder, command)
    write(folder, command)


def refuse_other(folder: Path, command: Command) -> None:
    """Raise an InputError if ``folder`` is of another command, and more than failures came of that."""
    before = read(folder)
    if before is None or before == command:
        return
    parts = parts_of(folder, before)
    note_states(parts)
    if not all(part.open for part in parts):
        raise InputError(
            f"{folder} is of another command ({before}, {before.parts} parts, in {before.cwd}); choose another --name, "
            "or delete it"
        )


def write(folder: Path, command: Command) -> None:
    """Make the folder of ``command``, whatever it was of before."""
    folder.mkdir(parents=True, exist_ok=True)
    if read(folder) != command:  # else its age stays, by which commands are shown in order
        write_text(folder / NAME, json.dumps(dataclasses.asdict(command), indent=1) + "\n")


def read(folder: Path) -> Command | None:
    """The command of a folder; None where there is none."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Command(**json.loads((folder / NAME).read_text()))
    return None


def parts_of(folder: Path, command: Command) -> list[Part]:
    """The parts of the command in ``folder``, the whole of it last."""
    folder = Path(os.path.abspath(folder))
    split = range(1, command.parts + 1) if command.parts > 1 else ()
    width = len(str(command.parts))
    parts = {f"{i:0{width}d}-of-{command.parts}": [*command.argv, "--part", f"{i}/{command.parts}"] for i in split}
    parts[WHOLE] = command.argv
    return [Part(name, folder / name, argv, command.cwd) for name, argv in parts.items()]


def find(roots: list[Path]) -> list[Path]:
    """Folders of the parts of all commands at or below ``roots``, in the order in which they were first given."""
    found: dict[Path, Command] = {}
    for root in roots:
        for place, below, files in os.walk(root):
            below[:] = sorted(name for name in below if not name.startswith("."))
            if NAME in files and (command := read(Path(place))):
                found[Path(place)] = command
                below.clear()
    ordered = sorted(found, key=lambda folder: (folder / NAME).stat().st_mtime)
    return [part.folder for folder in ordered for part in parts_of(folder, found[folder])]


def note_states(parts: list[Part]) -> None:
    """Set the state of every part from its folder, the record of submissions and, where there is one, the queue."""
    last = submission.latest(parts[0].folder.parent)
    jobs = squeue.live([job for record, job in last.values() if record.executor == "slurm"])
    for part in parts:
        part.state = state_of(part.name, runs.read_status(part.folder), last.get(part.name), jobs)
