import math

import numpy as np
import pytest
import torch
import torchmetrics.functional.image as torchmetrics
from scipy import ndimage, signal
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ldct.metrics import fidelity, protocols, registry
from ldct.metrics.slice_pair import SlicePair, Target
from shards.common.command import InputError

WINDOWS = {"ldctbench": (50, 400), "ldctbench_chest": (-600, 1500), "ldctbench_head": (40, 80)}
CLIPPED = {"abd400": (-160, 240), "hu2000": (-1000, 1000), "full4096": (-1024, 3072)}
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def pair(seed=0, shape=(128, 112)):
    """A phantom with air, tissue and bone, beyond every clip, and a noisy copy of it; int16 HU, its padding equal."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    full = 60 * np.sin(x / 7) * np.cos(y / 9) + 40
    full[(x - 50) ** 2 + (y - 60) ** 2 < 200] = 3300
    full[(x - 56) ** 2 + (y - 64) ** 2 > 2500] = -1100
    full = full + rng.normal(0, 8, shape)
    low = full + rng.normal(0, 40, shape)
    return low.round().astype(np.int16), full.round().astype(np.int16)


def inside(shape):
    """A part of the pair that holds tissue and bone."""
    return [image[64 : 64 + shape[0], 40 : 40 + shape[1]] for image in pair()]


def measure(name, a, b):
    """Metrics by key."""
    values = registry.measure(SlicePair(a, b), protocols.get(name))
    return {result.removeprefix(f"{name}/"): value for result, value in values.items()}


def check(values, rmse, psnr, ssim):
    assert values["rmse"] == pytest.approx(rmse, abs=1e-9)
    assert values["psnr"] == pytest.approx(psnr, abs=1e-9)
    assert values["ssim"] == pytest.approx(ssim, abs=1e-9)


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("shape", [(128, 112), (11, 40)])
def test_clipped_protocols_are_scikit_images(name, shape):
    low, high = CLIPPED[name]
    a, b = pair() if shape == (128, 112) else inside(shape)
    x, y = (np.clip(v.astype(float), low, high) - low for v in (a, b))
    kwargs = {"data_range": high - low}
    check(
        measure(name, a, b),
        np.sqrt(np.mean((x - y) ** 2)),
        peak_signal_noise_ratio(y, x, **kwargs),
        structural_similarity(x, y, **GAUSSIAN, **kwargs),
    )


@pytest.mark.parametrize("name", WINDOWS)
def test_windowed_protocols_are_scikit_images_defaults(name):
    centre, width = WINDOWS[name]
    a, b = pair()
    x, y = (np.clip((v - (centre - width / 2)) / width, 0, 1) for v in (a, b))
    rmse = np.sqrt(np.mean((x - y) ** 2))
    psnr = peak_signal_noise_ratio(y, x, data_range=1)
    check(measure(name, a, b), rmse * width, psnr, structural_similarity(x, y, data_range=1.0))


def test_sinyu_keeps_negative_values_and_pads_with_zeros():
    a, b = pair()
    x, y = (np.clip(v.astype(float), -160, 240) for v in (a, b))
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    kernel = np.outer(line, line) / line.sum() ** 2

    def mean(v):
        return signal.convolve2d(v, kernel, mode="same")

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 4.0**2, 12.0**2
    ssim = ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    check(measure("sinyu", a, b), np.sqrt(np.mean((x - y) ** 2)), peak_signal_noise_ratio(y, x, data_range=400), ssim)
    assert abs(ssim - measure("abd400", a, b)["ssim"]) > 1e-3  # the two differ, so the test can tell them apart


def test_document55_is_the_mean_over_patches_with_something_in_them():
    a, b = pair(shape=(128, 180))
    b[:55, :55] = a[:55, :55] = -1024  # outside the field of view: no information, infinite PSNR
    x, y = ((v + 500.0) / 500 for v in (a, b))
    patches = [(slice(i, i + 55), slice(j, j + 55)) for i in (0, 55) for j in (0, 55, 110)][1:]
    psnr = np.mean([peak_signal_noise_ratio(y[p], x[p], data_range=1) for p in patches])
    ssim = np.mean([structural_similarity(x[p], y[p], data_range=1.0) for p in patches])
    rmse = np.mean([np.sqrt(np.mean((x[p] - y[p]) ** 2)) for p in patches])
    check(measure("document55", a, b), rmse * 500, psnr, ssim)


@pytest.mark.parametrize("name", protocols.names())
def test_identical_images(name):
    a, _ = pair()
    check(measure(name, a, a.copy()), 0.0, math.inf, 1.0)


@pytest.mark.parametrize("name", protocols.names())
def test_constant_images(name):
    """10 HU between two constants: no covariance, so SSIM is its first factor alone."""
    b = np.full((64, 64), 40, np.int16)
    a = b + 10
    values, protocol = measure(name, a, b), protocols.get(name)
    x, y, c1 = 50 + protocol.shift, 40 + protocol.shift, (0.01 * protocol.data_range) ** 2
    assert values["rmse"] == pytest.approx(10, abs=1e-6)
    assert values["psnr"] == pytest.approx(20 * math.log10(protocol.data_range / 10), abs=1e-6)
    if name != "sinyu":  # its zero padding makes edges
        assert values["ssim"] == pytest.approx((2 * x * y + c1) / (x * x + y * y + c1), abs=1e-6)


def test_torchmetrics_agrees_inside_the_border():
    a, b = (torch.from_numpy(image).double().clamp(-160, 240)[None, None] + 160 for image in pair())
    values = measure("abd400", *pair())
    _, full_image = torchmetrics.structural_similarity_index_measure(a, b, data_range=400.0, return_full_image=True)
    assert values["ssim"] == pytest.approx(full_image[..., 5:-5, 5:-5].mean().item(), abs=1e-9)
    psnr = torchmetrics.peak_signal_noise_ratio(a, b, data_range=400.0).item()
    assert values["psnr"] == pytest.approx(psnr, abs=1e-5)


def test_float32_and_int16_give_the_same():
    a, b = pair()
    assert measure("full4096", a, b) == measure("full4096", a.astype(np.float32), b.astype(np.float32))


def gmsd_by_definition(x, y, data_range):
    """Xue 2014 by two-dimensional convolutions, on the scale of 8 bits that the paper's constant belongs to."""
    x, y = (image * 255 / data_range for image in (x, y))
    x, y = (signal.convolve2d(image, np.full((2, 2), 1 / 4), mode="valid")[::2, ::2] for image in (x, y))
    prewitt = np.array([[1, 0, -1], [1, 0, -1], [1, 0, -1]]) / 3

    def magnitude(image):
        parts = [signal.convolve2d(image, kernel, mode="valid") for kernel in (prewitt, prewitt.T)]
        return np.sqrt(parts[0] ** 2 + parts[1] ** 2)

    mx, my = magnitude(x), magnitude(y)
    return np.std((2 * mx * my + 170) / (mx**2 + my**2 + 170))


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("shape", [(128, 112), (41, 60)])
def test_gmsd_is_the_papers(name, shape):
    low, high = CLIPPED[name]
    a, b = pair(shape=shape)
    x, y = (np.clip(image.astype(float), low, high) for image in (a, b))
    value = measure(name, a, b)["gmsd"]
    assert value == pytest.approx(gmsd_by_definition(x, y, high - low), abs=1e-12)
    assert value > 1e-4
    assert measure(name, b, b)["gmsd"] == 0


def test_means_over_windows_keep_the_order_of_axes():
    images = np.random.default_rng(0).random((2, 9, 11))
    weights = np.array([1.0, 3.0, 1.0])
    kernel = np.outer(weights, weights) / 25
    means = fidelity.window_means(images, weights)
    assert means.shape == (2, 7, 9)
    np.testing.assert_allclose(means, [signal.convolve2d(image, kernel, mode="valid") for image in images])


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'abd40'.*abd400, hu2000, full4096, ldctbench, sinyu, document55"):
        protocols.get("abd40")


def test_a_protocol_is_known_by_its_name_and_says_what_it_does():
    assert [protocols.get(name).name for name in protocols.names()] == protocols.names()
    assert protocols.names()[:6] == list(protocols.DEFAULT)
    text = "abdomen window C50 W400 mapped to [0, 1], data range 1; SSIM uniform 7x7, sample covariance"
    window = protocols.Protocol("ldctbench", text, 400, low=-150, high=250, shift=150, window="uniform")
    assert protocols.get("ldctbench") == protocols._window("ldctbench", "abdomen", 50, 400) == window


@pytest.mark.parametrize(("name", "side"), [("abd400", 11), ("ldctbench", 7), ("document55", 55)])
def test_the_smallest_slice_is_one_window_or_patch(name, side):
    assert 0 < measure(name, *inside((side, side)))["rmse"] < 200
    for shape in ((side - 1, side), (side, side - 1)):
        with pytest.raises(ValueError) as error:
            measure(name, *inside(shape))
        assert str(error.value) == f"expected slices of at least {side} x {side} pixels, found {shape}"


def test_a_pair_is_two_images_of_one_shape_and_nothing_is_computed_twice():
    with pytest.raises(ValueError) as error:
        SlicePair(np.zeros((8, 8)), np.zeros((8, 9)))
    assert str(error.value) == "expected two equal shapes (H, W), found (8, 8) and (8, 9)"
    with pytest.raises(ValueError, match=r"found \(2, 8, 8\) and \(2, 8, 8\)"):
        SlicePair(np.zeros((2, 8, 8)), np.zeros((2, 8, 8)))
    output, full = pair()
    target = Target(full, spacing=0.7, low=output)
    assert target.low.dtype == np.float64 and Target(full).low is None
    seen, other = SlicePair(output, target), SlicePair(full, target)
    calls = []
    assert [seen.once(count) for count in (calls.append, calls.append)] == [None, None] and calls == [seen]
    views = [each.under(protocols.get(name)) for each in (seen, other) for name in ("abd400", "sinyu")]
    assert views[0].output is views[1].output and len({view.full for view in views}) == 1  # they clip alike
    assert views[0].output.hu.min() == -160 and views[0].full.hu.max() == 240 and seen.spacing == 0.7


def test_beside_one_target_every_output_has_the_values_it_has_alone():
    output, full = pair(shape=(128, 180))
    target = Target(full, 0.7, output, 0.25)
    for image in (output, full, ndimage.gaussian_filter(output, 1), output):
        for protocol in (*map(protocols.get, protocols.names()), None):
            alone = registry.measure(SlicePair(image, Target(full, 0.7, output, 0.25)), protocol)
            np.testing.assert_equal(registry.measure(SlicePair(image, target), protocol), alone)


def test_patches_of_one_value_count_where_there_is_no_other():
    values = measure("document55", np.full((60, 60), 10), np.zeros((60, 60)))
    assert values["rmse"] == 10.0


@pytest.mark.parametrize(
    ("name", "shape", "other"),
    [("abd400", (20, 20), (20, 21)), ("abd400", (10, 40), (10, 40)), ("document55", (54, 99), (54, 99))],
)
def test_wrong_shapes_are_refused(name, shape, other):
    with pytest.raises(ValueError, match="expected"):
        measure(name, np.zeros(shape), np.zeros(other))


def test_vif_is_torchmetrics():
    a, b = pair()
    x, y = (torch.from_numpy((np.clip(image, -160.0, 240.0) + 160) * 255 / 400)[None, None] for image in (a, b))
    value = fidelity.vif(SlicePair(a, b))
    assert value == pytest.approx(torchmetrics.visual_information_fidelity(x, y).item(), abs=1e-9)
    assert 0.05 < value < 0.95
    assert fidelity.vif(SlicePair(b, b)) == pytest.approx(1, abs=1e-9)
    assert fidelity.vif(SlicePair(b + 0.5 * (b - b.mean()), b)) > value


@pytest.mark.parametrize("change", [lambda full: np.full_like(full, 40), lambda full: -120 - full])
def test_vif_of_an_output_that_is_flat_or_against_the_full_dose_in_places_is_torchmetrics(change):
    output, full = pair()
    output[:, :64] = change(full[:, :64])
    x, y = (torch.from_numpy((np.clip(image, -160.0, 240.0) + 160) * 255 / 400)[None, None] for image in (output, full))
    expected = torchmetrics.visual_information_fidelity(x, y).item()
    assert fidelity.vif(SlicePair(output, full)) == pytest.approx(expected, abs=1e-9)
    assert expected < fidelity.vif(SlicePair(*pair())) - 0.01


def test_a_pair_keeps_the_low_dose_as_it_is():
    output, full = pair()
    np.testing.assert_array_equal(SlicePair(output, Target(full, low=output - 7)).target.low, output - 7)


def test_vif_of_a_small_slice_or_a_constant_is_nan():
    assert np.isnan(fidelity.vif(SlicePair(np.zeros((40, 40)), np.arange(1600.0).reshape(40, 40))))
    assert np.isnan(fidelity.vif(SlicePair(np.zeros((128, 128)), np.zeros((128, 128)))))


@pytest.mark.parametrize("shape", [(1, 30, 20), (3, 20, 30)])
def test_window_means_are_those_of_whole_windows(shape):
    images, line = np.random.default_rng(0).normal(size=shape), np.array([1.0, 2, 4, 2, 1])
    window = np.outer(line, line) / line.sum() ** 2
    expected = np.stack([signal.convolve2d(image, window, mode="valid") for image in images])
    np.testing.assert_allclose(fidelity.window_means(images, line), expected, atol=1e-12)
