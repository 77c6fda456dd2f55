"""The report's charts, as SVG that stands in the page. Colours and marks are a run's own throughout."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a3fb0", "#444444")
"""Okabe and Ito's, which colour-blind people can tell apart, the light ones darkened for print."""
MARKS = "osD^vP*X"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",  # the page's own font, and text one can search
}


@dataclass(frozen=True)
class Look:
    """How a run is drawn everywhere."""

    colour: str
    mark: str


def look(number: int) -> Look:
    """Look of the run ``number``: eight colours, then the same with other marks."""
    return Look(COLOURS[number % len(COLOURS)], MARKS[(number + number // len(COLOURS)) % len(MARKS)])


def looks(labels: list[str]) -> dict[str, Look]:
    """Look of each run, by label."""
    return {label: look(number) for number, label in enumerate(labels)}


GREY = (Look("#888888", "x"), Look("#888888", "+"), Look("#555555", "1"))
"""Looks of methods that are no runs."""


def look_of(label: str, looks: dict[str, Look], others: list[str]) -> Look:
    """Look of a run, or of a method among ``others``."""
    return looks[label] if label in looks else GREY[others.index(label) % len(GREY)]


@dataclass
class Curve:
    """Points of one run."""

    label: str
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = field(default_factory=list)
    """SD of each point, where it is a mean."""


def curves(
    name: str,
    drawn: list[Curve],
    x: str,
    y: str,
    log: bool = False,
    low: float | None = None,
    log_x: bool = False,
) -> str:
    """Curves in one chart; ``low`` draws a dashed line for the low dose."""
    figure, axes = _figure(5.6, 3.2)
    for curve in drawn:
        axes.plot(curve.x, curve.y, color=curve.look.colour, marker=curve.look.mark if len(curve.x) < 30 else None,
                  markersize=4, linewidth=1.5, label=plain(curve.label))  # fmt: skip
        if len(curve.spread):
            under, over = (np.asarray(curve.y) + sign * np.asarray(curve.spread) for sign in (-1, 1))
            axes.fill_between(curve.x, under, over, color=curve.look.colour, alpha=0.15, linewidth=0)
    if low is not None:
        axes.axhline(low, color="#666666", linestyle="--", linewidth=1)
        axes.annotate(
            "low dose", (1, low), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#666666"
        )
    if log:
        axes.set_yscale("log")
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(plain(x))
    axes.set_ylabel(plain(y))
    return _svg(figure, name)


def dots(
    name: str, groups: dict[str, dict[str, float]], looks: dict[str, Look], y: str, least: float | None = None
) -> str:
    """One column per patient, one mark per method: ``groups[patient][method]``. Methods without a look are grey. The
    axis begins at ``least``, or a little below the lowest value."""
    width = min(11.5, max(5.6, 1.2 + 0.5 * len(groups)))
    figure, axes = _figure(width, 3.4)
    methods = list(next(iter(groups.values())))
    others = [method for method in methods if method not in looks]
    spread = np.linspace(-0.25, 0.25, len(methods)) if len(methods) > 1 else [0.0]
    for offset, method in zip(spread, methods, strict=True):
        look = look_of(method, looks, others)
        values = [group.get(method, np.nan) for group in groups.values()]
        at = np.arange(len(groups)) + offset
        axes.scatter(at, values, marker=look.mark, color=look.colour, s=26, label=plain(method))
    axes.set_xticks(range(len(groups)), [plain(group) for group in groups], rotation=0 if len(groups) < 12 else 60)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylim(bottom=least)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(plain(y))
    return _svg(figure, name)


def lines_of_dots(name: str, lines: dict[str, dict[str, float | None]], looks: dict[str, Look], x: str) -> str:
    """One line per name, the first on top, one mark per series: ``lines[name][series]``; None is left out."""
    figure, axes = _figure(7.2, 1.1 + 0.27 * len(lines))
    for series, style in looks.items():
        values = np.array([line[series] for line in lines.values()], dtype=float)  # None becomes nan
        axes.scatter(values, range(len(lines)), marker=style.mark, color=style.colour, s=26, label=plain(series))
    axes.set_yticks(range(len(lines)), [plain(line) for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel(plain(x))
    return _svg(figure, name)


def points(name: str, groups: list[str], series: dict[str, list[tuple[float, float | None]]], y: str) -> str:
    """A mean with its interval for every group and series: ``series[label]`` is (mean, half its interval) by group.

    A mean that is nan is left out.
    """
    figure, axes = _figure(5.6, 3.0)
    for number, (label, values) in enumerate(series.items()):
        style = look(number)
        shown = [(x, mean, half or 0.0) for x, (mean, half) in enumerate(values) if not np.isnan(mean)]
        at = [x + 0.16 * (number - (len(series) - 1) / 2) for x, _, _ in shown]
        axes.errorbar(at, [mean for _, mean, _ in shown], [half for _, _, half in shown], fmt=style.mark,
                      color=style.colour, markersize=6, capsize=3, linewidth=1.2, label=plain(label))  # fmt: skip
    axes.set_xticks(range(len(groups)), [plain(group) for group in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(plain(y))
    return _svg(figure, name)


def panels(name: str, groups: dict[str, list[Curve]], x: str, y: str) -> str:
    """One panel of curves per patient, on one scale, at most three side by side."""
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1 + 3.5 * columns, 0.9 + 2.3 * rows), layout="constrained")
        every = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, (group, curves) in zip(every, groups.items(), strict=False):
        for curve in curves:
            axes.plot(curve.x, curve.y, color=curve.look.colour, marker=curve.look.mark, markersize=3.5, linewidth=1.2,
                      linestyle="--" if curve.look in GREY else "-", label=plain(curve.label))  # fmt: skip
        axes.set_title(plain(group), fontsize=9)
        axes.set_xlabel(plain(x))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for number, axes in enumerate(every):
        axes.set_visible(number < len(groups))
        if number % columns == 0:
            axes.set_ylabel(plain(y))
    return _svg(figure, name)


def is_wide(svg: str) -> bool:
    """Whether a chart needs the width of the page."""
    width = re.search(r'width="([\d.]+)pt"', svg)
    return width is not None and float(width[1]) > 450


def plain(text: str) -> str:
    """``text`` as matplotlib shows it letter by letter: a dollar would begin a formula."""
    return text.replace("$", r"\$")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one chart, sizes in inches."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _svg(figure: Figure, name: str) -> str:
    """The SVG element alone. ``name`` goes into the ids of its parts, which would meet those of other charts."""
    text = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        axes = figure.axes[0]
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            columns = 2 if max(map(len, labels)) < 40 else 1
            figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=8)
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    size = re.match(r'<svg[^>]*?width="([\d.]+)pt" height="([\d.]+)pt"', svg.replace("\n", " "))
    ids = re.compile(r'(id="|url\(#|href="#)')
    svg = ids.sub(lambda found: f"{found[1]}{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1) if size else svg
