import math

import pytest
from conftest import ROOT

from ldct.metrics import protocols, registry


def test_names_of_results_in_the_order_of_columns():
    names = registry.names(["abd400", "hu2000"])
    assert names[:3] == ["abd400/rmse", "abd400/psnr", "abd400/ssim"]
    assert "texture/high_band" in names and "hu2000/texture/high_band" not in names
    assert len(names) == len(set(names))
    assert all(registry.find(name) in registry.METRICS for name in names)


@pytest.mark.parametrize("name", ["abd400/psnr", "val/abd400/psnr", "val/low_dose/abd400/psnr", "psnr"])
def test_a_metric_is_found_by_the_name_of_any_of_its_results(name):
    assert registry.find(name).title == "PSNR (dB)"


def test_an_unknown_name_is_an_error():
    with pytest.raises(KeyError, match="abd400/colour"):
        registry.find("abd400/colour")


def test_better_knows_which_way_is_up():
    assert registry.better("abd400/psnr", 30, 29) and not registry.better("abd400/psnr", 29, 30)
    assert registry.better("abd400/rmse", 8, 9) and not registry.better("abd400/rmse", 9, 8)
    assert not registry.better("texture/frequency", 1, 0) and not registry.better("texture/frequency", 0, 1)


def test_what_is_outside_its_range_is_said_with_the_range():
    assert registry.outside({"abd400/psnr": 3.0, "texture/high_band": 1.0}) == []
    assert registry.outside({"texture/high_band": math.nan}) == []
    assert registry.outside({"texture/high_band": 0.05}) == ["smoothed: high band 0.05, expected 0.20 to 2.00"]
    assert registry.outside({"texture/high_band": 6.2}) == ["noisy: high band 6.20, expected 0.20 to 2.00"]


def test_the_documentation_has_every_metric_and_protocol_in_its_words():
    text = (ROOT / "docs" / "metrics.md").read_text()
    for metric in registry.METRICS:
        better = {True: "more", False: "less", None: "-"}[metric.higher_is_better]
        expected = "-" if metric.expected is None else f"{metric.expected[0]:g} to {metric.expected[1]:g}"
        name = f"PROTOCOL/{metric.key}" if metric.per_protocol else metric.key
        assert f"| `{name}` | {metric.unit or '-'} | {better} | {expected} | {metric.definition} |\n" in text
    for name in protocols.names():
        assert f"| `{name}` | {protocols.get(name).text} |\n" in text
