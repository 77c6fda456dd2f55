"""Giving commands to SLURM or to this machine: their parts side by side, and the whole behind them."""

import shutil
from pathlib import Path

from slurm import commands, snapshot, squeue, submission
from slurm.cluster import Cluster, local_parallelism, sbatch_text
from slurm.commands import Command, Part
from slurm.local import Local
from slurm.submit import submit


def submit_command(cluster: Cluster, folder: Path, command: Command, after: str, again: bool) -> int:
    """Do what is not finished of ``command``, and say what that is; return the exit status of the launcher.

    The whole of a command, which gathers what its parts made, begins when all of them have ended well.

    Parameters
    ----------
    after : str
        What the parts wait for, in sbatch's words; "" = nothing.
    again : bool
        Also do what is finished.
    """
    parts = commands.parts_of(folder, command)
    commands.note_states(parts)
    if again:
        forget([part for part in parts if part.state == "finished"])
    chosen = [part for part in parts if part.open]
    print(f"{command}: {', '.join(f'{part.name} {part.state}' for part in parts)}", flush=True)
    if cluster.executor == "local":
        return run_here(cluster, folder, parts)
    if not chosen:
        print(
            "nothing to submit" + (": --again does it once more" if all(p.state == "finished" for p in parts) else "")
        )
        return 0
    jobs = submit_parts(cluster, folder, parts, after)
    print(f"submitted {', '.join(part.name for part in chosen)} as job {', '.join(jobs)}; look at it with: python "
          f"launch/status.py {folder}")  # fmt: skip
    return 0


def submit_parts(cluster: Cluster, folder: Path, parts: list[Part], after: str) -> list[str]:
    """Submit what is open, the whole behind the others; return the ids of the jobs, that of the whole last."""
    *split, whole = parts
    code, jobs = snapshot.take(folder), []
    if chosen := [part for part in split if part.open]:
        withdraw(whole)  # it may wait for a part that failed, and would never begin
        jobs = submit(cluster, folder, code, chosen, after)
    last = submission.latest(folder)
    wait_for = [*jobs, *(last[part.name][1] for part in split if part.state in ("pending", "running"))]
    if whole.open:
        jobs += submit(cluster, folder, code, [whole], "afterok:" + ":".join(wait_for) if wait_for else after)
    return jobs


def withdraw(part: Part) -> None:
    """Take a part that waits out of the queue, to be submitted anew."""
    if part.state == "pending":
        squeue.cancel([submission.latest(part.folder.parent)[part.name][1]])
        part.state = "new"


def forget(parts: list[Part]) -> None:
    """Take what is finished for something that is still to be done."""
    for part in parts:
        shutil.rmtree(part.folder)
        part.state = "new"


def run_here(cluster: Cluster, folder: Path, parts: list[Part]) -> int:
    """Run what is open on this machine, the whole behind the others, and wait for it."""
    code = snapshot.take(folder)
    *split, whole = parts
    for group in (split, [whole]):
        adopted = [part for part in group if part.state in ("running", "pending")]
        Local(cluster, folder, code, "parts", "part").run(adopted, [part for part in group if part.open])
        commands.note_states(parts)
        if any(part.state != "finished" for part in group):
            break
    finished = sum(part.state == "finished" for part in parts)
    print(f"{finished} of {len(parts)} finished in {folder}")
    return 0 if finished == len(parts) else 1


def dry_run(cluster: Cluster, folder: Path, command: Command) -> str:
    """What would be done with the open parts: the text for sbatch, or how many processes."""
    parts = commands.parts_of(folder, command)
    commands.note_states(parts)
    chosen = [part for part in parts if part.open]
    states = ", ".join(f"{part.name} {part.state}" for part in parts)
    if not chosen or cluster.executor == "local":
        return f"{states}\ndry run: would run {len(chosen)} here, {local_parallelism(cluster)} at once"
    logs, code = folder / submission.LOGS / "SUBMISSION", folder / "code" / "HASH"
    text = sbatch_text(
        cluster, logs, folder.name, "SUBMISSION", code, len([p for p in chosen if p is not parts[-1]]) or 1
    )
    return f"{states}\ndry run: would submit this to sbatch:\n\n{text}\nnothing was submitted"
