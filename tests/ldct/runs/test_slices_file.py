import numpy as np
import pytest

from ldct.runs import slices_file
from ldct.runs.slices_file import SlicesFile, pixels, steps

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    "hu",
    [
        RANDOM.integers(-(2**15), 2**15, (5, 7)),
        np.array([[-(2**15), 2**15 - 1, -(2**15), 0]]),  # the largest steps there are
        np.zeros((3, 2)),
    ],
)
def test_every_pixel_comes_back(hu):
    hu = hu.astype(np.int16)
    back = pixels(steps(hu))
    assert back.dtype == np.int16 and np.array_equal(back, hu)


def test_small_steps_have_small_bytes():
    assert steps(np.array([[0, -1, 0, -2, 0]], np.int16)).tolist() == [[[0, 1, 2, 3, 4]], [[0, 0, 0, 0, 0]]]


def test_a_file_is_smaller_than_that_of_pixels_and_those_of_version_0_1_are_read(tmp_path):
    y, x = np.mgrid[:128, :128]
    hu = (50 * np.sin(x / 9) + y + RANDOM.normal(0, 10, (128, 128))).astype(np.int16)
    new, old = tmp_path / "new.npz", tmp_path / "old.npz"
    with open(new, "wb") as file:
        slices_file.write(file, {"low dose/a": hu})
    np.savez_compressed(old, **{"low dose/a": hu})
    for path in (new, old):
        with SlicesFile(path) as stored:
            assert list(stored) == ["low dose/a"] and "low dose/b" not in stored
            assert np.array_equal(stored["low dose/a"], hu)
    assert new.stat().st_size < 0.85 * old.stat().st_size
