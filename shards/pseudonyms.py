"""Names for patients that say nothing of them: the table stays with the user, and only the pseudonyms go into shards.

Opt-in, because the public data sets (L067, C121) carry pseudonyms already, which papers cite and splits are named by. A
table and not a keyed hash, because whoever has patients of their own needs the way back, as for a withdrawn consent.
"""

import collections
import csv
import io
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from shards.common.atomic import write_text
from shards.common.command import InputError
from shards.common.table import csv_text
from shards.matching import person
from shards.pairing import Pairing

COLUMNS = ["patient", "pseudonym"]


class Pseudonyms:
    """The table in a CSV file with the columns patient and pseudonym; users may write their own pseudonyms into it.

    Parameters
    ----------
    path : Path
        The file; made, for its owner alone, where it is missing.

    Raises
    ------
    InputError
        If the file cannot be read, has other columns, or gives two patients one pseudonym or an unfit one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.of: dict[str, str] = {}
        if not path.exists():
            return
        try:
            rows = list(csv.reader(io.StringIO(path.read_text())))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as a table of pseudonyms: {error}") from None
        if not rows or rows[0] != COLUMNS or any(len(row) != 2 for row in rows):
            raise InputError(f"{path}: expected a CSV file whose first line is {','.join(COLUMNS)}, and two columns")
        for patient, pseudonym in rows[1:]:
            if not re.fullmatch("[A-Za-z0-9_-]{1,48}", pseudonym):
                raise InputError(f"{path}: pseudonym {pseudonym!r}: expected up to 48 letters, digits, - and _")
            if patient in self.of or pseudonym in self.of.values():
                raise InputError(f"{path}: {pseudonym} or its patient stands there twice; each needs a line of its own")
            self.of[patient] = pseudonym

    def names(self, patients: Iterable[str]) -> dict[str, str]:
        """The pseudonym of each patient; new ones get numbers in random order, and go into the file at once.

        Copies that simulate.py --variants made stay copies of one patient: NAME-v00 becomes P0001-v00.
        """
        persons = {patient: person(patient) for patient in patients}
        new = [name for name in dict.fromkeys(persons.values()) if name not in self.of]
        free = [f"P{number:04d}" for number in range(1, len(self.of) + len(new) + 1)]
        free = [name for name in free if name not in self.of.values()]
        secrets.SystemRandom().shuffle(free)
        self.of |= dict(zip(new, free, strict=False))
        if new:
            self._write(self.path, [COLUMNS, *sorted(self.of.items())])
        return {patient: self.of[name] + patient[len(name) :] for patient, name in persons.items()}

    def hide(self, pairing: Pairing) -> Path:
        """Take the names of files out of a pairing's reasons; return the file beside the table that keeps them."""
        beside = self.path.with_name(f"{self.path.stem}.left_out.csv")
        rows = [[out["what"], out["why"]] for out in pairing.left_out]
        rows += [[name, why] for name, why in pairing.problems.items()]
        self._write(beside, [["what", "why"], *rows])
        reasons = collections.Counter(out["why"].split(":")[0] for out in pairing.left_out)
        pairing.left_out = [
            {"what": f"{count} file{'s' * (count > 1)}", "why": why} for why, count in sorted(reasons.items())
        ]
        known = {patient.name for patient in pairing.patients}
        where = [name if name in known else f"folder-{number}" for number, name in enumerate(pairing.problems, 1)]
        pairing.problems = dict.fromkeys(where, f"something of it was not read, see {beside.name}")
        return beside

    def _write(self, path: Path, rows: Sequence[Sequence[str]]) -> None:
        mask = os.umask(0o077)
        try:
            write_text(path, csv_text(rows))
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None
        finally:
            os.umask(mask)
