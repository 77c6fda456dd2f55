"""Turn DICOM series at two doses into tar shards of patch pairs.

    python shards/build.py data/aapm data/shards --val L333 --test L506 --workers 8
    python shards/build.py data/demo data/shards --split slabs
    python shards/build.py data/mine data/shards --full 'nd/{patient}/*.dcm' --quarter 'ld/{patient}/*.dcm'

Prints a report of what pairs with what before any work; killed and run again, it does what is missing.
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from shards import index, manifest, pairing_report, patching
from shards.build_state import (
    PLAN,
    REPORT,
    alone,
    begin,
    changed,
    check_claim,
    claim,
    fingerprint,
    forget,
    locked,
    part_locked,
    saved,
)
from shards.common import part
from shards.common.atomic import write_text
from shards.common.command import NO_ROOM, InputError, Progress, command
from shards.common.pool import Workers
from shards.files import printable
from shards.manifest import SHARDER, SPLITS, Manifest, as_json
from shards.matching import person
from shards.pairing import Pairing, find_pairs
from shards.pseudonyms import Pseudonyms
from shards.series import SeveralSeries
from shards.split import Split, all_test, by_patient, by_slab
from shards.writer import Finished, ShardPlan, Sums, write_shard


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN", help="folder with the DICOM series of all patients")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the shards")
    parser.add_argument("--full", metavar="GLOB", help="files at full dose, relative to IN, with {patient}")
    parser.add_argument("--quarter", metavar="GLOB", help="files at reduced dose, relative to IN, with {patient}")
    parser.add_argument("--series", metavar="NAME", help="thickness and kernel where IN has several, e.g. 1mm_sharp")
    parser.add_argument("--split", choices=("patient", "slabs", "test"), default="patient",
                        help="slabs: parts of a single patient; test: all is one external test set")  # fmt: skip
    parser.add_argument("--val", nargs="*", metavar="ID", help="patients to choose checkpoints by, or one fraction")
    parser.add_argument("--test", nargs="*", metavar="ID", help="patients to test on, or one fraction")
    parser.add_argument("--fold", metavar="K/N", help="cross-validation: part K of N is test, the next one val")
    parser.add_argument("--patch", type=int, default=55, help="side of a patch in pixels (%(default)s)")
    parser.add_argument("--stride", type=int, help="step between patches in pixels (default: their side)")
    parser.add_argument(
        "--tiling", choices=patching.TILINGS, default="document", help="cover: with the border (document)"
    )
    parser.add_argument("--shard-slices", type=int, default=64, help="most slices in a shard (%(default)s, 63 MB)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the training slices")
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s); the bytes do not depend on it")
    parser.add_argument("--allow", nargs="+", default=[], metavar="ID", help="patients to build in spite of the report")
    parser.add_argument("--pseudonyms", type=Path, metavar="FILE", help="keep names out of OUT; FILE is their table")
    part.add_argument(parser, "of several processes: write these shards only; then without it, for the manifest")
    parser.add_argument("--report-only", action="store_true", help="stop after the pairing report")
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuse numbers and pairs of options that make no sense."""
    if not options.source.is_dir():
        raise InputError(f"expected a folder with DICOM series, found no folder {options.source}")
    if options.out.resolve().is_relative_to(options.source.resolve()):
        raise InputError(f"OUT {options.out} lies inside IN {options.source}; choose a folder beside it")
    options.stride = options.patch if options.stride is None else options.stride
    for name in ("patch", "stride", "shard_slices", "workers"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")
    if options.stride > options.patch and options.tiling == "cover":
        raise InputError(
            f"--stride {options.stride} leaves gaps between patches of {options.patch}; --tiling cover has none"
        )
    if options.pseudonyms and options.pseudonyms.resolve().is_relative_to(options.out.resolve()):
        raise InputError(
            f"--pseudonyms {options.pseudonyms} lies inside OUT, which shall hold no names; put it elsewhere"
        )
    if (options.full is None) != (options.quarter is None):
        raise InputError("--full and --quarter go together; give both")
    if options.split != "patient" and (options.val is not None or options.test is not None or options.fold):
        raise InputError(f"--split {options.split} chooses val and test by itself; leave out --val, --test and --fold")


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What decides the bytes of the shards, apart from the input."""
    names = "full quarter series split val test fold patch stride tiling shard_slices seed"
    settings = {name: getattr(options, name) for name in names.split()}
    settings |= {"pseudonyms": True} if options.pseudonyms else {}
    return settings | ({"allow": sorted(options.allow)} if options.allow else {})


def plan_shards(split: Split, source: Path, out: Path, options: argparse.Namespace) -> list[ShardPlan]:
    """Cut each split into shards of nearly equal size.

    Training slices are spread over the shards by a seeded permutation: any few shards are a fair sample of all
    patients, which a loader that shuffles within a window of shards lives on. Val and test stay in patient and z.
    """
    plans = []
    for name in SPLITS:
        pairs = split.pairs[name]
        if name == "train":
            order = np.random.default_rng(options.seed).permutation(len(pairs))
            pairs = [pairs[i] for i in order]
        count = math.ceil(len(pairs) / options.shard_slices)
        for i in range(count):
            own = pairs[i * len(pairs) // count : (i + 1) * len(pairs) // count]
            anonymous, allowed = options.pseudonyms is not None, frozenset(options.allow)
            cut = (options.patch, options.stride, options.tiling, anonymous, allowed)
            plans.append(ShardPlan(f"{name}-{i:05d}.tar", name, own, out, source, *cut))
    return plans


def write_all(plans: list[ShardPlan], state: Path, workers: Workers) -> list[Finished]:
    """Write the shards that are missing; return what all of them hold."""
    finished = {plan.name: shard for plan in plans if (shard := saved(state, plan)) is not None}
    todo = [plan for plan in plans if plan.name not in finished]
    total = sum(len(plan.pairs) for plan in plans)
    kept = sum(len(plan.pairs) for plan in plans if plan.name in finished)
    written, began = 0, time.monotonic()
    with Progress("shards", total, "slices", start=kept) as progress:
        for plan, shard in zip(todo, workers.each(write_shard, todo), strict=True):
            write_text(state / f"{plan.name}.json", as_json(shard))
            finished[plan.name] = shard
            written += shard.shard.bytes
            progress.update(len(plan.pairs), f"{written / 1e6 / (time.monotonic() - began):.3g} MB/s")
    return [finished[plan.name] for plan in plans]


def make_manifest(settings: dict[str, Any], pairing: Pairing, split: Split, finished: list[Finished]) -> Manifest:
    """Gather what the shards hold."""
    sums = Sums()
    for done in finished:
        sums += done.sums
    by_split = {
        name: [r for done in finished if done.shard.split == name for r in done.shard.records] for name in SPLITS
    }
    members: dict[str, dict[str, list[str]]] = {name: {} for name in SPLITS}
    for name, records in by_split.items():
        for record in sorted(records, key=lambda record: record.key):
            members[name].setdefault(record.patient, []).append(record.key)
    counts = {
        name: {
            "patients": len(members[name]),
            "slices": len(records),
            "pairs": sum(record.shape[0] for record in records) if name == "train" else 0,
        }
        for name, records in by_split.items()
    }
    packages = ("pydicom", "numpy", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg", "pylibjpeg-rle")
    return Manifest(
        settings=settings,
        shards=[done.shard for done in finished],
        split={**split.about, **members},
        counts=counts,
        statistics=sums.statistics(),
        left_out=pairing.left_out + split.left_out + [out for done in finished for out in done.left_out],
        sharder={"version": SHARDER} | {name: importlib.metadata.version(name) for name in packages},
    )


def check_space(plans: list[ShardPlan], options: argparse.Namespace, out: Path) -> None:
    """Refuse to begin what the disk cannot hold."""
    need = 0
    for plan in plans:
        for pair in plan.pairs:
            patches = len(patching.origins(pair.full.shape, options.patch, options.stride, options.tiling))
            pixels = patches * options.patch**2 if plan.split == "train" else math.prod(pair.full.shape)
            need += 4 * pixels + 4096
    present = sum(path.stat().st_size for path in out.glob("*.tar"))
    free = shutil.disk_usage(out).free
    if need - present > free:
        raise InputError(
            f"the shards need {(need - present) / 1e9:.2f} GB, {out} has {free / 1e9:.2f} GB free; choose another OUT"
        )


def pair(options: argparse.Namespace, workers: Workers, state: Path) -> Pairing:
    """Pair the slices.

    Raises
    ------
    InputError
        If nothing pairs, or there are several series; then the commands that take each are printed.
    """
    globs = (options.full, options.quarter) if options.full else None
    table = Pseudonyms(options.pseudonyms) if options.pseudonyms else None
    memory = None if table else state / "headers.json"  # it holds names
    try:
        pairing = find_pairs(options.source, workers, globs, options.series, memory, table.names if table else None)
    except SeveralSeries as error:
        for name in error.names:
            print(shlex.join(["python", *sys.argv, "--series", name]))
        raise
    small = [pair for patient in pairing.patients for pair in patient.pairs if min(pair.full.shape) < options.patch]
    for patient in pairing.patients:
        large = [pair for pair in patient.pairs if min(pair.full.shape) >= options.patch]
        patient.pairs, patient.small = large, len(patient.pairs) - len(large)
    if table:
        print(f"{table.path} has the names, {table.hide(pairing)} the files that were left out; neither goes into OUT")
    pairing.left_out += [{"what": pair.key, "why": f"smaller than a patch of {options.patch} pixels"} for pair in small]
    return pairing


def report(pairing: Pairing, workers: Workers) -> list[dict[str, Any]]:
    """Print what is there, and return it patient by patient."""
    rows = pairing_report.patient_rows(pairing, workers)
    print(pairing_report.table(rows))
    if pairing.left_out:
        print(pairing_report.reasons(pairing.left_out))
    for patient, key in pairing.keys.items():
        if key != patient:
            print(f"in the names of records {patient} is {key}")
    return rows


def write_report(options: argparse.Namespace, rows: list[dict[str, Any]], pairing: Pairing) -> None:
    """OUT/pairing.json."""
    source = "" if options.pseudonyms else printable(options.source)
    content = pairing_report.as_json(source, rows, pairing.left_out, pairing.problems)
    write_text(options.out / REPORT, json.dumps(content, indent=1) + "\n")


def report_only(options: argparse.Namespace) -> None:
    """Pair and report, and nothing else."""
    with Workers(options.workers) as workers, locked(options.out) as state:
        pairing = pair(options, workers, state)
        rows = report(pairing, workers)
        if (state / PLAN).exists() or (options.out / manifest.NAME).exists():
            print(f"{options.out} holds shards: its {REPORT} stays that of their build")
        else:
            write_report(options, rows, pairing)
        pairing_report.refuse(rows, pairing, options.allow)


AGAIN = "run again when nothing writes to IN any more"

Prepared = tuple[Pairing, Split, list[ShardPlan]]
"""What is to be written."""


def prepare(options: argparse.Namespace, workers: Workers, state: Path) -> Prepared | None:
    """Pair the slices, split them and claim OUT; None if all is done already."""
    settings = settings_of(options)
    check_claim(options.out, state)
    pairing = pair(options, workers, state)
    pairing_report.check_allowed(pairing, options.allow)
    input_state = fingerprint(options.source, settings, pairing)
    several = options.part.count > 1
    begun = (state / PLAN).exists()
    if begin(options.out, state, settings, input_state, tidy=not several):
        print(f"{options.out}: all shards are there already")
        return None
    rows = [] if several and begun else report(pairing, workers)
    pairing_report.refuse(rows, pairing, options.allow)
    split = choose_split(pairing, options)
    plans = plan_shards(split, options.source, options.out, options)
    if not (several and begun):
        check_space(plans, options, options.out)
        claim(state, settings, input_state)
        write_report(options, rows, pairing)
    return pairing, split, plans


def build(options: argparse.Namespace) -> None:
    """Pair the slices, split them, write the shards and then the manifest. Until the first shard OUT is untouched."""
    with Workers(options.workers) as workers, locked(options.out) as state, alone(state):
        prepared = prepare(options, workers, state)
        if prepared is None:
            return
        pairing, split, plans = prepared
        finished = write_all(plans, state, workers)
        if paths := changed(pairing):
            forget(options.out, state, plans)
            raise InputError(f"{changed_line(paths, options)}; its shards are deleted: {AGAIN}")
        if twins := shared_images(finished, frozenset(options.allow)):
            forget(options.out, state, plans)
            raise InputError(f"{twins}; the shards are deleted: put it right, or build all the same with --allow")
        content = make_manifest(settings_of(options), pairing, split, finished)
        manifest.save(content, options.out)
        index.save(index.of_manifest(content), options.out, manifest.digest(options.out))
    for shard in finished:
        for out in shard.left_out:
            print(f"left out {out['what']}: {out['why']}")
    print(split.about["note"])
    for name, counts in content.counts.items():
        patches = f", {counts['pairs']} pairs of patches" * bool(counts["pairs"])
        print(
            f"{name}: {counts['patients']} patient{'s' * (counts['patients'] != 1)}, {counts['slices']} slices{patches}"
        )
    print(f"{options.out}: {len(finished)} shards, {sum(shard.shard.bytes for shard in finished) / 1e6:.1f} MB")


def shared_images(finished: list[Finished], allowed: frozenset[str]) -> str:
    """Which two patients have an image in common, whatever its UIDs say; "" if none have."""
    owners: dict[str, str] = {}
    for done in finished:
        for record in done.shard.records:
            image = done.digests.get(record.key)
            if image is None or record.patient in allowed:
                continue
            owner = owners.setdefault(image, record.patient)
            if person(owner) != person(record.patient):
                return f"{owner} and {record.patient} have the same image ({record.key}): one patient under two names"
    return ""


def build_part(options: argparse.Namespace) -> None:
    """Write the shards of one part, beside other processes that write theirs; only the first of them reports.

    Shards and not patients are shared out, for a training shard holds slices of all patients. Whatever is still missing
    when all parts have ended, the manifest at least, is what ``build`` then does.
    """
    with Workers(options.workers) as workers, contextlib.ExitStack() as stack:
        with locked(options.out, wait_s=-1) as state:
            prepared = prepare(options, workers, state)
            if prepared is None:
                return
            stack.enter_context(part_locked(state, options.part))
        pairing, _, plans = prepared
        finished = write_all(options.part.of(plans), state, workers)
        if paths := changed(pairing):
            raise InputError(f"{changed_line(paths, options)}; delete {options.out} and {AGAIN}")
    print(f"{options.out}: part {options.part}: {len(finished)} of {len(plans)} shards; no manifest yet")


def changed_line(paths: list[Path], options: argparse.Namespace) -> str:
    """How many files changed, and one of them where names may be said."""
    example = "" if options.pseudonyms else f", e.g. {printable(paths[0].relative_to(options.source))}"
    return f"{len(paths)} of the files changed during the build{example}"


def choose_split(pairing: Pairing, options: argparse.Namespace) -> Split:
    """The split by patient, the slabs of a single one, or all for test."""
    if options.split == "test":
        return all_test(pairing.patients)
    if options.split == "slabs":
        return by_slab(pairing.patients)
    return by_patient(pairing.patients, options.val, options.test, options.fold)


def main() -> None:
    options = arguments().parse_args()
    check(options)
    try:
        if options.report_only:
            report_only(options)
        elif options.part.count > 1:
            build_part(options)
        else:
            build(options)
    except OSError as error:
        full = error.errno in NO_ROOM
        remedy = "free some space and run again to go on" if full else "run again to go on"
        where = error.filename or options.out
        raise InputError(f"{where}: {error.strerror or error}; {remedy}") from None


if __name__ == "__main__":
    command(main)
