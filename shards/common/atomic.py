"""Files that appear whole or not at all, also after a power cut."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: a rename is safe only once its directory is on disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that no other process or thread uses, on this or another host that shares the disk."""
    return path.with_name(f"{path.name}.{socket.gethostname()}.{threading.get_native_id()}.tmp")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path``; on success fsync it and rename it to ``path``.

    After an exception the temporary file is removed and ``path`` is as it was before.

    Raises
    ------
    OSError
        For a full disk or a folder that cannot be written.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text`` (UTF-8), atomically."""
    with atomic(path) as file:
        file.write(text.encode())
