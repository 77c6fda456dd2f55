"""Sweep files in the schema of W&B sweeps, so that ``wandb sweep`` takes the same file: YAML -> the values of each run.

https://docs.wandb.ai/models/sweeps/sweep-config-keys describes the keys and the distributions.
"""

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shards.common.command import InputError
from slurm import early_terminate

METHODS = ("grid", "random")

KEYS = (
    *("method", "parameters", "run_cap", "name", "metric", "early_terminate"),
    *("program", "command", "description", "project", "entity"),
)
"""``program`` and ``command`` are for ``wandb agent`` only; ``metric`` is for people and for ``early_terminate``."""

REFUSED = {"job": "there are no W&B launch jobs here; remove it"}


class Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 does; YAML 1.1 wants 1.0e-4 and takes the other for text."""


EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


Draw = Callable[[random.Random, dict[str, Any]], float]

DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], Draw]] = {
    "uniform": (("min", "max"), lambda rng, p: rng.uniform(p["min"], p["max"])),
    "int_uniform": (("min", "max"), lambda rng, p: rng.randint(p["min"], p["max"])),
    "log_uniform": (("min", "max"), lambda rng, p: math.exp(rng.uniform(p["min"], p["max"]))),
    "log_uniform_values": (
        ("min", "max"),
        lambda rng, p: math.exp(rng.uniform(math.log(p["min"]), math.log(p["max"]))),
    ),
    "inv_log_uniform": (("min", "max"), lambda rng, p: math.exp(-rng.uniform(p["min"], p["max"]))),
    "inv_log_uniform_values": (
        ("min", "max"),
        lambda rng, p: 1 / math.exp(rng.uniform(math.log(1 / p["max"]), math.log(1 / p["min"]))),
    ),
    "beta": ((), lambda rng, p: rng.betavariate(p.get("a", 1), p.get("b", 1))),
    "normal": ((), lambda rng, p: rng.gauss(p.get("mu", 0), p.get("sigma", 1))),
    "log_normal": ((), lambda rng, p: math.exp(rng.gauss(p.get("mu", 0), p.get("sigma", 1)))),
}
"""Name -> (keys it needs, how it draws). A leading ``q_`` rounds to multiples of ``q``."""

NOT_ROUNDED = ("int_uniform", "inv_log_uniform", "inv_log_uniform_values")
"""Distributions that have no ``q_``."""

NUMBERS = ("min", "max", "mu", "sigma", "a", "b", "q")

OF_LISTS = {"value": ("constant",), "values": ("categorical", "categorical_w_probabilities")}
"""Names of distributions that may stand beside ``value`` and ``values``."""

OPTIONS = ("value", "values", "probabilities", "distribution", *NUMBERS)


@dataclass
class Search:
    """A sweep file's content, checked."""

    name: str
    """Name of the sweep: its folder below runs/, and the group in W&B."""
    method: str
    """grid = every combination of the values; random = run_cap draws."""
    parameters: dict[str, dict[str, Any]]
    """Dotted field of the configuration, or ``config`` (a base file) -> how its values are chosen."""
    run_cap: int | None = None
    """Largest number of runs."""
    track: dict[str, str] = field(default_factory=dict)
    """``project`` and ``entity``, if the file names them."""
    early_terminate: dict[str, Any] | None = None
    """When runs end early behind their siblings: min_iter, or max_iter and s; eta, strict."""
    metric: dict[str, Any] | None = None
    """name and goal of what they are compared by."""

    @property
    def swept(self) -> list[str]:
        """Parameters that differ between runs."""
        return [name for name, how in self.parameters.items() if "value" not in how]


def read(path: Path) -> Search:
    """Read and check a sweep file.

    Raises
    ------
    InputError
        If it cannot be read or has a key, a method or a parameter that cannot be.
    """
    try:
        content = yaml.load(path.read_text(), Loader)
    except OSError as error:
        raise InputError(f"{path}: expected a sweep file: {error.strerror}; configs/sweeps has examples") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return check(content, path.stem)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check(content: Any, default_name: str) -> Search:
    """Search from the content of a sweep file."""
    if not isinstance(content, dict):
        raise InputError(f"expected a mapping with method and parameters, found {type(content).__name__}")
    for key in content:
        if key in REFUSED:
            raise InputError(f"{key}: {REFUSED[key]}")
        if key not in KEYS:
            raise InputError(f"unknown key {key!r}; there are: {', '.join(KEYS)}")
    if content.get("method") not in METHODS:
        raise InputError(f"method: expected {' or '.join(METHODS)}, found {content.get('method')!r}")
    name = str(content.get("name") or default_name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"name: expected letters, digits, '.', '_' and '-' (it names a folder), found {name!r}")
    cap = content.get("run_cap")
    if cap is not None and (type(cap) is not int or cap < 1):
        raise InputError(f"run_cap: expected a number of runs of at least 1, found {cap!r}")
    if content["method"] == "random" and cap is None:
        raise InputError("method random draws without end: run_cap must give the number of runs")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise InputError("parameters: expected a mapping such as {model.name: {values: [redcnn, unet]}}")
    parameters = flat(parameters)
    for parameter, how in parameters.items():
        check_parameter(str(parameter), how, content["method"])
    early = content.get("early_terminate")
    if early is not None:
        early_terminate.check(early, content.get("metric"))
    track = {key: str(content[key]) for key in ("project", "entity") if content.get(key)}
    return Search(name, content["method"], parameters, cap, track, early, content.get("metric"))


def flat(parameters: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by dotted name: {optim: {parameters: {lr: ...}}} -> {optim.lr: ...}."""
    found: dict[str, Any] = {}
    for key, how in parameters.items():
        name = f"{prefix}{key}"
        inner = how.get("parameters") if isinstance(how, dict) else None
        if inner is None:
            below = {name: how}
        elif not isinstance(inner, dict) or not inner or len(how) > 1:
            raise InputError(f"parameters.{name}: expected parameters alone, a mapping of fields, found {how!r}")
        else:
            below = flat(inner, f"{name}.")
        for each in below:
            if each in found:
                raise InputError(f"parameters.{each}: given twice, with a dot and nested; remove one")
        found.update(below)
    return found


def check_parameter(name: str, how: Any, method: str) -> None:
    """Raise an InputError if the parameter ``name`` cannot be chosen as ``how`` says."""
    if not isinstance(how, dict):
        raise InputError(f"parameters.{name}: expected a mapping with value, values, or min and max, found {how!r}")
    for key in how:
        if key not in OPTIONS:
            raise InputError(f"parameters.{name}: unknown key {key!r}; there are: {', '.join(OPTIONS)}")
    for key, kinds in OF_LISTS.items():
        if key in how and (kind := how.get("distribution", kinds[0])) not in kinds:
            raise InputError(f"parameters.{name}: {key} goes with distribution {' or '.join(kinds)}, found {kind!r}")
    if "value" in how:
        return
    if "values" in how:
        values, odds = how["values"], how.get("probabilities")
        if not isinstance(values, list) or not values:
            raise InputError(f"parameters.{name}.values: expected a list of at least one value, found {values!r}")
        if odds is not None and not (
            isinstance(odds, list)
            and len(odds) == len(values)
            and all(isinstance(p, int | float) and p >= 0 for p in odds)
            and sum(odds) > 0
        ):
            raise InputError(
                f"parameters.{name}.probabilities: expected {len(values)} numbers of at least 0, not all of them 0, "
                f"found {odds!r}"
            )
        return
    if method == "grid":
        raise InputError(f"parameters.{name}: a grid needs value or values; a range needs method: random")
    kind = distribution(how)
    known = [*DISTRIBUTIONS, *(f"q_{k}" for k in DISTRIBUTIONS if k not in NOT_ROUNDED)]
    if kind not in known:
        raise InputError(f"parameters.{name}.distribution: expected one of {', '.join(known)}, found {kind!r}")
    needed = DISTRIBUTIONS[kind.removeprefix("q_")][0]
    for key in (key for key in NUMBERS if key in needed or key in how):
        if not isinstance(how.get(key), int | float):
            raise InputError(f"parameters.{name}: {kind} needs a number {key}, found {how.get(key)!r}")
    if "min" in how and "max" in how and how["min"] > how["max"]:
        raise InputError(f"parameters.{name}: min {how['min']} is above max {how['max']}")
    if how.get("q", 1) <= 0:
        raise InputError(f"parameters.{name}: q must be above 0, found {how['q']}")
    for key in ("a", "b"):
        if how.get(key, 1) <= 0:
            raise InputError(f"parameters.{name}: {key} must be above 0, found {how[key]}")
    if kind.endswith("log_uniform_values") and how["min"] <= 0:
        raise InputError(f"parameters.{name}: {kind} needs a min above 0, found {how['min']}")


def distribution(how: dict[str, Any]) -> str:
    """The distribution's name; without one, min and max mean int_uniform or uniform by their type, as in W&B."""
    whole = type(how.get("min")) is int and type(how.get("max")) is int
    return str(how.get("distribution", "int_uniform" if whole else "uniform"))


def combinations(search: Search) -> list[dict[str, Any]]:
    """The values of every run, in a fixed order.

    Random draws are a function of the parameters and of the run's index alone: the same file gives the same runs, and
    a larger run_cap adds runs without changing the others.
    """
    if search.method == "grid":
        names = list(search.parameters)
        choices = [how["values"] if "values" in how else [how["value"]] for how in search.parameters.values()]
        runs = [dict(zip(names, values, strict=True)) for values in itertools.product(*choices)]
        return runs[: search.run_cap]
    text = json.dumps(search.parameters, sort_keys=True, default=str)
    seed = hashlib.sha256(text.encode()).hexdigest()
    assert search.run_cap is not None
    return [
        {name: draw(random.Random(f"{seed} {index} {name}"), name, how) for name, how in search.parameters.items()}
        for index in range(search.run_cap)
    ]


def draw(rng: random.Random, name: str, how: dict[str, Any]) -> Any:
    """One value of the parameter ``name``.

    Raises
    ------
    InputError
        If the distribution leaves the numbers that there are, as log_uniform does above exp(709).
    """
    if "value" in how:
        return how["value"]
    if "values" in how:
        return rng.choices(how["values"], how.get("probabilities"))[0]
    kind = distribution(how)
    step = how.get("q", 1)
    try:
        drawn = DISTRIBUTIONS[kind.removeprefix("q_")][1](rng, how)
        if not kind.startswith("q_"):
            return drawn
        rounded = round(drawn / step) * step
    except (OverflowError, ValueError, TypeError) as error:
        raise InputError(f"parameters.{name}: nothing can be drawn from {how}: {error}") from None
    return round(rounded, 12) if isinstance(step, float) else int(rounded)
