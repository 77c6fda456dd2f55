"""The rooms stand on each other: a room imports only from itself and those below it."""

import ast

import pytest
from conftest import ROOT

FLOORS = ["shards", "ldct", "slurm", "launch"]


def imported(path):
    """Top-level names that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_only_from_the_floors_below(room):
    above = set(FLOORS[FLOORS.index(room) + 1 :])
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    assert {str(path): above & set(imported(path)) for path in files if above & set(imported(path))} == {}


def test_the_sharder_needs_no_torch():
    """similarity.py compares features of a network, and is the only command of its floor that does."""
    heavy = {"torch", "torchvision", "webdataset", "wandb"}
    files = [path for path in sorted((ROOT / "shards").glob("*.py")) if path.name != "similarity.py"]
    assert {path.name: heavy & set(imported(path)) for path in files if heavy & set(imported(path))} == {}


@pytest.mark.parametrize("room", FLOORS)
def test_the_readme_names_every_file(room):
    text = (ROOT / "README.md").read_text()
    files = [path.name for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"]
    assert [name for name in files if name not in text] == []
