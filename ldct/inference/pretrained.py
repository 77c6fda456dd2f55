"""Networks that ship with the code: NAME.safetensors with its card NAME.json and NAME.md in ldct/inference/pretrained/.

    python -m ldct.inference.pretrained RUN NAME --shards SHARDS --about ABOUT.yaml

turns a run into one. Its card's texts may stand in several files behind --about. The weights are safetensors, since a
file that many people load should not be able to run code, as a pickle can, and its header says what is in it before
anything is loaded.
"""

import argparse
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldct import config as configuration
from ldct.inference.scan import TRAITS, Ranges, trained_on
from ldct.runs import checkpoint
from ldct.runs import folder as runs
from shards.common.atomic import atomic, write_text
from shards.common.command import InputError, command

FOLDER = Path(__file__).with_name("pretrained")

SUFFIX = ".safetensors"

RUNS = Path("runs") / "pretrained"
"""Where a network that ships becomes a run folder."""


@dataclass(frozen=True)
class Card:
    """What must be known of a network that ships."""

    name: str
    sha256: str
    """Of the weights' file."""
    parameters: int
    config: dict[str, Any]
    """Sections of the run's configuration, without its folders and its tracking."""
    patch: int
    """Side of its training patches in pixels."""
    step: int
    """Optimizer step of the checkpoint."""
    commit: str
    """Of the code that trained it."""
    ranges: Ranges
    """What its training slices were like; see ldct/inference/scan.py."""
    kernels: list[str]
    """Of its training slices."""
    data: str
    """What it was trained on: names and licences."""
    simulation: str
    """How its low dose was made."""
    command: str
    """Trains it again."""
    figures: str
    """How good it is, on what, measured by which command."""
    never_shown: str
    """What it has never seen."""


TOLD = ("data", "simulation", "command", "figures", "never_shown")
"""Fields of a card that people write."""

RESEARCH = "For research, not for diagnosis."


def names() -> list[str]:
    """Names of the networks that ship."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def find(name: str) -> Path:
    """The weights' file of the network called ``name``; a path to such a file is taken as it is.

    Raises
    ------
    InputError
        If none is called so.
    """
    path = Path(name) if name.endswith(SUFFIX) else FOLDER / f"{name}{SUFFIX}"
    if not path.is_file():
        raise InputError(f"no network {name!r}; those that ship: {', '.join(names()) or 'none'}")
    return path


def read_card(weights: Path) -> Card:
    """The card beside a file of weights.

    Raises
    ------
    InputError
        If there is none, or it is of another version.
    """
    path = weights.with_suffix(".json")
    try:
        fields = json.loads(path.read_text())
        fields["ranges"] = {trait.key: tuple(fields["ranges"][trait.key]) for trait in TRAITS}
        return Card(**fields)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: expected the card of {weights.name}: {error}; take both from one version") from None


def read(weights: Path) -> dict[str, Any]:
    """A file of weights and its card as a checkpoint: ``model``, ``config``, ``patch``, ``step``.

    Raises
    ------
    InputError
        If the file's sha256 is not the card's.
    """
    from safetensors.torch import load

    card, content = read_card(weights), weights.read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != card.sha256:
        raise InputError(f"{weights}: its sha256 is {digest[:8]}, its card says {card.sha256[:8]}; get the file again")
    model = dict(sorted(load(content).items()))  # it gives another order each time
    return {"model": model, "config": card.config, "patch": card.patch, "step": card.step}


def as_run(weights: Path, root: Path = RUNS) -> Path:
    """A run folder below ``root`` that holds the network, for whatever takes runs: evaluation, reports, fine-tuning."""
    content, folder = read(weights), root / weights.stem
    config = configuration.from_dict(content["config"] | {"run_dir": str(folder), "track": {"wandb": "disabled"}})
    content["config"] = configuration.to_dict(config)
    checkpoint.save(folder / "checkpoints", checkpoint.BEST, content)
    write_text(folder / "config.yaml", configuration.to_yaml(config))
    runs.write_status(folder, runs.Status("finished", step=content["step"], steps=config.train.steps))
    return folder


def publish(run: Path, name: str, ranges: Ranges, kernels: list[str], told: dict[str, str], folder: Path) -> Card:
    """Write the best checkpoint of ``run`` as the network ``name`` to ``folder``: weights, card, card as a page.

    Raises
    ------
    InputError
        If ``told`` lacks one of TOLD or holds something else.
    """
    from safetensors.torch import save

    if told.keys() != set(TOLD):
        raise InputError(f"--about: expected {', '.join(TOLD)}, found {', '.join(told) or 'nothing'}")
    best = checkpoint.read_best(run)
    # one entry beside the weights: safetensors writes several in an order that changes from run to run
    content = save({key: value.contiguous() for key, value in best["model"].items()}, {name: RESEARCH})
    sections = {key: value for key, value in best["config"].items() if key not in ("run_dir", "track")}
    sections["data"] = {key: value for key, value in sections["data"].items() if key != "shards"}
    sections["train"] |= {"precision": "fp32"}  # the same on every processor; without bf16 of its own it is quicker too
    card = Card(
        name=name,
        sha256=hashlib.sha256(content).hexdigest(),
        parameters=sum(value.numel() for value in best["model"].values()),
        config=sections,
        patch=best["patch"],
        step=best["step"],
        commit=runs.code_of(run).get("commit", ""),
        ranges=ranges,
        kernels=kernels,
        **{key: str(told[key]).strip() for key in TOLD},
    )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / f"{name}{SUFFIX}") as file:
        file.write(content)
    write_text(folder / f"{name}.json", json.dumps(dataclasses.asdict(card), indent=1) + "\n")
    write_text(folder / f"{name}.md", page(card, len(content)))
    return card


def page(card: Card, size: int) -> str:
    """The card as Markdown."""
    model = configuration.from_dict(card.config).model
    sizes = ", ".join(f"{key} {value}" for key, value in card.config["model"].items() if value is not None)
    rows = [
        f"| {trait.label} | {' to '.join(map(trait.text, card.ranges[trait.key]))}{trait.unit} |" for trait in TRAITS
    ]
    return PAGE.format(
        **dataclasses.asdict(card) | {"command": card.command.replace("\n", "\n    ")},
        model=model.name,
        size=size / 1e6,
        research=RESEARCH,
        rows="\n".join(rows),
        kernel_names=", ".join(card.kernels) or "unknown",
        sizes=sizes,
    )


PAGE = """# {name}

{model}, {parameters:,} parameters, {size:.2f} MB. {research}

    python launch/denoise.py --model {name} IN OUT

## Trained on

{data}

{simulation}

| of its training slices 98 % have | |
| --- | --- |
{rows}
| kernels | {kernel_names} |

`launch/denoise.py` measures each series, warns outside these ranges and refuses far outside.

## How good it is

{figures}

## Never shown

{never_shown}

## Made by

    {command}

Commit {commit}, step {step:,}. {sizes}. sha256 {sha256}.
"""


def read_about(path: Path) -> dict[str, str]:
    """Texts of a card that people write.

    Raises
    ------
    InputError
        If it is not a YAML file of such texts.
    """
    try:
        told = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"--about {path}: expected a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(told, dict):
        raise InputError(f"--about {path}: expected the texts {', '.join(TOLD)} by name, found none")
    return told


def main() -> None:
    """Turn a run into a network that ships."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("name", metavar="NAME", help="e.g. redcnn-general")
    parser.add_argument("--shards", type=Path, required=True, help="what it was trained on, for the ranges of its card")
    parser.add_argument("--about", type=Path, nargs="+", required=True, help=f"YAML with the texts {', '.join(TOLD)}")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write to (%(default)s)")
    options = parser.parse_args()
    told = {key: text for path in options.about for key, text in read_about(path).items()}
    ranges, kernels = trained_on(options.shards)
    card = publish(options.run, options.name, ranges, kernels, told, options.folder)
    print(f"{options.folder / (card.name + SUFFIX)}: {card.parameters:,} parameters, sha256 {card.sha256}")


if __name__ == "__main__":
    command(main)
