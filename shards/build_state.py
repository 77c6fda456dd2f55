"""The state of a build in OUT/.build: for which settings and input, by whom, and what each finished shard holds."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.common import lock
from shards.common.atomic import write_text
from shards.common.command import InputError
from shards.files import files_under
from shards.manifest import Record, Shard, load
from shards.writer import Finished, ShardPlan, Sums

STATE = ".build"
"""Its folder in OUT."""
REPORT = "pairing.json"
"""The pairing report in OUT."""


def fingerprint(source: Path, settings: dict[str, Any]) -> str:
    """Names settings and input: sha256 over every file's name, size and time of change."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in files_under(source):
        try:
            stat = path.stat()
        except OSError:  # a link to nowhere, or just deleted: the report will say so
            continue
        digest.update(f"{path.relative_to(source).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def locked(out: Path) -> Iterator[Path]:
    """Hold OUT for one build alone; yield the folder of its state.

    Raises
    ------
    InputError
        If another build works in OUT, or it cannot be written or locked.
    """
    state = out / STATE
    try:
        state.mkdir(parents=True, exist_ok=True)
        (state / "lock").touch()
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None
    with lock.locked(state / "lock", f"another build is at work in {out}"):
        yield state


def begin(out: Path, state: Path, settings: dict[str, Any], input_state: str) -> bool:
    """Claim OUT for these settings and this input; return whether all is done already.

    Raises
    ------
    InputError
        If OUT holds something else.
    """
    note = state / "plan.json"
    if not note.exists():
        others = [path.name for path in out.iterdir() if path.name not in (STATE, REPORT)]
        if others:
            raise InputError(f"{out} is not empty and not a build's (it holds {others[0]}); choose another folder")
        write_text(note, json.dumps({"fingerprint": input_state, "settings": settings}, indent=1) + "\n")
        return False
    before = json.loads(note.read_text())
    if before["fingerprint"] != input_state:
        was = before["settings"]
        changed = [
            f"{name} was {was.get(name)!r}, is {new!r}" for name, new in settings.items() if was.get(name) != new
        ]
        what = "other settings: " + ", ".join(changed) if changed else "another state of the input"
        raise InputError(f"{out} holds shards of {what}; delete it or choose another folder")
    for stale in [*out.glob("*.tmp"), *state.glob("*.tmp")]:
        stale.unlink(missing_ok=True)
    return whole(out)


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
    return Finished(shard, Sums(**fields["sums"]), fields["left_out"])
