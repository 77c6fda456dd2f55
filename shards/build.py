"""Turn DICOM series at two doses into tar shards of patch pairs.

    python shards/build.py data/aapm data/shards --val L333 --test L506 --workers 8
    python shards/build.py data/demo data/shards --split slabs
    python shards/build.py data/mine data/shards --full 'nd/{patient}/*.dcm' --quarter 'ld/{patient}/*.dcm'

Prints what it found before any work; killed and run again, it does what is missing.
"""

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shards import tiling
from shards.atomic import write_text
from shards.command import InputError, Progress, command
from shards.dicom import files_under
from shards.manifest import NAME, SPLITS, Manifest, Record, Shard, save
from shards.pairing import Pairing, find_pairs
from shards.pool import each
from shards.split import Split, by_patient, by_slab
from shards.writer import Finished, ShardPlan, Sums, write_shard

STATE = ".build"
"""Folder in OUT with the state of the build: its settings, and what each finished shard holds."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN", help="folder with the DICOM series of all patients")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the shards")
    parser.add_argument("--full", metavar="GLOB", help="files at full dose, relative to IN, with {patient}")
    parser.add_argument("--quarter", metavar="GLOB", help="files at reduced dose, relative to IN, with {patient}")
    parser.add_argument("--series", metavar="NAME", help="thickness and kernel where IN has several, e.g. 1mm_sharp")
    parser.add_argument("--split", choices=("patient", "slabs"), default="patient", help="slabs: for a single patient")
    parser.add_argument("--val", nargs="*", metavar="ID", help="patients to choose checkpoints by, or one fraction")
    parser.add_argument("--test", nargs="*", metavar="ID", help="patients to test on, or one fraction")
    parser.add_argument("--fold", metavar="K/N", help="cross-validation: part K of N is test, the next one val")
    parser.add_argument("--patch", type=int, default=55, help="side of a tile in pixels (%(default)s)")
    parser.add_argument("--stride", type=int, help="step between tiles in pixels (default: the patch)")
    parser.add_argument("--tiling", choices=tiling.TILINGS, default="document", help="cover: no border left over")
    parser.add_argument("--shard-slices", type=int, default=64, help="most slices in a shard (%(default)s, 63 MB)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the training slices")
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s); the bytes do not depend on it")
    parser.add_argument("--report-only", action="store_true", help="stop after the pairing report")
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuse numbers and pairs of options that make no sense."""
    options.stride = options.patch if options.stride is None else options.stride
    for name in ("patch", "stride", "shard_slices", "workers"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")
    if options.stride > options.patch and options.tiling == "cover":
        raise InputError(
            f"--stride {options.stride} leaves gaps between tiles of {options.patch}; --tiling cover has none"
        )
    if (options.full is None) != (options.quarter is None):
        raise InputError("--full and --quarter go together")
    if options.split == "slabs" and (options.val is not None or options.test is not None or options.fold):
        raise InputError("--split slabs chooses val and test by itself; leave out --val, --test and --fold")


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What decides the bytes of the shards, apart from the input."""
    names = (
        "full",
        "quarter",
        "series",
        "split",
        "val",
        "test",
        "fold",
        "patch",
        "stride",
        "tiling",
        "shard_slices",
        "seed",
    )
    return {name: getattr(options, name) for name in names}


def fingerprint(source: Path, settings: dict[str, Any]) -> str:
    """Names settings and input: sha256 over every file's name, size and time of change."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in files_under(source):
        stat = path.stat()
        digest.update(f"{path.relative_to(source).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def locked(out: Path) -> Iterator[Path]:
    """Hold OUT for one build alone; yield the folder of its state.

    Raises
    ------
    InputError
        If another build works in OUT, or it cannot be written.
    """
    state = out / STATE
    try:
        state.mkdir(parents=True, exist_ok=True)
        (state / "lock").touch()
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None
    with open(state / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another build is at work in {out}; wait for it, or choose another folder") from None
        yield state


def begin(out: Path, state: Path, settings: dict[str, Any], mark: str) -> bool:
    """Claim OUT for these settings and this input; return whether all is done already.

    Raises
    ------
    InputError
        If OUT holds something else.
    """
    note = state / "plan.json"
    if note.exists():
        before = json.loads(note.read_text())
        if before["fingerprint"] != mark:
            changed = [k for k in settings if before["settings"].get(k) != settings[k]]
            what = "other settings: " + ", ".join(
                f"{k} was {before['settings'].get(k)!r}, is {settings[k]!r}" for k in changed
            )
            raise InputError(
                f"{out} holds shards of {what if changed else 'another state of the input'}; "
                "delete it or choose another folder"
            )
        for stale in [*out.glob("*.tmp"), *state.glob("*.tmp")]:
            stale.unlink(missing_ok=True)
        return (out / NAME).exists()
    others = [path.name for path in out.iterdir() if path.name != STATE]
    if others:
        raise InputError(f"{out} is not empty and not a build's (it holds {others[0]}); choose another folder")
    write_text(note, json.dumps({"fingerprint": mark, "settings": settings}, indent=1) + "\n")
    return False


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
            part = pairs[i * len(pairs) // count : (i + 1) * len(pairs) // count]
            plans.append(
                ShardPlan(f"{name}-{i:05d}.tar", name, part, out, source, options.patch, options.stride, options.tiling)
            )
    return plans


def _saved(state: Path, plan: ShardPlan) -> Finished | None:
    """What an earlier run noted of a shard, if the shard is there in full length."""
    try:
        fields = json.loads((state / f"{plan.name}.json").read_text())
        shard = Shard(**{**fields["shard"], "records": [Record(**record) for record in fields["shard"]["records"]]})
        if (plan.folder / plan.name).stat().st_size != shard.bytes:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Finished(shard, Sums(**fields["sums"]), fields["left_out"])


def write_all(plans: list[ShardPlan], state: Path, workers: int) -> list[Finished]:
    """Write the shards that are missing; return what all of them hold."""
    finished = {plan.name: done for plan in plans if (done := _saved(state, plan)) is not None}
    todo = [plan for plan in plans if plan.name not in finished]
    total, there = sum(len(p.pairs) for p in plans), sum(len(p.pairs) for p in plans if p.name in finished)
    written = 0
    with Progress("shards", total, "slices", start=there) as progress:
        for plan, done in zip(todo, each(write_shard, todo, workers), strict=True):
            write_text(state / f"{plan.name}.json", json.dumps(dataclasses.asdict(done), sort_keys=True))
            finished[plan.name] = done
            written += done.shard.bytes
            progress.update(len(plan.pairs), f"{written / 1e6:.0f} MB")
    return [finished[plan.name] for plan in plans]


def statistics(sums: Sums) -> dict[str, Any]:
    """Mean and SD of both doses and the RMSE between them, in HU, over all training tiles."""
    n = max(sums.pixels, 1)
    mean_low, mean_full = sums.low / n, sums.full / n
    return {
        "pixels": sums.pixels,
        "mean_low": round(mean_low, 4),
        "sd_low": round(math.sqrt(max(sums.low_squares / n - mean_low**2, 0)), 4),
        "mean_full": round(mean_full, 4),
        "sd_full": round(math.sqrt(max(sums.full_squares / n - mean_full**2, 0)), 4),
        "rmse": round(math.sqrt(sums.error_squares / n), 4),
        "clipped": sums.clipped,
    }


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
        statistics=statistics(sums),
        left_out=pairing.left_out + split.left_out + [out for done in finished for out in done.left_out],
        sharder={"version": "1"} | {name: importlib.metadata.version(name) for name in packages},
    )


def check_space(plans: list[ShardPlan], options: argparse.Namespace, out: Path) -> None:
    """Refuse to begin what the disk cannot hold."""
    need = 0
    for plan in plans:
        for pair in plan.pairs:
            tiles = len(tiling.origins(pair.full.shape, options.patch, options.stride, options.tiling))
            pixels = tiles * options.patch**2 if plan.split == "train" else math.prod(pair.full.shape)
            need += 4 * pixels + 4096
    there = sum(path.stat().st_size for path in out.glob("*.tar"))
    free = shutil.disk_usage(out).free
    if need - there > free:
        raise InputError(f"the shards need {(need - there) / 1e9:.2f} GB, {out} has {free / 1e9:.2f} GB free")


def build(options: argparse.Namespace) -> None:
    """Pair, split, write, describe."""
    settings = settings_of(options)
    if not options.source.is_dir():
        raise InputError(f"expected a folder with DICOM series, found no folder {options.source}")
    mark = fingerprint(options.source, settings)
    with locked(options.out) as state:
        if begin(options.out, state, settings, mark):
            print(f"{options.out}: all shards are there already")
            return
        globs = (options.full, options.quarter) if options.full else None
        pairing = find_pairs(options.source, options.workers, globs, options.series)
        split = (
            by_slab(pairing.patients)
            if options.split == "slabs"
            else by_patient(pairing.patients, options.val, options.test, options.fold)
        )
        plans = plan_shards(split, options.source, options.out, options)
        check_space(plans, options, options.out)
        try:
            finished = write_all(plans, state, options.workers)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "free some space and run again to go on" if full else "run again to go on"
            raise InputError(f"cannot write to {options.out}: {error.strerror or error}; {remedy}") from None
        manifest = make_manifest(settings, pairing, split, finished)
        save(manifest, options.out)
    for name, counts in manifest.counts.items():
        print(f"{name}: {counts['patients']} patients, {counts['slices']} slices, {counts['pairs']} pairs")
    print(f"{options.out}: {len(finished)} shards, {sum(done.shard.bytes for done in finished) / 1e6:.1f} MB")


def main() -> None:
    options = arguments().parse_args()
    check(options)
    build(options)


if __name__ == "__main__":
    command(main)
