"""Gates against CBAM's formulas; trained on patches, used on slices."""

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import maximum_filter, uniform_filter

from ldct.config import ModelConfig
from ldct.models import create
from ldct.models.cbam import ChannelGate, SpatialGate, countable, pool_locally, sliding, window_max, window_mean
from ldct.models.whole_slice import denoise, origins, tiled
from shards.common.command import InputError


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_channel_gate_is_cbams():
    """M_c(F) = sigmoid(W1 relu(W0 avg(F)) + W1 relu(W0 max(F)))."""
    gate, x = ChannelGate(48).double(), torch.randn(3, 48, 9, 7).double()
    w0, w1 = gate.mlp[0].weight[..., 0, 0], gate.mlp[2].weight[..., 0, 0]
    assert w0.shape == (3, 48)
    flat = x.reshape(3, 48, 63)
    logits = sum(F.relu(pooled @ w0.T) @ w1.T for pooled in (flat.sum(2) / 63, flat.sort(2).values[..., -1]))
    torch.testing.assert_close(gate(x), x * torch.sigmoid(logits)[..., None, None], rtol=0, atol=1e-12)


def test_channel_gate_has_a_hidden_unit_on_few_channels():
    assert ChannelGate(4).mlp[0].weight.shape == (1, 4, 1, 1)


def test_spatial_gate_is_cbams():
    """M_s(F) = sigmoid(conv 7x7 of [avg(F); max(F)])."""
    gate, x = SpatialGate().double(), torch.randn(2, 5, 8, 11).double()
    pooled = torch.stack([x.sum(1) / 5, x.sort(1).values[:, -1]], 1)
    columns = F.unfold(pooled, 7, padding=3)  # (2, 2 * 49, 88)
    logits = (gate.conv.weight.reshape(1, 98) @ columns).reshape(2, 1, 8, 11)
    torch.testing.assert_close(gate(x), x * torch.sigmoid(logits), rtol=0, atol=1e-12)


def test_gradients_have_the_order_of_the_features():
    """In channels_last; a gradient in another order is added to the others an element at a time."""
    x = torch.randn(2, 4, 6, 5).to(memory_format=torch.channels_last).requires_grad_()
    orders = []
    x.register_hook(lambda gradient: orders.append(gradient.is_contiguous(memory_format=torch.channels_last)))
    gate = ChannelGate(4)
    gate.mlp.register_forward_pre_hook(lambda module, inputs: inputs[0].square().sum().backward())
    gate(x)
    assert orders == [True, True]  # the mean's and the maximum's


def test_a_maximum_leads_to_one_pixel():
    """Of equal ones, so that none has to be counted."""
    x = torch.zeros(1, 4, 3, 3, requires_grad=True)
    gate = ChannelGate(4)
    gate.mlp.register_forward_pre_hook(lambda module, inputs: inputs[0].sum().backward())
    gate(x)
    assert (x.grad[0, 0] > 0.5).sum() == 1  # the mean's share is 1/9 everywhere


def test_both_is_channel_then_spatial():
    model = create(ModelConfig("redcnn", 16, 2, attention="both"))
    gate, x = model.gates["2"], torch.randn(1, 16, 9, 9)
    torch.testing.assert_close(gate(x), gate.spatial(gate.channel(x)))
    assert (gate(x) - gate.channel(gate.spatial(x))).abs().max() > 1e-4  # the order matters


@pytest.mark.parametrize("name", ["redcnn", "unet"])
def test_a_gate_stands_behind_its_stage(name):
    """A gate that closes its place hides that stage from all that follows, skips too."""
    model = create(ModelConfig(name, 4, 4, 3, attention="spatial", attention_stages=[2], init_output="same"))
    x = torch.randn(1, 1, 32, 32)
    seen = {}
    model.encoder[1].register_forward_hook(lambda module, inputs, out: seen.update(before=out))
    model.encoder[2].register_forward_pre_hook(lambda module, inputs: seen.update(after=inputs[0]))
    model(x)
    gated = model.gates["2"](seen["before"])
    torch.testing.assert_close(seen["after"], gated if name == "redcnn" else F.max_pool2d(gated, 2))
    model.gates["2"].register_forward_hook(lambda module, inputs, out: torch.zeros_like(out))
    open_end = model(x)
    for weight in model.encoder[:2].parameters():
        torch.nn.init.zeros_(weight)
    if name == "redcnn":  # its only other way is the residual
        torch.testing.assert_close(model(x), open_end)


@pytest.mark.parametrize(("name", "places", "valid"), [("redcnn", [6], "1, 2, 3, 4, 5"), ("unet", [1, 4], "1, 2, 3")])
def test_a_place_that_is_not_there_is_one_line(name, places, valid):
    depth = {"redcnn": 5, "unet": 2}[name]
    with pytest.raises(InputError, match=f"model.attention_stages: expected some of {valid}, found"):
        create(ModelConfig(name, 2, depth, attention="channel", attention_stages=places))


def test_no_place_is_an_error():
    with pytest.raises(InputError, match="attention_stages"):
        create(ModelConfig("redcnn", 2, attention="channel", attention_stages=[]))


@pytest.mark.parametrize("window", [(1, 1), (2, 3), (5, 7), (8, 6), (12, 9)])
def test_sliding_windows_are_those_of_scipy(window):
    x = torch.randn(2, 18, 14, 13).double()
    inner = [slice(n // 2, n // 2 + size - n + 1) for n, size in zip(window, x.shape[2:], strict=True)]
    for ours, theirs in ((window_mean, uniform_filter), (window_max, maximum_filter)):
        wanted = torch.from_numpy(theirs(x.numpy(), (1, 1, *window)))[:, :, inner[0], inner[1]]
        torch.testing.assert_close(sliding(x, window, ours), wanted, rtol=0, atol=1e-12)


def test_sliding_mean_of_bf16_is_taken_in_float32():
    x = torch.full((1, 1, 60, 60), 1.0, dtype=torch.bfloat16)
    x[..., ::2] = 1.0078125  # the next bf16 number: a bf16 sum of 2500 such would be off by far more
    mean = sliding(x, (50, 50), window_mean)
    torch.testing.assert_close(mean, torch.full((1, 1, 11, 11), 1.00390625), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, -0.5])
def test_maxima_of_bf16_are_those_of_its_values(shift):
    """Of features behind a ReLU, which are compared as integers, and of others, whose bits have another order."""
    x = (torch.rand(1, 8, 16, 15) + shift).bfloat16()
    bits = countable(x)
    assert (bits.dtype == torch.int16) == (shift == 0)
    most = sliding(bits, (5, 4), window_max).view(torch.bfloat16)
    torch.testing.assert_close(most, sliding(x.float(), (5, 4), window_max).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_give_the_same_with_and_without_gradients(dtype):
    x = torch.randn(2, 16, 9, 7).to(dtype)
    for gate in (ChannelGate(16).to(dtype), SpatialGate().to(dtype)):
        with torch.no_grad():
            without = gate(x)
        torch.testing.assert_close(without, gate(x).detach(), rtol=0, atol=0)


def test_local_weights_are_those_of_the_window_around_each_pixel():
    gate, x = ChannelGate(16).double(), torch.randn(1, 16, 20, 17).double()
    wanted = torch.empty_like(x)
    for row in range(20):
        for column in range(17):
            top, left = min(max(row - 3, 0), 20 - 7), min(max(column - 3, 0), 17 - 7)  # shifted inside at the edges
            part = x[..., top : top + 7, left : left + 7]
            wanted[..., row, column] = gate(part)[..., row - top, column - left]
    gate.window = 7
    torch.testing.assert_close(gate(x), wanted, rtol=0, atol=1e-12)


def channel_model(name, **switches):
    """Attention strong enough to matter: gates start near 1/2."""
    model = create(ModelConfig(name, attention="channel", init="kaiming", init_output="same", **switches)).double()
    for weight in model.gates.parameters():
        weight.data *= 4
    return model.eval()


STATIONARY = {
    # periods that divide the feature sizes of the patch: every window holds the same pixels
    "redcnn": ({"channels": 16, "depth": 3, "kernel": 5}, 40, 4, slice(12, 28)),
    "unet": ({"channels": 16, "depth": 2, "kernel": 1}, 32, 8, slice(0, 32)),
}


@pytest.mark.parametrize("name", STATIONARY)
def test_on_a_stationary_image_local_equals_the_patch(name):
    """Left half one pattern, right half another: local inference gives on each what a patch of it gives, and pooling
    over the whole mixes them. Only the inner pixels of a RED-CNN patch do not see its edge."""
    sizes, patch, period, inner = STATIONARY[name]
    model = channel_model(name, **sizes)
    halves = [torch.randn(1, 1, period, period).double() * scale for scale in (1, 3)]
    image = torch.cat([half.repeat(1, 1, 128 // period, 160 // period) for half in halves], 3)
    with torch.no_grad(), pool_locally(model, patch):
        local = model(image)
    with torch.no_grad():
        whole = model(image)
    for half, left in zip(halves, (40, 200), strict=True):  # both far from the border between the halves
        with torch.no_grad():
            wanted = model(half.repeat(1, 1, patch // period, patch // period))[..., inner, inner]
        there = (..., slice(40 + inner.start, 40 + inner.stop), slice(left + inner.start, left + inner.stop))
        torch.testing.assert_close(local[there], wanted, rtol=0, atol=1e-10)
        assert (whole[there] - wanted).abs().max() > 1e-5
    for mode, wanted in (("local", local), ("whole", whole)):
        torch.testing.assert_close(denoise(model, image, patch, mode), wanted.float(), rtol=0, atol=1e-6)


def test_windows_are_the_feature_sizes_of_a_patch():
    """RED-CNN loses 4 pixels a convolution; U-Net pads 55 to 64 and halves."""
    for name, wanted in {"redcnn": [51, 47, 43, 39, 35], "unet": [64, 32, 16, 8, 4]}.items():
        model = create(ModelConfig(name, 2, attention="both"))
        sizes = []
        for stage in model.encoder:
            stage.register_forward_hook(lambda module, inputs, out, sizes=sizes: sizes.append(out.shape[-1]))
        model(torch.zeros(1, 1, 55, 55))
        with pool_locally(model, 55):
            assert [gate.channel.window for gate in model.gates.values()] == sizes == wanted
        assert all(gate.channel.window is None for gate in model.gates.values())


def test_pooling_is_switched_back_after_an_error():
    model = channel_model("redcnn", channels=2)
    with pytest.raises(RuntimeError), pool_locally(model, 55):
        raise RuntimeError
    assert model.gates["1"].channel.window is None


@pytest.mark.parametrize("name", ["redcnn", "unet"])
def test_modes(name):
    model, image = create(ModelConfig(name, 4, attention="spatial", init_output="same")), torch.randn(2, 1, 96, 80)
    assert torch.equal(denoise(model, image, 55), denoise(model, image, 55, "whole"))
    assert model.training  # left as it was
    model = channel_model(name, channels=4).float()
    patches = torch.randn(3, 1, 55, 55)
    with torch.no_grad():
        wanted = model(patches)
    for mode in ("local", "whole", "tiles"):  # on a patch all are the network itself
        torch.testing.assert_close(denoise(model, patches, 55, mode), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="one of local, whole, tiles, found 'window'"):
        denoise(model, image, 55, "window")


def test_denoise_uses_the_running_statistics_of_batch_norm():
    model, image = create(ModelConfig("redcnn", 4, norm="batch", init_output="same")), torch.randn(2, 1, 40, 40)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one = denoise(model, image[:1], 55)
    torch.testing.assert_close(denoise(model, image, 55)[:1], one)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("mode", ["local", "whole", "tiles"])
def test_bf16(mode):
    model, image = channel_model("redcnn", channels=8, depth=3).float(), torch.randn(1, 1, 90, 90)
    plain = denoise(model, image, 55, mode)
    with torch.autocast("cpu", torch.bfloat16):
        rough = denoise(model, image, 55, mode)
    assert rough.dtype == torch.float32
    assert (rough - plain).std() < 0.02 * (plain - image).std()


def test_tiles_meet_every_pixel():
    assert origins(512, 55, 27)[:2] == [0, 28]
    for size, overlap in ((512, 27), (517, 0), (55, 10), (56, 54), (110, 0)):
        covered = torch.zeros(size)
        for start in origins(size, 55, overlap):
            assert 0 <= start <= size - 55
            covered[start : start + 55] += 1
        assert covered.min() >= 1


def test_tiles_of_a_local_network_are_its_whole():
    """A network that sees one pixel does not know tiles; one that sees 41 differs only by their edges."""
    image = torch.randn(2, 1, 70, 130)
    pixelwise = create(ModelConfig("unet", 4, 1, 1, init_output="same")).eval()
    with torch.no_grad():
        torch.testing.assert_close(tiled(pixelwise, image, 20, 8), pixelwise(image), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tiled(pixelwise, image, 100, 8), pixelwise(image), rtol=1e-5, atol=1e-5)


def test_tiles_are_blended():
    """At a pixel of two tiles: the mean with weights 1, 2, ... from each tile's edge."""

    class Number(torch.nn.Module):
        """Each tile's first pixel all over the tile."""

        def forward(self, x):
            return x[..., :1, :1].expand_as(x)

    image = torch.arange(15.0).expand(1, 1, 10, 15)
    row = tiled(Number(), image, 10, 5)[0, 0, 4]  # tiles from column 0 and 5
    weights = torch.tensor([[5, 4, 3, 2, 1], [1, 2, 3, 4, 5]])
    torch.testing.assert_close(row[5:10], 5 * weights[1] / weights.sum(0))
    assert row[0] == 0 and row[14] == 5
