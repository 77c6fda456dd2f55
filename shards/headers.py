"""The headers of all files of a folder, read over processes and kept for the next time."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.common.atomic import write_text
from shards.common.command import Progress
from shards.common.pool import Workers
from shards.dicom import Coding, Damaged, Slice, Unreadable, Unusable, read_slices
from shards.manifest import SHARDER

FIRST_BYTES = 512
"""Bytes of a file that are hashed to tell, with its path, size and time of change, whether it was read before.
They hold the SOPInstanceUID, which no two images share."""

_NAMES: dict[type, list[str]] = {
    kind: [field.name for field in dataclasses.fields(kind) if field.name not in ("path", "coding")]
    for kind in (Slice, Coding)
}
Header = list[Slice] | Unusable
"""The slices of a file, or why it has none."""


class Headers:
    """Reads headers; remembers in a file those it has read.

    Parameters
    ----------
    workers : Workers
        Read the headers.
    memory : Path, optional
        The file that remembers; it is made where it is missing, and what does not fit any more is read again.
    """

    def __init__(self, workers: Workers, memory: Path | None = None) -> None:
        self.workers, self.memory = workers, memory
        self.known = _load(memory) if memory else {}

    def read(self, paths: list[Path]) -> Iterator[Header]:
        """The header of each file, in order."""
        asked = ([(path, self.known.get(str(path))) for path in chunk] for chunk in _chunks(paths))
        entries: dict[str, Any] = {}
        with Progress("headers", len(paths), "files") as progress:
            for chunk, read in zip(_chunks(paths), self.workers.each(_read_all, asked), strict=True):
                for path, (mark, header, stored) in zip(chunk, read, strict=True):
                    if mark is not None and not isinstance(header, Unreadable):
                        entries[str(path)] = stored or [mark, _to_json(header)]
                    progress.update()
                    yield header
        if self.memory and entries != self.known:
            write_text(self.memory, json.dumps({"sharder": SHARDER, "files": entries}))


def _chunks(paths: list[Path]) -> Iterator[list[Path]]:
    """Lists of 64, each worth sending to a process."""
    return (paths[start : start + 64] for start in range(0, len(paths), 64))


def _load(memory: Path) -> dict[str, Any]:
    try:
        content = json.loads(memory.read_text())
        return dict(content["files"]) if content["sharder"] == SHARDER else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _read_all(items: list[tuple[Path, Any]]) -> list[tuple[list[Any] | None, Header, Any]]:
    """Of each file its mark, its header, and what is known of it, where the mark still fits."""
    results: list[tuple[list[Any] | None, Header, Any]] = []
    for path, known in items:
        try:
            mark = _mark(path)
        except OSError as error:
            results.append((None, Unreadable(f"cannot be read: {error.strerror or error}"), None))
            continue
        if known is not None and known[0] == mark:
            results.append((mark, _from_json(path, known[1]), known))
            continue
        try:
            results.append((mark, read_slices(path), None))
        except Unusable as reason:
            results.append((mark, reason, None))
    return results


def _mark(path: Path) -> list[Any]:
    """Size, time of change, and a hash of the first bytes."""
    with open(path, "rb") as file:
        first = file.read(FIRST_BYTES)
        stat = os.fstat(file.fileno())
    return [stat.st_size, stat.st_mtime_ns, hashlib.blake2b(first, digest_size=16).hexdigest()]


def _to_json(header: Header) -> Any:
    """Lists of values without their names: a tree has hundreds of thousands of headers."""
    if isinstance(header, Unusable):
        return [type(header).__name__, str(header)]
    return [[_values(piece.coding), *_values(piece)] for piece in header]


def _values(item: Slice | Coding) -> list[Any]:
    return [getattr(item, name) for name in _NAMES[type(item)]]


def _from_json(path: Path, stored: Any) -> Header:
    if stored and isinstance(stored[0], str):
        return {"Unusable": Unusable, "Damaged": Damaged}[stored[0]](stored[1])
    return [
        Slice(path=path, coding=Coding(**_named(Coding, coding)), **_named(Slice, values)) for coding, *values in stored
    ]


def _named(kind: type[Slice] | type[Coding], values: list[Any]) -> dict[str, Any]:
    """The values with their names again, tuples where JSON made lists."""
    tuples = (tuple(value) if isinstance(value, list) else value for value in values)
    return dict(zip(_NAMES[kind], tuples, strict=True))
