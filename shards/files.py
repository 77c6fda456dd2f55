"""The files of an input folder."""

import os
from collections.abc import Iterator
from pathlib import Path


def files_under(folder: Path) -> Iterator[Path]:
    """Every file below ``folder`` in a fixed order, without hidden ones."""
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        names = [] if real in seen else names  # a link back to a folder above would never end
        seen.add(real)
        yield from (Path(where) / name for name in sorted(names) if not name.startswith("."))
