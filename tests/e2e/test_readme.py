"""Every command that README.md shows exists, and takes the options it is shown with."""

import re

import pytest
from conftest import ROOT, run_command

BLOCKS = re.findall(r"^ *```\n(.*?)^ *```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
LINES = sorted({line.strip().removeprefix(".venv/bin/") for block in BLOCKS for line in block.splitlines()})
COMMANDS = [line for line in LINES if line.startswith(("python ", "make "))]


def test_the_readme_shows_each_way_in():
    shown = {command.split()[1] for command in COMMANDS}
    assert {"demo", "env", "shards/build.py", "launch/sweep.py", "launch/denoise.py", "launch/compare.py"} <= shown


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
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
