"""Every command that README.md and docs/tutorial.md show exists, and takes the options it is shown with."""

import re

import pytest
import yaml
from conftest import ROOT, run_command

from slurm import cluster, sweep_file

SCRIPT = re.compile(r"(?<!^python) (?=(?:shards|launch)/\w+\.py )")


def blocks(name):
    """What stands between fences in a page."""
    return re.findall(r"^ *```(?:yaml)?\n(.*?)^ *```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)


def commands(name):
    """The lines of a page that run something of this project."""
    lines = {line.strip().removeprefix(".venv/bin/") for block in blocks(name) for line in block.splitlines()}
    lines = {line for line in lines if line.startswith(("python ", "make "))}
    # launch/submit.py takes another command behind its own options
    return sorted({re.sub("^(?!python|make)", "python ", part) for line in lines for part in SCRIPT.split(line)})


README, TUTORIAL = commands("README.md"), commands("docs/tutorial.md")
COMMANDS = [*README, *TUTORIAL]


def test_the_readme_shows_each_way_in():
    shown = {command.split()[1] for command in README}
    assert {"demo", "env", "shards/build.py", "launch/sweep.py", "launch/denoise.py", "launch/compare.py"} <= shown


def test_the_files_of_the_tutorial_are_valid():
    pages = {block.split(":")[0]: block for block in blocks("docs/tutorial.md") if ":" in block}
    assert cluster.from_dict(yaml.safe_load(pages["executor"])).partition == "low"
    assert sweep_file.check(yaml.safe_load(pages["name"]), "x").name == "first"


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
)
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page.parent / link).exists()] == []


@pytest.mark.parametrize("line", sorted({line for line in COMMANDS if line.startswith("make ")}))
def test_a_target_is_there(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("script", sorted({line.split()[1] for line in COMMANDS if line.startswith("python ")}))
def test_a_command_takes_its_options(script):
    help_text = run_command(script, "--help").stdout
    wanted = {
        option for line in COMMANDS if line.split()[1] == script for option in re.findall(r"(?<= )-{1,2}[\w.-]+", line)
    }
    assert {
        option for option in wanted if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text)
    } == set()
