"""An evaluation and its files in a run folder.

RUN/eval/SPLIT.json          means over patients with intervals, how it was measured, what the names mean
RUN/eval/SPLIT-slices.csv    one line per method and slice
RUN/eval/SPLIT-patients.csv  one line per method and patient
RUN/eval/SPLIT-slices.npz    a few slices for people to look at; ldct/runs/slices_file.py reads it

SPLIT is test, val or pairs, or the user's name for these slices. Each run's files hold the baselines beside the run, so
that a run folder speaks for itself.
"""

import csv
import dataclasses
import json
import math
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldct.evaluation.datasets import Acquisition
from ldct.metrics import intervals, protocols, registry
from ldct.metrics.intervals import Estimate, Measured
from ldct.runs import slices_file
from ldct.runs.slices_file import SlicesFile
from shards.common.atomic import atomic, write_text
from shards.common.table import csv_text

VERSION = 1
"""Of these files; those of another version are measured again."""
REGION = "whole slice, air included, no body mask"
"""What the metrics are taken over."""
BEST = "best checkpoint (step {})"
"""How the detail of a run's result begins."""
FULL = "full dose"
"""Name of the target among the pictures; it has no metrics."""


@dataclass
class Result:
    """One method on all slices."""

    name: str
    """A baseline's name, or a run folder's."""
    detail: str
    """How it was set: the blur's SD, the run's step."""
    slices: list[Measured]
    rate: float
    """Slices per second, of the method alone."""
    device: str
    mark: str = ""
    """sha256 of the run's checkpoint; empty for a baseline."""
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    """Outputs by key, int16 HU, of the slices for people to look at."""

    @property
    def means(self) -> dict[str, Estimate]:
        """Mean over patients, by metric."""
        return intervals.over_patients(intervals.by_patient(self.slices))


@dataclass
class Evaluation:
    """What was measured on one set of slices, and under which conditions."""

    split: str
    """test or val, pairs for a folder of DICOM pairs, or the user's name for the slices."""
    data: str
    """sha256 that names the slices: of the shards' manifest, or of the pairs."""
    note: str
    """How the split was made."""
    protocols: list[str]
    """The first is the one that ranks."""
    results: list[Result] = field(default_factory=list)
    """Baselines first."""
    full: dict[str, np.ndarray] = field(default_factory=dict)
    """Full dose by key, int16 HU, of the slices for people to look at."""
    taken: dict[str, Acquisition] = field(default_factory=dict)
    """How those were taken, by key; what was measured by 0.1.0 does not say."""

    def conditions(self) -> dict[str, Any]:
        """What two evaluations must share to be compared."""
        return {
            "version": VERSION,
            "split": self.split,
            "data": self.data,
            "protocols": self.protocols,
            "metrics": self.metrics,
        }

    @property
    def extent(self) -> str:
        """How many slices of how many patients, which; for people."""
        slices, patients = len(self.results[0].slices), len(self.patients)
        whose = f"{patients} patient{'s' if patients > 1 else ''}"
        return f"{slices} slices of {whose} ({self.split}; {self.note})"

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics of every slice; before anything is measured, of those that will be."""
        return list(self.results[0].slices[0].values) if self.results else registry.names(self.protocols)

    def get(self, name: str) -> Result:
        """The result called ``name``."""
        return next(result for result in self.results if result.name == name)

    @property
    def patients(self) -> list[str]:
        """Patients, in order."""
        return list(dict.fromkeys(measured.patient for measured in self.results[0].slices))


def check_writable(run: Path) -> None:
    """Make ``run``/eval, and a file in it for a moment; OSError if that cannot be done."""
    (run / "eval").mkdir(exist_ok=True)
    tempfile.TemporaryFile(dir=run / "eval").close()


def save(run: Path, evaluation: Evaluation) -> None:
    """Write the files of ``evaluation`` to ``run``/eval.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    folder, split = run / "eval", evaluation.split
    folder.mkdir(exist_ok=True)
    with atomic(folder / f"{split}-slices.npz") as file:
        shown = {FULL: evaluation.full} | {result.name: result.pictures for result in evaluation.results}
        pictures = {f"{name}/{key}": image for name, images in shown.items() for key, image in images.items()}
        slices_file.write(file, pictures)
    rows = [(r.name, m.patient, m.key, m.values) for r in evaluation.results for m in r.slices]
    _write_csv(folder / f"{split}-slices.csv", ("method", "patient", "slice"), rows)
    patients = [(r.name, p, values) for r in evaluation.results for p, values in intervals.by_patient(r.slices).items()]
    _write_csv(folder / f"{split}-patients.csv", ("method", "patient"), patients)
    write_text(folder / f"{split}.json", json.dumps(summary(evaluation), indent=1) + "\n")  # last: it vouches for all


def _write_csv(path: Path, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """A line of ``head``, then one per row: its names, then the values of its dictionary."""
    write_text(path, csv_text([[*head, *rows[0][-1]], *([*row[:-1], *row[-1].values()] for row in rows)]))


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """The content of SPLIT.json."""
    return {
        **evaluation.conditions(),
        "note": evaluation.note,
        "region": REGION,
        "protocol_definitions": {name: protocols.get(name).text for name in evaluation.protocols},
        "metric_definitions": {name: _definition(name) for name in evaluation.metrics},
        "averaging": "slices within a patient, then patients; half = half the 95 % interval (Student's t), null with "
        f"fewer than {intervals.LEAST_PATIENTS} patients",
        "patients": len(evaluation.patients),
        "slices": len(evaluation.results[0].slices),
        "taken": {key: dataclasses.asdict(taken) for key, taken in evaluation.taken.items()},
        "methods": [
            {
                "name": result.name,
                "detail": result.detail,
                "checkpoint_sha256": result.mark,
                "slices_per_s": _plain(result.rate),
                "device": result.device,
                "metrics": {
                    key: {"mean": _plain(e.mean), "half": _plain(e.ci95_half_width)} for key, e in result.means.items()
                },
            }
            for result in evaluation.results
        ],
    }


def _definition(name: str) -> str:
    metric = registry.find(name)
    return f"{metric.title}: {metric.definition}"


def _plain(value: float | None) -> float | None:
    """JSON knows no infinity and no nan."""
    return value if value is not None and math.isfinite(value) else None


def is_of(run: Path, split: str, data: str) -> bool:
    """Whether ``run`` has an evaluation called ``split`` of the slices that ``data`` names."""
    try:
        return json.loads((run / "eval" / f"{split}.json").read_text())["data"] == data
    except (OSError, ValueError, KeyError):
        return False


def load(run: Path, split: str) -> Evaluation | None:
    """What ``save`` wrote to ``run``; None if there is nothing, or nothing that this version can read."""
    folder = run / "eval"
    try:
        about = json.loads((folder / f"{split}.json").read_text())
        if about["version"] != VERSION:
            return None
        slices = _read_slices(folder / f"{split}-slices.csv")
        pictures: dict[str, dict[str, np.ndarray]] = {}
        with SlicesFile(folder / f"{split}-slices.npz") as file:
            for name, image in file.items():
                method, _, key = name.rpartition("/")
                pictures.setdefault(method, {})[key] = image
        results = [
            Result(
                m["name"],
                m["detail"],
                slices[m["name"]],
                math.inf if m["slices_per_s"] is None else m["slices_per_s"],
                m["device"],
                m["checkpoint_sha256"],
                pictures.get(m["name"], {}),
            )
            for m in about["methods"]
        ]
        taken = {key: Acquisition(**fields) for key, fields in about.get("taken", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    full = pictures.get(FULL, {})
    return Evaluation(about["split"], about["data"], about["note"], about["protocols"], results, full, taken)


def _read_slices(path: Path) -> dict[str, list[Measured]]:
    """Slices by method."""
    by_method: dict[str, list[Measured]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            method, patient, key = row.pop("method"), row.pop("patient"), row.pop("slice")
            values = {name: float(text) for name, text in row.items()}
            by_method.setdefault(method, []).append(Measured(patient, key, values))
    return by_method
