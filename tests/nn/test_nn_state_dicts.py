"""State dicts of other people's masked convolutions load, and then compute what theirs computed.

The small classes below keep and apply their mask in the ways that public implementations do.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genfast.nn import MaskedConv2d


def plain_mask(weight, mask_type):
    mask = torch.ones_like(weight)
    row, column = weight.shape[2] // 2, weight.shape[3] // 2
    mask[:, :, row + 1 :] = 0
    mask[:, :, row, column + (mask_type == "B") :] = 0
    return mask


def coloured_mask(weight, mask_type, colours, interleaved):
    mask = plain_mask(weight, "B")
    outs, ins, height, width = weight.shape
    for out in range(outs):
        for inp in range(ins):
            o = out % colours if interleaved else out // (outs // colours)
            i = inp % colours if interleaved else inp // (ins // colours)
            if i > o or (mask_type == "A" and i == o):
                mask[out, inp, height // 2, width // 2] = 0
    return mask


class WritesItsWeight(nn.Conv2d):
    """A buffer of the weight's shape, multiplied into the weight at every call."""

    def __init__(self, mask_type, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", plain_mask(self.weight.detach(), mask_type))

    def forward(self, x):
        self.weight.data.mul_(self.mask)
        return super().forward(x)


class SmallBuffer(WritesItsWeight):
    """A buffer of shape (1, 1, kH, kW)."""

    def __init__(self, mask_type, *args, **kwargs):
        super().__init__(mask_type, *args, **kwargs)
        self.mask = self.mask[:1, :1].clone()


class PlainAttribute(nn.Conv2d):
    """A tensor that the state dict does not contain."""

    def __init__(self, mask_type, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mask = plain_mask(self.weight.detach(), mask_type)

    def forward(self, x):
        self.weight.data.mul_(self.mask)
        return super().forward(x)


class MaskedGradient(nn.Conv2d):
    """A mask applied once, and then to the gradients; a buffer that is not saved."""

    def __init__(self, mask_type, *args, **kwargs):
        super().__init__(*args, **kwargs)
        mask = coloured_mask(self.weight.detach(), mask_type, 3, interleaved=False)
        self.register_buffer("mask", mask, persistent=False)
        self.weight.data.mul_(self.mask)


class BoolBlocks(nn.Conv2d):
    """A bool buffer that keeps the colour order of channels in blocks."""

    def __init__(self, mask_type, *args, **kwargs):
        super().__init__(*args, **kwargs)
        mask = coloured_mask(self.weight.detach(), mask_type, 3, interleaved=False)
        self.register_buffer("mask", mask.bool())

    def forward(self, x):
        return F.conv2d(x, self.mask * self.weight, self.bias, self.stride, self.padding)


class Interleaved(nn.Conv2d):
    """A float buffer that keeps the colour order of interleaved channels."""

    def __init__(self, mask_type, *args, **kwargs):
        super().__init__(*args, **kwargs)
        mask = coloured_mask(self.weight.detach(), mask_type, 3, interleaved=True)
        self.register_buffer("mask", mask)

    def forward(self, x):
        self.weight.data = self.weight.data * self.mask
        return super().forward(x)


BLOCKS = {"mask_groups": 3}
SPREAD = {"data_channels": 3}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize(
    ("stranger", "colours"),
    [
        (WritesItsWeight, {}),
        (SmallBuffer, {}),
        (PlainAttribute, {}),
        (MaskedGradient, BLOCKS),
        (BoolBlocks, BLOCKS),
        (Interleaved, SPREAD),
    ],
)
def test_a_loaded_layer_computes_the_same(stranger, colours, mask_type, assign):
    theirs = nn.Sequential(stranger(mask_type, 6, 9, 5, padding=2), nn.ReLU(), nn.Conv2d(9, 1, 1))
    layer = MaskedConv2d(mask_type, 6, 9, 5, padding=2, **colours)
    ours = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(9, 1, 1))
    state = theirs.state_dict()
    keys = set(state)
    ours.load_state_dict(state, strict=True, assign=assign)
    assert set(state) == keys
    x = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours[0].mask.shape == ours[0].weight.shape
    assert ours[0].mask.dtype in (ours[0].weight.dtype, torch.bool)


def test_a_foreign_mask_wins_over_the_constructor_and_says_so():
    theirs = Interleaved("A", 6, 9, 3, padding=1)
    ours = MaskedConv2d("A", 6, 9, 3, padding=1, mask_groups=3)
    with pytest.warns(UserWarning, match="mask in the state dict is not the mask of"):
        ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def test_the_same_mask_does_not_warn():
    layer = MaskedConv2d("A", 3, 3, 3, data_channels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MaskedConv2d("A", 3, 3, 3, data_channels=3).load_state_dict(layer.state_dict())


def test_our_state_dict_loads_into_theirs():
    ours = MaskedConv2d("B", 2, 4, 3, padding=1)
    theirs = WritesItsWeight("B", 2, 4, 3, padding=1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(theirs(x), ours(x))


def test_a_mask_of_another_shape_is_refused():
    layer = MaskedConv2d("B", 2, 4, 3)
    state = layer.state_dict()
    state["mask"] = torch.ones(1, 1, 5, 5)
    with pytest.raises(RuntimeError, match="size mismatch for mask"):
        layer.load_state_dict(state)


def test_weights_that_are_parametrized_load_without_a_mask_too():
    def normalized(mask_type):
        layer = MaskedConv2d(mask_type, 2, 4, 3, padding=1)
        return torch.nn.utils.parametrizations.weight_norm(layer)

    ours, theirs = normalized("A"), normalized("A")
    state = theirs.state_dict()
    del state["mask"]
    ours.load_state_dict(state)
    x = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_missing_weight_is_still_missing():
    with pytest.raises(RuntimeError, match='"weight"'):
        MaskedConv2d("B", 2, 4, 3).load_state_dict({})
