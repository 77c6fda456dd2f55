"""The files of an input folder, and their names as texts."""

import os
from collections.abc import Iterator
from pathlib import Path


def files_under(folder: Path, passed_over: dict[Path, str] | None = None) -> Iterator[Path]:
    """Every file below ``folder`` in a fixed order, without hidden ones.

    Parameters
    ----------
    folder : Path
        Links to folders are followed, each folder is read once.
    passed_over : dict, optional
        Filled with the folders that were not read, and why: no permission, an I/O error, or a link to one that was.
    """
    skipped: dict[Path, str] = {} if passed_over is None else passed_over
    seen: dict[str, Path] = {}

    def unreadable(error: OSError) -> None:
        skipped[Path(error.filename)] = f"the folder cannot be read: {error.strerror}"

    for where, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(where)
        if real in seen:  # a link back to a folder above would never end
            skipped[Path(where)] = f"the same folder as {printable(seen[real].relative_to(folder))}, by a link"
            folders[:] = []
            continue
        seen[real] = Path(where)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where) / name for name in sorted(names) if not name.startswith("."))


def printable(path: Path | str) -> str:
    """A path or a name as one line of valid UTF-8: what is not is written as an escape, e.g. ``\\xe4`` or ``\\n``."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
