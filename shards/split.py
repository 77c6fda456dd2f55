"""Which slices train, which choose the checkpoint (val), which are only measured at the end (test)."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.common.command import InputError
from shards.matching import Pair, Patient, person

FRACTION = {"val": 0.15, "test": 0.15}
"""Share of the patients, by a hash of their names, where no list is given."""
FEW = 6
"""Up to so many patients, shares of 15 % would often give a split nobody; then each gets one patient."""


@dataclass
class Split:
    """The pairs of each split."""

    pairs: dict[str, list[Pair]]
    """train, val, test: in order of patient and z."""
    about: dict[str, Any]
    """``by`` and ``note`` for the manifest."""
    left_out: list[dict[str, str]]


def _position(name: str) -> float:
    """A number in [0, 1) that depends on the patient's name alone, so that adding a patient moves no other."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def by_patient(patients: list[Patient], val: list[str] | None, test: list[str] | None, fold: str | None) -> Split:
    """Each patient wholly in one split, with all copies that simulate.py --variants made of it.

    Parameters
    ----------
    patients : list of Patient
    val, test : list of str, optional
        Names of patients, or one fraction; None for the default fraction, an empty list for nobody.
    fold : str, optional
        "K/N": the patients in N groups by name; group K is test, the next one val, the rest train.

    Raises
    ------
    InputError
        If a name is unknown or in two splits, or a split that should have patients has none.
    """
    names = list(dict.fromkeys(person(patient.name) for patient in patients if patient.pairs))
    if len(names) == 1:
        raise InputError(f"{names[0]} is the only patient, so no split by patient is possible; use --split slabs")
    if fold is not None:
        if val is not None or test is not None:
            raise InputError("--fold chooses val and test by itself; leave out --val and --test")
        chosen, note = _fold(names, fold)
    else:
        chosen, note = _lists(names, val, test)
    if not any(split == "train" for split in chosen.values()):
        raise InputError(f"no patient is left to train on, of {', '.join(names)}; name fewer in --val and --test")
    pairs = {split: [p for patient in patients for p in patient.pairs if chosen[person(patient.name)] == split]
             for split in ("train", "val", "test")}  # fmt: skip
    return Split(pairs, {"by": "patient", "note": note}, [])


def _fold(names: list[str], fold: str) -> tuple[dict[str, str], str]:
    """Cross-validation: group K of N."""
    match = re.fullmatch(r"(\d+)/(\d+)", fold)
    k, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= k <= n or not 3 <= n <= len(names):
        raise InputError(f"--fold {fold}: expected K/N with K from 1 to N and N from 3 to {len(names)} (the patients)")
    groups = {name: i % n + 1 for i, name in enumerate(sorted(names))}
    role = {k: "test", k % n + 1: "val"}
    return {name: role.get(group, "train") for name, group in groups.items()}, f"by patient, fold {k} of {n}"


def _lists(names: list[str], val: list[str] | None, test: list[str] | None) -> tuple[dict[str, str], str]:
    """Named patients first, then fractions of the rest by hash, or single ones where there are few patients."""
    chosen: dict[str, str] = {}
    fractions: dict[str, float] = {}
    single: list[str] = []
    for split, given in (("val", val), ("test", test)):
        if given is None and len(names) <= FEW:
            single.append(split)
        elif given is None or (len(given) == 1 and re.fullmatch(r"0?\.\d+", given[0])):
            fractions[split] = FRACTION[split] if given is None else float(given[0])
        else:
            _choose_named(chosen, names, split, given)
    _choose_by_share(chosen, names, fractions)
    how = [f"{split}: {share:g} of the patients by hash" for split, share in fractions.items()]
    for split, end in (("val", "lowest"), ("test", "highest")):
        if split not in single:
            continue
        ranked = sorted((name for name in names if chosen[name] == "train"), key=_position)
        if len(ranked) > 1:  # somebody has to be left to train on; val first, because training needs it
            name = ranked[0] if end == "lowest" else ranked[-1]
            chosen[name] = split
            how.append(f"{split}: {name}, of {len(names)} patients the one of the {end} hash")
        else:
            how.append(f"{split}: nobody, {len(names)} patients are too few")
    return chosen, "; ".join(["by patient", *how]) if how else "by patient, named"


def _choose_named(chosen: dict[str, str], names: list[str], split: str, given: list[str]) -> None:
    folded = {name.casefold(): name for name in names}
    for name in given:
        known = folded.get(name.casefold(), folded.get(person(name.casefold())))
        if known is None:
            raise InputError(f"--{split} {name}: no such patient; there are {', '.join(names)}")
        if known in chosen:
            raise InputError(f"{known} is in --{chosen[known]} and in --{split}; a patient belongs to one split")
        chosen[known] = split


def _choose_by_share(chosen: dict[str, str], names: list[str], fractions: dict[str, float]) -> None:
    """Place each patient that was not named by its own hash: adding one moves no other."""
    test_from = 1 - fractions.get("test", 0.0)  # from the top, so that another --val moves nobody in test
    for name in [name for name in names if name not in chosen]:
        position = _position(name)
        chosen[name] = "val" if position < fractions.get("val", 0.0) else "test" if position >= test_from else "train"
    for split, share in fractions.items():
        if share and split not in chosen.values():
            raise InputError(
                f"by a hash of its name no patient of {', '.join(names)} falls into {split}; name one: --{split} ID, "
                f"or none: --{split} with nothing behind it"
            )


def all_test(patients: list[Patient]) -> Split:
    """Everything for test, none of it for training: a data set to measure networks on that were trained elsewhere."""
    pairs = {"train": [], "val": [], "test": [pair for patient in patients for pair in patient.pairs]}
    return Split(pairs, {"by": "patient", "note": "all patients for test, an external test set"}, [])


def by_slab(patients: list[Patient]) -> Split:
    """Each patient's slices in three contiguous slabs, train, val and test, with a gap between them.

    The gap is as wide as a slice is thick (at least one slice), so that no two slabs share tissue; they still share
    the patient, and the manifest says so. About 70 % train, 10 % val, 15 % test, the rest gap. For one patient, and for
    the copies that simulate.py --variants makes (NAME-v00, NAME-v01, ...): all copies of one have the same slabs.

    Raises
    ------
    InputError
        If there are several patients that are no copies, or one has fewer than 8 slices.
    """
    with_pairs = [patient for patient in patients if patient.pairs]
    copies = all(person(patient.name) != patient.name for patient in with_pairs)
    if len(with_pairs) != 1 and not copies:
        raise InputError(f"--split slabs is for one patient, found {len(with_pairs)}; use --split patient")
    chosen: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    left_out = []
    for patient in with_pairs:
        slabs, gap = _slabs(patient)
        for split, (start, stop) in slabs.items():
            chosen[split] += patient.pairs[start:stop]
        used = {pair.key for start, stop in slabs.values() for pair in patient.pairs[start:stop]}
        left_out += [
            {"what": pair.key, "why": "gap between the slabs of two splits"}
            for pair in patient.pairs
            if pair.key not in used
        ]
    whose = ", ".join(sorted({person(patient.name) for patient in with_pairs}))
    note = (
        f"not by patient: slabs of one patient, {whose}, {gap} slice{'s' * (gap > 1)} apart; "
        "figures from such a split say nothing about other patients"
    )
    return Split(chosen, {"by": "slab", "note": note}, left_out)


def _slabs(patient: Patient) -> tuple[dict[str, tuple[int, int]], int]:
    """First and last + 1 number of each slab's slices, and the slices between two."""
    pairs = patient.pairs
    n = len(pairs)
    if n < 8:
        raise InputError(f"--split slabs needs at least 8 slices of {patient.name}, found {n}")
    step = float(np.median(np.diff([pair.full.z for pair in pairs])))
    gap = max(1, int(np.ceil((pairs[0].full.thickness or 0) / step)) - 1)
    val, test = max(1, round(0.1 * n)), max(1, round(0.15 * n))
    train = n - val - test - 2 * gap
    if train < 1:
        raise InputError(f"--split slabs: {n} slices {step:g} mm apart leave none to train on between gaps of {gap}")
    return {"train": (0, train), "val": (train + gap, train + gap + val), "test": (n - test, n)}, gap
