"""A comparison of a W&B project's runs as a W&B report and as a saved view, which follow the runs.

They are made with wandb-workspaces, W&B's own package for it (the extra ``wandb-report``).
"""

from typing import Any

from ldct.evaluation.baselines import LOW
from ldct.evaluation.results import FULL
from ldct.metrics import names, protocols, registry
from ldct.runs.wandb_reader import TIMEOUT_S
from shards.common.command import InputError, first_line

PHYSICS = ("texture/high_band", "edges/sharpness", "body/dose")
"""Metrics without a protocol that have a bar for each run."""


VIEW = ("Training", "Pictures", "Image quality", "Noise", "Attention")
"""Sections of the view from top to bottom; all but the last are open."""


def publish(project: str, split: str, protocol: str) -> list[str]:
    """Make a new view and a new report in ``project`` (ENTITY/PROJECT), and return their addresses.

    Parameters
    ----------
    split : str
        Of the evaluations shown.
    protocol : str
        Name of the protocol that ranks.

    Raises
    ------
    InputError
        If wandb-workspaces is not installed, or W&B does not give the project or take the two.
    """
    entity, _, name = project.partition("/")
    if not entity or not name or "/" in name:
        raise InputError(f"--wandb-report: expected ENTITY/PROJECT, found {project!r}")
    try:
        import wandb
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise InputError(f"{error}; pip install -e .[wandb-report] -c constraints.txt") from None
    try:
        count = len(wandb.Api(timeout=TIMEOUT_S).runs(project))  # saving would make a project of a misspelled name
        panels = _panels(reports, split, protocol)
        view = workspaces.Workspace(
            entity=entity,
            project=name,
            name=f"Comparison on {split}",
            sections=[workspaces.Section(name=each, panels=panels[each], is_open=each != VIEW[-1]) for each in VIEW],
            settings=workspaces.WorkspaceSettings(x_axis="step", group_by_prefix="first"),
        )
        view.save()
        report = reports.Report(
            project=name,
            entity=entity,
            title=f"Comparison of {name}",
            description=f"{count} runs; evaluation: {split}; {protocol}: {protocols.get(protocol).text}",
            blocks=_blocks(reports, entity, name, names.evaluation(split, registry.ranking(protocol)), panels),
        )
        report.save()
        return [str(view.url), str(report.url)]
    # wandb-workspaces checks no answer: what is missing in one is a KeyError or TypeError
    except (wandb.Error, ValueError, OSError, KeyError, TypeError) as error:
        raise InputError(
            f"no report in {project}: {first_line(error)}; check the name, WANDB_BASE_URL and the key"
        ) from None


def _panels(reports: Any, split: str, protocol: str) -> dict[str, list[Any]]:
    """Panels by the section that they stand in."""

    def bar(key: str) -> Any:
        metric = registry.find(key)
        name = names.metric(protocol, key) if metric.per_protocol else key
        return reports.BarPlot(title=metric.title, metrics=[names.evaluation(split, name)])

    validation, methods = names.validation(registry.ranking(protocol)), (FULL, LOW, names.NETWORK)
    return {
        "Image quality": [*map(bar, registry.BRIEF), bar(registry.JUDGED), *map(bar, PHYSICS)],
        "Pictures": [reports.MediaBrowser(media_keys=[names.picture(f"{split}-slices")], num_columns=1)],
        "Training": [
            reports.LinePlot(title="training loss", x="step", y=[names.TRAIN_LOSS], log_y=True),
            reports.LinePlot(title=f"validation {registry.find(validation).title}", x="step", y=[validation]),
        ],
        "Noise": [
            reports.LinePlot(
                title=f"noise power spectrum of the {method} (HU² mm², over 1/mm)",
                x=names.spectrum(split, names.PER_MM),
                y=[names.spectrum(split, method)],
                log_y=True,
            )
            for method in methods
        ],
        "Attention": [
            reports.LinePlot(title=statistic, x="step", metric_regex=names.attention("[0-9]+", statistic))
            for statistic in ("channel_sd", "spatial_edges")
        ],
    }


def _blocks(reports: Any, entity: str, project: str, ranking: str, panels: dict[str, list[Any]]) -> list[Any]:
    """What stands in the report, from top to bottom: each grid of panels with a table of the runs, the best first."""

    def runs() -> Any:
        columns = ["config:model.value.name", "config:model.value.attention", f"summary:{ranking}"]
        order = [reports.OrderBy(reports.SummaryMetric(ranking), ascending=False)]
        return reports.Runset(entity, project, "runs", order=order, pinned_columns=columns)

    blocks: list[Any] = []
    for title, own in panels.items():
        blocks += [reports.H2(title), reports.PanelGrid(runsets=[runs()], panels=own)]
    return blocks
