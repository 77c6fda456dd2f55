"""Files, flags and nested fields to a Config; an error is one line."""

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from ldct.config import renamed
from ldct.config.fields import SECTIONS, Config, ModelConfig, require
from ldct.config.networks import networks
from shards.common.command import InputError

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the docstring under a field becomes its --help


class ConfigFile(ActionConfigFile):
    """``--config``, with our messages: they name the file, and every old name in it at once."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Check the file's names before jsonargparse reads it."""
        path = Path(values)
        try:
            check_names(read(path))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        super().__call__(parser, cfg, values, option_string)


def parser(**kwargs: Any) -> ArgumentParser:
    """An argument parser with ``--config FILE.yaml`` and one ``--section.field`` for every field of Config."""
    flags = ArgumentParser(exit_on_error=False, **kwargs)
    flags.add_argument("--config", action=ConfigFile, help="YAML file with any of the fields below")
    flags.add_class_arguments(Config, as_group=False)
    return flags


def resolved(model: ModelConfig) -> ModelConfig:
    """``model`` with the published sizes where it names none, so that config.yaml says what was run."""
    missing: dict[str, Any] = {
        key: value for key, value in networks()[model.name].sizes.items() if getattr(model, key) is None
    }
    return dataclasses.replace(model, **missing)


def instantiate(flags: ArgumentParser, namespace: Namespace) -> Config:
    """Config from a namespace that ``flags`` parsed, resolved."""
    parts = flags.instantiate(namespace)
    config = Config(**{f.name: parts[f.name] for f in dataclasses.fields(Config)})
    return dataclasses.replace(config, model=resolved(config.model))


def parse(argv: Sequence[str] | None = None) -> Config:
    """Config from a command line.

    Raises
    ------
    InputError
        For a field, a value or a file that cannot be; one line.
    """
    flags = parser()
    try:
        return instantiate(flags, flags.parse_args(argv))
    except ArgumentError as error:
        raise InputError(explain(error)) from None


def from_dict(values: dict[str, Any]) -> Config:
    """Config from nested fields (a YAML file's content); fields not named keep their defaults.

    Raises
    ------
    InputError
        As parse.
    """
    check_names(values)
    texts = {name: json.dumps(values.get(name, {}), sort_keys=True, default=str) for name in SECTIONS}
    parts = {name: section(name, text) for name, text in texts.items()}
    config = Config(**copy.deepcopy(parts), run_dir=str(values.get("run_dir", "")))
    return dataclasses.replace(config, model=resolved(config.model))


@functools.lru_cache(maxsize=10_000)
def section(name: str, fields: str) -> Any:
    """One section of Config from its fields as JSON. The runs of a sweep share most of their sections, and a whole
    Config takes 13 ms: without this a sweep of 500 runs would take 7 s to check."""
    try:
        # the dataclass has the defaults too; without them parsing is nine times faster
        chosen = section_parser(name).parse_object({name: json.loads(fields)}, defaults=False)
        return SECTIONS[name](**(vars(chosen[name]) if name in chosen else {}))
    except ArgumentError as error:
        raise InputError(explain(error)) from None


@functools.cache
def section_parser(name: str) -> ArgumentParser:
    """A parser of one section of Config."""
    fields = ArgumentParser(exit_on_error=False)
    fields.add_class_arguments(SECTIONS[name], name)
    return fields


def load(path: Path, own: bool = False) -> Config:
    """Config from a YAML file.

    Parameters
    ----------
    path : Path
        The file.
    own : bool
        Whether the program wrote it (a run's config.yaml): then old names of fields are read as the new ones.

    Raises
    ------
    InputError
        If the file cannot be read, is no YAML mapping, or names a field or value that cannot be.
    """
    try:
        values = read(path)
        return from_dict(renamed.updated(values, str(path)) if own else values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an InputError says why there is none."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"expected a configuration file: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"expected a mapping of sections, found {type(values).__name__}")
    return values


def check_names(values: dict[str, Any]) -> None:
    """Raise an InputError that lists the valid names if ``values`` holds an unknown section or field."""
    if old := renamed.old_names(values):
        raise InputError("; ".join(old))
    for section, fields in values.items():
        if section == "run_dir":
            continue
        if section not in SECTIONS:
            raise InputError(f"unknown section {section!r}; there are: {', '.join(SECTIONS)}, run_dir")
        require(isinstance(fields, dict), section, "a mapping of fields", fields)
        valid = [f.name for f in dataclasses.fields(SECTIONS[section])]
        for name in fields:
            if name not in valid:
                raise InputError(f"unknown field {section}.{name}; {section} has: {', '.join(valid)}")


def explain(error: ArgumentError) -> str:
    """jsonargparse's message as one line, with the way to the valid names where one is not known."""
    text = " ".join(str(error).split()).replace('Parser key "', '"')
    union = r"Does not validate .*Subtypes: \[(.*)\] Errors: .* Given value: "
    text = re.sub(union, r"Expected one of \1. Got value: ", text)
    text = re.sub(r"a typing.Literal\[(.*)\]", r"one of \1", text)
    text = re.sub(r"(a )?<class '(\w+)'>", r"\2", text).replace("NoneType", "null")
    if advice := renamed.hint(text):
        return advice
    return f"{text}; --help lists every field" if "unrecognized" in text else text
