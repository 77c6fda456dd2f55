"""Check shards against their manifest: files, checksums, counts, and every record, decoded by webdataset alone.

    python shards/verify.py data/shards

Exit status 1, and one line for each thing that is wrong.
"""

import argparse
import collections
import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards import index, patching
from shards.common.command import InputError, Progress, command
from shards.common.pool import Workers
from shards.manifest import SPLITS, Manifest, Record, Shard, load
from shards.writer import Sums


@dataclass(frozen=True)
class Work:
    """A shard to check: what a process needs to know."""

    folder: Path
    shard: Shard
    settings: dict[str, Any]


def check_shard(work: Work) -> tuple[list[str], Sums]:
    """Everything that is wrong with one shard, and the sums of its training patches."""
    shard, path, sums = work.shard, work.folder / work.shard.name, Sums()
    try:
        if not path.is_file():  # to read a pipe would take for ever
            return [f"{shard.name}: {'no regular file' if path.exists() else 'No such file or directory'}"], sums
        content = path.read_bytes()
    except OSError as error:
        return [f"{shard.name}: {error.strerror}"], sums
    if len(content) != shard.bytes:
        return [f"{shard.name}: expected {shard.bytes} bytes, found {len(content)}"], sums
    problems = []
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        problems.append(f"{shard.name}: sha256 differs from the manifest's")
    array_name = "pairs.npy" if shard.split == "train" else "slice.npy"
    expected = [f"{record.key}.{part}" for record in shard.records for part in (array_name, "json")]
    try:
        with tarfile.open(path) as tar:
            names = [member.name for member in tar if member.isreg()]
    except (tarfile.TarError, ValueError, OSError) as error:
        return [*problems, f"{shard.name}: not a readable tar: {error}"], sums
    if names != expected:  # nothing else is decoded: webdataset would unpickle a .pyd
        return [*problems, f"{shard.name}: its {len(names)} members are not the manifest's {len(expected)}"], sums
    decoded = iter(decode(path))
    for record in shard.records:
        try:
            sample = next(decoded)
            array, about = np.asarray(sample[array_name]), dict(sample["json"])
        except Exception as error:  # a broken array or JSON raises nearly anything, and webdataset wraps it
            reason = error.__cause__ or error.__context__ or error
            text = next(iter(str(reason).splitlines()), type(reason).__name__)
            return [*problems, f"{shard.name}: {record.key}: cannot be decoded: {text}"], sums
        for problem in check_record(record, work, array, about, content):
            problems.append(f"{shard.name}: {record.key}: {problem}")
        if shard.split == "train" and array.dtype == np.int16 and array.ndim == 4:
            sums.add(array)
    return problems, sums


def decode(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a shard as anybody gets them from webdataset."""
    import webdataset  # it imports torch, which nothing else here needs

    return webdataset.WebDataset([str(path.resolve())], shardshuffle=False).decode()


def check_record(record: Record, work: Work, array: np.ndarray, about: dict[str, Any], content: bytes) -> Iterator[str]:
    """What is wrong with one decoded record; ``content`` are the bytes of its shard."""
    if array.dtype != np.int16 or list(array.shape) != record.shape:
        yield f"expected int16 {record.shape}, found {array.dtype} {list(array.shape)}"
        return
    if content[record.offset : record.offset + array.nbytes] != array.tobytes():
        yield f"its pixels do not lie at byte {record.offset}, where the manifest has them"
    if (about.get("patient"), about.get("z")) != (record.patient, record.z):
        yield "patient or z differ from the manifest's"
    patch = work.settings["patch"]
    if work.shard.split != "train":
        if len(array) != 2:
            yield f"expected two slices, found shape {array.shape}"
    elif array.shape[1:] != (2, patch, patch):
        yield f"expected patches of (2, {patch}, {patch}), found {array.shape[1:]}"
    else:
        if not record.body == about.get("body") == patching.body_fractions(array[:, 1]):
            yield "body fractions do not fit"
        if not _on_grid(about.get("origins"), len(array), work.settings):
            yield f"its patches do not lie {work.settings['stride']} pixels apart, as the settings say"


def _on_grid(origins: object, count: int, settings: dict[str, Any]) -> bool:
    """Whether corners are those of a grid with the stride of the settings; covering, the last step may be shorter."""
    try:
        corners = [(int(row), int(column)) for row, column in origins]  # type: ignore[attr-defined]
        axes = [sorted(set(axis)) for axis in zip(*corners, strict=True)]
        steps = [np.diff(axis) for axis in axes]
    except (TypeError, ValueError):
        return False
    if settings.get("tiling") == "cover":
        steps = [step[:-1] if len(step) and 0 < step[-1] <= settings["stride"] else step for step in steps]
    grid = [(row, column) for row in axes[0] for column in axes[1]]
    return corners == grid and len(grid) == count and all((step == settings["stride"]).all() for step in steps)


def check_manifest(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong between the manifest's own parts, and between it and the folder."""
    names = [shard.name for shard in manifest.shards]
    for name, count in collections.Counter(names).items():
        if count > 1:
            yield f"{name}: {count} times in the manifest"
    for path in sorted(folder.glob("*.tar")):
        if path.name not in names:
            yield f"{path.name}: not in the manifest"
    records = [(shard.split, record) for shard in manifest.shards for record in shard.records]
    for key, count in collections.Counter(record.key for _, record in records).items():
        if count > 1:
            yield f"{key}: {count} records of this name"
    for split in SPLITS:
        of_split = [record for name, record in records if name == split]
        counts: dict[str, Any] = {
            "patients": len({record.patient for record in of_split}),
            "slices": len(of_split),
            "pairs": sum(record.shape[0] for record in of_split) if split == "train" else 0,
        }
        if counts != manifest.counts.get(split):
            yield f"{split}: the manifest counts {manifest.counts.get(split)}, its records are {counts}"
        named = {(patient, key) for patient, keys in manifest.split.get(split, {}).items() for key in keys}
        if named != {(record.patient, record.key) for record in of_split}:
            yield f"{split}: the patients and slices named by the split are not those of the records"
    if manifest.split.get("by") == "patient":
        homes = collections.defaultdict(set)
        for split, record in records:
            homes[record.patient].add(split)
        for patient, splits in homes.items():
            if len(splits) > 1:
                yield f"{patient}: in several splits: {', '.join(sorted(splits))}"


def check_settings(manifest: Manifest, sums: Sums) -> Iterator[str]:
    """What is wrong with the statistics and the seed, given the sums of all training patches."""
    statistics = sums.statistics() | {"clipped": manifest.statistics.get("clipped")}
    if statistics != manifest.statistics:
        yield f"the manifest's statistics are {manifest.statistics}, those of its patches {statistics}"
    records = [record for shard in manifest.shards if shard.split == "train" for record in shard.records]
    undecoded = {str(out.get("what")).split(" (")[0] for out in manifest.left_out}
    if any(record.key.rpartition("_")[0] == key.rpartition("_")[0] for key in undecoded for record in records):
        return  # a slice that was left out afterwards took part in the permutation
    ordered = sorted(records, key=lambda record: (record.patient, record.z))
    seed = manifest.settings.get("seed")
    if type(seed) is not int or seed < 0:
        yield f"the manifest's seed is {seed!r}, expected a number"
    elif [ordered[i].key for i in np.random.default_rng(seed).permutation(len(ordered))] != [r.key for r in records]:
        yield f"the order of the training slices is not that of the manifest's seed {seed}"


def check_index(folder: Path, content: Manifest) -> Iterator[str]:
    """What is wrong with the index beside the manifest, which shards of before 0.2.0 lack."""
    if not (folder / index.NAME).exists():
        return
    saved, expected = index.load(folder), index.of_manifest(content)
    same = saved.shards == expected.shards and np.array_equal(saved.body, expected.body)
    if not same or saved.records.dtype != expected.records.dtype or (saved.records != expected.records).any():
        yield f"{index.NAME}: does not fit the manifest; delete it, it is made again"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder with manifest.json")
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    options = parser.parse_args()
    if options.workers < 1:
        raise InputError(f"--workers {options.workers}: expected 1 or more")
    manifest = load(options.shards)
    for name in ("patch", "stride", "tiling", "seed"):
        if name not in manifest.settings:
            raise InputError(f"the manifest of {options.shards} lacks the setting {name}; build the shards again")
    problems = [*check_manifest(options.shards, manifest), *check_index(options.shards, manifest)]
    items = [Work(options.shards, shard, manifest.settings) for shard in manifest.shards]
    sums = Sums()
    with Workers(options.workers) as workers, Progress("verify", len(items), "shards") as progress:
        for shard_problems, shard_sums in workers.each(check_shard, items):
            problems += shard_problems
            sums += shard_sums
            progress.update()
    if not problems:
        problems += check_settings(manifest, sums)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{options.shards}: {len(problems)} problem{'s' * (len(problems) != 1)}")
        return 1
    slices = sum(len(shard.records) for shard in manifest.shards)
    print(f"{options.shards}: {len(items)} shards with {slices} slices are whole")
    return 0


if __name__ == "__main__":
    command(main)
