"""The main table: one row per method, the metrics of every protocol; as text, CSV and LaTeX."""

import collections
import csv
import io
import math
from dataclasses import dataclass
from typing import Any

from ldct import config as configuration
from ldct.config import Config
from ldct.evaluation import baselines
from ldct.evaluation.results import REGION, Evaluation
from ldct.metrics import intervals, names, protocols, registry
from ldct.metrics.intervals import Estimate

HIDDEN = ("run_dir", "data.shards", "data.store", "train.timeout_s", "train.save_every_s")
"""Fields that say where and how a run was done, not what it is."""

LABELLED = 5
"""Most fields in a run's label."""


def differing(configs: list[Config]) -> list[str]:
    """Names of the fields in which the runs differ, in the order of the configuration.

    A size that differs only because each network has its published one is not among them.
    """
    flats = [configuration.flat(config) for config in configs]
    published = {
        f"model.{key}"
        for key in ("channels", "depth", "kernel")
        if all(flat[f"model.{key}"] == configuration.PLAIN[flat["model.name"]][key] for flat in flats)
    }
    return [
        key
        for key in flats[0]
        if key not in HIDDEN
        and key not in published
        and not key.startswith("track.")
        and any(flat[key] != flats[0][key] for flat in flats)
    ]


def labels(configs: dict[str, Config]) -> dict[str, str]:
    """A short name for each run: what differs between the runs; the network and its attention if nothing does.

    Where more than LABELLED fields differ, those that tell the runs apart, and the run's own name if no few do.
    """
    flats = {name: configuration.flat(config) for name, config in configs.items()}
    keys = differing(list(configs.values())) or ["model.name", "model.attention"]
    few = telling(keys, list(flats.values())) if len(keys) > LABELLED else keys
    out = {}
    for name, flat in flats.items():
        words = [str(flat[key]) if key == "model.name" else f"{key.split('.')[-1]} {text(flat[key])}" for key in few]
        out[name] = ", ".join(words)
    if few != keys:
        alike = {label for label, count in collections.Counter(out.values()).items() if count > 1}
        out = {name: f"{label}, {name}" if label in alike else label for name, label in out.items()}
    return out


def telling(keys: list[str], flats: list[dict[str, Any]]) -> list[str]:
    """At most LABELLED of ``keys``, each chosen for telling most runs apart beside those before, the network first."""
    chosen: list[str] = []

    def kinds(fields: list[str]) -> int:
        return len({tuple(str(flat[field]) for field in fields) for flat in flats})

    while len(chosen) < LABELLED and kinds(chosen) < kinds(keys):
        chosen.append(
            max(sorted(keys, key=lambda key: not key.startswith("model.")), key=lambda key: kinds([*chosen, key]))
        )
    return [key for key in keys if key in chosen]


def text(value: Any) -> str:
    """A configuration value as a person writes it."""
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    """A baseline's name or a run folder's."""
    label: str
    """What differs between the runs; a baseline's name."""
    is_run: bool
    gain: float
    """PSNR over the low dose under the ranking protocol, in dB."""
    values: dict[str, Estimate]
    rate: float
    """Slices per second."""

    detail: str
    """How the method was set."""

    @property
    def worse(self) -> bool:
        """Whether a run falls below its own input."""
        return self.is_run and not self.gain >= 0


def rows(found: Evaluation, configs: dict[str, Config]) -> list[Row]:
    """Runs and baselines together, by PSNR under the first protocol, the best first."""
    key = names.metric(found.protocols[0], "psnr")
    low = found.get(baselines.LOW).means[key].mean
    named = labels(configs) if configs else {}
    made = []
    for result in found.results:
        means, is_run = result.means, result.name in named
        gain = means[key].mean - low
        made.append(
            Row(result.name, named.get(result.name, result.name), is_run, gain, means, result.rate, result.detail)
        )
    return sorted(made, key=lambda row: -row.values[key].mean if row.gain == row.gain else math.inf)


def columns(found: Evaluation) -> list[str]:
    """Names of the metrics in the table, protocol by protocol, then the noise texture."""
    return list(found.results[0].slices[0].values)


def number(value: float, column: str) -> str:
    """``value`` with the digits of its column; a dash for nan."""
    return registry.find(column).text(value)


def cell(estimate: Estimate, column: str) -> str:
    """Mean, and half the interval where there is one."""
    half = f" ± {number(estimate.ci95_half_width, column)}" if estimate.ci95_half_width is not None else ""
    return number(estimate.mean, column) + half


def as_text(found: Evaluation, made: list[Row]) -> str:
    """For a terminal: the ranking protocol with intervals and noise texture, then every protocol side by side."""
    first = found.protocols[0]
    main = [["", "gain dB", "PSNR dB", "SSIM", "RMSE HU", "noise freq", "high band", "slices/s"]]
    every = [["PSNR dB / SSIM", *found.protocols]]
    for row in made:
        shown = registry.main_names(first)
        speed = f"{row.rate:.1f}" if math.isfinite(row.rate) else "-"
        main.append([row.label, f"{row.gain:+.2f}", *(cell(row.values[c], c) for c in shown), speed])
        pairs = [[number(row.values[names.metric(p, m)].mean, m) for m in ("psnr", "ssim")] for p in found.protocols]
        every.append([row.label, *(" / ".join(pair) for pair in pairs)])
    return "\n".join([f"{first}: {protocols.get(first).text}", *_aligned(main), "", *_aligned(every)])


def _aligned(lines: list[list[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]


def about(found: Evaluation) -> str:
    """How many slices of how many patients, and how they were chosen; one line."""
    slices, patients = len(found.results[0].slices), len(found.patients)
    few = (
        ""
        if patients >= intervals.LEAST_PATIENTS
        else f"; no interval with fewer than {intervals.LEAST_PATIENTS} patients"
    )
    plural = "s" if patients > 1 else ""
    return f"{slices} slices of {patients} patient{plural} ({found.split}; {found.note}); {REGION}{few}"


def tests(found: Evaluation, made: list[Row]) -> list[str]:
    """One line per run: the best run against it, paired, in PSNR under the first protocol."""
    key = names.metric(found.protocols[0], "psnr")
    runs = [row for row in made if row.is_run]
    lines = []
    for row in runs[1:]:
        test = intervals.paired(found.get(runs[0].name).slices, found.get(row.name).slices, key)
        p = f"p = {test.p:.2g}" if not math.isnan(test.p) else f"too few for a test (at least {intervals.LEAST_PAIRS})"
        lines.append(
            f"{runs[0].label} against {row.label}: {test.difference:+.2f} dB over {test.count} {test.unit}, {p}"
        )
    return lines


def as_csv(found: Evaluation, made: list[Row]) -> str:
    """Every mean and half interval, one line per method, in full precision."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    metrics = columns(found)
    writer.writerow(
        ["label", "name", "detail", "gain_db", "slices_per_s", *(c for n in metrics for c in (n, f"{n}_half"))]
    )
    for row in made:
        values = [v for n in metrics for v in (row.values[n].mean, row.values[n].ci95_half_width)]
        writer.writerow([row.label, row.name, row.detail, row.gain, row.rate, *values])
    return text.getvalue()


def as_latex(found: Evaluation, made: list[Row]) -> str:
    """A booktabs table of PSNR and SSIM under every protocol, with the best run in bold."""
    best = {
        (p, m): max(row.values[names.metric(p, m)].mean for row in made if row.is_run)
        for p in found.protocols
        for m in ("psnr", "ssim")
    }

    def number_of(row: Row, protocol: str, metric: str) -> str:
        mean = row.values[names.metric(protocol, metric)].mean
        shown = cell(row.values[names.metric(protocol, metric)], metric).replace("±", r"$\pm$")
        return rf"\textbf{{{shown}}}" if row.is_run and mean == best[protocol, metric] else shown

    head = " & ".join(rf"\multicolumn{{2}}{{c}}{{{_tex(p)}}}" for p in found.protocols)
    lines = [
        r"% \usepackage{booktabs}",
        *(f"% {p}: {protocols.get(p).text}" for p in found.protocols),
        rf"\begin{{tabular}}{{l{'rr' * len(found.protocols)}}}",
        r"\toprule",
        rf" & {head} \\",
        " & ".join(["", *["PSNR & SSIM"] * len(found.protocols)]).strip() + r" \\",
        r"\midrule",
    ]
    for row in made:
        cells = [number_of(row, p, m) for p in found.protocols for m in ("psnr", "ssim")]
        lines.append(" & ".join([_tex(row.label), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str) -> str:
    """``text`` with TeX's special characters escaped."""
    return "".join("\\" + c if c in "_%&#$" else c for c in text)
