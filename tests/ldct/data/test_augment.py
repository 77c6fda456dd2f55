"""Flips and quarter turns."""

import torch

from ldct.data.augment import augment, augmentation_codes


def test_augmentation_is_the_eight_symmetries_of_a_square():
    patch = torch.arange(9).view(1, 1, 3, 3).repeat(8, 2, 1, 1)
    turned = augment(patch, torch.arange(8))
    seen = {tuple(t[0].flatten().tolist()) for t in turned}
    expected = {
        tuple(torch.rot90(flip, k).flatten().tolist()) for flip in (patch[0, 0], patch[0, 0].T) for k in range(4)
    }
    assert seen == expected and len(seen) == 8
    assert torch.equal(turned[:, 0], turned[:, 1])


def test_augmentation_codes_depend_on_seed_and_step_alone():
    assert torch.equal(augmentation_codes(0, 5, 64), augmentation_codes(0, 5, 64))
    assert not torch.equal(augmentation_codes(0, 5, 64), augmentation_codes(0, 6, 64))
    assert not torch.equal(augmentation_codes(0, 5, 64), augmentation_codes(1, 5, 64))
    assert sorted(set(augmentation_codes(0, 0, 512).tolist())) == list(range(8))


def test_what_comes_out_is_in_order_in_memory():
    """A transposed input would hand its order on, and the normalisation and the network copy it again."""
    assert augment(torch.zeros(8, 2, 5, 5), torch.arange(8)).stride() == (50, 25, 5, 1)
