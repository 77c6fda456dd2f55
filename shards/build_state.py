"""The state of a build in OUT/.build: for which settings and input, by whom, and what each finished shard holds."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.common import lock
from shards.common.atomic import write_text
from shards.common.command import InputError
from shards.common.part import Part
from shards.dicom import Slice
from shards.files import printable
from shards.manifest import SHARDER, Record, Shard, load
from shards.pairing import Pairing
from shards.writer import Finished, ShardPlan, Sums

STATE = ".build"
"""Its folder in OUT."""
PLAN = "plan.json"
"""In it: settings and input of the build that has claimed OUT."""
REPORT = "pairing.json"
"""The pairing report in OUT."""


def fingerprint(source: Path, settings: dict[str, Any], pairing: Pairing) -> str:
    """Names settings and input: sha256 over name, size and time of change of every file that is used, and no other."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for patient in pairing.patients:
        digest.update(f"{patient.name}\0{len(patient.pairs)}\n".encode())
    for piece in used(pairing):
        inside = os.fsencode(piece.path.relative_to(source))
        digest.update(inside + f"\0{piece.frame}\0{piece.size}\0{piece.mtime_ns}\n".encode())
    return digest.hexdigest()


def used(pairing: Pairing) -> Iterator[Slice]:
    """Every slice of every pair."""
    for patient in pairing.patients:
        for pair in patient.pairs:
            yield from (pair.full, pair.low)


def changed(pairing: Pairing) -> list[Path]:
    """Files that are not what they were when their headers were read."""
    paths = {piece.path: (piece.size, piece.mtime_ns) for piece in used(pairing)}
    return [path for path, before in paths.items() if _stat(path) != before]


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def locked(out: Path, wait_s: float = 0.0) -> Iterator[Path]:
    """Hold OUT for one build alone; yield the folder of its state. Unless the build claims OUT, it ends as it began.

    ``wait_s`` is how long to wait for another one; negative = for ever.

    Raises
    ------
    InputError
        If another build works in OUT, or it cannot be written or locked.
    """
    state = out / STATE
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        state.mkdir(parents=True, exist_ok=True)
        (state / "lock").touch()
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None
    with lock.locked(state / "lock", f"another build is at work in {out}", wait_s):
        try:
            yield state
        finally:
            if not (state / PLAN).exists():
                shutil.rmtree(state, ignore_errors=True)
                for folder in new:
                    with contextlib.suppress(OSError):  # the report is in it
                        folder.rmdir()


@contextlib.contextmanager
def part_locked(state: Path, part: Part) -> Iterator[None]:
    """Say that a part of the build is at work.

    Raises
    ------
    InputError
        If the same part is at work already.
    """
    path = state / f"part-{part.number}-of-{part.count}.lock"
    with lock.locked(path, f"another process builds part {part} in {state.parent}"):
        yield


@contextlib.contextmanager
def alone(state: Path) -> Iterator[None]:
    """Keep the parts of a build away.

    Raises
    ------
    InputError
        If one is at work.
    """
    with contextlib.ExitStack() as stack:
        for path in sorted(state.glob("part-*.lock")):
            stack.enter_context(lock.locked(path, f"{path.stem} of this build is at work in {state.parent}"))
        yield


def check_claim(out: Path, state: Path) -> None:
    """Refuse a folder that holds something else, before any work.

    Raises
    ------
    InputError
        Naming one of the things in it.
    """
    others = [path.name for path in out.iterdir() if path.name not in (STATE, REPORT)]
    if others and not (state / PLAN).exists():
        raise InputError(
            f"{out} is not empty and not a build's (it holds {printable(others[0])}); choose another folder"
        )


def begin(out: Path, state: Path, settings: dict[str, Any], input_state: str, tidy: bool = True) -> bool:
    """Go on with the build that OUT holds, if it holds one; return whether all is done already.

    ``tidy``: remove what killed builds left half-written. Not where others may be writing.

    Raises
    ------
    InputError
        If it is of other settings, other input or another version of the sharder.
    """
    if not (state / PLAN).exists():
        return False
    before = json.loads((state / PLAN).read_text())
    was = before["settings"]
    differences = [
        f"{name} was {was.get(name)!r}, is {settings.get(name)!r}"
        for name in was | settings
        if was.get(name) != settings.get(name)
    ]
    if differences:
        raise InputError(
            f"{out} holds shards of other settings: {', '.join(differences)}; delete it or choose another folder"
        )
    if before.get("sharder") != SHARDER:
        raise InputError(
            f"{out} was begun by another version of the sharder; finished shards stay good, but to build again "
            "delete it or choose another folder"
        )
    if before["fingerprint"] != input_state:
        raise InputError(f"{out} holds shards of another state of the input; delete it or choose another folder")
    for stale in [*out.glob("*.tmp"), *state.glob("*.tmp")] if tidy else []:
        stale.unlink(missing_ok=True)
    return whole(out)


def claim(state: Path, settings: dict[str, Any], input_state: str) -> None:
    """Note whose OUT is, before the first shard."""
    note = {"fingerprint": input_state, "settings": settings, "sharder": SHARDER}
    write_text(state / PLAN, json.dumps(note, indent=1) + "\n")


def forget(out: Path, state: Path, plans: list[ShardPlan]) -> None:
    """Take back a claim, with its shards."""
    for plan in plans:
        (out / plan.name).unlink(missing_ok=True)
    (out / REPORT).unlink(missing_ok=True)
    (state / PLAN).unlink(missing_ok=True)  # last: a folder with shards and without a plan is nobody's


def whole(out: Path) -> bool:
    """Whether OUT has a manifest and every shard in full length."""
    try:
        shards = load(out).shards
        return all((out / shard.name).stat().st_size == shard.bytes for shard in shards)
    except (InputError, OSError):
        return False


def saved(state: Path, plan: ShardPlan) -> Finished | None:
    """What an earlier run noted of a shard, if the shard is there in full length."""
    try:
        fields = json.loads((state / f"{plan.name}.json").read_text())
        shard = Shard(**{**fields["shard"], "records": [Record(**record) for record in fields["shard"]["records"]]})
        if (plan.folder / plan.name).stat().st_size != shard.bytes:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Finished(shard, Sums(**fields["sums"]), fields["left_out"], fields["digests"])
