"""What launch/status.py shows: a table for each sweep, one of commands, the sums, and what went wrong."""

import re
from collections.abc import Sequence
from typing import Any

from shards.common.table import text_table
from slurm.cluster import LESS_MEMORY, WAS_KILLED
from slurm.status import HUNG, Report

MOST = 5
"""Fields in which runs differ that have a column; more would not fit on a line."""

WITHOUT_A_WORD = {
    "failed": "no word of why",
    "lost": "no heartbeat, and no word of why" + WAS_KILLED + LESS_MEMORY,
    HUNG: "no heartbeat, but its job runs; replace it with launch/sweep.py --restart-lost, or end it with --cancel",
}

OF_A_COMMAND = {
    **WITHOUT_A_WORD,
    "lost": "no heartbeat, and no word of why" + WAS_KILLED,
    HUNG: "no heartbeat, but its job runs; replace it: what submitted it, with --restart-lost; or end it with --cancel",
}


def show(listed: list[Report], silent: str) -> str:
    """The tables, their sums, and the failures grouped by what they say."""
    sweeps: dict[str, list[Report]] = {}
    for run in listed:
        if run.values is not None:
            sweeps.setdefault(run.run.rpartition("/")[0], []).append(run)
    of_commands = [run for run in listed if run.values is None]
    lines = [table(group) for group in [*sweeps.values(), of_commands] if group]
    lines.append(sums(listed))
    for flag in dict.fromkeys(flag for run in listed for flag in run.flags):
        lines.append(f"warning: {flag}: {some([run.run for run in listed if flag in run.flags])}")
    for reason in dict.fromkeys(run.reason for run in listed if run.reason):
        waiting = [run.run for run in listed if run.reason == reason]
        lines.append(f"{len(waiting)} wait, SLURM says {reason}: {some(waiting)}")
    lines += failures(listed)
    if silent:
        lines.append(f"without SLURM's word: {silent}")
    return "\n".join(lines)


def table(group: list[Report]) -> str:
    """The runs of one sweep, or the parts of commands; columns in which nothing stands are left out."""
    names, more = varied(group)
    head = [
        "command" if group[0].values is None else "run",
        *map(short, names),
        "state",
        "requeues",
        "step",
        "patches/s",
        "left",
    ]
    head += ["queued", "running", "saving", "validating", "GPU-h", "best", "job"]
    rows = [row(run, names) for run in group]
    kept = [i for i in range(len(head)) if i < 1 + len(names) or any(cells[i] not in ("", "-") for cells in rows)]
    left = [kept.index(i) for i in (*range(2 + len(names)), len(head) - 2, len(head) - 1) if i in kept]
    text = text_table([head[i] for i in kept], [[cells[i] for i in kept] for cells in rows], left=left)
    return text + (f"\nthey also differ in {', '.join(more)}" if more else "")


def row(run: Report, names: Sequence[str]) -> list[str]:
    """The cells of a run."""
    best = " ".join(f"{key} {value:.2f}" for key, value in run.best.items() if key != "step")
    return [
        re.sub(r"/(\d{3,})-[0-9a-f]{8}$", r"/\1", run.run),  # what a run is tells its values better than its hash
        *(plain((run.values or {}).get(name)) for name in names),
        run.state,
        str(run.requeues or "-"),
        f"{run.step:,}/{run.steps:,}" if run.steps else "-",
        f"{run.patches_per_s:.0f}" if run.patches_per_s else "-",
        duration(run.eta_s),
        duration(run.queued_s),
        duration(run.running_s or None),
        share(run.saving_s, run.running_s),
        share(run.validating_s, run.running_s),
        "-" if run.gpu_hours is None else f"{run.gpu_hours:.2f}",
        f"{best} at {run.best['step']:.0f}" if best else "-",
        run.job or "-",
    ]


def varied(group: list[Report]) -> tuple[list[str], list[str]]:
    """Dotted names of the fields in which the runs differ: those with a column, and the rest."""
    known = [run.values for run in group if run.values]
    names = [name for name in (known[0] if known else {}) if len({plain(values.get(name)) for values in known}) > 1]
    return names[:MOST], names[MOST:]


def short(name: str) -> str:
    """A field's name as a column's head: attention for model.attention, but model for model.name."""
    section, _, field = name.partition(".")
    return section if field == "name" else field


def plain(value: Any) -> str:
    """A value of a field; empty for one that is not known."""
    return "" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def sums(listed: list[Report]) -> str:
    """How many runs, and parts of commands, there are of each state, and what they cost."""
    texts = []
    for one, many, group in (
        ("run", "runs", [run for run in listed if run.values is not None]),
        ("part of a command", "parts of commands", [run for run in listed if run.values is None]),
    ):
        if group:
            states = dict.fromkeys(run.state for run in group)
            counts = ", ".join(f"{sum(run.state == state for run in group)} {state}" for state in states)
            texts.append(f"{len(group)} {one if len(group) == 1 else many}: {counts}")
    hours = sum(run.gpu_hours or 0 for run in listed)
    return f"{'; '.join(texts)}; {hours:.2f} GPU-hours"


def failures(listed: list[Report]) -> list[str]:
    """Failed and lost runs by their last traceback line, each group with a log to look into."""
    groups: dict[str, list[Report]] = {}
    for run in listed:
        if run.state in ("failed", "lost", HUNG):
            silent = OF_A_COMMAND if run.values is None else WITHOUT_A_WORD
            groups.setdefault(run.error or silent[run.state], []).append(run)
    lines = []
    for error, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        lines.append(
            f"{len(group)} x {error}\n    {some([run.run for run in group])}\n    log: {group[0].log or 'none'}"
        )
    return lines


def some(names: list[str]) -> str:
    """The first names, and how many more."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def share(seconds: float, whole: float) -> str:
    """Part of the running time, in percent."""
    return f"{100 * seconds / whole:.0f} %" if seconds and whole else "-"


def duration(seconds: float | None) -> str:
    """Seconds as 1:02:03."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
