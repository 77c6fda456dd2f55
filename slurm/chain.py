"""Giving commands to SLURM or to this machine: parts side by side, the whole behind them, steps behind a sweep."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ldct.runs import folder as runs
from shards.common.command import InputError, as_typed
from slurm import commands, snapshot, squeue, submission
from slurm.cluster import Cluster, local_parallelism, sbatch_text
from slurm.commands import Command, Part
from slurm.local import Local
from slurm.submit import note_lost_answers, submit
from slurm.sweep import HUNG, Run, end_hung

STEPS = ("evaluate", "compare", "findings")
"""What may follow a sweep: commands of launch/, by name."""

FOLDER = "jobs"
"""In a sweep's folder: those that do."""

SHOWN = 20
"""Parts that are named one by one; of more, how many there are."""

LIVE = ("pending", "running", HUNG)
"""States of a part that has a job, or a process."""


def submit_command(
    cluster: Cluster, folder: Path, command: Command, after: str, again: bool, restart_lost: bool = False
) -> int:
    """Do what is not finished of ``command``, and say what that is; return the exit status of the launcher.

    The whole of a command, which gathers what its parts made, begins when all of them have ended well.

    Parameters
    ----------
    after : str
        What the parts wait for, in sbatch's words; "" = nothing.
    again : bool
        Also do what is finished.
    restart_lost : bool
        End the jobs of parts that hang, and do these again.
    """
    parts = commands.parts_of(folder, command)
    note_lost_answers(cluster, folder, parts)
    commands.note_states(parts)
    if restart_lost and any(part.state == HUNG for part in parts):
        if cluster.executor == "slurm":
            replace(parts[-1])  # else it would go when one that it waits for is cancelled
        end_hung(parts, folder)
    if again:
        forget([part for part in parts if part.state == "finished"])
    chosen = [part for part in parts if part.open]
    if chosen and cluster.executor == "slurm":
        refuse_processes(parts)
    print(f"{command}: {states_of(parts)}", flush=True)
    if cluster.executor == "local":
        return run_here(cluster, folder, parts, snapshot.take(folder))
    if not chosen:
        print(
            "nothing to submit" + (": --again does it once more" if all(p.state == "finished" for p in parts) else "")
        )
        return 0
    jobs = submit_parts(cluster, folder, parts, after)
    names = ", ".join(part.name for part in chosen) if len(chosen) <= SHOWN else f"{len(chosen)} parts"
    what = f"submitted {names} as job" if len(parts) > 1 else "submitted as job"
    print(f"{what} {', '.join(jobs)}; look at it with: python launch/status.py {as_typed(folder)}")
    return 0


def states_of(parts: list[Part]) -> str:
    """The state of each part; of many, how many have which."""
    if len(parts) == 1:
        return parts[0].state
    if len(parts) <= SHOWN:
        return ", ".join(f"{part.name} {part.state}" for part in parts)
    *split, whole = parts
    counts = Counter(part.state for part in split)
    return ", ".join([*(f"{count} {state}" for state, count in counts.items()), f"{whole.name} {whole.state}"])


def submit_parts(cluster: Cluster, folder: Path, parts: list[Part], after: str) -> list[str]:
    """Submit what is open, the whole behind the others; return the ids of the jobs, that of the whole last."""
    *split, whole = parts
    code, jobs = snapshot.take(folder), []
    if chosen := [part for part in split if part.open]:
        replace(whole)  # it may wait for a part that failed, and would never begin
        jobs = submit(cluster, folder, code, chosen, after)
    wait_for = [*jobs, *(job for part in split if part.state in LIVE and (job := job_of(part)))]
    if whole.open:
        jobs += submit(cluster, folder, code, [whole], "afterok:" + ":".join(wait_for) if wait_for else after)
    return jobs


def job_of(part: Part) -> str:
    """The last job of SLURM that does ``part``; "" where there is none, or sbatch's answer never came."""
    sent = submission.latest(part.folder.parent).get(part.name)
    return sent[1] if sent and sent[0].executor == "slurm" else ""


def refuse_processes(works: Sequence[Run | Part]) -> None:
    """Raise an InputError if a process that is no job of SLURM works on one of ``works``: no job can wait for it, and
    what follows it would begin at once."""
    for work in works:
        record, _ = submission.latest(work.folder.parent).get(work.name, (None, ""))
        if work.state in LIVE and (record is None or record.executor == "local"):
            if work.state == HUNG:
                end_hung([work], work.folder.parent)  # says how
            host = record.host if record else runs.read_status(work.folder).host
            raise InputError(
                f"{work.folder} runs in a process of {host}, and no job of SLURM can wait for that; run again when it "
                f"has ended, or end it with launch/status.py {work.folder.parent} --cancel there"
            )


def refuse_beside_processes(sweep: Path, chain: dict[str, tuple[Command, bool]], planned: Sequence[Run]) -> None:
    """Raise an InputError if steps would not wait for what they follow; see refuse_processes."""
    steps = [part for name, (command, _) in chain.items() for part in commands.parts_of(sweep / FOLDER / name, command)]
    for step in steps:
        commands.note_states([step])
    refuse_processes([*planned, *steps] if chain else [])


def forget(parts: list[Part]) -> None:
    """Count what is finished as still to be done."""
    for part in parts:
        runs.write_status(part.folder, runs.Status(attempt=runs.read_status(part.folder).attempt))
        part.state = "new"


def steps(names: str, sweep: Path, shards: set[str]) -> dict[str, tuple[Command, bool]]:
    """The commands that ``names`` (evaluate,compare) stand for, and whether each can use a GPU.

    Raises
    ------
    InputError
        If a name is none of STEPS, or a step needs the shards and the runs have several.
    """
    known: dict[str, list[str]] = {}
    for name in filter(None, names.split(",")):
        if name not in STEPS:
            raise InputError(f"--then: expected names of {', '.join(STEPS)}, separated by commas, found {name!r}")
        if name != "compare" and len(shards) > 1:
            raise InputError(
                f"--then {name}: the runs were trained on several shards ({', '.join(sorted(shards))}); do it by hand"
            )
        on = [] if name == "compare" else ["--shards", *shards]
        to = {"compare": ["-o", str(sweep / "report.html")], "findings": ["-o", str(sweep / "findings.md")]}
        known[name] = [f"launch/{name}.py", str(sweep), *on, *to.get(name, [])]
    checked = {name: commands.check(argv, 1) for name, argv in known.items()}
    # all paths are absolute: the steps are the same wherever the sweep is submitted again
    return {name: (dataclasses.replace(command, cwd=str(sweep)), gpu) for name, (command, gpu) in checked.items()}


def follow(
    cluster: Cluster, sweep: Path, chain: dict[str, tuple[Command, bool]], anew: bool, restart_lost: bool = False
) -> str:
    """Submit the steps behind the sweep's jobs, each behind the one before it; return what was done, in words.

    A step begins when what it waits for has ended, well or not: it takes what is there, and says what is not.

    Parameters
    ----------
    anew : bool
        Runs were submitted just now: what was done, or waits, without them is done again.
    restart_lost : bool
        End the jobs of steps that hang, and do these again.
    """
    last = submission.latest(sweep)
    jobs_of_runs = {job for record, job in last.values() if record.executor == "slurm" and job}
    wait_for = sorted(jobs_of_runs & squeue.live(jobs_of_runs).keys())
    placed, outdated = {}, set()
    for name, (command, _) in chain.items():
        folder = sweep / FOLDER / name
        note_lost_answers(cluster, folder, commands.parts_of(folder, command))
        moved = commands.read(folder) not in (None, command)
        (part,) = place(folder, command)
        placed[name] = part
        # the job of one that waits or runs has the command of before
        if part.open or (moved and part.state in LIVE) or (restart_lost and part.state == HUNG):
            outdated.add(name)
    begins = next((i for i, name in enumerate(placed) if anew or name in outdated), len(placed))
    todo = list(placed)[begins:]  # what follows a step that is done again is done again
    for name in reversed(todo):  # else the end of one would let the next one begin
        replace(placed[name])
    done = []
    for name, part in placed.items():
        folder = part.folder.parent
        if name in todo:
            own = cluster.for_command(chain[name][1])
            jobs = submit(own, folder, snapshot.take(sweep), [part], when_ended(wait_for))
            done.append(f"{name} as job {jobs[0]}")
        wait_for = [job] if part.state != "finished" and (job := job_of(part)) else wait_for
    return f"behind them: {', '.join(done)}" if done else f"{', '.join(chain)}: nothing to submit"


def follow_here(
    cluster: Cluster, sweep: Path, chain: dict[str, tuple[Command, bool]], anew: bool, restart_lost: bool = False
) -> bool:
    """Run the steps on this machine, one after the other; return whether all of them finished."""
    states = []
    for name, (command, gpu) in chain.items():
        folder = sweep / FOLDER / name
        (part,) = place(folder, command)
        if anew and part.state == "finished":
            forget([part])
        if part.state == HUNG:
            if restart_lost:
                end_hung([part], folder)
            else:
                print(f"{name}: {part.state}; add --restart-lost", flush=True)
        states.append(run_here(cluster.for_command(gpu), folder, [part], snapshot.take(sweep)))
    return not any(states)


def place(folder: Path, command: Command) -> list[Part]:
    """The parts of a step, in its folder: it belongs to its sweep, whose shards may have moved since."""
    commands.write(folder, command)
    parts = commands.parts_of(folder, command)
    commands.note_states(parts)
    return parts


def replace(part: Part) -> None:
    """End what a part does or waits for, to be submitted anew: it goes on from what it has done. An InputError where
    it hangs in a process of this machine."""
    if part.state == HUNG:
        end_hung([part], part.folder.parent)
    if part.state in LIVE and (job := job_of(part)):
        squeue.cancel([job])
    if part.folder.exists():
        forget([part])
    part.state = "new"


def when_ended(jobs: list[str]) -> str:
    """In sbatch's words: when these jobs have ended, well or not."""
    return "afterany:" + ":".join(jobs) if jobs else ""


def run_here(cluster: Cluster, folder: Path, parts: list[Part], code: Path) -> int:
    """Run what is open on this machine, the whole behind the others, and wait for it."""
    *split, whole = parts
    for group in (split, [whole]):
        adopted = [part for part in group if part.state in ("running", "pending")]
        Local(cluster, folder, code, "part", "parts").run(adopted, [part for part in group if part.open])
        commands.note_states(parts)
        if any(part.state != "finished" for part in group):
            break
    finished = sum(part.state == "finished" for part in parts)
    print(f"{finished} of {len(parts)} finished in {folder}")
    return 0 if finished == len(parts) else 1


def dry_run(cluster: Cluster, folder: Path, command: Command) -> str:
    """What would be done with the open parts: the text for sbatch, or how many processes.

    Raises
    ------
    InputError
        If the folder is of another command.
    """
    commands.refuse_other(folder, command)
    parts = commands.parts_of(folder, command)
    commands.note_states(parts)
    chosen = [part for part in parts if part.open]
    states = f"{command}: {states_of(parts)}"
    if not chosen or cluster.executor == "local":
        return f"{states}\ndry run: would run {len(chosen)} here, {local_parallelism(cluster)} at once"
    logs, code = folder / submission.LOGS / "SUBMISSION", folder / "code" / "HASH"
    text = sbatch_text(
        cluster, logs, folder.name, "SUBMISSION", code, len([p for p in chosen if p is not parts[-1]]) or 1
    )
    return f"{states}\ndry run: would submit this to sbatch:\n\n{text}\nnothing was submitted"
