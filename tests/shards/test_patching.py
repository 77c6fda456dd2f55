import numpy as np
import pytest

from shards.common.command import InputError
from shards.patching import body_fractions, cut, join, origins


def test_the_studys_81_patches_and_100_that_cover():
    corners = origins((512, 512), 55, 55, "document")
    assert len(corners) == 81 and corners[0] == [0, 0] and corners[1] == [0, 55] and corners[-1] == [440, 440]
    cover = origins((512, 512), 55, 55, "cover")
    assert len(cover) == 100 and cover[-1] == [457, 457] and cover[9] == [0, 457]


def test_cover_adds_nothing_where_patches_end_at_the_border():
    assert origins((110, 110), 55, 55, "cover") == origins((110, 110), 55, 55, "document")
    assert origins((60, 110), 55, 55, "cover") == [[0, 0], [0, 55], [5, 0], [5, 55]]


@pytest.mark.parametrize("tiling", ["document", "cover"])
def test_a_slice_of_one_patch_and_one_pixel_more(tiling):
    assert origins((55, 55), 55, 55, tiling) == [[0, 0]]
    assert origins((55, 56), 55, 1, tiling) == [[0, 0], [0, 1]]


def test_overlapping_stride():
    assert origins((64, 48), 32, 16, "document") == [[0, 0], [0, 16], [16, 0], [16, 16], [32, 0], [32, 16]]


def test_a_slice_smaller_than_a_patch():
    with pytest.raises(InputError, match="54 x 512 pixels is smaller than a patch of 55"):
        origins((54, 512), 55, 55, "document")


def test_cut_and_join_give_the_slice_back():
    image = np.random.default_rng(0).integers(-1000, 1000, (100, 120)).astype(np.int16)
    corners = origins(image.shape, 55, 55, "cover")
    patches = cut([image, image + 1], corners, 55)
    assert patches.shape == (6, 2, 55, 55) and patches.dtype == np.int16
    np.testing.assert_array_equal(patches[3, 1], image[45:100, 0:55] + 1)
    np.testing.assert_array_equal(join(patches[:, 0], corners, image.shape), image)


def test_cut_takes_one_image_as_well_as_two():
    image = np.arange(20, dtype=np.int16).reshape(4, 5)
    np.testing.assert_array_equal(cut([image], [[1, 2]], 2), [[[[7, 8], [12, 13]]]])


def test_join_needs_a_corner_for_every_patch():
    with pytest.raises(ValueError, match="shorter"):
        join(np.zeros((2, 3, 3)), [[0, 0]], (3, 6))


def test_join_leaves_nan_where_no_patch_is_and_the_mean_where_two_are():
    whole = join(np.array([np.zeros((2, 2)), np.ones((2, 2))]), [[0, 0], [0, 1]], (2, 4))
    np.testing.assert_array_equal(whole, [[0, 0.5, 1, np.nan]] * 2)
    assert whole.dtype == np.float32


def test_body_fractions():
    patches = np.full((2, 10, 10), -1000)
    patches[1, :3] = -500  # not above
    patches[1, 3:6] = -499
    assert body_fractions(patches) == [0.0, 0.3]
    patches = np.full((1, 3, 3), -1000)
    patches[0, 0, 0] = 0
    assert body_fractions(patches) == [0.111]
