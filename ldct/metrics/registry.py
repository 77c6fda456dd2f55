"""Every metric by name: what tables, pages, W&B and the reuse of stored results need to know of it.

A result's name is a protocol and a metric, ``abd400/psnr``, or, where no protocol applies, the metric's key alone,
``texture/high_band``. A new metric is one entry here and one function.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ldct.metrics import edges, fidelity, noise_texture, observer, tissue
from ldct.metrics.names import metric as name_under
from ldct.metrics.protocols import Protocol
from ldct.metrics.slice_pair import Clipped, SlicePair


@dataclass(frozen=True)
class Metric:
    """What there is to say of a metric."""

    key: str
    """Its name in files, behind the protocol's where it has one."""
    label: str
    """Its name in tables."""
    unit: str
    """Empty for a plain number."""
    digits: int
    """Digits behind the point."""
    higher_is_better: bool | None
    """None where neither is: then ``expected`` says what is good."""
    definition: str
    """What is computed, and after whom; one line."""
    function: Callable[[Any], float]
    """Of a Clipped where ``per_protocol``, of a SlicePair else; nan where a slice has no value, e.g. no flat tissue."""
    per_protocol: bool = True
    """Whether each protocol has its own value of it."""
    expected: tuple[float, float] | None = None
    """The range outside which a mean over patients is flagged."""
    below: str = ""
    """What a value below ``expected`` means, for people."""
    above: str = ""
    """What a value above ``expected`` means, for people."""
    needs: str = ""
    """What a slice without a value does not have."""

    @property
    def title(self) -> str:
        """Label and unit, e.g. ``PSNR (dB)``."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float) -> str:
        """``value`` with its digits; a dash for nan."""
        return "-" if value != value else f"{value:.{self.digits}f}"


def _of_tissue(name: str, spread: bool = False) -> Metric:
    """Bias, or SD, of the output in a class of tissue."""
    low, high = tissue.CLASSES[name]
    what, function, good = ("SD", tissue.sd, False) if spread else ("mean", tissue.bias, None)
    return Metric(
        f"tissue/{name}_{'sd' if spread else 'bias'}",
        f"{name} {'SD' if spread else 'bias'}",
        "HU",
        2,
        good,
        f"{what} of output minus full dose where the full dose, smoothed (SD 2 pixels), has {low:g} to {high:g} HU, at "
        "least three pixels from other tissue",
        partial(function, name),
        per_protocol=False,
        needs=f"200 pixels of {name}",
    )


METRICS = (
    Metric("rmse", "RMSE", "HU", 2, False, "root of the mean squared difference to the full dose", fidelity.rmse),
    Metric("psnr", "PSNR", "dB", 2, True, "20 log10(data range / RMSE)", fidelity.psnr),
    Metric(
        "ssim",
        "SSIM",
        "",
        4,
        True,
        "structural similarity (Wang 2004, IEEE TIP 13:600), K1 = 0.01, K2 = 0.03",
        fidelity.ssim,
    ),
    Metric(
        "gmsd",
        "GMSD",
        "",
        4,
        False,
        "gradient magnitude similarity deviation (Xue 2014, IEEE TIP 23:684); 0 = no difference",
        fidelity.gmsd,
    ),
    Metric(
        "vif",
        "VIF",
        "",
        3,
        True,
        "visual information fidelity, pixel domain (Sheikh 2006, IEEE TIP 15:430), clipped to [-160, 240] HU; 1 = no "
        "difference",
        fidelity.vif,
        per_protocol=False,
        needs="contrast",
    ),
    Metric(
        "texture/frequency",
        "noise frequency",
        "1/pixel",
        3,
        None,
        "mean frequency of the noise power spectrum of output minus full dose in flat soft tissue, cycles per pixel",
        noise_texture.mean_frequency,
        per_protocol=False,
        needs="flat soft tissue",
    ),
    Metric(
        "texture/high_band",
        "high band",
        "",
        2,
        None,
        "noise power above 0.25 cycles per pixel in flat soft tissue, over the full dose's: 1 = its texture, below = "
        "smoothed, above = noisier; the best estimate of a full dose from a fraction r of it keeps r",
        noise_texture.high_band,
        per_protocol=False,
        expected=(0.2, 2.0),
        below="smoothed",
        above="noisy",
        needs="flat soft tissue",
    ),
    Metric(
        "texture/mean_per_mm",
        "NPS mean",
        "1/mm",
        3,
        None,
        "mean frequency of the output's noise power spectrum in flat soft tissue, over the frequency plane (Siewerdsen "
        "2002, Med Phys 29:2655)",
        noise_texture.mean_per_mm,
        per_protocol=False,
        needs="flat soft tissue",
    ),
    Metric(
        "texture/peak_per_mm",
        "NPS peak",
        "1/mm",
        3,
        None,
        "frequency at which the output's noise power spectrum in flat soft tissue is highest",
        noise_texture.peak_per_mm,
        per_protocol=False,
        needs="flat soft tissue",
    ),
    Metric(
        "edges/sharpness",
        "edge sharpness",
        "",
        3,
        None,
        "transfer function from full dose to output at 0.15 to 0.25 cycles per pixel, at edges of 300 HU and more "
        "(task based, Richard 2012, Med Phys 39:4115): 1 = as sharp as the full dose, below = blurred",
        edges.sharpness,
        per_protocol=False,
        expected=(0.9, 1.1),
        below="blurred edges",
        above="enhanced edges",
        needs="edges of high contrast",
    ),
    Metric(
        "edges/half_per_mm",
        "TTF 50 %",
        "1/mm",
        3,
        True,
        "where that transfer function falls below 1/2; Nyquist's frequency where it does not",
        edges.half_frequency,
        per_protocol=False,
        needs="edges of high contrast",
    ),
    Metric(
        "edges/residual",
        "residual on edges",
        "",
        3,
        None,
        "correlation, inside the body, of how much was removed with how steep the full dose is: 0 = noise that knows "
        "no anatomy, a blur has 0.5 and more",
        edges.residual_follows_edges,
        per_protocol=False,
        needs="a body and something removed",
    ),
    Metric(
        "observer/disc",
        "d' of a disc",
        "",
        2,
        True,
        "detectability of a disc of 5 mm and 10 HU in flat soft tissue by a non-prewhitening observer, from transfer "
        "function and noise power spectrum (Samei 2019, Med Phys 46:e735)",
        observer.disc_detectability,
        per_protocol=False,
        needs="flat soft tissue and edges of high contrast",
    ),
    Metric(
        "observer/dose",
        "dose equivalent by d'",
        "of full",
        2,
        True,
        "fraction of the full dose at which the low dose itself would have this d', simulated from the pair; above 1 = "
        "less noise than the full dose",
        observer.dose_equivalent,
        per_protocol=False,
        needs="flat soft tissue, edges of high contrast and a known dose",
    ),
    Metric(
        "body/psnr",
        "PSNR in the body",
        "dB",
        2,
        True,
        "PSNR inside the body, clipped to [-160, 240] HU, data range 400",
        tissue.body_psnr,
        per_protocol=False,
        needs="a body",
    ),
    Metric(
        "body/ssim",
        "SSIM in the body",
        "",
        4,
        True,
        "mean SSIM of the windows whose middle lies in the body, as under abd400",
        tissue.body_ssim,
        per_protocol=False,
        needs="a body",
    ),
    Metric(
        "body/rmse",
        "RMSE in the body",
        "HU",
        2,
        False,
        "root of the mean squared difference to the full dose inside the body, nothing clipped",
        tissue.body_rmse,
        per_protocol=False,
        needs="a body",
    ),
    Metric(
        "body/dose",
        "dose equivalent",
        "of full",
        2,
        True,
        "fraction of the full dose at which the low dose itself would have this RMSE inside the body: the variance "
        "that its noise adds goes with 1 / dose - 1",
        tissue.dose_equivalent,
        per_protocol=False,
        needs="a body and a known dose",
    ),
    *(_of_tissue(name) for name in tissue.CLASSES),
    *(_of_tissue(name, spread=True) for name in tissue.CLASSES),
)
"""In the order of columns; those of every protocol first."""
MAIN = ("psnr", "ssim", "rmse", "texture/frequency", "texture/high_band", "edges/sharpness")
"""Keys of the metrics in the main table, in the order of its columns."""
RANKING = "psnr"
"""Key of the metric by which methods are ranked."""
JUDGED = "rmse"
"""Key of the metric by which a slice is the worst of a method."""
BRIEF = ("psnr", "ssim")
"""Keys of the metrics shown of every protocol side by side."""
_BY_KEY = {metric.key: metric for metric in METRICS}


def per_protocol() -> list[Metric]:
    """Metrics that each protocol has its own value of."""
    return [metric for metric in METRICS if metric.per_protocol]


def names_under(protocol: str | None) -> list[str]:
    """Names of a slice's results under ``protocol``; without one, of those that no protocol changes."""
    if protocol is None:
        return [metric.key for metric in METRICS if not metric.per_protocol]
    return [name_under(protocol, metric.key) for metric in per_protocol()]


def names(protocols: Iterable[str]) -> list[str]:
    """Names of all results of a slice measured under ``protocols``, in the order of columns."""
    return [name for protocol in (*protocols, None) for name in names_under(protocol)]


def measure(pair: SlicePair, protocol: Protocol | None) -> dict[str, float]:
    """Results of one slice by name: of every protocol's metrics under ``protocol``, or without one of all others.

    Raises
    ------
    ValueError
        If ``protocol`` does not fit the slice's size.
    """
    if protocol is None:
        return {metric.key: metric.function(pair) for metric in METRICS if not metric.per_protocol}
    seen: Clipped = pair.under(protocol)
    return {name_under(protocol.name, metric.key): metric.function(seen) for metric in per_protocol()}


def main_names(protocol: str, among: Container[str]) -> list[str]:
    """Names of the results in the main table, ranked under ``protocol``; only those ``among`` what was measured."""
    names = [name_under(protocol, metric.key) if metric.per_protocol else metric.key for metric in map(find, MAIN)]
    return [name for name in names if name in among]


def ranking(protocol: str) -> str:
    """Name of the result that ranks under ``protocol``."""
    return name_under(protocol, RANKING)


def find(name: str) -> Metric:
    """The metric of the result called ``name``, e.g. of ``abd400/psnr`` or ``val/abd400/psnr``.

    Raises
    ------
    KeyError
        If there is none.
    """
    parts = name.split("/")
    keys = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((_BY_KEY[key] for key in keys if key in _BY_KEY), None) or _BY_KEY[name]


def better(name: str, value: float, other: float) -> bool:
    """Whether ``value`` of the result called ``name`` is better than ``other``; never where neither way is better."""
    up = find(name).higher_is_better
    return up is not None and (value > other if up else value < other)


def outside(values: Mapping[str, float]) -> list[str]:
    """One line for each of ``values`` (means by name of result) that its metric does not expect; nan is passed over."""
    lines = []
    for name, value in values.items():
        metric = find(name)
        if metric.expected is None or metric.expected[0] <= value <= metric.expected[1] or value != value:
            continue
        low, high = (metric.text(limit) for limit in metric.expected)
        word = metric.below if value < metric.expected[0] else metric.above
        lines.append(f"{word}: {metric.label} {metric.text(value)}, expected {low} to {high}")
    return lines
