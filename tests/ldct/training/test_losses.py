"""Losses by value; the perceptual one on VGG16 with random weights, against its layers written out."""

import pytest
import torch
import torch.nn.functional as F

from ldct.config import LossConfig
from ldct.training import losses
from shards.common.command import InputError

SHAPES = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)}
"""Output and input channels of the convolutions up to relu3_3 (Simonyan 2015, column D) by their place in torchvision's
vgg16().features."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """File with random weights as torchvision saves them; the classifier's are left out for their 500 MB."""
    torch.manual_seed(0)
    values = {"features.17.weight": torch.zeros(512, 256, 3, 3), "classifier.6.bias": torch.zeros(1000)}
    for number, (out, channels) in SHAPES.items():
        values[f"features.{number}.weight"] = torch.randn(out, channels, 3, 3) * 0.05
        values[f"features.{number}.bias"] = torch.randn(out) * 0.05
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(values, path)
    return path


def perceived(x, file):
    """relu3_3 of VGG16 written out."""
    values = torch.load(file)
    for number in (0, 2, "pool", 5, 7, "pool", 10, 12, 14):
        if number == "pool":
            x = F.max_pool2d(x, 2)
        else:
            x = F.relu(F.conv2d(x, values[f"features.{number}.weight"], values[f"features.{number}.bias"], padding=1))
    return x


def pair():
    torch.manual_seed(1)
    return torch.randn(2, 1, 24, 20, requires_grad=True), torch.randn(2, 1, 24, 20)


def test_plain_losses():
    output, target = torch.tensor([0.0, 3.0]), torch.tensor([1.0, 1.0])
    assert losses.create(LossConfig("mse"))(output, target) == 2.5
    assert losses.create(LossConfig("l1"))(output, target) == 1.5


@pytest.mark.parametrize("imagenet", [False, True])
def test_mse_vgg_by_hand(weights, imagenet):
    output, target = pair()
    loss = losses.create(LossConfig("mse+vgg", vgg_weight=0.3, vgg_weights=str(weights), vgg_imagenet=imagenet))

    def look(x):
        x = torch.cat([x, x, x], 1)
        if imagenet:
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            x = (x - mean[:, None, None]) / std[:, None, None]
        return perceived(x, weights)

    features = look(output), look(target)
    assert features[0].shape == (2, 256, 6, 5)
    wanted = (output - target).square().mean() + 0.3 * (features[0] - features[1]).abs().mean()
    torch.testing.assert_close(loss(output, target), wanted)
    (gradient,) = torch.autograd.grad(loss(output, target), output)
    (expected,) = torch.autograd.grad(wanted, output)
    torch.testing.assert_close(gradient, expected)
    assert loss(target, target) == 0


def test_vgg_is_frozen_and_stays_in_eval_mode(weights):
    loss = losses.create(LossConfig("mse+vgg", vgg_weights=str(weights)))
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    parent = torch.nn.ModuleDict({"loss": loss}).train()
    assert parent["loss"].training and not any(part.training for part in loss.features.modules())
    assert not any(weight.requires_grad for weight in loss.parameters())
    output, target = pair()
    loss(output, target).backward()
    assert output.grad.abs().max() > 0
    assert all(weight.grad is None for weight in loss.parameters())
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_no_graph_is_kept_for_the_target(weights):
    """Of the target's pass nothing is kept, even where the target asks for gradients."""
    loss = losses.create(LossConfig("mse+vgg", vgg_weights=str(weights)))
    output, target = pair()
    graphs = []
    loss.features.register_forward_hook(lambda module, inputs, out: graphs.append(out.grad_fn is not None))
    loss(output, target.requires_grad_())
    assert graphs == [False, True]


def test_weights_come_from_the_cache_where_no_file_is_named(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(InputError, match=f"{losses.VGG_FILE}: expected VGG16's ImageNet weights .* found no file"):
        losses.create(LossConfig("mse+vgg"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / losses.VGG_FILE).symlink_to(weights)
    first = next(losses.create(LossConfig("mse+vgg")).parameters())
    assert torch.equal(first, torch.load(weights)["features.0.weight"])


@pytest.mark.parametrize("content", [b"not a file of torch's", {"features.0.weight": torch.zeros(1)}, [1, 2]])
def test_wrong_weights_are_one_line(tmp_path, content):
    path = tmp_path / "vgg.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError, match=r"expected (VGG16's weights|the weights of torchvision's vgg16)") as error:
        losses.create(LossConfig("mse+vgg", vgg_weights=str(path)))
    assert "\n" not in str(error.value)
