"""One key to a folder of deidentified images: a note in it tells which, and gives nothing of the key away."""

import json
from pathlib import Path

from shards.common.atomic import write_once
from shards.common.command import InputError
from shards.deidentify import Deidentifier

NAME = "deidentified.json"


class FolderKey(Deidentifier):
    """A Deidentifier for the images of one folder, which notes its key there before the first image is written.

    Parameters
    ----------
    path : Path
        File with the secret.
    out : Path
        Folder of the images.

    Raises
    ------
    InputError
        If the folder has the note of another key.
    """

    def __init__(self, path: Path, out: Path) -> None:
        noted = read_note(out)  # before the key: another part writes its key first and then the note
        super().__init__(path, out)
        self.out = out
        self._check(noted)

    def keep(self) -> None:
        """Write a new secret to its file, and the note to the folder."""
        super().keep()
        self.out.mkdir(parents=True, exist_ok=True)
        write_once(self.out / NAME, json.dumps({"deidentified": self.fingerprint()}) + "\n")
        self._check(read_note(self.out))

    def _check(self, noted: str | None) -> None:
        if noted not in (None, self.fingerprint()):
            raise InputError(
                f"{self.out} was made with another key; give that to --deidentify, or choose another folder"
            )


def open_key(path: Path | None, out: Path, source: Path) -> FolderKey | None:
    """What takes the patient out of the headers of images written below ``out``; None without a ``path``.

    The note speaks for all of ``out``, so all of it is looked at, but for the images below ``source``.

    Raises
    ------
    InputError
        If images are there that were written without a key, or with one where there is none now, or with another.
    """
    images = (each for each in out.rglob("*.dcm") if not each.resolve().is_relative_to(source.resolve()))
    before = next(images, None) if path else None  # before the note, as above
    noted = read_note(out)
    if path is None:
        if noted is not None:
            raise InputError(f"{out} is deidentified; give its key to --deidentify, or choose another folder")
        return None
    if before is not None and noted is None:
        raise InputError(
            f"{before.parent} holds images and {out / NAME} is not there: they were made without --deidentify, or by a "
            "version that noted no key; delete them, or choose another folder"
        )
    return FolderKey(path, out)


def read_note(out: Path) -> str | None:
    """What tells the key of ``out`` from another; None where no note is there."""
    path = out / NAME
    try:
        return str(json.loads(path.read_text())["deidentified"]) if path.exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete {out} or choose another folder") from None
