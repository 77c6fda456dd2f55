"""Runs from Weights & Biases, as the run folders they were."""

import fnmatch
from pathlib import Path
from typing import Any

from ldct.runs.wandb_mirror import FILES
from shards.common.command import InputError, Progress, first_line

TIMEOUT_S = 20
"""Seconds the server has for an answer."""


def fetch(project: str, folder: Path) -> list[Path]:
    """Write the runs of ``project`` below ``folder``: GROUP/NAME, with the files that ldct/runs/wandb_mirror.py sent.

    Parameters
    ----------
    project : str
        ENTITY/PROJECT.
    folder : Path
        Files that are there are replaced.

    Returns
    -------
    list of Path
        The run folders, sorted; runs that were not sent by ldct/runs/wandb_mirror.py are left out.

    Raises
    ------
    InputError
        If the project's name cannot be one, W&B does not give it, or it holds no such run.
    """
    if len(project.split("/")) != 2 or not all(project.split("/")):
        raise InputError(f"--wandb: expected ENTITY/PROJECT, found {project!r}")
    import wandb  # 1.5 s

    folders = []
    try:
        every = list(wandb.Api(timeout=TIMEOUT_S).runs(project))
        with Progress(project, len(every), "runs") as progress:
            for run in every:
                if (target := _fetch_run(run, folder)) is not None:
                    folders.append(target)
                progress.update()
    except (wandb.Error, ValueError, OSError) as error:  # wandb's API raises ValueError for a project that is not there
        raise InputError(
            f"cannot read {project} from W&B: {first_line(error)}; check the name, WANDB_BASE_URL and the key"
        ) from None
    if not folders:
        raise InputError(f"{project}: none of its {len(every)} runs was sent by this project; see docs/wandb.md")
    return sorted(folders)


def _fetch_run(run: Any, folder: Path) -> Path | None:
    """Download the files of ``run`` that are ours; None if there is no config.yaml among them."""
    target = folder / (run.group or "") / run.id
    if not target.resolve().is_relative_to(folder.resolve()):
        return None  # names come from a server
    for file in run.files(pattern=f"{run.id}/%"):
        name = file.name.removeprefix(f"{run.id}/")
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in FILES) and ".." not in name:
            file.download(root=str(target.parent), replace=True)
    return target if (target / "config.yaml").is_file() else None
