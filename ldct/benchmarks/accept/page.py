"""What accept found, as a table for a terminal and as a page for docs/."""

from typing import Any

from ldct.benchmarks.accept.isolation import FAILED, Figure, shown
from shards.common.table import text_table


def summary(result: dict[str, Any]) -> str:
    """How many checks came to what, in one line."""
    states = [check["state"] for check in result["checks"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{counts}; {result['seconds']:.0f} s"


def about(result: dict[str, Any]) -> str:
    """Device, versions and date, in one line."""
    machine = machine_of(result)
    parts = [machine.get("device", "device not known")]
    versions = {"driver_version": "driver", "torch": "torch", "python": "Python"}
    parts += [f"{name} {machine[key]}" for key, name in versions.items() if key in machine]
    return ", ".join([*parts, result["date"], f"ldct {result['version']}, code {result['code']}"])


def machine_of(result: dict[str, Any]) -> dict[str, str]:
    """Figures of the check "machine" by name."""
    return {f["name"]: str(f["value"]) for c in result["checks"] if c["name"] == "machine" for f in c["figures"]}


def text(result: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for check in result["checks"]:
        rows.append([check["name"], check["what"], f"{check['seconds']:.0f} s", check["state"]])
        rows += [["", f"  {figure['name']}", value(figure), verdict(figure)] for figure in check["figures"]]
        if check["said"]:
            rows.append(["", f"  {check['said']}", "", ""])
    return f"{about(result)}\n{text_table(['check', '', '', ''], rows, left=(0, 1))}\n{summary(result)}"


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    lines = ["# What one machine showed", "", about(result) + ".", "", f"    {result['command']}", ""]
    lines += [
        summary(result) + ". A figure without a wish is only measured. What was left out was **not measured**.",
        "",
    ]
    lines += ["| check | shows | took | came to |", "| --- | --- | ---: | --- |"]
    for check in result["checks"]:
        state = f"**{check['state']}**" if check["state"] == FAILED else check["state"]
        said = f": {cell(check['said'])}" if check["said"] else ""
        lines.append(f"| {check['name']} | {cell(check['what'])} | {check['seconds']:.0f} s | {state}{said} |")
    for check in result["checks"]:
        if check["figures"]:
            lines += [
                "",
                f"## {check['name'][0].upper()}{check['name'][1:]}",
                "",
                "| | | wanted |",
                "| --- | ---: | --- |",
            ]
            lines += [f"| {cell(f['name'])} | {cell(value(f))} | {verdict(f)} |" for f in check["figures"]]
    return "\n".join(lines) + "\n"


def value(figure: dict[str, Any]) -> str:
    return shown(Figure(**figure))


def verdict(figure: dict[str, Any]) -> str:
    """What a figure was held against, and whether it is so."""
    if not figure["wanted"]:
        return ""
    return figure["wanted"] if figure["good"] else f"{figure['wanted']}: NOT SO"


def cell(words: str) -> str:
    """Text for a cell of a Markdown table."""
    return words.replace("|", "/")
