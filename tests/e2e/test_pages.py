"""What the pages name is there: commands and their options, files, links. tests/slurm/test_readme.py runs some."""

import importlib
import itertools
import re

import pytest
import yaml
from conftest import ROOT
from pages import PAGES, blocks, commands

from shards.common.command import command
from slurm import cluster, sweep_file

CALL = re.compile(
    r"(?:\bpython )?((?:shards|launch)/\w+\.py|-m ldct\.[\w.]+)( (?:draw|shard|load|train|infer|evaluate|accept)\b)?"
)
"""A command of this project, and what a benchmark is of."""


def calls():
    """Each command of this project on the pages, and the options that it is shown with anywhere."""
    shown = {}
    for line in dict.fromkeys(line for page in PAGES for line in commands(page)):
        starts = [match.start() for match in CALL.finditer(line)]
        # launch/submit.py takes another command behind its own options
        for start, end in itertools.pairwise([*starts, None]):
            name, of = CALL.match(line, start).groups()
            of = (of or "").strip() if name == "launch/bench.py" else ""
            options = re.findall(r"(?<= )-{1,2}[a-z][\w.-]*", line[start:end].split("#")[0])
            shown.setdefault((name, of), set()).update(set(options) - {"-m"})
    return shown


CALLS = calls()


def test_the_files_of_the_tutorial_are_valid():
    pages = {block.split(":")[0]: block for block in blocks("docs/tutorial.md") if ":" in block}
    assert cluster.from_dict(yaml.safe_load(pages["executor"])).partition == "low"
    assert sweep_file.check(yaml.safe_load(pages["name"]), "x").name == "first"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:shards|ldct|slurm|launch|configs|tests|docs)/[a-z\d_./-]+)(?:::\w+)?`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def rows(page):
    """The rows of a page's tables that begin with what happens: their cells."""
    lines = (ROOT / page).read_text().splitlines()
    tables = itertools.groupby(lines, lambda line: line.startswith("| "))
    cells = [[re.split(r" (?<!\\)\| ", line.strip("| ")) for line in table] for row, table in tables if row]
    return [row for header, _, *others in cells if header[0] == "what happens" for row in others]


def test_every_fault_has_its_test():
    tests = dict(rows("docs/tests.md"))
    assert set(tests) == {row[0] for row in rows("docs/reliability.md")}
    for cell in tests.values():
        for path, name in re.findall(r"`([\w./]*)(?:::(\w+))?`", cell):
            if path:  # else a test of the file before
                files = [ROOT / path] if "/" in path else [*(ROOT / "tests" / "ldct").rglob(path)]
            assert any(file.is_dir() or f"def {name}" in file.read_text() for file in files), (path, name)


@pytest.mark.parametrize(
    "line", sorted({line for page in PAGES for line in commands(page) if line.startswith("make ")})
)
def test_a_target_is_there(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("name", "of"), sorted(CALLS))
def test_a_command_takes_its_options(name, of, monkeypatch, capsys):
    module = importlib.import_module(name.removeprefix("-m ").removesuffix(".py").replace("/", "."))
    monkeypatch.setattr("sys.argv", [name, *of.split(), "--help"])
    with pytest.raises(SystemExit) as ended:
        command(module.main)
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert {o for o in CALLS[name, of] if not re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", text)} == set()
