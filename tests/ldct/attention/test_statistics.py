"""Attention statistics against numpy, on gates whose weights are known."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import sobel
from skimage.io import imread

from ldct.attention.pictures import pictures
from ldct.attention.statistics import BINS, collect, correlation, edges, on_features, texture
from ldct.config import ModelConfig
from ldct.models import create
from ldct.models.whole_slice import denoise


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def network(name="redcnn", attention="both", **sizes):
    sizes = {"channels": 16, "depth": 3, **sizes}
    model = create(ModelConfig(name, attention=attention, init="kaiming", init_output="same", **sizes))
    for weight in model.gates.parameters():
        weight.data *= 5
    return model.eval()


def smooth_images(number, size=40):
    return torch.nn.functional.interpolate(
        torch.randn(number, 1, size // 4, size // 4), size=(size, size), mode="bicubic"
    )


def weights_of(model, images):
    """{stage: (channel weights (B, C), spatial maps (B, h, w))} of the gates, read one by one."""
    seen = {}
    hooks = []
    for stage, gate in model.gates.items():
        for kind, part in gate.named_children():
            hooks.append(
                part.sigmoid.register_forward_hook(
                    lambda module, inputs, out, key=(int(stage), kind): seen.update({key: out.numpy().squeeze()})
                )
            )
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", ["redcnn", "unet"])
def test_statistics_by_numpy(name):
    model, images = network(name), smooth_images(5)
    with torch.no_grad(), collect(model) as collector:
        model(images)
    stats, histograms = collector.stats(), collector.histograms()
    seen = weights_of(model, images)
    stages = range(1, len(model.stages) + 1)
    assert {key.split("/")[1] for key in stats} == set(map(str, stages))
    for stage in stages:
        weights, maps = seen[stage, "channel"].astype(np.float64), seen[stage, "spatial"].astype(np.float64)
        shares = weights / weights.sum(1, keepdims=True)
        entropy = -(shares * np.log(shares)).sum(1) / math.log(weights.shape[1])
        counts, _ = np.histogram(weights, BINS, (0, 1))
        wanted = {
            "depth": (stage - 1) / (len(model.stages) - 1),
            "channel_mean": weights.mean(),
            "channel_sd": weights.std(1).mean(),
            "channel_entropy": entropy.mean(),
            "channel_over_0.9": (weights > 0.9).mean(),
            "channel_under_0.1": (weights < 0.1).mean(),
            "spatial_mean": maps.mean(),
            "spatial_sd": maps.std((1, 2)).mean(),
        }
        for look, stat in ((edges, "spatial_edges"), (texture, "spatial_texture")):
            like = on_features(model, stage, look(images))[:, 0].numpy()
            pairs = zip(maps, like, strict=True)
            wanted[stat] = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])
        assert {f"attention/{stage}/{stat}" for stat in wanted} == {k for k in stats if k.split("/")[1] == str(stage)}
        for stat, value in wanted.items():
            assert stats[f"attention/{stage}/{stat}"] == pytest.approx(value, abs=1e-5), stat
        assert histograms[f"attention/{stage}/channel_histogram"] == pytest.approx(counts / counts.sum(), abs=1e-6)
    json.dumps(stats)
    assert max(stats[f"attention/{stage}/channel_over_0.9"] for stage in stages) > 0


def test_known_gates():
    """All gates open: weights 1, no spread, largest entropy; a constant map follows nothing."""
    model = network(attention="both")
    for gate in model.gates.values():
        gate.channel.sigmoid, gate.spatial.sigmoid = Ones(), Ones()
    with torch.no_grad(), collect(model) as collector:
        model(smooth_images(2))
    stats = collector.stats()
    assert stats["attention/2/channel_mean"] == stats["attention/2/channel_over_0.9"] == 1
    assert stats["attention/2/channel_sd"] == stats["attention/2/channel_under_0.1"] == 0
    assert stats["attention/2/channel_entropy"] == pytest.approx(1)
    assert stats["attention/2/spatial_sd"] == 0
    assert "attention/2/spatial_edges" not in stats
    assert collector.histograms()["attention/2/channel_histogram"] == [0] * (BINS - 1) + [1]


class Ones(torch.nn.Module):
    def forward(self, x):
        return torch.ones_like(x)


def test_one_open_channel_of_many():
    """Weights (1, 0, 0, ..., 0): entropy 0, and the spread of a single choice."""

    class One(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=int), 16).float()[..., None, None]

    model = network(attention="channel")
    model.gates["1"].channel.sigmoid = One()
    with torch.no_grad(), collect(model) as collector:
        model(smooth_images(2))
    stats = collector.stats()
    assert stats["attention/1/channel_entropy"] == 0
    assert stats["attention/1/channel_sd"] == pytest.approx(math.sqrt(15) / 16)
    assert stats["attention/1/channel_under_0.1"] == pytest.approx(15 / 16)


def test_batches_and_processes_add_up():
    model, images = network("unet"), smooth_images(7)
    with torch.no_grad():
        with collect(model) as whole:
            model(images)
        with collect(model) as first:
            model(images[:4])
            model(images[4:5])
        with collect(model) as second:
            model(images[5:])
    first.sums += second.sums
    assert first.stats() == pytest.approx(whole.stats(), abs=1e-6)
    assert first.histograms()["attention/1/channel_histogram"] == pytest.approx(
        whole.histograms()["attention/1/channel_histogram"]
    )


def test_nothing_is_hooked_outside():
    model = network()
    with collect(model) as collector:
        assert any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
        model(smooth_images(1))
    before = collector.sums.clone()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    model(smooth_images(1))
    assert torch.equal(collector.sums, before)
    plain = network(attention="none")
    with collect(plain) as collector:
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in plain.modules())
        plain(smooth_images(1))
    assert collector.stats() == {} and collector.histograms() == {}


def test_training_is_not_changed():
    model, images = network().train(), smooth_images(2)
    plain = torch.autograd.grad(model(images).square().mean(), list(model.parameters()))
    with collect(model):
        counted = torch.autograd.grad(model(images).square().mean(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, counted, strict=True))


def test_local_pooling_averages_over_the_windows():
    """A slice of one repeated patch: local weights are the patch's everywhere, and so are their statistics."""
    model = network(attention="channel", kernel=1)
    tile = torch.randn(1, 1, 8, 8)
    with torch.no_grad(), collect(model) as patch:
        model(tile.repeat(1, 1, 2, 2))
    with collect(model) as local:
        denoise(model, tile.repeat(1, 1, 6, 6), 16, "local")
    assert local.stats() == pytest.approx(patch.stats(), abs=1e-5)
    assert local.histograms() == {key: pytest.approx(value) for key, value in patch.histograms().items()}


def test_images_count_the_same_whatever_their_size():
    model, small, large = network(attention="channel"), smooth_images(1, 20), smooth_images(1, 60)
    rows = []
    for images in ([small], [large], [small, large]):
        with collect(model) as collector:
            for image in images:
                denoise(model, image, 20, "local")
        values = torch.tensor(list(collector.stats().values()))
        rows.append(torch.cat([values, torch.tensor(list(collector.histograms().values())).flatten()]))
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)
    torch.testing.assert_close(rows[2], (rows[0] + rows[1]) / 2)


@pytest.mark.parametrize("attention", ["channel", "spatial"])
def test_bf16_is_counted(attention):
    model, images = network(attention=attention), smooth_images(2)
    with torch.no_grad():
        with collect(model) as fine:
            model(images)
        with torch.autocast("cpu", torch.bfloat16), collect(model) as rough:
            model(images)
    assert rough.stats() == pytest.approx(fine.stats(), abs=0.05)


def test_edges_and_texture():
    image = torch.randn(1, 1, 12, 15).double()
    wanted = np.hypot(*(sobel(image[0, 0].numpy(), axis, mode="nearest") / 8 for axis in (0, 1)))
    np.testing.assert_allclose(edges(image)[0, 0], wanted, atol=1e-12)
    slope = 3.0 * torch.arange(20.0).expand(1, 1, 20, 20)
    assert edges(slope)[0, 0, 9, 9] == 3  # per pixel
    wanted = [image[0, 0, r - 3 : r + 4, c - 3 : c + 4].std(correction=0) for r in (3, 8) for c in (3, 11)]
    torch.testing.assert_close(texture(image)[0, 0][[3, 3, 8, 8], [3, 11, 3, 11]], torch.stack(wanted))
    assert texture(torch.full((1, 1, 9, 9), 7.0)).max() == 0


def test_maps_lie_over_the_input():
    """A map that is the input itself, as the features at that stage see it, correlates fully; shifted, it does not."""
    for name, stage, size in (("redcnn", 3, 40), ("unet", 2, 37)):
        model = network(name, kernel=3, depth=3)
        image = torch.randn(1, 1, size, size)
        seen = []
        model.encoder[stage - 1].register_forward_hook(lambda module, inputs, out, seen=seen: seen.append(out.shape))
        model(image)
        there = on_features(model, stage, image)
        assert there.shape[-2:] == seen[0][-2:]
        if name == "redcnn":
            assert torch.equal(there, image[..., 3:-3, 3:-3])
        else:  # 37 is padded to 40: one pixel before, two behind
            assert there[0, 0, 1, 1] == pytest.approx(image[0, 0, 1:3, 1:3].mean().item())


def test_correlation():
    a = torch.randn(3, 1, 6, 5)
    b = torch.cat([a[:1] * 2 + 1, -a[1:2], torch.zeros(1, 1, 6, 5)])
    assert correlation(a, b).tolist() == pytest.approx([1, -1, math.nan], nan_ok=True)


def test_one_stage_has_depth_zero():
    model = network(attention="channel", depth=1)
    with torch.no_grad(), collect(model) as collector:
        model(smooth_images(1))
    assert collector.stats()["attention/1/depth"] == 0


@pytest.mark.parametrize("attention", ["none", "channel", "both"])
def test_pictures(tmp_path, attention):
    model, low = network("unet", attention, channels=6), smooth_images(1, 64)
    written = pictures(model, low, tmp_path)
    names = ["features.png", "attention.png"] if attention == "both" else ["features.png"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert not any(part._forward_hooks for part in model.modules())
    for path in written:
        image = imread(path)
        assert image.shape[1] > image.shape[0] / 2 and image[..., 0].std() > 20
