"""A comparison of a W&B project's runs as a W&B report: tables, curves and pictures that stay as the runs go on.

It is made with wandb-workspaces, W&B's own package for it (the extra ``wandb-report``).
"""

from typing import Any

from ldct.metrics import names, protocols, registry
from ldct.runs.wandb_reader import TIMEOUT_S
from shards.common.command import InputError

PHYSICS = ("texture/high_band", "edges/sharpness", "body/dose")
"""Metrics without a protocol that have a bar for each run."""


def publish(project: str, split: str, protocol: str) -> str:
    """Make a new report in ``project`` (ENTITY/PROJECT), and return its address.

    Parameters
    ----------
    split : str
        Of the evaluations shown.
    protocol : str
        Name of the protocol that ranks.

    Raises
    ------
    InputError
        If wandb-workspaces is not installed, or W&B does not give the project or take the report.
    """
    entity, _, name = project.partition("/")
    if not entity or not name or "/" in name:
        raise InputError(f"--wandb-report: expected ENTITY/PROJECT, found {project!r}")
    try:
        import wandb
        import wandb_workspaces.reports.v2 as reports
    except ImportError as error:
        raise InputError(f"{error}; pip install -e .[wandb-report] -c constraints.txt") from None
    try:
        count = len(wandb.Api(timeout=TIMEOUT_S).runs(project))  # saving would make a project of a misspelled name
        report = reports.Report(
            project=name,
            entity=entity,
            title=f"Comparison of {name}",
            description=f"{count} runs; evaluation: {split}; {protocol}: {protocols.get(protocol).text}",
            blocks=_blocks(reports, entity, name, split, protocol),
        )
        report.save()
    # wandb-workspaces checks no answer: what is missing in one is a KeyError or TypeError
    except (wandb.Error, ValueError, OSError, KeyError, TypeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"no report in {project}: {why}; check the name, WANDB_BASE_URL and the key") from None
    return str(report.url)


def _blocks(reports: Any, entity: str, project: str, split: str, protocol: str) -> list[Any]:
    """What stands in the report, from top to bottom."""
    ranking = names.evaluation(split, registry.ranking(protocol))

    def runs() -> Any:
        """The table below a grid, the best run first."""
        columns = ["config:model.value.name", "config:model.value.attention", f"summary:{ranking}"]
        order = [reports.OrderBy(reports.SummaryMetric(ranking), ascending=False)]
        return reports.Runset(entity, project, "runs", order=order, pinned_columns=columns)

    def bar(key: str) -> Any:
        metric = registry.find(key)
        name = names.metric(protocol, key) if metric.per_protocol else key
        return reports.BarPlot(title=metric.title, metrics=[names.evaluation(split, name)])

    validation = names.validation(registry.ranking(protocol))
    grids = {
        "Image quality": [*map(bar, registry.BRIEF), bar(registry.JUDGED), *map(bar, PHYSICS)],
        "Pictures": [reports.MediaBrowser(media_keys=[names.picture(f"{split}-slices")], num_columns=1)],
        "Training": [
            reports.LinePlot(title=f"validation {registry.find(validation).title}", x="step", y=[validation]),
            reports.LinePlot(title="training loss", x="step", y=[names.TRAIN_LOSS], log_y=True),
        ],
        "Attention": [
            reports.LinePlot(title=statistic, x="step", metric_regex=names.attention("[0-9]+", statistic))
            for statistic in ("channel_sd", "spatial_edges")
        ],
    }
    blocks: list[Any] = []
    for title, panels in grids.items():
        blocks += [reports.H2(title), reports.PanelGrid(runsets=[runs()], panels=panels)]
    return blocks
