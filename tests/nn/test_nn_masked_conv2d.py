"""The masked convolution layer: what it sees, what it computes, and how it may be called."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genfast.errors import InputError
from genfast.nn import MaskedConv2d, causal_mask

COLOURS = {
    "interleaved": lambda channel, channels, colours: channel % colours,
    "blocks": lambda channel, channels, colours: channel * colours // channels,
}


def may_see(mask_type, layout, colours, out, inp, channels, here, there):
    """Say whether output channel `out` at `here` may depend on channel `inp` at `there`."""
    if there != here:
        return there < here
    out_colour = COLOURS[layout](out, channels[1], colours)
    in_colour = COLOURS[layout](inp, channels[0], colours)
    return in_colour < out_colour or (mask_type == "B" and in_colour == out_colour)


@pytest.mark.parametrize("kernel_size", [3, (3, 5), (1, 5), (5, 1)])
@pytest.mark.parametrize(("colours", "layout"), [(1, "blocks"), (3, "blocks"), (3, "interleaved")])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_each_output_sees_exactly_the_earlier_pixels_in_its_window(
    mask_type, colours, layout, kernel_size
):
    channels = (6, 9)
    layer = MaskedConv2d(
        mask_type,
        *channels,
        kernel_size,
        padding="same",
        data_channels=colours,
        channel_layout=layout,
    )
    height, width = 3, 4
    jacobian = torch.autograd.functional.jacobian(layer, torch.randn(channels[0], height, width))
    reach_y, reach_x = (size // 2 for size in layer.kernel_size)
    pixels = list(itertools.product(range(height), range(width)))
    for out, inp, here, there in itertools.product(range(9), range(6), pixels, pixels):
        in_window = abs(here[0] - there[0]) <= reach_y and abs(here[1] - there[1]) <= reach_x
        expected = in_window and may_see(
            mask_type, layout, colours, out, inp, channels, here, there
        )
        assert (jacobian[out, *here, inp, *there].item() != 0) == expected, (out, inp, here, there)


def test_grouped_weights_get_the_mask_of_the_channels_they_join():
    whole = causal_mask("A", 6, 6, (3, 3), data_channels=3)
    grouped = causal_mask("A", 6, 6, (3, 3), data_channels=3, groups=2)
    assert torch.equal(grouped, torch.cat((whole[:3, :3], whole[3:, 3:])))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1},
        {"padding": (2, 1), "stride": (1, 2)},
        {"padding": "same", "dilation": (2, 1)},
        {"padding": "valid", "bias": False},
        {"padding": 2, "groups": 2},
        {"padding": 2, "padding_mode": "circular"},
        {"padding": (1, 2), "padding_mode": "reflect", "stride": 2},
        {"padding": "same", "padding_mode": "replicate"},
    ],
)
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_computes_a_convolution_with_the_open_weights_and_leaves_the_weight_alone(
    mask_type, options
):
    layer = MaskedConv2d(mask_type, 4, 6, (3, 5), **options).double()
    plain = nn.Conv2d(4, 6, (3, 5), **options).double()
    with torch.no_grad():
        plain.weight.copy_(layer.weight * layer.mask)
        if plain.bias is not None:
            plain.bias.copy_(layer.bias)
    before = layer.weight.detach().clone()
    assert (before * (1 - layer.mask)).abs().max() > 0
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer(x[0]), plain(x[0]))
    assert torch.equal(layer.weight, before)


def test_closed_weights_get_no_gradient():
    layer = MaskedConv2d("B", 2, 2, 3, padding=1)
    layer(torch.randn(1, 2, 4, 4)).square().sum().backward()
    assert ((layer.weight.grad != 0) == (layer.mask != 0)).all()


@pytest.mark.parametrize(
    ("args", "kwargs", "mask_type", "colours", "layout"),
    [
        (("A", 1, 8, 7, 1, 3), {}, "A", 1, None),
        (("B", 1, 8, 7, 1, 3, False), {}, "B", 1, None),
        (("B", 1, 8, 7, 1, 3, "cpu"), {}, "B", 1, None),
        (("b", 1, 8, 7, 1, 3), {"use_cuda": True}, "B", 1, None),
        (("A",), {"in_channels": 1, "out_channels": 8, "kernel_size": 7}, "A", 1, None),
        ((1, 8, 7), {"mask_type": "A", "padding": 3}, "A", 1, None),
        ((1, 8, 7), {"mask_type": "b"}, "B", 1, None),
        ((1, 8, 7), {"mask_center": True}, "A", 1, None),
        ((1, 8, 7), {"mask_center": False}, "B", 1, None),
        ((3, 6, 7), {"mask_type": "A", "data_channels": 3}, "A", 3, "interleaved"),
        ((3, 6, 7), {"mask_type": "a", "mask_n_channels": 3}, "A", 3, "interleaved"),
        ((3, 6, 7), {"mask_type": "A", "mask_groups": 3}, "A", 3, "blocks"),
        (("A", 3, 6, 7), {"data_channels": 3, "channel_layout": "blocks"}, "A", 3, "blocks"),
    ],
)
def test_common_constructor_forms(args, kwargs, mask_type, colours, layout):
    layer = MaskedConv2d(*args, **kwargs)
    expected = causal_mask(
        mask_type,
        layer.out_channels,
        layer.in_channels,
        (7, 7),
        data_channels=colours,
        channel_layout=layout or "blocks",
    )
    assert torch.equal(layer.mask.bool(), expected)
    assert layer.mask.shape == layer.weight.shape
    assert layer(torch.zeros(1, layer.in_channels, 8, 8)).shape[1] == layer.out_channels


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, 8, 7), {}, "exactly one of"),
        (("A", 1, 8, 7), {"mask_type": "A"}, "exactly one of"),
        (("A", 1, 8, 7), {"mask_center": True}, "exactly one of"),
        ((1, 8, 7), {"mask_type": "A", "mask_center": True}, "exactly one of"),
        ((True, 1, 8, 7), {"mask_type": "A"}, "integers"),
        ((1, 8, 7, "A"), {"mask_type": "A"}, "mask type first"),
        ((1, 8, 7, "A"), {}, "exactly one of"),
        (("C", 1, 8, 7), {}, "'A', 'B', 'a', 'b'"),
        ((1, 8, 7), {"mask_type": "vstack"}, "'A', 'B', 'a', 'b'"),
        ((1, 8, 7), {"mask_center": "A"}, "a bool"),
        (("A", 3, 6, 7), {"data_channels": 3, "mask_groups": 3}, "at most one of"),
        (("A", 4, 6, 7), {"mask_groups": 3}, "divisible by data_channels"),
        (("A", 3, 6, 7), {"data_channels": 0}, "data_channels >= 1"),
        (("A", 3, 6, 7), {"data_channels": 3, "channel_layout": "spread"}, "channel_layout in"),
        (("A", 1, 8, 4), {"padding": "same"}, "odd kernel_size"),
    ],
)
def test_refuses_ambiguous_and_wrong_forms(args, kwargs, message):
    with pytest.raises(InputError, match=message):
        MaskedConv2d(*args, **kwargs)


def test_the_mask_follows_dtype_and_is_part_of_the_state():
    layer = MaskedConv2d("A", 2, 2, 3).to(torch.bfloat16)
    assert layer.mask.dtype == torch.bfloat16
    assert set(layer.state_dict()) == {"weight", "bias", "mask"}
    assert not layer.mask.requires_grad


def test_can_be_exported_because_it_writes_nothing():
    layer = MaskedConv2d("A", 2, 2, 3, padding=1).eval()
    x = torch.randn(1, 2, 5, 5)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


def reference(layer: MaskedConv2d, mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, layer.weight * mask, layer.bias, padding=layer.padding)


def test_a_mask_written_or_replaced_later_counts():
    layer, x = MaskedConv2d("A", 2, 3, 3, padding=1), torch.randn(2, 2, 5, 6)
    torch.testing.assert_close(layer(x), reference(layer, layer.mask, x))
    layer.mask[..., 2, 2] = 1  # a tap that mask A closes, opened in place
    torch.testing.assert_close(layer(x), reference(layer, layer.mask, x))
    full = torch.ones_like(layer.mask)
    swapped = torch.func.functional_call(layer, {"mask": full}, (x,))
    torch.testing.assert_close(swapped, reference(layer, full, x))
    layer.mask = full
    torch.testing.assert_close(
        layer.double()(x.double()), reference(layer, full.double(), x.double())
    )


def test_a_mask_from_a_state_dict_counts_when_compiled():
    layer, x = MaskedConv2d("A", 1, 2, 3, padding=1), torch.randn(1, 1, 4, 4)
    state = layer.state_dict() | {"mask": torch.ones_like(layer.mask)}
    with pytest.warns(UserWarning, match="is not the mask of"):
        layer.load_state_dict(state)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), reference(layer, torch.ones_like(layer.mask), x))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_computes_what_follows_the_convolution(padding_mode, batched):
    layer = MaskedConv2d("B", 2, 6, 3, padding=1, padding_mode=padding_mode)
    x, addend = torch.randn(2, 2, 5, 4), torch.randn(2, 6, 5, 4)
    a, b = (layer(x) + addend).chunk(2, dim=1)
    expected = torch.tanh(a) * torch.sigmoid(b) + a
    pick = (lambda tensor: tensor) if batched else (lambda tensor: tensor[0])
    out = layer(pick(x), addend=pick(addend), activation="gate", residual=pick(a))
    torch.testing.assert_close(out, pick(expected))
