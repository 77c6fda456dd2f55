"""What the launcher shows before it submits."""

from pathlib import Path

from shards.common.table import text_table
from slurm import submission
from slurm.cluster import Cluster, local_parallelism, sbatch_text
from slurm.cost import device_hours
from slurm.sweep import Run


def of_plan(planned: list[Run], cluster: Cluster, root: Path, bench: Path | None = None) -> str:
    """One line per run: what the sweep chose for it, its size, its cost, its state; the sums below.

    ``bench`` is a file that launch/bench.py wrote, for networks of which no run in ``root`` tells the speed.
    """
    unit = "GPU-h" if cluster.gpus_per_node or cluster.gres else "CPU-h"
    hours = device_hours(planned, cluster, root, bench)
    swept = list(planned[0].overrides)
    head, rows = ["run", *swept, "weights", "steps", unit, "state"], []
    for run in planned:
        cost = hours[run.name]
        rows.append(
            [
                run.name,
                *(str(run.overrides[name]) for name in swept),
                f"{run.weights:,}",
                f"{run.config.train.steps:,}",
                "unknown" if cost is None else f"{cost:.2g}",
                run.state,
            ]
        )
    chosen = [run for run in planned if run.open]
    known = [cost for run in chosen if (cost := hours[run.name]) is not None]
    cost_of_all = f"{sum(known):.2g} {unit}" + (
        f" and {len(chosen) - len(known)} unknown" if chosen[len(known) :] else ""
    )
    parts = [f"{len(planned)} runs", f"{sum(run.state == 'finished' for run in planned)} finished"]
    parts += [f"{len(planned) - len(chosen) - sum(run.state == 'finished' for run in planned)} running or waiting"]
    parts += [f"{len(chosen)} to submit"]
    if chosen:
        parts += [
            f"estimated {cost_of_all}" if known else f"{unit} unknown: no earlier run of these networks, and no --bench"
        ]
    texts = [*range(len(swept) + 1), len(head) - 1]
    return text_table(head, rows, left=texts) + "\n" + ", ".join(parts)


def dry_run(planned: list[Run], cluster: Cluster, folder: Path) -> str:
    """What would be done with the open runs: the text for sbatch, or how many processes."""
    chosen = [run for run in planned if run.open]
    if not chosen:
        return "dry run: nothing to submit"
    if cluster.executor == "local":
        return (
            f"dry run: would train {len(chosen)} runs here, {local_parallelism(cluster)} at once; nothing was started"
        )
    text = script(planned, cluster, folder)
    return f"dry run: would submit this to sbatch, for {len(chosen)} runs:\n\n{text}\nnothing was submitted"


def script(planned: list[Run], cluster: Cluster, folder: Path) -> str:
    """The text that sbatch would get for the open runs; "" where there is none."""
    count = sum(run.open for run in planned)
    if not count or cluster.executor == "local":
        return ""
    logs, code = folder / submission.LOGS / "SUBMISSION", folder / "code" / "HASH"
    return sbatch_text(cluster, logs, folder.name, "SUBMISSION", code, count)
