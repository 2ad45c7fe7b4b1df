"""Every op with a rule, lowered on its own, against the op itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.ops import gated_activation, masked_conv2d
from tests.sampling.graphs import compiled, run

Function = Callable[[Tensor], Tensor]


class Apply(nn.Module):
    """A module that is a function of its input [N, 4, 3, 5]."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def check(function: Function, x: Tensor | None = None, atol: float = 1e-12) -> None:
    x = torch.randn(3, 4, 3, 5, dtype=torch.float64) if x is None else x
    graph, captured = compiled(Apply(function), x)
    expected = function(x.clone()).to(torch.float64)
    assert torch.isfinite(expected).all()
    out = run(graph, captured, x).double()
    torch.testing.assert_close(out.reshape(expected.shape), expected, rtol=1e-12, atol=atol)


WEIGHT = torch.randn(4, dtype=torch.float64)
PLANE = torch.randn(3, 5, dtype=torch.float64)
CHANNELS = WEIGHT[:, None, None]

UNARY: dict[str, Function] = {
    "neg": lambda x: -x,
    "abs": torch.abs,
    "sign": torch.sign,
    "sgn": torch.sgn,
    "sqrt": lambda x: x.abs().sqrt(),
    "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(),
    "reciprocal": lambda x: 1 / (x.abs() + 0.1),
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": lambda x: (x.abs() + 0.1).log(),
    "log2": lambda x: (x.abs() + 0.1).log2(),
    "log10": lambda x: (x.abs() + 0.1).log10(),
    "log1p": lambda x: x.abs().log1p(),
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": lambda x: torch.tan(x.tanh()),
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "round decimals": lambda x: torch.round(x, decimals=2),
    "trunc": torch.trunc,
    "frac": torch.frac,
    "square": torch.square,
    "cube": lambda x: x**3,
    "square root power": lambda x: x.abs() ** 0.5,
    "negative power": lambda x: (x.abs() + 0.5) ** -1.5,
    "number to a power": lambda x: 2.0**x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu": F.elu,
    "elu alpha": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, WEIGHT),
    "rrelu": lambda x: F.rrelu(x, training=False),
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.4),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "softplus beta": lambda x: F.softplus(5 * x, beta=3.0, threshold=2.0),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": lambda x: F.softshrink(x, 0.3),
    "threshold": lambda x: F.threshold(x, 0.1, -2.0),
    "mish": F.mish,
    "logsigmoid": F.logsigmoid,
    "logit": lambda x: torch.logit(x.sigmoid()),
    "logit eps": lambda x: torch.logit(x.sigmoid(), eps=0.2),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp min": lambda x: x.clamp(min=-0.5),
    "clamp max": lambda x: x.clamp(max=0.5),
    "clamp tensors": lambda x: x.clamp(-CHANNELS.abs(), CHANNELS.abs()),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "native dropout": lambda x: torch.native_dropout(x, 0.5, False)[0],
    "isnan": lambda x: x.isnan() + x,
    "half way": lambda x: x.to(torch.float32).to(torch.float64) * 0 + x,
    "to int": lambda x: (3 * x).int(),
    "to bool": lambda x: (x.int().bool()).double(),
    "int quotient": lambda x: (9 * x).long() // 2,
    "int true quotient": lambda x: (9 * x).long() / 2,
    "int remainder": lambda x: (9 * x).long() % 4,
    "div trunc": lambda x: torch.div(9 * x, 2, rounding_mode="trunc"),
    "fmod": lambda x: torch.fmod(x, 0.7),
}

BINARY: dict[str, Function] = {
    "add": lambda x: x + x.flip(1),
    "add alpha": lambda x: torch.add(x, x.flip(1), alpha=0.3),
    "add constant alpha": lambda x: torch.add(x, CHANNELS, alpha=0.3),
    "constant plus signal alpha": lambda x: torch.add(CHANNELS, x, alpha=0.3),
    "sub": lambda x: x - x.flip(1),
    "sub alpha": lambda x: torch.sub(x, 2.0, alpha=0.3),
    "rsub": lambda x: 3 - x,
    "rsub alpha": lambda x: torch.rsub(x, x.flip(1), alpha=2),
    "mul": lambda x: x * x.flip(1),
    "mul channels": lambda x: x * CHANNELS,
    "mul plane": lambda x: PLANE * x,
    "mul rows": lambda x: x + PLANE[:, :1],
    "add a constant of everything": lambda x: x + CHANNELS * PLANE,
    "constant that is the same for both images": lambda x: x + CHANNELS.expand(2, 4, 1, 1)[:1],
    "div": lambda x: x / (x.flip(1).abs() + 1),
    "div by constant": lambda x: x / CHANNELS,
    "constant by signal": lambda x: CHANNELS / (x.abs() + 1),
    "pow": lambda x: (x.abs() + 0.1) ** x.flip(1),
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "max": lambda x: torch.max(x, x.flip(1)),
    "minimum": lambda x: torch.minimum(x, CHANNELS),
    "remainder": lambda x: x % 0.3,
    "eq": lambda x: (x.round() == 1).double(),
    "ne": lambda x: (x.round() != 0).long(),
    "lt": lambda x: x < 0.1,
    "le": lambda x: x <= x.flip(1),
    "gt": lambda x: (x > CHANNELS) * x,
    "ge": lambda x: x.ge(0.2),
    "and": lambda x: (x > 0) & (x < 1),
    "or": lambda x: (x < 0) | (x > 1),
    "xor": lambda x: (x < 0) ^ (x > -1),
    "not": lambda x: ~(x > 0),
    "logical_and": lambda x: torch.logical_and(x.round(), x > -1),
    "logical_or": lambda x: torch.logical_or(x.round(), x > 1),
    "logical_xor": lambda x: torch.logical_xor(x.round(), x > 0),
    "logical_not": lambda x: torch.logical_not(x.round()),
    "sum of truths": lambda x: (x > 0) + (x < 1),
    "where": lambda x: torch.where(x > 0, x, CHANNELS),
    "where numbers": lambda x: torch.where(x > 0, 1.0, x),
    "where constant": lambda x: torch.where(CHANNELS > 0, x, x.flip(1)),
    "masked_fill": lambda x: x.masked_fill(x > 0.3, 7.0),
    "masked_fill by a constant": lambda x: x.masked_fill(PLANE > 0, 0.0),
    "addcmul": lambda x: torch.addcmul(x, x.flip(1), CHANNELS, value=0.5),
    "addcmul of a constant": lambda x: torch.addcmul(CHANNELS, x, PLANE, value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x.flip(1), CHANNELS, value=0.5),
    "lerp": lambda x: torch.lerp(x, x.flip(1), 0.3),
    "lerp tensor": lambda x: torch.lerp(CHANNELS.expand(4, 3, 5), x, PLANE),
    "logaddexp": lambda x: torch.logaddexp(x, 3 * x.flip(1)),
    "gated_activation": gated_activation,
    "gated_activation of a sum": lambda x: gated_activation(x, x.flip(1)),
    "gated_activation and a constant": lambda x: gated_activation(x, WEIGHT.expand(x.shape[0], 4)),
    "outer over features": lambda x: (x[:, :, None] * x[:, None, :2]).flatten(1, 2),
}


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str) -> None:
    check(UNARY[name])


@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str) -> None:
    check(BINARY[name])


MOVEMENT: dict[str, Function] = {
    "slice features": lambda x: x[:, 1:3],
    "odd features": lambda x: x[:, 1::2],
    "even minus odd": lambda x: x[:, ::2] - x[:, 1::2],
    "select": lambda x: x[:, 2],
    "select negative": lambda x: x[:, -1] + x[:, 0],
    "chunk": lambda x: torch.mul(*x.chunk(2, 1)),
    "split": lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "split uneven": lambda x: torch.cat(x.split(3, 1)[::-1], 1),
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "tensor_split": lambda x: torch.cat(torch.tensor_split(x, 3, dim=1)[::-1], 1),
    "stack new axis": lambda x: torch.stack([x, 2 * x], 1),
    "stack last axis": lambda x: torch.stack([x, 2 * x], -1).movedim(-1, 2),
    "stack a constant": lambda x: torch.stack([x, CHANNELS * PLANE + 0 * x], 1),
    "cat signals": lambda x: torch.cat([x, -x, x[:, :1]], 1),
    "cat ones": lambda x: torch.cat([x, torch.ones(len(x), 1, 3, 5, dtype=x.dtype)], 1),
    "cat plane": lambda x: torch.cat([PLANE.expand(len(x), 1, 3, 5), x], 1),
    "permute and back": lambda x: (x.permute(0, 2, 3, 1) * WEIGHT).permute(0, 3, 1, 2),
    "view and back": lambda x: x.view(len(x), 2, 2, 3, 5).transpose(1, 2).flatten(1, 2),
    "channels last view": lambda x: (
        x.permute(0, 2, 3, 1).reshape(-1, 4).mul(WEIGHT).view(len(x), 3, 5, 4).permute(0, 3, 1, 2)
    ),
    "unflatten": lambda x: x.unflatten(1, (2, 2)).sum(2),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(1).squeeze(),
    "squeeze several": lambda x: x[:, None, :1].squeeze((1, 2)),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1) * CHANNELS,
    "expand_as": lambda x: x[:, :1].expand_as(x) - x,
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "tile a new axis": lambda x: x.repeat(1, 1, 1, 1).unsqueeze(1).repeat(1, 3, 1, 1, 1),
    "flip": lambda x: x.flip(1),
    "index": lambda x: x[:, [3, 0, 0]],
    "index negative": lambda x: x[:, torch.tensor([-1, 1])],
    "index by a mask": lambda x: x[:, torch.tensor([True, False, True, True])],
    "index_select": lambda x: x.index_select(1, torch.tensor([2, 2, 1])),
    "index rows in order": lambda x: x[:, :, torch.arange(1, 3)],
    "narrow": lambda x: x.narrow(2, 1, 2).narrow(3, 0, 4),
    "movedim": lambda x: x.movedim(1, -1).sin().movedim(-1, 1),
    "clone": lambda x: x.clone().contiguous().detach(),
    "channel shuffle": lambda x: F.channel_shuffle(x, 2),
    "windows of columns": lambda x: x.unfold(3, 2, 1).movedim(-1, 1).flatten(1, 2),
    "im2col": lambda x: F.unfold(x, (2, 3), padding=(0, 1)).view(len(x), 24, 2, 5),
    "roll of features": lambda x: x.roll(1, 1),
    "roll of rows": lambda x: x.roll((1, -2), (2, 3)),
    # positions
    "pad": lambda x: F.pad(x, (1, 2, 3, 1)),
    "pad with a number": lambda x: F.pad(x, (1, 0, 1, 0), value=0.5),
    "pad twice": lambda x: F.pad(F.pad(x, (1, 0, 1, 0), value=0.5), (2, 1), value=-1.0),
    "pad twice the same": lambda x: F.pad(F.pad(x, (1, 0, 1, 0)), (2, 1)),
    "crop": lambda x: x[:, :, 1:, :-2],
    "crop the padding": lambda x: F.pad(x, (2, 2, 2, 2), value=3.0)[:, :, 1:4, 1:6],
    "pad the crop": lambda x: F.pad(x[:, :, :-1], (0, 0, 1, 0)),
    "pad the crop of a pad": lambda x: F.pad(F.pad(x, (2, 0), value=1.0)[..., 1:-1], (0, 2)),
    "negative pad": lambda x: F.pad(x, (-1, 1, 0, -1)),
    "pad features": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=0.5),
    "crop features by a pad": lambda x: F.pad(x, (0, 0, 0, 0, -1, 1), value=0.5),
    "pad of a function of a pad": lambda x: F.pad(F.pad(x, (1, 0)).exp(), (1, 0)),
    "zero pad layer": lambda x: nn.ZeroPad2d((1, 0, 2, 0))(x)[:, :, :-2, :-1],
    "shift down": lambda x: torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], 2),
    "shift right": lambda x: torch.cat([x.new_zeros(len(x), 4, 3, 1), x[..., :-1]], -1),
    "shift by ones": lambda x: torch.cat([x.new_ones(len(x), 4, 3, 2), x[..., :-2]], -1),
    "constants on both sides": lambda x: torch.cat(
        [x.new_ones(len(x), 4, 3, 1), x, x.new_zeros(len(x), 4, 3, 1)], -1
    ),
    "start symbol": lambda x: torch.cat([CHANNELS.expand(len(x), 4, 3, 1), x[..., :-1]], -1),
    "rows swapped": lambda x: torch.cat([x[:, :, 1:], x[:, :, :1]], 2),
    "tensor of pieces": lambda x: torch.cat([x[:, :, :1], 2 * x[:, :, 1:2], x[:, :, 2:] + 1], 2),
    "cat of empty": lambda x: torch.cat([torch.zeros(0, dtype=x.dtype), x], 1),
    "to the other axes": lambda x: x.transpose(2, 3).exp().transpose(2, 3),
    "fold one row": lambda x: x[:, :, :1].squeeze(2).unsqueeze(2),
}


@pytest.mark.parametrize("name", MOVEMENT)
def test_movement(name: str) -> None:
    check(MOVEMENT[name])


PADDED = {name for name in MOVEMENT if "pad" in name}
ADDED = {
    "roll of rows",
    "start symbol",
    "rows swapped",
    "tensor of pieces",
    "constants on both sides",
}  # joins of different pieces along positions, which are additions


@pytest.mark.parametrize("name", [each for each in MOVEMENT if each not in ADDED | PADDED])
def test_movement_costs_no_arithmetic(name: str) -> None:
    x = torch.randn(3, 4, 3, 5, dtype=torch.float64)
    graph, _ = compiled(Apply(MOVEMENT[name]), x)
    arithmetic = {"neg", "sin", "exp", "mul", "sub", "add", "sum"}
    assert all(getattr(value.body, "op", "sum") in arithmetic for value in graph.values)
    assert len(graph.values) <= 4


def written(x: Tensor, write: Callable[[Tensor], object]) -> Tensor:
    out = x * 2
    write(out)
    return out


INDEX = torch.tensor([-1, 0])

IN_PLACE: dict[str, Function] = {
    "relu_": lambda x: written(x, lambda y: y.relu_()),
    "add_": lambda x: written(x, lambda y: y.add_(x, alpha=3)),
    "add_ of a constant": lambda x: written(x, lambda y: y.add_(CHANNELS)),
    "mul_": lambda x: written(x, lambda y: y.mul_(PLANE)),
    "masked_fill_": lambda x: written(x, lambda y: y.masked_fill_(y > 0, 3.0)),
    "write to half of the features": lambda x: written(x, lambda y: y[:, :2].tanh_()),
    "write to odd features": lambda x: written(x, lambda y: y[:, 1::2].copy_(x[:, :2])),
    "write by index": lambda x: written(x, lambda y: y.__setitem__((slice(None), INDEX), x[:, :1])),
    "write a constant by index": lambda x: written(
        x, lambda y: y.__setitem__((slice(None), INDEX), 0.5)
    ),
    "write numbers": lambda x: written(x, lambda y: y[:, 1].fill_(5)),
    "clear a row": lambda x: written(x, lambda y: y[:, :, 0].zero_()),
    "clear the last column": lambda x: written(x, lambda y: y[..., -1:].zero_()),
    "clear the middle row": lambda x: written(x, lambda y: y[:, :, 1].fill_(2)),
    "write through a view of a view": lambda x: written(
        x, lambda y: y.view(len(x), 2, 2, 3, 5)[:, 1].permute(0, 2, 3, 1)[..., 1:].exp_()
    ),
    "write through unbind": lambda x: written(x, lambda y: y.unbind(1)[2].sigmoid_()),
    "write through split": lambda x: written(x, lambda y: y.split([1, 3], 1)[1].neg_()),
    "write through chunks": lambda x: written(x, lambda y: y.chunk(2, 1)[1].neg_()),
    "unsqueeze_": lambda x: written(x, lambda y: y.unsqueeze_(1).mul_(2).squeeze_(1).neg_()),
    "dtype of the target": lambda x: written(x, lambda y: y.copy_((3 * x).int())),
    "broadcast into": lambda x: written(x, lambda y: y.copy_(x[:, :1])),
}


def _shift_by_slices(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :, 1:] = x[:, :, :-1]
    return out


def _write_through_t(x: Tensor) -> Tensor:
    vectors = x.permute(0, 2, 3, 1).reshape(-1, 4) * 2
    vectors.t()[1:].neg_()
    return vectors.view(len(x), 3, 5, 4).permute(0, 3, 1, 2)


def _roll_and_clear(x: Tensor) -> Tensor:
    down = x.roll(1, 2)
    down[:, :, 0] = 0
    right = torch.roll(x, 2, -1)
    right[..., :2] = 1
    return down + right


def _interleave(x: Tensor) -> Tensor:
    out = torch.empty(len(x), 8, 3, 5, dtype=x.dtype)
    out[:, ::2] = x
    out[:, 1::2] = -x
    return out


def _old_views_see_writes(x: Tensor) -> Tensor:
    out = x.exp()
    view = out[:, 1:3]
    before = view.sum(1)
    out.mul_(2)
    view.add_(1)
    return torch.stack([before, view.sum(1), out.sum(1)], 1)


def _buffer_filled_with_pieces(x: Tensor) -> Tensor:
    out = torch.ones(len(x), 4, 4, 5, dtype=x.dtype)
    out[:, :, 1:] = x
    out[:, :2, :1] = 7.0
    return out[:, :, :-1]


def _written_constant(x: Tensor) -> Tensor:
    scale = torch.ones(4, 1, 1, dtype=x.dtype)
    first = x * scale
    scale.mul_(3)
    scale[0] = 5
    return first + x * scale


def _add_into_zeros(x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for i in range(3):
        total += x * i
    total[:, 1] += x[:, 2]
    return total


IN_PLACE |= {
    "shift by slices": _shift_by_slices,
    "interleave": _interleave,
    "write through t": _write_through_t,
    "roll and clear": _roll_and_clear,
    "old views see writes": _old_views_see_writes,
    "buffer filled with pieces": _buffer_filled_with_pieces,
    "constant written between uses": _written_constant,
    "add into zeros": _add_into_zeros,
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(name: str) -> None:
    check(IN_PLACE[name])


NORMS = {
    "batch": nn.BatchNorm2d(4),
    "batch without affine": nn.BatchNorm2d(4, affine=False),
}
for _norm in NORMS.values():
    _norm.double().train()
    for _ in range(3):
        _norm(torch.randn(6, 4, 3, 5, dtype=torch.float64) * 2 + 1)
    _norm.eval()
LAYER = nn.LayerNorm(4).double()
nn.init.normal_(LAYER.weight)
nn.init.normal_(LAYER.bias)
GROUP = nn.GroupNorm(2, 4).double()
nn.init.normal_(GROUP.weight)
LINEAR, WIDE = nn.Linear(4, 6).double(), nn.Linear(4, 4, bias=False).double()
TABLE = nn.Embedding(9, 3).double()


def _flat(function: Callable[[Tensor], Tensor]) -> Function:
    """Apply to [N * H * W, 4] and go back."""
    return lambda x: (
        function(x.permute(0, 2, 3, 1).reshape(-1, 4)).view(len(x), 3, 5, -1).permute(0, 3, 1, 2)
    )


def _levels(x: Tensor) -> Tensor:
    return (3 * x).round().long().clamp(-4, 4) + 4


FEATURES: dict[str, Function] = {
    "sum": lambda x: x.sum(1),
    "sum kept": lambda x: x - x.sum(1, keepdim=True),
    "sum of two axes": lambda x: x.view(len(x), 2, 2, 3, 5).sum((1, 2)),
    "sum of the outer": lambda x: x.view(len(x), 2, 2, 3, 5).sum(1),
    "sum of the inner": lambda x: x.view(len(x), 2, 2, 3, 5).sum(2),
    "sum of apart axes": lambda x: (
        torch.stack([x, x.exp()], -1).view(len(x), 2, 2, 3, 5, 2).sum((1, 5))
    ),
    "stack and sum": lambda x: torch.stack([x, x.exp(), x.sin()]).sum(0),
    "sum of a list": lambda x: sum([x, x.exp(), x.sin()]),  # type: ignore[arg-type, return-value]
    "mean": lambda x: x.mean(1),
    "amax": lambda x: x.amax(1),
    "amin kept": lambda x: x.amin(1, keepdim=True) - x,
    "max values": lambda x: x.max(1).values,
    "min values": lambda x: x.min(dim=1, keepdim=True)[0],
    "any": lambda x: (x > 0.5).any(1),
    "all": lambda x: (x > -1).all(1, keepdim=True),
    "var": lambda x: x.var(1),
    "std of all": lambda x: x.std(1, unbiased=False, keepdim=True),
    "norm": lambda x: F.normalize(x, dim=1),
    "softmax": lambda x: x.softmax(1),
    "softmax of colours": lambda x: x.view(len(x), 2, 2, 3, 5).softmax(2),
    "log_softmax": lambda x: 30 * F.log_softmax(30 * x, 1),
    "logsumexp": lambda x: torch.logsumexp(9 * x, 1),
    "glu": lambda x: F.glu(x, 1),
    "concat elu": lambda x: F.elu(torch.cat([x, -x], 1)),
    "batch norm": lambda x: NORMS["batch"](x),
    "batch norm without affine": lambda x: NORMS["batch without affine"](x),
    "batch norm of vectors": _flat(
        lambda v: F.batch_norm(v, WEIGHT, WEIGHT**2, WEIGHT + 1, WEIGHT)
    ),
    "layer norm": lambda x: LAYER(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "layer norm without affine": _flat(lambda v: F.layer_norm(v, (4,), eps=1e-3)),
    "group norm of vectors": _flat(GROUP),
    "rms norm": _flat(lambda v: F.rms_norm(v, (4,), WEIGHT, 1e-5)),
    "linear": lambda x: LINEAR(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "linear without bias": lambda x: WIDE(x.transpose(1, 3)).transpose(1, 3),
    "linear of vectors": _flat(LINEAR),
    "linear of colours": lambda x: F.linear(
        x.view(len(x), 2, 2, 3, 5).movedim(2, -1), LINEAR.weight[:3, :2], LINEAR.bias[:3]
    ).movedim(-1, 2),
    "matrix on the left": lambda x: (LINEAR.weight @ x.flatten(2)).view(len(x), 6, 3, 5),
    "einsum": lambda x: torch.einsum("bchw,oc->bohw", x, LINEAR.weight),
    "einsum channels last": lambda x: torch.einsum("bhwc,oc->bohw", x.movedim(1, -1), WIDE.weight),
    "matmul": lambda x: (x.movedim(1, -1) @ LINEAR.weight.t()).movedim(-1, 1),
    "addmm": _flat(lambda v: torch.addmm(LINEAR.bias, v, LINEAR.weight.t(), beta=2, alpha=0.5)),
    "bilinear form": lambda x: (x * torch.einsum("bchw,oc->bohw", x, WIDE.weight)).sum(1),
    "embedding": lambda x: TABLE(_levels(x)).flatten(4).movedim(-1, 2).flatten(1, 2),
    "table by index": lambda x: TABLE.weight[_levels(x[:, 0])].movedim(-1, 1),
    "one hot": lambda x: F.one_hot(_levels(x), 9).movedim(-1, 2).double(),
    "one hot by eq": lambda x: (_levels(x)[..., None] == torch.arange(9)).movedim(-1, 1),
    "one hot by scatter": lambda x: torch.zeros(len(x), 9, 3, 5).scatter_(
        1, _levels(x[:, :1]), 1.0
    ),
    "scatter of a signal": lambda x: (
        torch.ones(len(x), 9, 3, 5).double().scatter(1, _levels(x[:, :1]), x[:, 1:2])
    ),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features(name: str) -> None:
    with torch.no_grad():
        check(FEATURES[name])


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "no bias": nn.Conv2d(4, 6, 1, bias=False),
    "even kernel": nn.Conv2d(4, 6, (2, 4), padding=(1, 2)),
    "valid": nn.Conv2d(4, 6, (2, 3)),
    "same": nn.Conv2d(4, 6, (3, 5), padding="same"),
    "dilated": nn.Conv2d(4, 6, 3, padding=(2, 3), dilation=(2, 3)),
    "much padding": nn.Conv2d(4, 2, 2, padding=4),
    "strided": nn.Conv2d(4, 6, 3, padding=1, stride=2),
    "strided, dilated": nn.Conv2d(4, 6, 2, padding=2, stride=3, dilation=2),
    "two groups": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "transposed": nn.ConvTranspose2d(4, 6, 3, padding=1),
    "transposed, dilated": nn.ConvTranspose2d(4, 6, 2, dilation=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str) -> None:
    conv = CONVOLUTIONS[name].double()
    with torch.no_grad():
        check(conv)


KERNEL, KERNEL_BIAS = torch.randn(6, 4, 2, 3, dtype=torch.float64), torch.randn(6).double()
RASTER = torch.tensor([[True, True, True], [True, True, False]])


def _masked(x: Tensor, **options: Any) -> Tensor:
    return masked_conv2d(x, KERNEL, RASTER, KERNEL_BIAS, **options)


MASKED: dict[str, Function] = {
    "rows above": lambda x: _masked(x, padding=(1, 1, 1, 0)),
    "same": lambda x: _masked(x, padding="same"),
    "shifted and cropped": lambda x: _masked(x, padding=(2, -1, -1, 3)),
    "row shift": lambda x: masked_conv2d(
        x, KERNEL[..., :1, :1], torch.ones(1, 1), padding=(0, 0, 1, -1)
    ),
    "shift of a row": lambda x: masked_conv2d(
        x[:, :, :1], KERNEL[..., :1, :1], torch.ones(1, 1), padding=(0, 0, 1, -1)
    ),
    "strided": lambda x: _masked(x, padding=(3, 0, 1, 2), stride=2),
    "residual": lambda x: _masked(x, padding="same", residual=x.repeat(1, 2, 1, 1)[:, :6]),
    "relu": lambda x: _masked(x, padding="same", activation="relu"),
    "elu of a sum": lambda x: _masked(
        x, padding="same", activation="elu", addend=x.repeat(1, 2, 1, 1)[:, 1:7]
    ),
    "concat_elu": lambda x: _masked(
        x, activation="concat_elu", addend=torch.ones(len(x), 6).double()
    ),
    "gate": lambda x: _masked(
        x, padding="same", activation="gate", addend=KERNEL_BIAS.expand(len(x), 6)
    ),
    "gate and residual": lambda x: _masked(
        x, padding="same", activation="gate", addend=_masked(x, padding="same"), residual=x[:, :3]
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_convolution(name: str) -> None:
    with torch.no_grad():
        check(MASKED[name])


def test_masked_convolution_that_records_gradients() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.enable_grad():
            kernel = KERNEL.clone().requires_grad_()
            inner = masked_conv2d(x, kernel, RASTER, padding="same", activation="gate")
            return masked_conv2d(inner, kernel[:, :3], RASTER, activation="relu").detach()

    check(function)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("stride", "padding", "extra"), [(2, 0, 0), (2, 1, 1), (3, 1, 2)])
def test_down_and_up(kernel: int, stride: int, padding: int, extra: int) -> None:
    padding = min(padding, kernel - 1)
    down = nn.Conv2d(4, 5, kernel, stride, kernel)
    up = nn.ConvTranspose2d(5, 3, kernel, stride, padding, output_padding=extra)
    with torch.no_grad():
        check(nn.Sequential(down, nn.Tanh(), up).double())


def test_grouped_transposed() -> None:
    down = nn.Conv2d(4, 6, 2, 2)
    up = nn.ConvTranspose2d(6, 4, 2, 2, groups=2)
    with torch.no_grad():
        check(nn.Sequential(down, up).double(), torch.randn(3, 4, 4, 6, dtype=torch.float64))


RESAMPLING: dict[str, Function] = {
    "average pool": lambda x: F.avg_pool2d(x, 2),
    "average pool, overlapping": lambda x: F.avg_pool2d(x, (2, 3), 1, (1, 1)),
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool, overlapping": lambda x: F.max_pool2d(x, 3, 1, 1),
    "max pool, dilated": lambda x: F.max_pool2d(x, 2, 2, 1, dilation=2),
    "max pool of a pad": lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=0.1), 2, 1, 1),
    "nearest": lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2),
    "nearest exact": lambda x: F.interpolate(x[..., ::1][:, :, :4], (4, 6), mode="nearest-exact"),
    "pixel shuffles": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2) ** 2, 2),
    "shuffled channels": lambda x: F.pixel_shuffle(F.avg_pool2d(x, 2), 2),
}


@pytest.mark.parametrize("name", RESAMPLING)
def test_resampling(name: str) -> None:
    check(RESAMPLING[name], torch.randn(3, 4, 4, 6, dtype=torch.float64))


def test_resampling_of_sounds() -> None:
    def resample(x: Tensor) -> Tensor:
        pooled = torch.cat([F.avg_pool1d(x, 2), F.max_pool1d(x, 2)], 1)
        return F.interpolate(pooled, scale_factor=2)

    graph, captured = compiled(Apply(resample), x := torch.randn(3, 2, 8, dtype=torch.float64))
    out = run(graph, captured, x)
    torch.testing.assert_close(out[:, :, 0], resample(x), rtol=0, atol=1e-12)


def test_many_groups() -> None:
    conv = nn.Conv2d(40, 40, 3, padding=1, groups=20).double()
    with torch.no_grad():
        check(conv, torch.randn(2, 40, 3, 2, dtype=torch.float64))


def test_closed_taps_are_dropped() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1).double()
    conv.weight.data[:, :, 2] = 0
    conv.weight.data[:, :, 1, 1:] = 0
    graph, _ = compiled(conv, torch.randn(2, 4, 3, 5, dtype=torch.float64))
    (value,) = [value for value in graph.values if hasattr(value.body, "taps")]
    offsets = {(tap.dy, tap.dx) for tap in value.body.taps}
    assert offsets == {(-1, -1), (-1, 0), (-1, 1), (0, -1)}


def test_rolled_rows_that_are_cleared_are_a_shift() -> None:
    def shift(x: Tensor) -> Tensor:
        down = x.roll(1, 2)
        down[:, :, 0] = 0
        return down

    graph, _ = compiled(Apply(shift), torch.randn(2, 4, 3, 5, dtype=torch.float64))
    assert [type(value.body).__name__ for value in graph.values] == ["Input"]


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1), (3, 5)])
@pytest.mark.parametrize("order", [1, -1])
def test_one_feature_beside_several_where_rows_or_columns_are_one(
    size: tuple[int, int], order: int
) -> None:
    def joined(x: Tensor) -> Tensor:
        one = x.mean(1).flatten(1).view(len(x), 1, *size)
        weight = torch.linspace(-1, 1, 45, dtype=torch.float64).view(1, 5, 3, 3)
        return F.conv2d(torch.cat((x, one)[::order], dim=1), weight, padding=1)

    check(joined, torch.randn(3, 4, *size, dtype=torch.float64))
