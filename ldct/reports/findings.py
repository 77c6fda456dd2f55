"""What runs show of the two networks and of attention, as a page of Markdown with its charts: docs/findings.md."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldct import config as configuration
from ldct.evaluation.baselines import LOW, NAMES
from ldct.evaluation.results import Evaluation
from ldct.metrics import intervals, names, registry
from ldct.metrics.intervals import Interval
from ldct.reports import charts, comparison, labels, page_charts, tables
from ldct.reports import claims as claimed
from ldct.reports.charts import Curve
from ldct.reports.claims import Arm, Claim, Quantity
from ldct.reports.comparison import Run
from shards import manifest
from shards.common.command import InputError
from shards.manifest import Manifest

SPLIT = "test"
MAPS = {
    "channel_sd": "SD of the channel weights",
    "spatial_edges": "correlation of the spatial map with edges",
    "spatial_texture": "correlation of the spatial map with texture",
}
"""Attention statistics shown by depth: the key, and what it is called."""


@dataclass
class Findings:
    """What the page is written from."""

    arms: list[Arm]
    """In order of the ranking, the best first."""
    found: Evaluation
    """All runs' evaluations and the baselines'."""
    data: Manifest
    digest: str
    """sha256 of the manifest of the shards."""
    left_out: list[str]
    """Runs that do not count, and why."""

    @property
    def metric(self) -> str:
        """The metric that ranks."""
        return registry.ranking(self.found.protocols[0])

    @property
    def runs(self) -> list[Run]:
        """All runs that count."""
        return [run for arm in self.arms for run in arm.runs.values()]

    @property
    def claims(self) -> list[Claim]:
        """The claims, with what these runs say of them."""
        return claimed.claims(self.arms, self.metric, self.data.counts["val"]["patients"])


def gather(roots: list[Path], shards: Path) -> Findings:
    """Read the runs at or below ``roots``, evaluated on the test slices of ``shards``.

    Raises
    ------
    InputError
        If no run is finished and evaluated, or the evaluations are of other slices or do not belong together.
    """
    data, digest = manifest.load(shards), manifest.digest(shards)
    every = comparison.gather(roots, SPLIT)
    kept = [run for run in every if run.state == "finished" and run.evaluation]
    found = comparison.joined(kept)
    if found is None:
        raise InputError(f"none of {len(every)} runs is finished and evaluated; run launch/evaluate.py on them first")
    if found.data != digest:
        raise InputError(
            f"{kept[0].name} was evaluated on other shards (manifest {found.data[:12]}) than {shards} ({digest[:12]}); "
            "give those, or evaluate again"
        )
    arms = claimed.group(kept)
    counted = {run.name for arm in arms for run in arm.runs.values()}
    why = {run.name: "not evaluated" if run.state == "finished" else run.state for run in every if run not in kept}
    why |= {run.name: "another run is the same" for run in kept if run.name not in counted}
    metric = registry.ranking(found.protocols[0])
    arms.sort(key=lambda arm: -arm.interval(metric).mean)
    return Findings(arms, found, data, digest, [f"{name}: {reason}" for name, reason in why.items()])


def render(seen: Findings, stem: str) -> dict[str, str]:
    """Files by name: the page ``stem``.md and its charts ``stem``-NAME.svg."""
    drawn = draw(seen)
    sections = [
        *("# Findings", "", *about(seen), "## Ranking", "", *ranking(seen)),
        *("## Attention by depth", "", *by_depth(seen, drawn, stem)),
        *(f"## By groups of {size_of(seen)} iterations", "", *by_groups(seen, drawn, stem)),
        *("## Claims", "", *verdicts(seen.claims), "## Commands", "", *commands(seen, stem)),
    ]
    return {f"{stem}.md": "\n".join(sections)} | {f"{stem}-{name}.svg": svg for name, svg in drawn.items()}


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table, its first column to the left."""
    align = ["---", *["---:"] * (len(head) - 1)]
    return [*(f"| {' | '.join(cells)} |" for cells in [head, align, *rows]), ""]


def about(seen: Findings) -> list[str]:
    """Data, device, dates, and what bounds the reach of the numbers."""
    split, counts = seen.data.split, seen.data.counts
    sizes = ", ".join(f"{name} {c['slices']} slices of {c['patients']}" for name, c in counts.items())
    return [
        f"Written by launch/findings.py on {time.strftime('%Y-%m-%d', time.gmtime())}; every number is from the runs.",
        "",
        f"- Data: shards with manifest {seen.digest[:12]}, split by {split['by']} ({split['note']}); {sizes} "
        f"(patients); RMSE of low against full dose {seen.data.statistics['rmse']:.1f} HU.",
        f"- Trained on {origin(seen.runs)}.",
        f"- Measured: {tables.about(seen.found)}.",
        f"- {len(seen.runs)} runs in {len(seen.arms)} arms; the runs of an arm differ in their seed alone.",
        *(f"- {line}" for line in limits(seen)),
        *(f"- Left out: {line}." for line in seen.left_out),
        *(f"- Flagged: {run.label}: {', '.join(run.status.flags)}." for run in seen.runs if run.status.flags),
        "",
    ]


def origin(found: list[Run]) -> str:
    """Devices, dates, torch and code of the runs, as their provenance has them."""
    attempts = [attempt for run in found for attempt in run.provenance]
    dates = sorted(attempt["time"][:10] for attempt in attempts)
    parts = [
        *sorted({f"{run.status.world_size} x {run.status.device or 'unknown'}" for run in found}),
        " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])) or "a day not known",
        *sorted({f"torch {attempt['packages']['torch']}" for attempt in attempts}),
        *sorted({f"code {attempt['code']['commit'][:10] or 'unknown'}" for attempt in attempts}),
    ]
    changed = any(attempt["code"]["diff"] for attempt in attempts)
    return ", ".join(parts) + " with uncommitted changes" * changed


def limits(seen: Findings) -> list[str]:
    """What keeps these runs from being the study's: width, patients, seeds."""
    lines = []
    configs = [arm.config for arm in seen.arms]
    narrow = {
        f"{c.model.name} with {c.model.channels} channels in place of {configuration.networks()[c.model.name].channels}"
        for c in configs
        if c.model.channels != configuration.networks()[c.model.name].channels
    }
    if narrow:
        lines.append(f"Narrow networks: {', '.join(sorted(narrow))}. Full width: not measured here.")
    thin = [c for c in configs if c.model.attention in ("channel", "both") and (c.model.channels or 0) < 32]
    if thin:
        lines.append(
            "Channel attention on fewer than 32 channels has one hidden unit (reduction 16): where its ReLU is closed "
            "all weights are 1/2 and their SD is 0."
        )
    pairs = sorted({c.train.steps * c.train.global_batch for c in configs})
    full = configuration.TrainConfig()
    lines.append(
        f"Training pairs seen by a run: {', '.join(f'{count:,}' for count in pairs)}; the default recipe's "
        f"{full.steps * full.global_batch:,}."
    )
    patients = len(seen.found.patients)
    seeds = min(len(arm.runs) for arm in seen.arms)
    if patients < intervals.LEAST_PATIENTS or seeds < intervals.LEAST_SEEDS:
        lines.append(
            f"{patients} test patient{'s' * (patients > 1)} and at least {seeds} seed{'s' * (seeds > 1)} an arm: an "
            f"interval needs {intervals.LEAST_PATIENTS} patients and {intervals.LEAST_SEEDS} seeds. "
            "What has none decides nothing."
        )
    return lines


def shown(interval: Interval, column: str) -> str:
    """Mean, and half the interval where there is one."""
    return tables.cell(intervals.Estimate(interval.mean, interval.ci95_half_width), column)


def ranking(seen: Findings) -> list[str]:
    """The arms and the baselines by PSNR."""
    first = seen.found.protocols[0]
    others = [registry.ranking(protocol) for protocol in seen.found.protocols[1:]]
    columns = [*registry.main_names(first), *others]
    low = intervals.by_patient(seen.found.get(LOW).slices)
    rows = []
    for arm in seen.arms:
        against = {seed: {p: values[seen.metric] for p, values in low.items()} for seed in arm.runs}
        gain = arm.interval(seen.metric, against)
        cells = [shown(arm.interval(column), column) for column in columns]
        rows.append((gain.mean, [arm.label, str(gain.seeds), str(gain.patients), signed(gain, 2), *cells]))
    for name in NAMES:
        means = seen.found.get(name).means
        over = means[seen.metric].mean - seen.found.get(LOW).means[seen.metric].mean
        cells = [tables.cell(means[column], column) for column in columns]
        rows.append((over, [name, "-", str(len(low)), f"{over:+.2f}", *cells]))
    rows.sort(key=lambda row: -row[0])
    main, rank = [registry.find(name).title for name in registry.main_names(first)], registry.find(registry.RANKING)
    head = ["", "seeds", "patients", f"gain over low dose ({rank.unit})", *main]
    return [
        *table(
            [*head, *(f"{names.split_metric(name)[0]} {rank.label}" for name in others)], [cells for _, cells in rows]
        ),
        "± is half the 95 % interval over seeds and patients (for baselines over patients); none is given with fewer "
        f"than {intervals.LEAST_SEEDS} seeds or {intervals.LEAST_PATIENTS} patients.",
        "",
    ]


def signed(interval: Interval, digits: int) -> str:
    """Mean with its sign, and half the interval where there is one."""
    half = "" if interval.ci95_half_width is None else f" ± {interval.ci95_half_width:.{digits}f}"
    return f"{interval.mean:+.{digits}f}{half}"


def by_depth(seen: Findings, drawn: dict[str, str], stem: str) -> list[str]:
    """Attention statistics by relative depth: tables and charts."""
    lines = [
        f"Means over the validation slices (patients: {seen.data.counts['val']['patients']}) at the end of training, "
        "then over seeds, ± the SD over seeds. Depth is relative: 0 = first, 1 = deepest encoder stage.",
        "",
    ]
    for stat, text in MAPS.items():
        found = {arm.label: arm.profiles(stat) for arm in seen.arms if arm.profiles(stat)}
        if not found:
            continue
        depths = sorted({depth for profiles in found.values() for one in profiles for depth in one})
        rows = [
            [label, *(spread([one[depth] for one in profiles if depth in one], 3) for depth in depths)]
            for label, profiles in found.items()
        ]
        lines += [f"{text[0].upper()}{text[1:]}:", "", *table(["", *(f"depth {d:.2f}" for d in depths)], rows)]
        lines += [f"![{text} by depth]({stem}-{stat}.svg)", ""]
    if not any(stat in drawn for stat in MAPS):
        lines += ["No run has attention statistics.", ""]
    return lines


def spread(values: list[float], digits: int) -> str:
    """Mean ± SD over seeds, the SD where there are two or more."""
    if not values:
        return "-"
    sd = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{sd}"


def size_of(seen: Findings) -> int:
    """Steps of a group, as in the report."""
    return page_charts.group_size(seen.runs)


def grouped(run: Run, key: str, size: int) -> dict[int, float]:
    """Mean of a metric over groups of ``size`` steps, by the number of the group from 0. Step 0 is before the first."""
    groups: dict[int, list[float]] = {}
    for step, value in zip(*run.curve(key), strict=True):
        if step > 0:
            groups.setdefault((step - 1) // size, []).append(value)
    return {number: float(np.mean(values)) for number, values in groups.items()}


def over_groups(arm: Arm, key: str, size: int) -> dict[int, list[float]]:
    """The groups' means of every seed."""
    found: dict[int, list[float]] = {}
    for run in arm.runs.values():
        for number, value in grouped(run, key, size).items():
            found.setdefault(number, []).append(value)
    return dict(sorted(found.items()))


def curves_of(seen: Findings) -> dict[str, tuple[str, str]]:
    """What is followed through training: name of the chart -> (key of the metrics, text)."""
    name = seen.arms[0].config.val.protocol
    validation = {
        metric.key: (names.validation(names.metric(name, metric.key)), f"validation {metric.title}, {name}")
        for metric in registry.per_protocol()
    }
    return {"loss": (names.TRAIN_LOSS, "training loss"), **validation}


def by_groups(seen: Findings, drawn: dict[str, str], stem: str) -> list[str]:
    """Training loss and validation metrics, averaged over groups of iterations: tables and charts."""
    size, lines = size_of(seen), ["Means over the group and over seeds; a validation belongs to the group it ends.", ""]
    for name, (key, text) in curves_of(seen).items():
        if name not in drawn:
            continue
        lines += [f"![{text}]({stem}-{name}.svg)", ""]
        if name in ("loss", "psnr"):
            found = {arm.label: over_groups(arm, key, size) for arm in seen.arms}
            numbers = sorted({number for groups in found.values() for number in groups})
            digits = 2 if name == "psnr" else 6
            rows = [
                [f"{n * size + 1} to {(n + 1) * size}", *(spread(g.get(n, []), digits) for g in found.values())]
                for n in numbers
            ]
            lines += [f"{text[0].upper()}{text[1:]}, ± SD over seeds:", "", *table(["iterations", *found], rows)]
    return lines


def draw(seen: Findings) -> dict[str, str]:
    """Charts by name, one curve per arm; those without data are left out."""
    size, made = size_of(seen), {}
    looks = {arm.label: charts.look(number) for number, arm in enumerate(seen.arms)}

    def add(name: str, x: str, y: str, points: Callable[[Arm], dict[float, list[float]]], log: bool = False) -> None:
        drawn = []
        for arm in seen.arms:
            found = points(arm)
            means, sd = ([float(f(values)) for values in found.values()] for f in (np.mean, np.std))
            drawn.append(Curve(arm.label, looks[arm.label], list(found), means, sd))
        if drawn := [curve for curve in drawn if curve.x]:
            made[name] = charts.curves(name, drawn, x, y, log=log)

    def depths(stat: str) -> Callable[[Arm], dict[float, list[float]]]:
        def points(arm: Arm) -> dict[float, list[float]]:
            found: dict[float, list[float]] = {}
            for profile in arm.profiles(stat):
                for depth, value in profile.items():
                    found.setdefault(depth, []).append(value)
            return found

        return points

    for stat, text in MAPS.items():
        add(stat, "relative depth (0 = first, 1 = deepest encoder stage)", text, depths(stat))
    for name, (key, text) in curves_of(seen).items():

        def points(arm: Arm, key: str = key) -> dict[float, list[float]]:
            return {(n + 1) * size: values for n, values in over_groups(arm, key, size).items()}

        add(name, "iterations", text, points, log=name == "loss")
    return made


def verdicts(found: list[Claim]) -> list[str]:
    """The claims in a table, then what each was decided by."""
    rows = [[claim.text, claim.said, f"**{claim.verdict}**"] for claim in found]
    lines = [
        "A quantity decides for or against a claim where its whole 95 % interval lies on one side of the threshold; a "
        "claim is confirmed if all its quantities are, refuted if one is, and undecided else.",
        "",
        *table(["claim", "the study had", "on these data"], rows),
    ]
    for claim in found:
        reasons = [why(quantity) for quantity in claim.quantities] or ["not measured: there are no such runs"]
        lines += [f"- {claim.text}: **{claim.verdict}**.", *(f"  - {reason}" for reason in reasons)]
    return [*lines, ""]


def why(quantity: Quantity) -> str:
    """What the verdict of a quantity rests on."""
    at = quantity.interval
    side, rule = ("above" if quantity.above else "below"), f"{quantity.threshold:g}{quantity.unit}"
    counted = f"{at.seeds} seed{'s' * (at.seeds != 1)}, {at.patients} patient{'s' * (at.patients != 1)}"
    if at.ci95_half_width is None:
        value = f"{at.mean:+.3f}{quantity.unit}" if math.isfinite(at.mean) else "no value"
        counted += f"; no interval with fewer than {intervals.LEAST_SEEDS} and {intervals.LEAST_PATIENTS}"
    else:
        value = f"{signed(at, 3)}{quantity.unit}"
    return f"{quantity.text}: {value} ({counted}); claimed {side} {rule}: {quantity.verdict}"


def commands(seen: Findings, stem: str) -> list[str]:
    """What to run for these numbers."""
    sweeps = sorted({run.folder.resolve().parent.name for run in seen.runs})
    shared = [dict(own(run)) for run in seen.runs]
    settings = [(k, v) for k, v in shared[0].items() if all(k in one and one[k] == v for one in shared)]
    sets = "".join(f" --set {key}={labels.text(value)}" for key, value in settings)
    known = [name for name in sweeps if Path(__file__).parents[2].joinpath(f"configs/sweeps/{name}.yaml").is_file()]
    lines = [
        f"python launch/sweep.py configs/sweeps/{name}.yaml --cluster CLUSTER.yaml --set data.shards=SHARDS{sets}"
        for name in known
    ]
    lines += ["python launch/train.py --config RUN/config.yaml --run_dir NEW   # any of the runs again"]
    roots = " ".join(f"runs/{name}" for name in sweeps)
    chosen = " ".join(seen.found.protocols)
    lines += [f"python launch/evaluate.py {roots} --shards SHARDS --protocol {chosen}"]
    lines += [f"python launch/findings.py {roots} --shards SHARDS -o docs/{stem}.md"]
    return ["```", *lines, "```", ""]


def own(run: Run) -> list[tuple[str, object]]:
    """Fields in which a run's configuration is not the built-in one."""
    plain = configuration.flat(configuration.from_dict({"model": {"name": run.config.model.name}}))
    flat = claimed.identity(run.config)
    return [(key, value) for key, value in flat.items() if value != plain[key]]
