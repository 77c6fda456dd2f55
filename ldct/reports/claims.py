"""What was claimed of the two networks and of attention, and when runs decide it.

A claim is one or more quantities, each said to lie above or below a threshold. A quantity is confirmed where its whole
95 % interval lies on the claimed side, refuted where the whole interval lies on the other, and undecided else: also
where there are too few seeds or patients for an interval. A claim is confirmed if all its quantities are, refuted if
one of them is.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ldct import config as configuration
from ldct.config import Config
from ldct.metrics import intervals
from ldct.metrics.intervals import Interval, crossed, over_seeds
from ldct.reports.comparison import Run
from ldct.reports.labels import HIDDEN
from ldct.reports.labels import labels as labels_of

SMALLEST_GAIN = 0.1
"""A gain in dB that counts; the claim of no gain allows for less."""
FOLLOWS = 0.3
"""Correlation from which on a map is said to follow something."""

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"


@dataclass
class Arm:
    """Runs that differ in their seed alone."""

    label: str
    config: Config
    """With the seed of its first run."""
    data: str
    """sha256 of the manifest of the shards it was trained on."""
    runs: dict[int, Run] = field(default_factory=dict)
    """By seed."""

    def table(self, metric: str) -> dict[int, dict[str, float]]:
        """``metric`` by seed and patient, of the evaluation; only runs that have one."""
        return {
            seed: {patient: values[metric] for patient, values in intervals.by_patient(e.results[-1].slices).items()}
            for seed, run in self.runs.items()
            if (e := run.evaluation)
        }

    def interval(self, metric: str, against: dict[int, dict[str, float]] | None = None) -> Interval:
        """``metric``, or its difference to ``against``, on the seeds and patients that both have."""
        mine = self.table(metric)
        theirs = against if against is not None else {seed: dict.fromkeys(row, 0.0) for seed, row in mine.items()}
        seeds = [seed for seed in mine if seed in theirs]
        patients = [
            p for p in (mine[seeds[0]] if seeds else {}) if all(p in t[s] for t in (mine, theirs) for s in seeds)
        ]
        rows = [[mine[seed][p] - theirs[seed][p] for p in patients] for seed in seeds]
        return crossed(np.array(rows).reshape(len(seeds), len(patients)))

    def profiles(self, stat: str) -> list[dict[float, float]]:
        """An attention statistic by relative depth over the last validation, one dictionary per seed that has it."""
        return [profile for run in self.runs.values() if (profile := run.attention(stat))]


def group(found: list[Run]) -> list[Arm]:
    """The arms that ``found`` make up; of runs alike in all, also in their seed, the first counts."""
    made: dict[str, Arm] = {}
    for run in found:
        data = run.provenance[-1]["manifest_sha256"] if run.provenance else ""
        arm = made.setdefault(json.dumps([identity(run.config), data], sort_keys=True), Arm("", run.config, data))
        arm.runs.setdefault(run.config.train.seed, run)
    arms = list(made.values())
    seedless = {str(i): replace(arm.config, train=replace(arm.config.train, seed=0)) for i, arm in enumerate(arms)}
    labels = labels_of(seedless)
    several = len({arm.data for arm in arms}) > 1
    for number, arm in enumerate(arms):
        arm.label = labels[str(number)] + (f", trained on shards {arm.data[:8]}" if several else "")
    return arms


def identity(config: Config, without: Iterable[str] = ()) -> dict[str, Any]:
    """The fields that make an arm: those that decide what is trained, but for the seed and those in ``without``."""
    left_out = {*HIDDEN, "train.seed", *without}
    flat = configuration.flat(config)
    return {key: value for key, value in flat.items() if key not in left_out and not key.startswith("track.")}


def having(arms: list[Arm], **fields: Any) -> list[Arm]:
    """Arms with these values; ``section__field``."""
    wanted = {name.replace("__", "."): value for name, value in fields.items()}
    return [arm for arm in arms if wanted.items() <= configuration.flat(arm.config).items()]


NETWORK = ("model.name", "model.channels", "model.depth", "model.kernel", "model.residual")
"""What two networks may differ in: each has its own sizes."""


def counterparts(arms: list[Arm], arm: Arm, **change: Any) -> list[Arm]:
    """Arms that differ from ``arm`` in ``change`` and in nothing else."""
    free = NETWORK if "model__name" in change else [name.replace("__", ".") for name in change]
    mine = identity(arm.config, free)
    return [b for b in having(arms, **change) if identity(b.config, free) == mine and b.data == arm.data]


@dataclass(frozen=True)
class Quantity:
    """A number, and where it is claimed to lie."""

    text: str
    interval: Interval
    above: bool
    """Claimed to lie above the threshold; else below."""
    threshold: float = 0.0
    unit: str = ""

    @property
    def verdict(self) -> str:
        """CONFIRMED, REFUTED or UNDECIDED."""
        mean, half = self.interval.mean, self.interval.ci95_half_width
        if half is None:
            return UNDECIDED
        low, high = mean - half, mean + half
        if low > self.threshold or high < self.threshold:
            return CONFIRMED if (low > self.threshold) == self.above else REFUTED
        return UNDECIDED


@dataclass(frozen=True)
class Claim:
    """A sentence that runs may decide."""

    text: str
    said: str
    """What it rested on."""
    quantities: list[Quantity]
    """Empty where the runs that would decide it are not there."""

    @property
    def verdict(self) -> str:
        """CONFIRMED, REFUTED or UNDECIDED."""
        found = {quantity.verdict for quantity in self.quantities}
        return REFUTED if REFUTED in found else CONFIRMED if found == {CONFIRMED} else UNDECIDED


def claims(arms: list[Arm], metric: str, patients: int) -> list[Claim]:
    """All claims, in the order in which the networks, the variants and attention come.

    Parameters
    ----------
    metric : str
        PSNR of the protocol that ranks, e.g. ``abd400/psnr``.
    patients : int
        Patients of the validation split, over which attention is averaged.
    """
    return [*of_networks(arms, metric), *of_attention(arms, metric), *of_depth(arms, patients)]


def better(
    arms: list[Arm], first: dict[str, Any], change: dict[str, Any], metric: str, **claimed: Any
) -> list[Quantity]:
    """PSNR of every arm with ``first`` minus that of its counterpart with ``change``."""
    return [
        Quantity(f"PSNR of {a.label} minus {b.label}", a.interval(metric, b.table(metric)), unit=" dB", **claimed)
        for a in having(arms, **first)
        for b in counterparts(arms, a, **change)
    ]


def of_networks(arms: list[Arm], metric: str) -> list[Claim]:
    """Which network is better, and whether the variants of RED-CNN are."""
    plain = {"model__name": "redcnn", "model__attention": "none"}
    base = plain | {"model__init": "default", "model__norm": "none", "loss__name": "mse"}
    variants = [
        ("Kaiming initialisation", "28.89", {"model__init": "kaiming"}),
        ("the perceptual loss", "28.60", {"loss__name": "mse+vgg"}),
        ("batch norm", "27.18", {"model__norm": "batch"}),
    ]
    return [
        Claim(
            "RED-CNN is better than U-Net",
            "29.13 against 28.90 dB per tile",
            better(arms, plain, {"model__name": "unet"}, metric, above=True),
        ),
        *(
            Claim(
                f"RED-CNN as published is better than with {what}",
                f"29.01 against {psnr} dB per tile after one epoch",
                better(arms, base, change, metric, above=True),
            )
            for what, psnr, change in variants
        ),
    ]


def of_attention(arms: list[Arm], metric: str) -> list[Claim]:
    """What attention does to PSNR; both kinds at once were not tried."""
    none = {"model__attention": "none"}
    made = []
    for kind in ("channel", "spatial"):
        text, fields = f"{kind} attention", {"model__attention": kind}
        redcnn = better(arms, {"model__name": "redcnn"} | fields, none, metric, above=False, threshold=SMALLEST_GAIN)
        unet = better(arms, {"model__name": "unet"} | fields, none, metric, above=False)
        made.append(Claim(f"RED-CNN gains nothing from {text}", "within 0.02 dB of the network without", redcnn))
        made.append(Claim(f"U-Net loses by {text}", "a loss, between arms that also differed in batch norm", unet))
    return made


def of_depth(arms: list[Arm], patients: int) -> list[Claim]:
    """At which depth attention selects channels, and what its maps follow."""

    def measured(
        network: str, kind: str, what: list[tuple[str, Callable[[Run], float], bool, float]]
    ) -> list[Quantity]:
        alone = having(arms, model__name=network, model__attention=kind)
        return [
            Quantity(f"{text} ({arm.label})", over_seeds(values, patients), above, threshold)
            for arm in alone or having(arms, model__name=network, model__attention="both")
            for text, value, above, threshold in what
            if (values := [found for run in arm.runs.values() if not math.isnan(found := value(run))])
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


def slope(run: Run) -> float:
    """Rise of the SD of channel weights over the whole depth, least squares; nan with fewer than two places."""
    profile = run.attention("channel_sd")
    return float(np.polyfit(list(profile), list(profile.values()), 1)[0]) if len(profile) > 1 else math.nan


def follows(run: Run, what: str, place: int) -> float:
    """Absolute correlation of the spatial map with ``what`` at the first (0) or deepest (-1) place; nan without one.

    Which sign a map has is chance: the next layer can turn it.
    """
    correlations = list(run.attention(f"spatial_{what}").values())
    return abs(correlations[place]) if correlations else math.nan


def prefers(run: Run, what: str, place: int) -> float:
    """How much more the map follows ``what`` than the other of edges and texture, which resemble each other."""
    other = {"edges": "texture", "texture": "edges"}[what]
    return follows(run, what, place) - follows(run, other, place)
