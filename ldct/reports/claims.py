"""What was claimed of the two networks and of attention, and when runs decide it.

A claim is one or more quantities, each said to lie above or below a threshold. It is

- confirmed, if all its quantities surely lie on the claimed side,
- refuted, if one of them surely lies on the other,
- of no difference, if all are differences that surely lie within what matters (two one-sided tests),
- undecided else: also where there are too few seeds or patients for an interval.

"Surely" is a test at intervals.ALPHA over all claims together: p is corrected for their number after Holm.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldct.evaluation.attention import LOSS
from ldct.metrics import intervals, registry
from ldct.metrics.intervals import Interval
from ldct.reports.arms import Arm, counterparts, difference, having
from ldct.reports.comparison import Run

MATTERS_DB = 0.1
"""The smallest difference in PSNR that matters: two networks closer than this are alike."""
FOLLOWS = 0.3
"""Correlation from which on a map is said to follow something."""

CONFIRMED, REFUTED, ALIKE, UNDECIDED = "confirmed", "refuted", "no difference", "undecided"

NETWORKS, ATTENTION, DEPTH = "Is RED-CNN better than U-Net?", "Does attention help?", "At which depth does it work?"
RECIPE = "Is RED-CNN as published better than its variants?"


def two_sided(p: Callable[[float], float], threshold: float) -> float:
    """Twice the one-sided p at ``threshold``, at most 1; nan stays nan."""
    twice = 2 * p(threshold)
    return 1.0 if twice > 1 else twice


@dataclass(frozen=True)
class Quantity:
    """A number, and where it is claimed to lie."""

    text: str
    interval: Interval
    above: bool
    """Claimed to lie above the threshold; else below."""
    threshold: float = 0.0
    unit: str = ""
    matters: float | None = None
    """For a difference, the smallest that matters."""

    @property
    def p_confirmed(self) -> float:
        """Two-sided p of lying on the claimed side of the threshold; nan without an interval."""
        return two_sided(self.interval.p_above if self.above else self.interval.p_below, self.threshold)

    @property
    def p_refuted(self) -> float:
        """Two-sided p of lying on the other side; nan without an interval."""
        return two_sided(self.interval.p_below if self.above else self.interval.p_above, self.threshold)

    @property
    def p_alike(self) -> float:
        """p of lying within what matters; nan where that is not given, or without an interval."""
        return math.nan if self.matters is None else self.interval.p_within(self.matters)


@dataclass
class Claim:
    """A sentence that runs may decide."""

    text: str
    said: str
    """What it rested on."""
    quantities: list[Quantity]
    """Empty where the runs that would decide it are not there."""
    p: float = math.nan
    """Of the verdict that the data come closest to, corrected for the number of claims; nan if it was not tested."""
    verdict: str = UNDECIDED
    """CONFIRMED, REFUTED, ALIKE or UNDECIDED; set with ``p`` by ``decide``."""
    question: str = ""
    """That it answers: NETWORKS, RECIPE, ATTENTION or DEPTH."""

    def ps(self) -> dict[str, float]:
        """p of every verdict that the quantities allow, not corrected; empty where they were not tested.

        All must agree to confirm (the largest p); one is enough to refute (the smallest, times their number).
        """
        every = {
            ALIKE: [quantity.p_alike for quantity in self.quantities],
            CONFIRMED: [quantity.p_confirmed for quantity in self.quantities],
            REFUTED: [quantity.p_refuted for quantity in self.quantities],
        }
        tested = {verdict: [p for p in values if not math.isnan(p)] for verdict, values in every.items()}
        whole = {verdict: values for verdict, values in tested.items() if values and len(values) == len(every[verdict])}
        joint = {verdict: max(values) for verdict, values in whole.items() if verdict != REFUTED}
        refuted = tested[REFUTED]
        return joint | ({REFUTED: min(1.0, len(refuted) * min(refuted))} if refuted else {})


def decide(claims: list[Claim]) -> list[Claim]:
    """Set verdict and p of ``claims``, tested together; returns them.

    A difference that surely does not matter is none, even where it is surely not zero.
    """
    ps = [claim.ps() for claim in claims]
    plain = [min(each.values(), default=math.nan) for each in ps]
    for claim, each, p, corrected in zip(claims, ps, plain, intervals.holm(plain), strict=True):
        claim.p = corrected
        factor = corrected / p if p else 1.0  # nan where not tested: no verdict then
        passed = [verdict for verdict, value in each.items() if value * factor < intervals.ALPHA]
        claim.verdict = passed[0] if passed else UNDECIDED  # in the order of ps
    return claims


def claims(arms: list[Arm], metric: str) -> list[Claim]:
    """All claims with their verdicts, in the order in which the networks, the variants and attention come.

    Parameters
    ----------
    metric : str
        The metric that ranks, e.g. ``abd400/psnr``.
    """
    by_question = {
        NETWORKS: of_networks(arms, metric),
        RECIPE: of_variants(arms, metric),
        ATTENTION: of_attention(arms, metric),
        DEPTH: [*of_depth(arms), *of_gates(arms)],
    }
    for question, every in by_question.items():
        for claim in every:
            claim.question = question
    return decide([claim for every in by_question.values() for claim in every])


def better(
    arms: list[Arm], first: dict[str, Any], change: dict[str, Any], metric: str, **claimed: Any
) -> list[Quantity]:
    """``metric`` of every arm with ``first`` minus that of its counterpart with ``change``."""
    ranked = registry.find(metric)
    return [
        Quantity(
            f"{ranked.label} of {a.label} minus {b.label}",
            a.interval(metric, b.table(metric)),
            unit=f" {ranked.unit}",
            **claimed,
        )
        for a in having(arms, **first)
        for b in counterparts(arms, a, **change)
    ]


def of_networks(arms: list[Arm], metric: str) -> list[Claim]:
    """Which network is better."""
    plain = {"model__name": "redcnn", "model__attention": "none"}
    ahead = better(arms, plain, {"model__name": "unet"}, metric, above=True, matters=MATTERS_DB)
    return [Claim("RED-CNN is better than U-Net", "29.13 against 28.90 dB per patch", ahead)]


def of_variants(arms: list[Arm], metric: str) -> list[Claim]:
    """Whether RED-CNN as published is better than its variants."""
    base = {"model__name": "redcnn", "model__attention": "none", "model__init": "default", "model__norm": "none"}
    base |= {"loss__name": "mse"}
    variants = [
        ("Kaiming initialisation", "28.89", {"model__init": "kaiming"}),
        ("the perceptual loss", "28.60", {"loss__name": "mse+vgg"}),
        ("batch norm", "27.18", {"model__norm": "batch"}),
    ]
    return [
        Claim(
            f"RED-CNN as published is better than with {what}",
            f"29.01 against {psnr} dB per patch after one epoch",
            better(arms, base, change, metric, above=True, matters=MATTERS_DB),
        )
        for what, psnr, change in variants
    ]


def of_attention(arms: list[Arm], metric: str) -> list[Claim]:
    """What attention does to PSNR; both kinds at once were not tried."""
    none = {"model__attention": "none"}
    claims = []
    for kind in ("channel", "spatial"):
        text, fields = f"{kind} attention", {"model__attention": kind}
        redcnn = better(arms, {"model__name": "redcnn"} | fields, none, metric, above=False, threshold=MATTERS_DB)
        unet = better(arms, {"model__name": "unet"} | fields, none, metric, above=False, matters=MATTERS_DB)
        claims.append(Claim(f"RED-CNN gains nothing from {text}", "within 0.02 dB of the network without", redcnn))
        claims.append(Claim(f"U-Net loses by {text}", "a loss, between arms that also differed in batch norm", unet))
    return claims


def of_depth(arms: list[Arm]) -> list[Claim]:
    """At which depth attention selects channels, and what its maps follow."""

    def measured(
        network: str, kind: str, what: list[tuple[str, Callable[[Run], dict[str, float]], bool, float]]
    ) -> list[Quantity]:
        alone = having(arms, model__name=network, model__attention=kind)
        return [
            Quantity(f"{text} ({arm.label})", difference(values), above, threshold)
            for arm in alone or having(arms, model__name=network, model__attention="both")
            for text, of_patients, above, threshold in what
            if (values := {seed: found for seed, run in arm.runs.items() if (found := of_patients(run))})
        ]

    rise = "rise of the SD of channel weights from the first to the deepest stage, by a line through all"
    first, last = "at the first stage", "at the deepest stage"
    edges = [
        (f"abs r of map and edges {first}", lambda run: follows(run, "edges", 0), True, FOLLOWS),
        (f"abs r with edges minus abs r with texture {first}", lambda run: prefers(run, "edges", 0), True, 0.0),
    ]
    texture = [
        (f"abs r of map and texture {last}", lambda run: follows(run, "texture", -1), True, FOLLOWS),
        (f"abs r with texture minus abs r with edges {last}", lambda run: prefers(run, "texture", -1), True, 0.0),
    ]
    neither = [
        (f"abs r of map and edges {last}", lambda run: follows(run, "edges", -1), False, FOLLOWS),
        (f"abs r of map and texture {last}", lambda run: follows(run, "texture", -1), False, FOLLOWS),
    ]
    maps, weights = "looking at maps", "SD of channel weights by depth"
    shallow = measured("redcnn", "channel", [(rise, slope, False, 0.0)])
    deep = measured("unet", "channel", [(rise, slope, True, 0.0)])
    return [
        Claim("RED-CNN selects channels at shallow depth", weights, shallow),
        Claim("U-Net selects channels at deep depth", weights, deep),
        Claim("spatial maps of RED-CNN show edges at shallow depth", maps, measured("redcnn", "spatial", edges)),
        Claim("spatial maps of U-Net show edges at shallow depth", maps, measured("unet", "spatial", edges)),
        Claim("spatial maps of RED-CNN show texture at deep depth", maps, measured("redcnn", "spatial", texture)),
        Claim("spatial maps of U-Net are abstract at deep depth", maps, measured("unet", "spatial", neither)),
    ]


def slope(run: Run) -> dict[str, float]:
    """Rise of the SD of channel weights over the whole depth by patient, least squares; empty with one stage."""
    profile = run.by_depth("channel_sd")
    depths = list(profile)
    if len(depths) < 2:
        return {}
    patients = profile[depths[0]]
    return {p: float(np.polyfit(depths, [profile[depth][p] for depth in depths], 1)[0]) for p in patients}


def follows(run: Run, what: str, stage: int) -> dict[str, float]:
    """Absolute correlation of the spatial map with ``what`` at the first (0) or deepest (-1) stage, by patient.

    Which sign a map has is chance: the next layer can turn it. Empty without a map.
    """
    depths = list(run.by_depth(LOSS))  # of all stages: a map that is constant on every slice has no correlation
    found = run.by_depth(f"spatial_{what}").get(depths[stage], {}) if depths else {}
    return {patient: abs(value) for patient, value in found.items()}


def prefers(run: Run, what: str, stage: int) -> dict[str, float]:
    """How much more the map follows ``what`` than the other of edges and texture, which resemble each other."""
    own, other = (follows(run, each, stage) for each in (what, {"edges": "texture", "texture": "edges"}[what]))
    return {patient: value - other[patient] for patient, value in own.items() if patient in other}


def of_gates(arms: list[Arm]) -> list[Claim]:
    """At which depth a gate's choice matters: what is lost when it is replaced by its mean (evaluate.py --ablate)."""
    claims = []
    for name, network, shallow in (("redcnn", "RED-CNN", True), ("unet", "U-Net", False)):
        for kind in ("channel", "spatial"):
            quantities = [
                Quantity(
                    f"loss without the choice of the first stage minus that of the deepest ({arm.label})",
                    difference(first, deepest),
                    above=shallow,
                    unit=f" {registry.find(registry.RANKING).unit}",
                    matters=MATTERS_DB,
                )
                for arm in having(arms, model__name=name, model__attention=kind)
                for first, deepest in [(losses(arm, 0), losses(arm, -1))]
                if first
            ]
            where = "shallow" if shallow else "deep"
            text = f"the choice of {network}'s {kind} gates matters most at {where} depth"
            claims.append(Claim(text, "statistics of the gates by depth", quantities))
    return claims


def losses(arm: Arm, stage: int) -> dict[int, dict[str, float]]:
    """By seed and patient, what is lost by replacing the gate of the first (0) or deepest (-1) stage by its mean."""
    by_seed = {seed: list(run.by_depth(LOSS).values()) for seed, run in arm.runs.items()}
    return {seed: stages[stage] for seed, stages in by_seed.items() if len(stages) > 1}
