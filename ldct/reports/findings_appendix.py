"""The appendix of the findings: data and origin, all arms, what each verdict rests on, depth, curves, commands."""

from pathlib import Path

import numpy as np
import yaml

from ldct import config as configuration
from ldct.config import Config
from ldct.evaluation import lesion
from ldct.evaluation.baselines import LOW, NAMES
from ldct.evaluation.results import FULL, Evaluation
from ldct.metrics import intervals, names, observer, registry
from ldct.reports import arms as arms_of
from ldct.reports import findings_charts, labels, page_charts, tables
from ldct.reports.arms import identity
from ldct.reports.claims import Quantity
from ldct.reports.comparison import Run
from ldct.reports.findings import Findings, limits, shown, signed, table, value
from ldct.reports.findings_charts import BY_DEPTH
from shards.manifest import SPLITS

ROOT = Path(__file__).parents[2]
"""Of the project, which the paths in sweep files start from."""


def render(findings: Findings, charts: dict[str, str], stem: str) -> list[str]:
    """Lines of the appendix."""
    size = page_charts.group_size(findings.runs)
    return [
        *("# Findings: appendix", "", *about(findings), "## All arms", "", *ranking(findings)),
        *budgets(findings),
        *faint_disc(findings),
        *("## What the verdicts rest on", "", *reasons(findings)),
        *("## Attention by depth", "", *depths(findings, charts, stem)),
        *(f"## By groups of {size} iterations", "", *by_groups(findings, charts, stem, size)),
        *("## Commands", "", *commands(findings, stem)),
    ]


def about(findings: Findings) -> list[str]:
    """Data, device, dates, and what bounds the reach of the numbers."""
    sizes = ", ".join(f"{name} {c['slices']} slices of {c['patients']}" for name, c in findings.data.counts.items())
    return [
        f"- Shards with manifest {findings.digest[:12]}, {findings.data.split_note}; {sizes} "
        f"(patients); RMSE of low against full dose {findings.data.statistics['rmse']:.1f} HU.",
        f"- Trained on {origin(findings.runs)}.",
        f"- Measured: {tables.about(findings.evaluation)}.",
        f"- {len(findings.runs)} runs in {len(findings.arms)} arms; the runs of an arm differ in their seed alone.",
        *(f"- {line}" for line in limits(findings)),
        *(f"- Left out: {line}." for line in findings.left_out),
        *(f"- Flagged: {run.label}: {', '.join(run.flags)}." for run in findings.runs if run.flags),
        "",
    ]


def origin(runs: list[Run]) -> str:
    """Devices, dates, torch and code of the runs, as their provenance has them."""
    attempts = [attempt for run in runs for attempt in run.provenance]
    dates = sorted(attempt["time"][:10] for attempt in attempts)
    parts = [
        *sorted({f"{run.status.world_size} x {run.status.device or 'unknown'}" for run in runs}),
        " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])) or "a day not known",
        *sorted({f"torch {attempt['packages']['torch']}" for attempt in attempts}),
        *sorted({f"code {attempt['code']['commit'][:10] or 'unknown'}" for attempt in attempts}),
    ]
    changed = any(attempt["code"]["diff"] for attempt in attempts)
    return ", ".join(parts) + " with uncommitted changes" * changed


def ranking(findings: Findings) -> list[str]:
    """The arms and the baselines, by the metric that ranks."""
    evaluation, rank = findings.evaluation, registry.find(findings.metric)
    others = [registry.ranking(protocol) for protocol in evaluation.protocols[1:]]
    main = registry.main_names(evaluation.protocols[0], evaluation.metrics)
    columns = [*main, *others]
    rows = []
    for arm in findings.arms:
        gain = findings.gain(arm)
        cells = [shown(arm.interval(column), column) for column in columns]
        counts = [str(gain.seeds), str(gain.patients)]
        rows.append((gain.mean, [arm.label, *counts, signed(gain, rank.digits), *cells]))
    low = evaluation.get(LOW)
    for name in NAMES:
        result = evaluation.get(name)
        over_low = intervals.paired(result.slices, low.slices, findings.metric).estimate
        cells = [tables.cell(result.means[column], column) for column in columns]
        counts = ["-", str(len(evaluation.patients))]
        rows.append((over_low.mean, [name, *counts, tables.signed(over_low, findings.metric), *cells]))
    rows.sort(key=lambda row: -row[0])
    titles = [registry.find(name).title for name in main]
    titles += [f"{rank.label}, {names.split_metric(name)[0]}" for name in others]
    return [
        *table(["", "seeds", "patients", f"gain over low dose ({rank.unit})", *titles], [cells for _, cells in rows]),
        "± is half the 95 % interval over seeds and patients (for baselines over patients); none is given with fewer "
        f"than {intervals.LEAST_SEEDS} seeds or {intervals.LEAST_PATIENTS} patients.",
        "",
    ]


def budgets(findings: Findings) -> list[str]:
    """The main arms beside those that differ from one of them in the number of steps alone, the quickest first: what a
    network reaches with the time that another takes. Empty where every arm has one number of steps."""
    main = arms_of.main_arms(findings.arms)
    recipes = [(identity(arm.config, ["train.steps"]), arm.data) for arm in main]
    longer = [
        arm for arm in findings.arms if arm not in main and (identity(arm.config, ["train.steps"]), arm.data) in recipes
    ]
    if not longer:
        return []
    rank = registry.find(findings.metric)
    rows = [
        (seconds, [arm.label, str(len(arm.runs)), f"{arm.config.train.steps:,}", f"{seconds:.0f}" if seconds else "-",
                   signed(findings.gain(arm), rank.digits)])
        for arm in [*main, *longer]
        for seconds in [min(run.training_seconds for run in arm.runs.values())]
    ]  # fmt: skip
    return [
        *("## At equal time", ""),
        *table(
            ["", "seeds", "steps", "seconds of training", f"gain over low dose ({rank.unit})"],
            [cells for _, cells in sorted(rows)],
        ),
        "Seconds of a run's steps, without validation: of the quickest seed, as other work on the machine only adds.",
        "",
    ]


def faint_disc(findings: Findings) -> list[str]:
    """What became of a disc drawn into the low dose behind the arms and the baselines; empty where none was drawn."""
    of_arms: dict[str, list[tuple[float, float]]] = {}
    for arm in findings.arms:
        for run in arm.runs.values():
            for name, of_patients in lesion.load(run.folder, run.evaluation).items():
                estimates = intervals.over_patients(of_patients)
                if estimates:
                    label = arm.label if name == run.folder.resolve().name else name
                    seen, kept = (estimates[key].mean for key in lesion.LESION)
                    of_arms.setdefault(label, []).append((seen, kept))
    rows = []
    for label, values in of_arms.items():
        seen, kept = np.mean(values, 0)
        seeds = "-" if label in (FULL, *NAMES) else str(len(values))
        rows.append((seen, [label, seeds, f"{seen:.2f}", f"{kept:.2f}"]))
    if not rows:
        return []
    return [
        *("## A faint disc", ""),
        *table(["", "seeds", "d'", "contrast kept"], [cells for _, cells in sorted(rows, key=lambda row: -row[0])]),
        f"{observer.DIAMETER_MM:g} mm, +{observer.CONTRAST_HU:g} HU, drawn into the low dose in flat soft tissue "
        "(evaluate.py --lesion): means over patients, then seeds.",
        "",
    ]


def reasons(findings: Findings) -> list[str]:
    """Every claim with its quantities."""
    lines = []
    for claim in findings.claims:
        quantities = [reason(quantity) for quantity in claim.quantities] or ["not measured: there are no such runs"]
        lines += [f"- {claim.text}: **{claim.verdict}**.", *(f"  - {line}" for line in quantities)]
    return [*lines, ""]


def reason(quantity: Quantity) -> str:
    """A quantity, what it is of, and where it is claimed to lie."""
    interval = quantity.interval
    side, rule = ("above" if quantity.above else "below"), f"{quantity.threshold:g}{quantity.unit}"
    seeds, patients = interval.seeds, interval.patients
    counted = f"{seeds} seed{'s' * (seeds != 1)}, {patients} patient{'s' * (patients != 1)}"
    if interval.ci95_half_width is None:
        counted += f"; no interval with fewer than {intervals.LEAST_SEEDS} and {intervals.LEAST_PATIENTS}"
    return f"{quantity.text}: {value(quantity)} ({counted}); claimed {side} {rule}"


def depths(findings: Findings, charts: dict[str, str], stem: str) -> list[str]:
    """What attention does by relative depth, in tables and charts, and whether the seeds agree."""
    lines = [
        "Means over the patients measured, then over seeds, ± the SD over seeds. Depth is relative: 0 = first, 1 = "
        "deepest encoder stage. Agreement: mean correlation of two seeds' values by depth.",
        "",
    ]
    for measure, text in BY_DEPTH.items():
        by_label = {arm.label: values for arm in findings.arms if (values := arm.by_depth(measure))}
        if not by_label:
            continue
        every = sorted({depth for values in by_label.values() for depth in values})
        rows = [
            [label, *(spread(values.get(depth, []), 3) for depth in every), agreement(values)]
            for label, values in by_label.items()
        ]
        head = ["", *(f"depth {depth:.2f}" for depth in every), "agreement"]
        lines += [
            f"{text[0].upper()}{text[1:]}:",
            "",
            *table(head, rows),
            f"![{text} by depth]({stem}-{measure}.svg)",
            "",
        ]
    if len(lines) == 2:
        lines += ["Not measured: no network with attention, or no evaluate.py --ablate.", ""]
    return lines


def agreement(values: dict[float, list[float]]) -> str:
    """Mean Pearson correlation over all pairs of seeds of their values by depth; a dash where there is none."""
    counts = {len(of_seeds) for of_seeds in values.values()}
    seeds = np.array(list(values.values())).T if len(counts) == 1 and len(values) > 2 else np.empty((0, 0))
    if len(seeds) < 2 or (np.ptp(seeds, axis=1) == 0).any():
        return "-"
    pairs = np.corrcoef(seeds)[np.triu_indices(len(seeds), 1)]
    return f"{pairs.mean():+.2f}"


def spread(values: list[float], digits: int) -> str:
    """Mean ± SD over seeds, the SD where there are two or more."""
    if not values:
        return "-"
    sd = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{sd}"


def by_groups(findings: Findings, charts: dict[str, str], stem: str, size: int) -> list[str]:
    """Training loss and validation metrics, averaged over groups of iterations: tables and charts."""
    lines = ["Means over the group and over seeds; a validation belongs to the group it ends.", ""]
    for name, (key, text) in findings_charts.followed(findings).items():
        if name not in charts:
            continue
        lines += [f"![{text}]({stem}-{name}.svg)", ""]
        if key in tabled_names(findings):
            groups = {arm.label: findings_charts.over_groups(arm, key, size) for arm in findings.arms}
            numbers = sorted({number for values in groups.values() for number in values})
            digits = 6 if name == "loss" else registry.find(key).digits
            rows = [
                [
                    f"{n * size + 1} to {(n + 1) * size}",
                    *(spread(values.get(n, []), digits) for values in groups.values()),
                ]
                for n in numbers
            ]
            lines += [f"{text[0].upper()}{text[1:]}, ± SD over seeds:", "", *table(["iterations", *groups], rows)]
    return lines


def tabled_names(findings: Findings) -> list[str]:
    """Names of what is given in numbers too: the loss, and the metric that ranks."""
    protocol = findings.arms[0].config.val.protocol
    return [names.TRAIN_LOSS, names.validation(registry.ranking(protocol))]


def commands(findings: Findings, stem: str) -> list[str]:
    """What to run for these numbers."""
    sweeps: dict[str, list[Config]] = {}
    for run in sorted(findings.runs, key=lambda run: run.folder.resolve().parent.name):
        sweeps.setdefault(run.folder.resolve().parent.name, []).append(run.config)
    lines = [
        f"python launch/sweep.py {path} --cluster CLUSTER.yaml --set data.shards=SHARDS"
        + "".join(f" --set {key}={labels.text(value)}" for key, value in settings(configs, ROOT / path))
        for name, configs in sweeps.items()
        if (ROOT / (path := f"configs/sweeps/{name}.yaml")).is_file()
    ]
    lines += ["python launch/train.py --config RUN/config.yaml --run_dir NEW   # any of the runs again"]
    roots = " ".join(f"runs/{name}" for name in sweeps)
    chosen, split = " ".join(findings.evaluation.protocols), findings.evaluation.split
    second, where = findings.second, where_of(findings.evaluation, findings)
    for root in roots.split():  # one by one: runs of two sweeps may have one name
        lines += [f"python launch/evaluate.py {root} {where} --ablate --protocol {chosen}"]
        if second:
            lines += [f"python launch/evaluate.py {root} {where_of(second, findings)} --protocol {chosen}"]
    beside = f" --beside {second.split}" if second and second.split != "test" else ""
    lines += [f"python launch/findings.py {roots} --shards SHARDS --split {split}{beside} -o docs/{stem}.md"]
    return ["```", *lines, "```", ""]


def where_of(evaluation: Evaluation, findings: Findings) -> str:
    """The slices of ``evaluation`` as options of evaluate.py."""
    split = evaluation.split
    if split in SPLITS:
        return f"--shards SHARDS --split {split}"
    if split == "pairs":
        return "--pairs PAIRS"
    of_shards = "SHARDS" if evaluation.data == findings.digest else "OTHER"
    data = f"--shards {of_shards}" if evaluation.note.startswith("split ") else "--pairs PAIRS"
    return f"{data} --name {split}"


def settings(configs: list[Config], sweep: Path) -> list[tuple[str, object]]:
    """The fields that all of ``configs`` share and that a configuration named in the file ``sweep`` has otherwise; a
    network's published sizes go without saying."""
    named = yaml.safe_load(sweep.read_text())["parameters"].get("config", {})
    files = named.get("values", [named["value"]] if "value" in named else [])
    bases = [configuration.flat(configuration.load(ROOT / file)) for file in files]
    runs = [identity(config) for config in configs]
    shared = {key: value for key, value in runs[0].items() if all(run[key] == value for run in runs)}
    published = configuration.networks()[configs[0].model.name].sizes
    return [
        (key, value)
        for key, value in shared.items()
        if any(base[key] != value for base in bases) and published.get(key.removeprefix("model.")) != value
    ]
