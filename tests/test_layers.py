"""Every package stands on a layer, and imports only from itself and from the layers below it."""

import ast
from pathlib import PurePosixPath

import pytest
from conftest import ROOT

LAYERS = [
    ["shards/common"],
    ["shards"],
    ["ldct/config", "ldct/device.py"],
    ["ldct/metrics"],
    ["ldct/runs"],
    ["ldct/models", "ldct/data"],
    ["ldct/attention"],
    ["ldct/training", "ldct/inference"],
    ["ldct/evaluation"],
    ["slurm", "ldct/reports", "ldct/benchmarks"],
    ["launch"],
]
"""From the bottom up; packages on one layer do not import each other. CONTRIBUTING.md draws it."""

HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}
FILES = sorted(path for folder in ("shards", "ldct", "slurm", "launch") for path in (ROOT / folder).rglob("*.py"))


def part_of(path):
    """The part of LAYERS that a file, relative to the root, belongs to: the longest that fits; None for ldct itself."""
    names = [part for part in HEIGHT if PurePosixPath(path).is_relative_to(part)]
    return max(names, key=len, default=None)


def imported(path):
    """Files, relative to the root, of the project that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            dotted = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in dotted:
            base = name.replace(".", "/")
            yield from (file for file in (f"{base}.py", f"{base}/__init__.py") if (ROOT / file).is_file())


def test_every_file_stands_on_a_layer():
    found = {path.relative_to(ROOT).as_posix(): part_of(path.relative_to(ROOT)) for path in FILES}
    assert {path for path, part in found.items() if part is None} == {"ldct/__init__.py"}


@pytest.mark.parametrize("part", HEIGHT)
def test_imports_run_downwards(part):
    files = [path for path in FILES if part_of(path.relative_to(ROOT)) == part]
    assert files
    wrong = {
        f"{path.relative_to(ROOT)} imports {file}"
        for path in files
        for file in imported(path)
        if (other := part_of(file)) not in (None, part) and HEIGHT[other] >= HEIGHT[part]
    }
    assert wrong == set()


def test_the_sharder_needs_no_torch():
    """Two commands of its layer do: similarity.py compares features of a network, verify.py reads by webdataset."""
    heavy, exceptions = {"torch", "webdataset", "wandb"}, ("similarity.py", "resnet50.py", "verify.py")
    files = [path for path in sorted((ROOT / "shards").rglob("*.py")) if path.name not in exceptions]
    assert {path.name: heavy & names for path in files if heavy & (names := top_level(path))} == {}


def top_level(path):
    """Top-level names of everything that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
