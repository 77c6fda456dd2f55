"""Check shards against their manifest: files, checksums, counts, and every record, decoded by webdataset alone.

    python shards/verify.py data/shards

Exit status 1, and one line for each thing that is wrong.
"""

import argparse
import collections
import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shards.common.command import Progress, command
from shards.common.pool import Workers
from shards.manifest import SPLITS, Manifest, Record, Shard, load


def check_shard(item: tuple[Path, Shard, int]) -> list[str]:
    """Everything that is wrong with one shard."""
    folder, shard, patch = item
    path = folder / shard.name
    try:
        content = path.read_bytes()
    except OSError as error:
        return [f"{shard.name}: {error.strerror}"]
    if len(content) != shard.bytes:
        return [f"{shard.name}: expected {shard.bytes} bytes, found {len(content)}"]
    problems = []
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        problems.append(f"{shard.name}: sha256 differs from the manifest's")
    array_name = "pairs.npy" if shard.split == "train" else "slice.npy"
    expected = [f"{record.key}.{part}" for record in shard.records for part in (array_name, "json")]
    try:
        with tarfile.open(path) as tar:
            names = [member.name for member in tar]
    except tarfile.TarError as error:
        return [*problems, f"{shard.name}: not a readable tar: {error}"]
    if names != expected:  # nothing else is decoded: webdataset would unpickle a .pyd
        return [*problems, f"{shard.name}: its {len(names)} members are not the manifest's {len(expected)}"]
    decoded = iter(decode(path))
    for record in shard.records:
        try:
            sample = next(decoded)
        except Exception as error:  # a broken array or JSON raises nearly anything, and webdataset wraps it
            reason = error.__cause__ or error.__context__ or error
            text = next(iter(str(reason).splitlines()), type(reason).__name__)
            return [*problems, f"{shard.name}: {record.key}: cannot be decoded: {text}"]
        array, about = sample[array_name], sample["json"]
        for problem in check_record(record, shard.split, patch, array, about, content):
            problems.append(f"{shard.name}: {record.key}: {problem}")
    return problems


def decode(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a shard as anybody gets them from webdataset."""
    import webdataset  # it imports torch, which nothing else here needs

    return webdataset.WebDataset([str(path.resolve())], shardshuffle=False).decode()


def check_record(
    record: Record, split: str, patch: int, array: np.ndarray, about: dict[str, Any], content: bytes
) -> Iterator[str]:
    """What is wrong with one decoded record; ``content`` are the bytes of its shard."""
    if array.dtype != np.int16 or list(array.shape) != record.shape:
        yield f"expected int16 {record.shape}, found {array.dtype} {list(array.shape)}"
    if content[record.offset : record.offset + array.nbytes] != array.tobytes():
        yield f"its pixels do not lie at byte {record.offset}, where the manifest has them"
    if (about.get("patient"), about.get("z")) != (record.patient, record.z):
        yield "patient or z differ from the manifest's"
    if split == "train":
        if array.shape[1:] != (2, patch, patch):
            yield f"expected patches of (2, {patch}, {patch}), found {array.shape[1:]}"
        elif len(record.body) != len(array) or about.get("body") != record.body:
            yield "body fractions do not fit"
    elif array.ndim != 3 or len(array) != 2:
        yield f"expected two slices, found shape {array.shape}"


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder with manifest.json")
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    options = parser.parse_args()
    manifest = load(options.shards)
    problems = list(check_manifest(options.shards, manifest))
    items = [(options.shards, shard, int(manifest.settings["patch"])) for shard in manifest.shards]
    with Workers(options.workers) as workers, Progress("verify", len(items), "shards") as progress:
        for shard_problems in workers.each(check_shard, items):
            problems += shard_problems
            progress.update()
    for problem in problems:
        print(problem)
    if problems:
        print(f"{options.shards}: {len(problems)} problems")
        return 1
    slices = sum(len(shard.records) for shard in manifest.shards)
    print(f"{options.shards}: {len(items)} shards with {slices} slices are whole")
    return 0


if __name__ == "__main__":
    command(main)
