"""A copy of the code for each sweep.

cloudpickle stores importable code by reference: a requeued task imports whatever is on disk by then. Jobs therefore
import from a copy that no later edit touches.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from ldct.runs.folder import SNAPSHOT, code_of, code_version, version_name

PACKAGES = ("shards", "ldct", "slurm", "launch")


def files(root: Path) -> list[Path]:
    """Files of the packages below ``root``, relative to it, sorted."""
    paths = [path for package in PACKAGES for path in (root / package).rglob("*") if path.is_file()]
    return sorted(path.relative_to(root) for path in paths if "__pycache__" not in path.parts)


def other_code(folders: list[Path]) -> str:
    """One line that names those of ``folders`` that began with other code than this; "" if there is none."""
    now = version_name(code_version())
    began = {folder.name: version_name(code) for folder in folders if (code := code_of(folder))}
    others = {name: version for name, version in began.items() if version != now}
    if not others:
        return ""
    names = ", ".join(f"{name} ({version})" for name, version in list(others.items())[:5])
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return f"warning: {len(others)} runs go on with other code ({now}) than they began with: {names}{more}"


def take(sweep: Path) -> Path:
    """Copy the code that runs here to ``sweep/code/HASH``, once for each state of it; return that folder.

    With PYTHONPATH at the copy and PYTHONSAFEPATH set (else ``python -m`` puts the working directory first),
    imports come from it.
    """
    root = Path(__file__).resolve().parents[1]
    names = files(root)
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0".encode() + hashlib.sha256((root / name).read_bytes()).digest())
    copy = sweep / "code" / digest.hexdigest()[:12]
    if copy.is_dir():
        return copy
    temporary = copy.with_name(f"{copy.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for name in names:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, temporary / name)
        (temporary / SNAPSHOT).write_text(json.dumps(code_version(), indent=1) + "\n")
        os.replace(temporary, copy)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return copy
