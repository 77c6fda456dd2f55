"""The median and the worst slice."""

import numpy as np
import pytest
from PIL import Image

from ldct.evaluation import extremes
from ldct.evaluation.measure import PICTURES, shown
from ldct.evaluation.results import Evaluation, Result
from ldct.metrics.intervals import Measured
from ldct.metrics.judged import median_and_worst


def slices(*rmse):
    return [Measured("A", str(number), {"abd400/rmse": value}) for number, value in enumerate(rmse)]


@pytest.mark.parametrize(
    ("rmse", "keys"),
    [((3.0, 1.0, 2.0), ["2", "0"]), ((4.0, 1.0, 2.0, 3.0), ["2", "0"]), ((5.0,), ["0", "0"]), ((np.nan,), [])],
)
def test_the_median_and_the_worst_of_slices(rmse, keys):
    assert [measured.key for measured in median_and_worst(slices(*rmse), "abd400")] == keys


@pytest.mark.parametrize("count", [1, 4, PICTURES])
def test_all_slices_of_a_small_set_are_kept(count):
    assert shown(count) == list(range(count))


def test_of_a_large_set_some_are_kept_evenly_spaced():
    kept = shown(10 * PICTURES)
    assert len(set(kept)) == PICTURES and min(kept) > 0 and max(kept) < 10 * PICTURES - 1
    assert set(np.diff(kept)) <= {9, 10}


def test_pictures_of_the_run_are_written(tmp_path):
    (tmp_path / "eval").mkdir()
    pictures = {key: np.full((64, 64), 40, np.int16) for key in ("0", "1", "2")}
    results = [Result(name, "", slices(1.0, 2.0, 9.0), 1.0, "CPU", "", pictures) for name in ("low dose", "P$a_{$")]
    evaluation = Evaluation("test", "d", "", ["abd400"], results, pictures)
    extremes.save(tmp_path, evaluation)
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["test-median.png", "test-worst.png"]
    image = np.asarray(Image.open(tmp_path / "eval" / "test-worst.png").convert("L"))
    assert np.isin(image, (127, 128)).mean() > 0.4  # 40 HU in the middle of the window, and no difference
