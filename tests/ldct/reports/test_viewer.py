"""What the page's viewer is given: packed pixels, the body, and the slices that are worth a look."""

import base64
import zlib

import numpy as np
import pytest

from ldct.evaluation.results import Evaluation, Result
from ldct.metrics import registry
from ldct.metrics.intervals import Measured
from ldct.reports import tables, viewer
from ldct.reports.viewer import around_body, pack

RMSE = {"low dose": (9.0, 9.0, 9.0, 9.0, 9.0), "Gaussian blur": (1.0, 2.0, 3.0, 4.0, 5.0)}
"""By method and slice."""


@pytest.fixture
def evaluation():
    keys = [f"A_{number}" for number in range(3)] + [f"B_{number}" for number in range(2)]
    image = np.full((64, 64), 40, np.int16)
    results = []
    for name, values in RMSE.items():
        slices = [
            Measured(key[0], key, dict.fromkeys(registry.names(["abd400"]), 1.0) | {"abd400/rmse": value})
            for key, value in zip(keys, values, strict=True)
        ]
        results.append(Result(name, "made", slices, 1.0, "CPU", pictures=dict.fromkeys(keys, image)))
    return Evaluation("test", "d", "made", ["abd400"], results, dict.fromkeys(keys, image))


def test_packed_pixels_come_back():
    rng = np.random.default_rng(0)
    hu = rng.integers(-32768, 32768, (7, 9)).astype(np.int16)
    planes = np.frombuffer(zlib.decompress(base64.b64decode(pack(hu))), np.uint8).reshape(2, 7, 9)
    code = planes[0].astype(int) + 256 * planes[1].astype(int)
    steps = np.where(code % 2 == 0, code // 2, -(code + 1) // 2)
    np.testing.assert_array_equal(np.cumsum(steps, 1).astype(np.int16), hu)


def test_the_view_shows_all_of_the_body_and_little_else():
    full = np.full((200, 400), -1000)
    full[50:130, 100:220] = 40
    view = around_body(full)
    assert (view["x"], view["y"]) == (0.4, 0.45)
    assert 400 / view["zoom"] == pytest.approx(1.04 * 120, rel=0.01)
    assert view["aspect"] == pytest.approx(80 / 120, abs=1e-3)
    assert around_body(np.full((64, 64), -1000))["zoom"] == 1


def test_the_median_and_the_worst_slice_of_every_method(evaluation):
    evaluation.get("Gaussian blur").slices.reverse()  # their order does not matter
    found = {
        (extreme.method, extreme.which): (extreme.key, extreme.text)
        for extreme in viewer.extremes(evaluation, tables.rows(evaluation, {}))
    }
    assert found["Gaussian blur", "median"] == ("A_2", "3.00 HU")
    assert found["Gaussian blur", "worst"] == ("B_1", "5.00 HU")


def test_cases_hold_their_slices_in_order(evaluation):
    content = viewer.content(evaluation, tables.rows(evaluation, {}), 9_000_000)
    assert content["methods"] == ["full dose", "low dose", "Gaussian blur"]
    assert [(case["name"], [s["key"] for s in case["slices"]]) for case in content["cases"]] == [
        ("A", ["A_0", "A_1", "A_2"]),
        ("B", ["B_0", "B_1"]),
    ]
    assert [s["number"] for case in content["cases"] for s in case["slices"]] == [1, 2, 3, 4, 5]


def test_where_not_all_fit_the_median_and_the_worst_stay(evaluation):
    entry = viewer.packed_slice(evaluation, evaluation.results, "A_0")
    content = viewer.content(evaluation, tables.rows(evaluation, {}), 4 * sum(map(len, entry["panels"])))
    keys = {s["key"] for case in content["cases"] for s in case["slices"]}
    assert len(keys) == 4 and {"A_2", "B_1"} <= keys
    assert content["of"] == 5


@pytest.mark.parametrize("count", [0, 1, 2, 5, 16])
def test_every_beginning_of_the_order_is_spread(count):
    keys = [str(number) for number in range(count)]
    order = viewer.spaced(keys)
    assert sorted(order, key=int) == keys
    if count == 16:
        assert order[:3] == ["8", "4", "12"]


def test_the_body_is_filled_and_the_table_left_out():
    full = np.full((100, 100), -1000)
    full[20:60, 20:80] = 40
    full[30:40, 30:50] = -900  # lung
    full[90:93, 10:90] = 100  # table
    mask = viewer.body(full)
    assert mask[35, 40] and mask[25, 25] and not mask[91, 50] and not mask[5, 5]
    assert not viewer.body(np.full((8, 8), -1000)).any()
    bits = np.frombuffer(zlib.decompress(base64.b64decode(viewer.pack_bits(mask))), np.uint8)
    np.testing.assert_array_equal(np.unpackbits(bits)[: mask.size].reshape(mask.shape), mask)
