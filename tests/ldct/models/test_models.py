"""RED-CNN and U-Net against plain references written from their papers, and arms that differ in one thing only."""

import pytest
import torch
import torch.nn.functional as F

from ldct.config import ModelConfig, networks
from ldct.models import create, describe, names
from shards.common.command import InputError

NARROW = {"redcnn": {"channels": 6}, "unet": {"channels": 4, "depth": 2}}


def narrow(name, seed=0, **switches):
    torch.manual_seed(seed)
    return create(ModelConfig(**{"name": name, **NARROW[name], **switches}))


def redcnn_by_hand(x, weights, depth):
    """Chen 2017, figure 1: y_i = relu(W_i * y_(i-1)); skips from x and every second layer, before the ReLU."""
    y, kept = x, {0: x}
    for i in range(depth):
        y = F.relu(F.conv2d(y, weights[f"encoder.{i}.0.weight"], weights[f"encoder.{i}.0.bias"]))
        kept[i + 1] = y
    for i in range(depth):
        name = f"decoder.{i}.0" if i < depth - 1 else "output"
        # a transposed convolution is a convolution of the fully padded image with the turned kernel
        kernel = weights[f"{name}.weight"].transpose(0, 1).flip(2, 3)
        y = F.conv2d(y, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] - 1)
        left = depth - 1 - i  # convolutions not yet undone
        if left % 2 == 0:
            y = y + kept[left]
        if i < depth - 1:
            y = F.relu(y)
    return y


def unet_by_hand(x, weights, depth, residual):
    """Ronneberger 2015, figure 1, with zero-padded convolutions; x has sides that pooling divides."""

    def two(y, name):
        for i in (0, 2):
            y = F.relu(F.conv2d(y, weights[f"{name}.{i}.weight"], weights[f"{name}.{i}.bias"], padding=1))
        return y

    def down(y, level):
        y = two(y, f"encoder.{level}")
        if level == depth:
            return y
        number = depth - 1 - level
        below = down(F.max_pool2d(y, 2), level + 1)
        up, bias = weights[f"up.{number}.weight"], weights[f"up.{number}.bias"]
        wide = torch.einsum("bihw,iojk->bohjwk", below, up).reshape(*y.shape) + bias[:, None, None]
        return two(torch.cat([y, wide], 1), f"decoder.{number}")

    out = F.conv2d(down(x, 0), weights["output.weight"], weights["output.bias"])
    return out + x if residual else out


def same_with_gradients(model, by_hand, x):
    """Output and all gradients of ``model`` are those of ``by_hand`` to 1e-10 in double precision."""
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    target = torch.randn_like(x)
    out, wanted = model(x), by_hand(x, weights)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-10)
    F.mse_loss(out, target).backward()
    F.mse_loss(wanted, target).backward()
    for name, value in model.named_parameters():
        assert weights[name].grad.abs().max() > 0, name
        torch.testing.assert_close(value.grad, weights[name].grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("depth", [1, 2, 4, 5])
def test_redcnn_is_the_papers(depth):
    model = narrow("redcnn", depth=depth, init="kaiming", init_output="same").double()
    same_with_gradients(model, lambda x, w: redcnn_by_hand(x, w, depth), torch.randn(2, 1, 30, 27).double())


@pytest.mark.parametrize("residual", [True, False])
def test_unet_is_the_papers(residual):
    model = narrow("unet", init="kaiming", init_output="same", residual=residual).double()
    same_with_gradients(model, lambda x, w: unet_by_hand(x, w, 2, residual), torch.randn(2, 1, 24, 16).double())


def test_residual_drops_only_the_outermost_skip():
    x = torch.randn(1, 1, 30, 30)
    with_skip, without = (narrow("redcnn", init_output="same", residual=residual) for residual in (True, False))
    torch.testing.assert_close(with_skip(x), without(x) + x)


def test_batch_norm_stands_between_convolution_and_relu():
    model = narrow("redcnn", depth=2, norm="batch", init_output="same").double()
    w, x = dict(model.named_parameters()), torch.randn(3, 1, 14, 14).double()

    def norm(y, name):
        mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, correction=0)
        return (y - mean) / (variance + 1e-5).sqrt() * w[f"{name}.weight"][:, None, None]

    y = x
    for i in range(2):
        y = F.relu(norm(F.conv2d(y, w[f"encoder.{i}.0.weight"], w[f"encoder.{i}.0.bias"]), f"encoder.{i}.1"))
    y = F.relu(norm(F.conv_transpose2d(y, w["decoder.0.0.weight"], w["decoder.0.0.bias"]), "decoder.0.1"))
    wanted = F.conv_transpose2d(y, w["output.weight"], w["output.bias"]) + x
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (ModelConfig("redcnn"), 1_848_865),
        (ModelConfig("redcnn", norm="batch"), 1_848_865 + 9 * 2 * 96),
        (ModelConfig("redcnn", attention="channel"), 1_848_865 + 5 * 1152),
        (ModelConfig("redcnn", attention="spatial"), 1_848_865 + 5 * 98),
        (ModelConfig("redcnn", attention="both", attention_stages=[3, 5]), 1_848_865 + 2 * (1152 + 98)),
        (ModelConfig("unet"), 31_030_593),
        (ModelConfig("unet", norm="batch"), 31_042_369),
        (ModelConfig("unet", attention="spatial"), 31_030_593 + 5 * 98),
        (ModelConfig("unet", attention="channel", attention_stages=[2, 4]), 31_030_593 + 2 * 128 * 8 + 2 * 512 * 32),
    ],
)
def test_parameters_are_as_published(model, parameters):
    said = describe(model)
    assert said.parameters == parameters
    assert said.attention_parameters == parameters - describe(ModelConfig(model.name, norm=model.norm)).parameters


def test_description_takes_no_random_numbers():
    before = torch.get_rng_state()
    describe(ModelConfig("unet", init="gaussian", attention="both"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "model",
    [ModelConfig("redcnn", 2, 3, 3), ModelConfig("unet", 2, 1, 3), ModelConfig("unet", 2, 2, 5)],
    ids=lambda model: f"{model.name}-{model.depth}-{model.kernel}",
)
def test_receptive_field_is_what_one_pixel_reaches(model):
    """A nan spreads to every output pixel that sees it."""
    side = 112
    images = torch.zeros(side, 1, 16, side, dtype=torch.float64)
    images[torch.arange(side), 0, :, torch.arange(side)] = torch.nan  # image i has it in column i
    with torch.no_grad():
        seen = create(model).double()(images)[:, 0].isnan().any(1)  # (input column, output column)
    widths = seen.sum(0)[side // 2 - 4 : side // 2 + 4]  # of output columns far from the edges
    assert widths.max() == describe(model).receptive_field
    assert describe(ModelConfig("redcnn")).receptive_field == 41


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("attention", ["none", "both"])
def test_networks_start_as_the_identity(name, norm, attention):
    x = torch.randn(2, 1, 55, 55)
    assert torch.equal(narrow(name, norm=norm, attention=attention)(x), x)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("size", [(512, 512), (500, 500), (300, 517), (55, 55)])
def test_any_size(name, size):
    model = narrow(name, channels=2, attention="both", init_output="same", residual=False)
    with torch.no_grad():
        out = model(torch.randn(1, 1, *size))
    assert out.shape == (1, 1, *size)
    assert out.std() > 0


def test_unet_pads_by_repeating_the_edge():
    model = narrow("unet", init_output="same")
    x = torch.randn(1, 1, 22, 17)  # to 24 x 20: one row above and below, one column left and two right
    rows, columns = [0, *range(22), 21], [0, *range(17), 16, 16]
    wanted = model(x[..., rows, :][..., columns])[..., 1:23, 1:18]
    torch.testing.assert_close(model(x), wanted)


def test_output_may_be_negative():
    """No ReLU at the end: air is -1 in the normalization hu1000."""
    x = torch.full((1, 1, 30, 30), -1.0)
    for name in names():
        assert narrow(name)(x).max() == -1


def test_too_small_an_image_is_one_line():
    with pytest.raises(InputError, match=r"21 x 21 pixels or more, found 20 x 40"):
        narrow("redcnn")(torch.zeros(1, 1, 20, 40))
    assert narrow("redcnn")(torch.zeros(1, 1, 21, 40)).shape == (1, 1, 21, 40)


ARMS = [
    {"attention": "channel"},
    {"attention": "spatial"},
    {"attention": "both"},
    {"attention": "both", "attention_stages": [2]},
    {"norm": "batch"},
    {"norm": "batch", "attention": "both"},
    {"residual": False},
    {"init_output": "same"},
]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("init", ["default", "kaiming"])
@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_arms_share_their_weights(name, init, arm):
    base = narrow(name, init=init)
    after_base = torch.get_rng_state()
    other = narrow(name, init=init, **arm)
    assert torch.equal(torch.get_rng_state(), after_base)
    *inner, output = zip(base.convolutions(), other.convolutions(), strict=True)
    for one, two in inner:
        assert torch.equal(one.weight, two.weight)
        assert torch.equal(one.bias, two.bias)
    assert torch.equal(output[0].weight, output[1].weight) == ("init_output" not in arm)


def test_gates_are_the_same_in_every_arm():
    both = narrow("unet", attention="both").gates.state_dict()
    for arm in ({"attention": "channel"}, {"attention": "spatial"}, {"attention": "both", "attention_stages": [3]}):
        for init in ("default", "kaiming"):
            for name, weight in narrow("unet", init=init, **arm).gates.state_dict().items():
                assert torch.equal(weight, both[name]), name


def test_another_seed_draws_other_weights():
    for init in ("default", "gaussian", "kaiming"):
        one, two = (narrow("redcnn", seed, init=init) for seed in (0, 1))
        assert not torch.equal(next(one.parameters()), next(two.parameters()))


def test_spread_of_the_starting_weights():
    """SD of gaussian; of kaiming sqrt(2 / fan_out), for which torch takes a transposed kernel's inputs."""
    wide = {"channels": 32, "kernel": 5, "depth": 3, "init_output": "same"}
    gaussian, kaiming = (narrow("redcnn", init=init, **wide) for init in ("gaussian", "kaiming"))
    for conv in gaussian.convolutions():
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.15)
    for conv in kaiming.convolutions():
        assert conv.weight.std().item() == pytest.approx((2 / (conv.weight.shape[0] * 25)) ** 0.5, rel=0.15)


@pytest.mark.parametrize("name", names())
def test_a_network_has_the_published_number_of_parameters(name):
    assert describe(ModelConfig(name=name)).parameters == networks()[name].parameters


def test_networks_are_the_files_that_declare_their_sizes():
    assert names() == ["redcnn", "unet"]
    assert networks()["redcnn"].sizes == {"channels": 96, "depth": 5, "kernel": 5}
    assert networks()["unet"].source == "Ronneberger 2015, MICCAI"


@pytest.mark.parametrize("name", names())
def test_channels_last_and_bf16(name):
    model = narrow(name, attention="both", norm="batch", init_output="same")
    x = torch.randn(2, 1, 55, 55)
    plain = model(x)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(x), plain, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x)
    assert rough.dtype == torch.float32  # the skip keeps the image's precision
    assert 0 < (rough - plain).std() < 0.05 * (plain - x).std()


@pytest.mark.parametrize("name", names())
def test_bf16_does_not_round_the_image(name):
    """Under autocast the first convolution is that of fp32, rounded afterwards; a plain one rounds the image first."""
    conv, image = narrow(name).encoder[0][0], 1 + torch.rand(1, 1, 32, 32)
    exact = conv(image)
    with torch.autocast("cpu", torch.bfloat16):
        found, plain = conv(image), F.conv2d(image, conv.weight, conv.bias, padding=conv.padding)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact.bfloat16(), rtol=0, atol=0)
    assert (plain != found).any()
