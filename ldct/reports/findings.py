"""What runs show of the two networks and of attention, as pages of Markdown with their charts: docs/findings.md.

The page answers; what it rests on stands in the appendix beside it (ldct/reports/findings_appendix.py).
"""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np

from ldct import config as configuration
from ldct.evaluation import results
from ldct.evaluation.attention import LOSS
from ldct.evaluation.baselines import LOW
from ldct.evaluation.results import Evaluation
from ldct.metrics import intervals, registry
from ldct.metrics.intervals import Interval
from ldct.metrics.names import metric as name_under
from ldct.reports import arms as arms_of
from ldct.reports import claims as claims_of
from ldct.reports import comparison, findings_charts, tables
from ldct.reports.arms import Arm
from ldct.reports.claims import (
    ALIKE,
    ATTENTION,
    CONFIRMED,
    DEPTH,
    MATTERS_DB,
    NETWORKS,
    RECIPE,
    REFUTED,
    UNDECIDED,
    Claim,
    Quantity,
)
from ldct.reports.comparison import Run
from ldct.reports.significance import p_text
from shards import manifest
from shards.common.command import InputError
from shards.manifest import SPLITS, Manifest

LIMITS = 5
"""Most limits on the page, the gravest first."""
MANY_PATIENTS = 100
"""Where a claim needs more, more seeds are the better way."""


@dataclass
class Findings:
    """What the pages are written from."""

    arms: list[Arm]
    """In order of the ranking, the best first."""
    evaluation: Evaluation
    """All runs' evaluations and the baselines'."""
    data: Manifest
    """Of the shards they were trained on."""
    digest: str
    """sha256 of the manifest of those shards."""
    left_out: list[str]
    """Runs that do not count, and why."""
    second: Evaluation | None = None
    """Of runs on a second set of slices, whose gain stands beside; None where no run has it."""

    @property
    def metric(self) -> str:
        """The metric that ranks."""
        return registry.ranking(self.evaluation.protocols[0])

    @property
    def runs(self) -> list[Run]:
        """All runs that count."""
        return [run for arm in self.arms for run in arm.runs.values()]

    @cached_property
    def claims(self) -> list[Claim]:
        """The claims, with what these runs say of them."""
        return claims_of.claims(self.arms, self.metric)

    def gain(self, arm: Arm) -> Interval:
        """Of ``arm`` over the low dose in the metric that ranks."""
        low = intervals.by_patient(self.evaluation.get(LOW).slices)
        return arm.interval(self.metric, {seed: {p: v[self.metric] for p, v in low.items()} for seed in arm.runs})

    def second_gain(self, arm: Arm) -> float:
        """Of ``arm`` over the low dose on ``second``, mean over its seeds that have it; nan where none has."""
        measured = self.second.results if self.second else []
        means = {result.name: result.means[self.metric].mean for result in measured}
        gains = [means[run.name] - means[LOW] for run in arm.runs.values() if run.name in means]
        return float(np.mean(gains)) if gains else math.nan


def gather(roots: list[Path], shards: Path, split: str = "test", beside: str = "test") -> Findings:
    """Read the runs at or below ``roots``, trained on ``shards`` and evaluated on ``split``.

    Parameters
    ----------
    split : str
        test or val of ``shards``, pairs for what evaluate.py --pairs measured, or a name that it was given.
    beside : str
        The same of a second set of slices, shown where it was measured; where it is ``split``, there is none.

    Raises
    ------
    InputError
        If no run is finished and evaluated, or the evaluations are of other slices or do not belong together.
    """
    data, digest = manifest.load(shards), manifest.digest(shards)
    every = comparison.gather(roots, comparison.choose_split(roots, split)[0])
    kept = [run for run in every if run.state == "finished" and run.evaluation]
    evaluation = comparison.joined(kept)
    if evaluation is None:
        raise InputError(
            f"none of {len(every)} runs is finished and evaluated on {split}; run launch/evaluate.py on them first"
        )
    if split in SPLITS and evaluation.data != digest:
        raise InputError(
            f"{kept[0].name} was evaluated on other shards (manifest {evaluation.data[:12]}) than {shards} "
            f"({digest[:12]}); give those, or evaluate again"
        )
    arms = arms_of.group(kept)
    counted = {run.name for arm in arms for run in arm.runs.values()}
    why = {run.name: "not evaluated" if run.state == "finished" else run.state for run in every if run not in kept}
    why |= {run.name: "another run is the same" for run in kept if run.name not in counted}
    metric = registry.ranking(evaluation.protocols[0])
    arms.sort(key=lambda arm: -arm.interval(metric).mean)
    left_out = [f"{name}: {reason}" for name, reason in why.items()]
    second = None if beside == split else second_set(kept, evaluation, beside, digest)
    return Findings(arms, evaluation, data, digest, left_out, second)


def second_set(every: list[Run], evaluation: Evaluation, name: str, digest: str) -> Evaluation | None:
    """What those of ``every`` gave that were evaluated on ``name``, ranked as ``evaluation`` is, under the conditions
    that most of them share; None if none was."""
    protocol, loaded = evaluation.protocols[0], [(run, results.load(run.folder, name)) for run in every]
    known = [(run, e) for run, e in loaded if e and e.protocols[0] == protocol]
    of_shards = [(run, e) for run, e in known if name not in SPLITS or e.data == digest]
    conditions = [e.conditions() for _, e in of_shards]
    alike = [(run, e) for run, e in of_shards if e.conditions() == max(conditions, key=conditions.count)]
    return comparison.joined([replace(run, evaluation=e) for run, e in alike])


def render(findings: Findings, stem: str) -> dict[str, str]:
    """Files by name: the page ``stem``.md, its appendix, and their charts ``stem``-NAME.svg."""
    from ldct.reports import findings_appendix

    charts = findings_charts.of(findings)
    shown = [
        f"![{findings_charts.CAPTIONS[name]}]({stem}-{name}.svg)" for name in findings_charts.ON_PAGE if name in charts
    ]
    page = [
        *("# Findings", "", answer(findings), ""),
        *main_table(findings),
        *(line for chart in shown[:2] for line in (chart, "")),
        *("## Claims", "", *claims_table(findings), "## Limits", ""),
        *(f"- {line}" for line in limits(findings)[:LIMITS]),
        "",
        f"Written by launch/findings.py on {time.strftime('%Y-%m-%d', time.gmtime())}; every number is from the runs. "
        f"[The appendix]({stem}-appendix.md) has all arms, what each verdict rests on, curves, and the commands.",
        "",
    ]
    appendix = findings_appendix.render(findings, charts, stem)
    files = {f"{stem}.md": "\n".join(page), f"{stem}-appendix.md": "\n".join(appendix)}
    return files | {f"{stem}-{name}.svg": svg for name, svg in charts.items()}


def table(head: list[str], rows: list[list[str]], texts: int = 1) -> list[str]:
    """A Markdown table, its first ``texts`` columns to the left."""
    align = ["---"] * texts + ["---:"] * (len(head) - texts)
    return [*(f"| {' | '.join(cells)} |" for cells in [head, align, *rows]), ""]


def answer(findings: Findings) -> str:
    """What a reader takes away: what the claims say to each question, a line each, and the best network."""
    best, evaluation = findings.arms[0], findings.evaluation
    rank = registry.find(findings.metric)
    slices, patients = len(evaluation.results[0].slices), len(evaluation.patients)
    lines = [f"On {slices} slices of {patients} patient{'s' if patients > 1 else ''}:", ""]
    for question in dict.fromkeys(claim.question for claim in findings.claims):
        replied = reply([claim for claim in findings.claims if claim.question == question])
        idle = idle_from(findings.arms) if question == DEPTH else ""
        lines.append(f"- **{question}** {replied} {idle}".rstrip())
    undecided = [claim for claim in findings.claims if claim.verdict == UNDECIDED]
    missing = sum(not claim.quantities for claim in undecided)
    lacking = f"; {missing} lack{'s' * (missing == 1)} runs" if missing else ""
    lines.append(
        f"- **Decided** are {len(findings.claims) - len(undecided)} of {len(findings.claims)} claims{lacking}. "
        f"The best of {len(findings.arms)} arms is {best.label}: "
        f"{signed(findings.gain(best), rank.digits)} {rank.unit} over the low dose."
    )
    return "\n".join(lines)


def reply(claims: list[Claim]) -> str:
    """Claims by their verdicts, with their differences in dB; of what is undecided and no such difference, how many."""
    sentences = []
    for verdict in (CONFIRMED, REFUTED, ALIKE, UNDECIDED):
        every = [claim for claim in claims if claim.verdict == verdict]
        told = [claim for claim in every if verdict != UNDECIDED or any(q.unit for q in claim.quantities)]
        texts = [f'"{claim.text}"' + "".join(f" ({value(q)})" for q in claim.quantities if q.unit) for claim in told]
        if more := len(every) - len(told):
            texts.append(f"{more} {'more' if told else 'claim'}{'s' * (more > 1 and not told)}")
        if texts:
            sentences.append(f"{verdict[0].upper()}{verdict[1:]}: {'; '.join(texts)}.")
    return " ".join(sentences)


def idle_from(arms: list[Arm]) -> str:
    """From which depth on no gate's choice matters in any arm; empty where it does down to the deepest stage."""
    most: dict[float, float] = {}
    for arm in arms:
        for depth, losses in arm.by_depth(LOSS).items():
            most[depth] = max(most.get(depth, 0.0), abs(float(np.mean(losses))))
    idle = list(takewhile(lambda depth: most[depth] < MATTERS_DB, sorted(most, reverse=True)))
    if not idle:
        return ""
    deep = max(most[depth] for depth in idle)
    return f"From relative depth {min(idle):.2f} on, what a gate chooses is worth at most {deep:.3f} dB in any arm."


def main_table(findings: Findings) -> list[str]:
    """The networks with every kind of attention, of one recipe: gain, similarity, texture, time."""
    first, rank = findings.evaluation.protocols[0], registry.find(findings.metric)
    others = [name_under(first, key) for key in registry.BRIEF if key != registry.RANKING]
    guards = [metric.key for metric in registry.METRICS if metric.expected is not None]
    rows = []
    for arm in arms_of.main_arms(findings.arms)[:8]:
        values = [arm.interval(name) for name in [*others, *guards]]
        flags = registry.outside(
            {name: interval.mean for name, interval in zip(guards, values[len(others) :], strict=True)}
        )
        cells = [shown(interval, name) for interval, name in zip(values, [*others, *guards], strict=True)]
        flag = f" ({', '.join(flag.split(':')[0] for flag in flags)})" if flags else ""
        seconds = min([1 / run.evaluation.results[-1].rate for run in arm.runs.values() if run.evaluation])
        if findings.second:
            gain = findings.second_gain(arm)
            cells.insert(0, "-" if math.isnan(gain) else f"{gain:+.{rank.digits}f}")
        rows.append(
            [arm.label + flag, str(len(arm.runs)), signed(findings.gain(arm), rank.digits), *cells, f"{seconds:.2f}"]
        )
    titles = [registry.find(name).title for name in [*others, *guards]]
    head = ["", "seeds", f"gain over the low dose ({rank.unit}, {first})", *titles, "seconds per slice, fastest seed"]
    notes = [f"± is half the 95 % interval over seeds and patients. {tables.about(findings.evaluation)}."]
    if findings.second:
        head.insert(3, f"gain on {findings.second.split}")
        notes.append(about_second(findings.second, findings.runs))
    return [*table(head, rows), " ".join(notes), ""]


def about_second(second: Evaluation, runs: list[Run]) -> str:
    """Which slices the second set has, and of which seeds it is known."""
    measured = {result.name for result in second.results}
    seeds = sorted({run.config.train.seed for run in runs if run.name in measured})
    return (
        f"The gain beside it: {second.extent}; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, means alone."
    )


def claims_table(findings: Findings) -> list[str]:
    """The claims with their verdicts and what was measured."""
    rows, count = [], sum(not math.isnan(claim.p) for claim in findings.claims)
    for claim in findings.claims:
        measured = "; ".join(value(quantity) for quantity in claim.quantities) or "no such runs"
        p = "-" if math.isnan(claim.p) else p_text(claim.p).removeprefix("p ").removeprefix("= ")
        rows.append([claim.text, claim.said, measured, p, f"**{claim.verdict}**{need(claim, count)}"])
    tested = (
        f"p is corrected for {count} claim{'s' if count != 1 else ''} (Holm)" if count else "Nothing could be tested"
    )
    return [
        *table(["claim", "the study had", "here", "p", "verdict"], rows, texts=2),
        f"{tested}. A difference that surely lies within {MATTERS_DB:g} dB is none (two one-sided tests). So many "
        f"patients and seeds would do: to tell {MATTERS_DB:g} dB from zero four times in five, so corrected.",
        "",
        *put_right(findings),
    ]


def put_right(findings: Findings) -> list[str]:
    """What changes with the study's two faults put right: batch norm between its arms, and its split by slice."""
    measured = [claim for claim in findings.claims if claim.quantities]
    batch_norm = next((claim.quantities[0] for claim in measured if claim.text.endswith("batch norm")), None)
    attention = [quantity for claim in measured if claim.question == ATTENTION for quantity in claim.quantities]
    lines = []
    if batch_norm and attention:
        least, most = (value(by(attention, key=lambda q: q.interval.mean)) for by in (min, max))
        surely = abs(batch_norm.interval.mean) - (batch_norm.interval.ci95_half_width or math.inf)
        more = surely > max(abs(quantity.interval.mean) for quantity in attention)
        lines.append(
            "- **Batch norm**: the study's arms with and without attention differed in it too. Here RED-CNN as "
            f"published minus the same with batch norm is {value(batch_norm)}; a network with one kind of attention "
            f"minus the same without, {least} to {most}."
            + " So what the study saw between them says nothing of attention."
            * more
        )
    for claim in [claim for claim in measured if claim.question == NETWORKS]:
        main = {(arm.config.model.name, arm.config.model.attention): arm for arm in arms_of.main_arms(findings.arms)}
        plain = [main.get((name, "none")) for name in ("redcnn", "unet")]
        redcnn, unet = (findings.second_gain(arm) if arm else math.nan for arm in plain)
        beside = ""
        if findings.second and not math.isnan(redcnn - unet):
            beside = f"; on {findings.second.split} it is {redcnn - unet:+.3f} dB"
        lines.append(
            f"- **Split**: the study's was by slice, so it tested on patients it had trained on: {claim.said}. "
            f"On patients never seen the difference is {value(claim.quantities[0])}{beside}."
        )
    return ["What changes where the study's two faults are put right:", "", *lines, ""] if lines else []


def need(claim: Claim, claims: int) -> str:
    """For an undecided one of so many claims, how many patients and seeds would decide a difference that matters."""
    every = [quantity.interval for quantity in claim.quantities if quantity.unit]
    if claim.verdict != UNDECIDED or not every or any(math.isnan(interval.of_patients) for interval in every):
        return ""
    alpha = intervals.ALPHA / max(1, claims)
    for seeds in (max(interval.seeds for interval in every), 10, 20, 40, 80):
        patients = max(interval.patients_for(MATTERS_DB, alpha, seeds) for interval in every)
        if patients <= MANY_PATIENTS:
            return f"; about {patients} patients and {seeds} seeds would do"
    return "; the seeds spread too much"


def value(quantity: Quantity) -> str:
    """A quantity's mean, half its interval, and its unit."""
    interval = quantity.interval
    return f"{signed(interval, 3)}{quantity.unit}" if math.isfinite(interval.mean) else "no value"


def limits(findings: Findings) -> list[str]:
    """What bounds the reach of the numbers, the gravest first."""
    lines = []
    patients = len(findings.evaluation.patients)
    seeds = min(len(arm.runs) for arm in arms_of.main_arms(findings.arms))
    if patients < intervals.LEAST_PATIENTS or seeds < intervals.LEAST_SEEDS:
        lines.append(
            f"{patients} test patient{'s' * (patients > 1)} and at least {seeds} seed{'s' * (seeds > 1)} an arm: an "
            f"interval needs {intervals.LEAST_PATIENTS} patients and {intervals.LEAST_SEEDS} seeds. "
            "What has none decides nothing."
        )
    configs = [arm.config for arm in findings.arms]
    narrow = {
        f"{c.model.name} with {c.model.channels} channels in place of {width}"
        for c in configs
        if c.model.channels != (width := configuration.networks()[c.model.name].channels)
    }
    if narrow:
        lines.append(f"Narrow networks: {', '.join(sorted(narrow))}. Full width: not measured here.")
    patches = sorted({c.train.steps * c.train.global_batch for c in configs})
    full = configuration.TrainConfig()
    lines.append(
        f"Training patches seen by a run: {', '.join(f'{count:,}' for count in patches)}; the default recipe's "
        f"{full.steps * full.global_batch:,}."
    )
    if any(claim.question == RECIPE and not claim.quantities for claim in findings.claims):
        lines.append(
            "Variants of RED-CNN without runs are undecided; the perceptual loss needs VGG16's weights "
            "(configs/sweeps/redcnn_perceptual.yaml)."
        )
    flagged = sum(bool(run.flags) for run in findings.runs)
    if flagged:
        lines.append(
            f"{flagged} of {len(findings.runs)} runs are flagged by their own validation; the appendix says which."
        )
    thin = [c for c in configs if c.model.attention in ("channel", "both") and (c.model.channels or 0) < 32]
    if thin:
        lines.append(
            "Channel attention on fewer than 32 channels has one hidden unit (reduction 16): where its ReLU is closed "
            "all weights are 1/2 and their SD is 0."
        )
    return lines


def shown(interval: Interval, name: str) -> str:
    """Mean, and half the interval where there is one."""
    return tables.cell(intervals.Estimate(interval.mean, interval.ci95_half_width), name)


def signed(interval: Interval, digits: int) -> str:
    """Mean with its sign, and half the interval where there is one."""
    half = "" if interval.ci95_half_width is None else f" ± {interval.ci95_half_width:.{digits}f}"
    return f"{interval.mean:+.{digits}f}{half}"
