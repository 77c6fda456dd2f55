"""Fields and values that had another name in version 0.1.

What a person writes under an old name is refused with the new one. What the program wrote itself (a run's config.yaml,
the configuration in a checkpoint) is read under the new names.
"""

import copy
import functools
import sys
from typing import Any

FIELDS = {"data.scheme": "data.normalization", "model.attention_places": "model.attention_stages"}
"""Old name -> new name."""

VALUES = {"data.normalization": {"seed": "hu500"}}
"""By the field's new name: old value -> new value."""

ADDED: dict[str, Any] = {
    "data.stage": "",
    "train.compile": "none",
    "train.cuda_graph": False,
    "train.hang_s": 1800.0,
    "train.init_from": "",
    "train.keep_every_steps": 0,
}
"""Fields that version 0.1 did not have, with the value at which a run is what it was without them."""


def advice(old: str) -> str:
    """How the field ``old`` is called now, on one line."""
    new = FIELDS[old]
    values = ", ".join(f"its value {before!r} is now {after!r}" for before, after in VALUES.get(new, {}).items())
    return f"{old} is now called {new}" + f"; {values}" * bool(values)


def advice_on_value(field: str, before: str) -> str:
    """How the value ``before`` of ``field`` is called now."""
    return f"{field}: the value {before!r} is now called {VALUES[field][before]!r}"


def old_names(values: dict[str, Any]) -> list[str]:
    """Advice on every old name of a field, and of a value, among nested ``values``."""
    given = {
        f"{s}.{name}": value for s, part in values.items() if isinstance(part, dict) for name, value in part.items()
    }
    fields = [advice(old) for old in FIELDS if old in given]
    return fields + [advice_on_value(field, given[field]) for field in VALUES if given.get(field) in [*VALUES[field]]]


def hint(message: str) -> str | None:
    """The advice that an error message of jsonargparse asks for, if it does."""
    for old in FIELDS:
        if f"--{old}" in message:
            return advice(old)
    for field, names in VALUES.items():
        for before in names:
            if f'"{field}"' in message and message.endswith(f"Got value: {before}"):
                return advice_on_value(field, before)
    return None


def updated(values: dict[str, Any], where: str) -> dict[str, Any]:
    """``values``, nested fields that the program wrote into ``where``, under the new names; a note says so."""
    values, changes = copy.deepcopy(values), []
    for old, new in FIELDS.items():
        section, _, name = old.partition(".")
        if name in (values.get(section) or {}):
            values[section][new.partition(".")[2]] = values[section].pop(name)
            changes.append(f"{old} as {new}")
    for field, names in VALUES.items():
        section, _, name = field.partition(".")
        if (value := (values.get(section) or {}).get(name)) in names:
            values[section][name] = names[value]
            changes.append(f"{value} as {names[value]}")
    if changes:
        _note(f"note: {where} is of version 0.1: read {', '.join(changes)}")
    return values


@functools.cache
def _note(text: str) -> None:
    """Once per file and process."""
    print(text, file=sys.stderr)


def as_first_named(fields: dict[str, Any]) -> dict[str, Any]:
    """Dotted ``fields`` as version 0.1 would have named them, without what it did not know: a run's hash, and with it
    the name of its folder, stays what it was."""
    old_fields = {new: old for old, new in FIELDS.items()}
    old_values = {field: {after: before for before, after in names.items()} for field, names in VALUES.items()}
    return {
        old_fields.get(name, name): old_values[name].get(value, value) if name in old_values else value
        for name, value in fields.items()
        if name not in ADDED or value != ADDED[name]
    }
