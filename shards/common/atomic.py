"""Files that appear whole or not at all, also after a power cut."""

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system without hard links answers: FAT, exFAT, some behind FUSE."""


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


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


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
            _to_disk(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text`` (UTF-8), atomically."""
    with atomic(path) as file:
        file.write(text.encode())


def write_once(path: Path, text: str, mode: int = 0o666) -> bool:
    """Write ``text`` (UTF-8) to ``path`` unless it is there, atomically; whether this call wrote it.

    Of several processes that write at once, on hosts that share the disk, one does: a hard link decides which.

    Parameters
    ----------
    mode : int
        Permissions of a new file, before the umask.

    Raises
    ------
    OSError
        For a full disk or a folder that cannot be written.
    """
    temporary = temporary_name(path)
    try:
        temporary.unlink(missing_ok=True)  # of a process of this number that was killed
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(text.encode())
            _to_disk(file)
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            # a disk of one machine: who reads, or is killed, between these two lines leaves or finds an empty file,
            # which every reader refuses
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            os.replace(temporary, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):  # where it could not be made
            temporary.unlink()
    sync_folder(path.parent)
    return True
