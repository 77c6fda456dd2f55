"""``early_terminate`` of a sweep file, W&B's Hyperband, as a rule that the runs themselves apply; see
ldct/training/halving.py."""

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldct.metrics import names
from ldct.training import halving
from shards.common.atomic import write_text
from shards.common.command import InputError

if TYPE_CHECKING:
    from slurm.sweep import Run
    from slurm.sweep_file import Search

KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")


def check(early: Any, metric: Any) -> None:
    """Raise an InputError if ``early_terminate`` cannot be."""
    if not isinstance(early, dict) or early.get("type") != "hyperband":
        raise InputError(f"early_terminate: expected type: hyperband and min_iter, or max_iter and s, found {early!r}")
    for key in early:
        if key not in KEYS:
            raise InputError(f"early_terminate: unknown key {key!r}; there are: {', '.join(KEYS)}")
    if ("min_iter" in early) == ("max_iter" in early) or ("max_iter" in early) != ("s" in early):
        raise InputError("early_terminate: expected either min_iter, or max_iter and s (the number of brackets)")
    for key in ("min_iter", "max_iter", "s"):
        if key in early and (type(early[key]) is not int or early[key] < 1):
            raise InputError(f"early_terminate.{key}: expected a whole number of at least 1, found {early[key]!r}")
    eta, strict = early.get("eta", 3), early.get("strict", False)
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 1.1 <= eta < math.inf:
        raise InputError(f"early_terminate.eta: expected a number of at least 1.1, found {eta!r}")
    if "s" in early and early["s"] > (most := math.floor(math.log(early["max_iter"], eta) + 1e-9)):
        raise InputError(
            f"early_terminate.s: expected at most {most}, found {early['s']}: the first look, after max_iter / eta^s "
            "validations, must not come before one; lower s, or raise max_iter"
        )
    if not isinstance(strict, bool):
        raise InputError(f"early_terminate.strict: expected true or false, found {strict!r}")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise InputError("early_terminate needs a metric, as in {name: val/abd400/psnr, goal: maximize}")
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise InputError(f"metric.goal: expected minimize or maximize, found {metric['goal']!r}")


def rule_of(search: "Search", planned: "list[Run]") -> halving.Rule | None:
    """When the runs of a sweep end early behind their siblings; None if they do not.

    Raises
    ------
    InputError
        If no run has the metric, none comes as far as the first bracket, or val.every differs.
    """
    if search.early_terminate is None or search.metric is None:
        return None
    from ldct.metrics import registry  # needs torch, which takes seconds to import

    name, maximize = search.metric["name"], search.metric.get("goal") == "maximize"
    for run in planned:
        known = {names.validation(key): key for key in registry.names_under(run.config.val.protocol)}
        if name not in known:
            raise InputError(f"metric.name: expected one of {', '.join(known)}, found {name!r}")
        if registry.find(known[name]).higher_is_better not in (None, maximize):
            better = "minimize" if maximize else "maximize"
            raise InputError(f"metric.goal: the better {name} is the other one; write goal: {better}")
    if len(every := {run.config.val.every for run in planned}) > 1:
        raise InputError(
            f"early_terminate: runs are compared at equal steps; expected one val.every, found "
            f"{', '.join(map(str, sorted(every)))}; give all runs the same"
        )
    made = max(-(-run.config.train.steps // run.config.val.every) for run in planned)
    brackets = halving.brackets(search.early_terminate, made)
    if not brackets:
        raise InputError(
            f"early_terminate: no bracket before the last of {made} validations; give a lower min_iter or val.every, "
            "or a larger s"
        )
    eta, strict = search.early_terminate.get("eta", 3), search.early_terminate.get("strict", False)
    return halving.Rule(name, maximize, brackets, eta, strict, [run.name for run in planned])


def write(rule: halving.Rule | None, folder: Path) -> None:
    """Put the rule beside the runs, where they look for it; or take away that of an earlier sweep file."""
    if rule:
        write_text(folder / halving.NAME, json.dumps(dataclasses.asdict(rule), indent=1) + "\n")
    else:
        (folder / halving.NAME).unlink(missing_ok=True)
