"""What the pages tell people to type."""

import re

from conftest import ROOT

PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
COMMAND = r"(?:[A-Z_]+=\S+ )?(?:make \w|(?:\.venv/bin/)?python (?:-m )?\w|\. \.venv)"
FENCE = r"^ *```(?:yaml)?\n(.*?)^ *```$"
INDENTED = r"(?:^ {4}[^\n]*\n)+"
TYPED = re.compile(rf"{FENCE}|({INDENTED})|`({COMMAND}[^`\n]*)`", re.MULTILINE | re.DOTALL)


def blocks(page):
    """What stands between fences in a page."""
    return re.findall(FENCE, (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def is_command(line):
    """Whether a line of a block is one to type."""
    return re.match(COMMAND, line) is not None


def commands(page):
    """The commands of a page in their order, in blocks and in the text, each once."""
    lines = []
    for parts in TYPED.findall((ROOT / page).read_text()):
        lines += [line.strip() for line in re.sub(r"\\\n *", "", "".join(parts)).splitlines()]
    return list(dict.fromkeys(line for line in lines if is_command(line)))
