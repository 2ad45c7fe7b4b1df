"""masked_conv2d: the reference, its gradients, its registrations, its refusals, its properties."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from genfast._extension import has_kernel
from genfast.errors import InputError
from genfast.ops import live_taps, masked_conv2d, masked_conv2d_reference
from tests.tolerances import assert_as_accurate_as_eager

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPS = torch.ops.genfast


@dataclass(frozen=True)
class Case:
    N: int = 2
    C_in: int = 3
    C_out: int = 5
    size: tuple[int, int] = (7, 6)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, ...] = (1, 1)  # rows and columns, or left, right, top, bottom
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    mask: str = "B"

    @property
    def options(self) -> dict:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def sides(self) -> tuple[int, ...]:
        """Padding in the order of F.pad."""
        rows, columns = self.padding[0], self.padding[-1]
        return self.padding if len(self.padding) == 4 else (columns, columns, rows, rows)

    @property
    def arguments(self) -> tuple:
        """The options in the order of the operators."""
        return self.stride, self.sides, self.dilation, self.groups

    def inputs(self, dtype=torch.float32, device="cpu") -> tuple[torch.Tensor, ...]:
        """x, weight, mask, bias; the first, second and last require gradients."""
        weight_shape = (self.C_out, self.C_in // self.groups, *self.kernel)

        def leaf(*shape: int) -> torch.Tensor:
            values = torch.randn(shape, dtype=torch.float64).to(dtype=dtype, device=device)
            return values.requires_grad_()

        x, weight, bias = leaf(self.N, self.C_in, *self.size), leaf(*weight_shape), leaf(self.C_out)
        return x, weight, make_mask(self.mask, weight_shape).to(device), bias


def make_mask(kind: str, weight_shape: tuple[int, ...]) -> torch.Tensor:
    """The raster masks A and B of the PixelCNN [kH, kW], or one with another shape or dtype."""
    kH, kW = weight_shape[2:]
    position = torch.arange(kH * kW).view(kH, kW)
    centre = kH // 2 * kW + kW // 2
    causal = position < centre if kind == "A" else position <= centre
    match kind:
        case "A" | "B":
            return causal
        case "pairs":  # the centre open for some pairs of channels only
            pairs = torch.arange(weight_shape[0] * weight_shape[1]).view(*weight_shape[:2], 1, 1)
            return (position < centre) | ((position == centre) & (pairs % 3 == 0))
        case "factors":
            return (causal * torch.linspace(-1, 2, kH * kW).view(kH, kW)).to(torch.float32)
        case "channels":
            return torch.arange(weight_shape[0]).view(-1, 1, 1, 1) % 2 == 0
        case "all":
            return torch.ones(1, 1, dtype=torch.bool)
        case "closed":
            return torch.zeros(1, 1, kH, kW, dtype=torch.bool)
    raise AssertionError(kind)


CASES = {
    "1x1": Case(N=1, C_in=1, C_out=1, size=(1, 1), kernel=(1, 1), padding=(0, 0)),
    "odd": Case(),
    "A": Case(mask="A", kernel=(5, 5), padding=(2, 2)),
    "no-padding": Case(padding=(0, 0), size=(5, 9)),
    "wide-padding": Case(padding=(4, 3)),
    "prime": Case(N=3, C_in=7, C_out=37, size=(11, 29), kernel=(5, 3), padding=(2, 1)),
    "wide-row": Case(N=1, C_in=2, C_out=3, size=(3, 131), kernel=(3, 7), padding=(1, 3)),
    "one-channel": Case(C_in=1, C_out=64, size=(28, 28), kernel=(7, 7), padding=(3, 3), mask="A"),
    "hidden": Case(N=3, C_in=64, C_out=64, size=(8, 8), kernel=(3, 3)),
    "many-inputs": Case(N=1, C_in=75, C_out=4, size=(4, 5)),
    "stride": Case(C_in=4, C_out=6, size=(13, 9), kernel=(5, 5), stride=(2, 3), padding=(2, 2)),
    "stride-over-kernel": Case(size=(9, 11), kernel=(2, 2), stride=(3, 4), padding=(0, 1)),
    "dilation": Case(size=(11, 12), dilation=(2, 3), padding=(2, 3)),
    "groups": Case(C_in=6, C_out=40, groups=2, kernel=(5, 5), padding=(2, 2), mask="pairs"),
    "depthwise": Case(C_in=5, C_out=5, groups=5, mask="A"),
    "all": Case(
        C_in=6, C_out=4, size=(15, 14), kernel=(3, 4), stride=(2, 1), dilation=(1, 2), groups=2
    ),
    "factors": Case(mask="factors"),
    "channels": Case(mask="channels"),
    "closed": Case(mask="closed"),
    "vertical": Case(C_in=6, size=(8, 9), kernel=(2, 3), padding=(1, 1, 1, 0), mask="all"),
    "vertical-7": Case(size=(6, 5), kernel=(4, 7), padding=(3, 3, 3, 0), mask="all"),
    "row-shift": Case(C_in=8, C_out=8, kernel=(1, 1), padding=(0, 0, 1, -1), mask="all"),
    "shift-right": Case(C_in=2, kernel=(2, 2), padding=(2, -1, 1, 0), mask="all"),
    "cropped": Case(size=(9, 12), padding=(-2, -3, -1, -4)),
    "crop-and-stride": Case(
        C_in=4, C_out=6, size=(13, 11), stride=(2, 3), dilation=(2, 1), padding=(-1, 4, 5, -3)
    ),
    "all-cropped": Case(size=(4, 5), kernel=(1, 2), padding=(0, 2, -4, 3), mask="all"),
    "empty": Case(N=0),
}


def convolved(case: Case, x, weight, mask, bias) -> torch.Tensor:
    masked = weight * mask.to(weight.dtype)
    return F.conv2d(F.pad(x, case.sides), masked, bias, case.stride, 0, case.dilation, case.groups)


def with_gradients(out, leaves, grad) -> tuple[torch.Tensor, ...]:
    return out.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(out, leaves, grad))


def check_case(case: Case, dtype, device="cpu", prepare=lambda x: x) -> None:
    """Output and gradients against eager at the dtype and in float64."""
    x, weight, mask, bias = case.inputs(dtype, device)
    leaves = (x, weight, bias)
    exact_leaves = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    eager_leaves = [leaf.detach().cpu().requires_grad_() for leaf in leaves]
    out = masked_conv2d(prepare(x), weight, mask, bias, **case.options)
    assert out.is_contiguous()
    grad = torch.randn(out.shape, dtype=torch.float64).to(dtype)
    ours = with_gradients(out, leaves, grad.to(device))
    x, weight, bias = eager_leaves
    eager = with_gradients(convolved(case, x, weight, mask.cpu(), bias), eager_leaves, grad)
    x, weight, bias = exact_leaves
    exact = with_gradients(
        convolved(case, x, weight, mask.cpu(), bias), exact_leaves, grad.double()
    )
    for result, at_dtype, in_double in zip(ours, eager, exact, strict=True):
        assert_as_accurate_as_eager(result, at_dtype, in_double)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_matches_reference(device, name, dtype) -> None:
    check_case(CASES[name], dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_matches_reference_on_every_simd_level(simd_level, name, dtype) -> None:
    check_case(CASES[name], dtype)


LAYOUTS = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: torch.cat((x, x), dim=3)[..., : x.shape[3]],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(device, layout) -> None:
    case = CASES["stride"]
    x, weight, mask, bias = case.inputs(device=device)
    x = LAYOUTS[layout](x)
    ours = masked_conv2d(x, weight, mask, bias, **case.options)
    plain = masked_conv2d(x.contiguous(), weight, mask, bias, **case.options)
    assert torch.equal(ours, plain)
    sideways = torch.randn(ours.shape, device=device).transpose(2, 3).contiguous().transpose(2, 3)
    assert not sideways.is_contiguous()
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), sideways),
        torch.autograd.grad(plain, (x, weight), sideways.contiguous()),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_the_result_of_channels_last_images_is_channels_last(device, activation) -> None:
    x, weight, mask, bias = CASES["stride"].inputs(device=device)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        images = x.detach().contiguous(memory_format=memory_format)
        out = masked_conv2d(images, weight, mask, bias, activation=activation)
        assert out.is_contiguous(memory_format=memory_format)
        compiled = torch.compile(masked_conv2d, fullgraph=True)
        again = compiled(images, weight, mask, bias, activation=activation)
        assert again.stride() == out.stride()


@pytest.mark.parametrize("name", [n for n in CASES if n != "empty"])
def test_reference_is_the_definition(name) -> None:
    case = CASES[name]
    inputs = case.inputs(torch.float64)
    out = masked_conv2d_reference(*inputs, **case.options)
    torch.testing.assert_close(out, convolved(case, *inputs))
    known = live_taps(inputs[2].expand(*inputs[2].shape[:-2], *case.kernel))
    again = masked_conv2d_reference(*inputs, **case.options, taps=known)
    assert torch.equal(out, again)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # eager's, about its own copy
@pytest.mark.parametrize("kernel", [(3, 3), (2, 5), (4, 2)])
def test_padding_words_and_unbatched_input(device, kernel) -> None:
    case = Case(kernel=kernel, padding=(0, 0), mask="channels")
    x, weight, mask, bias = case.inputs(torch.float64, device)
    for padding in ("same", "valid"):
        ours = masked_conv2d(x, weight, mask, bias, padding=padding)
        torch.testing.assert_close(ours, F.conv2d(x, weight * mask, bias, padding=padding))
        assert torch.equal(masked_conv2d(x[0], weight, mask, bias, padding=padding), ours[0])


SMALL = {
    "plain": Case(N=2, C_in=2, C_out=3, size=(4, 3), mask="pairs"),
    "all": Case(
        N=1, C_in=4, C_out=2, size=(6, 5), stride=(2, 1), dilation=(1, 2), groups=2, mask="factors"
    ),
    "sides": Case(N=1, C_in=2, C_out=2, size=(4, 5), kernel=(2, 2), padding=(2, -1, -1, 1)),
}


def forms(case: Case, device: torch.device) -> dict:
    """The three operators as functions of the tensors they are differentiable in."""
    x, weight, mask, bias = case.inputs(torch.float64, device)
    grad = torch.randn_like(masked_conv2d(x, weight, mask, **case.options)).requires_grad_()
    taps = list(live_taps(mask))
    options = case.arguments
    return {
        "forward": (
            lambda x, w, b: OPS.masked_conv2d(x, w, mask, b, taps, *options),
            (x, weight, bias),
        ),
        "grad_input": (
            lambda g, w: OPS._masked_conv2d_grad_input(g, w, mask, taps, case.size, *options),
            (grad, weight),
        ),
        "grad_weight": (
            lambda g, x: OPS._masked_conv2d_grad_weight(g, x, mask, taps, case.kernel, *options),
            (grad, x),
        ),
    }


@pytest.mark.parametrize("form", ["forward", "grad_input", "grad_weight"])
@pytest.mark.parametrize("name", SMALL)
def test_derivatives_of_first_and_second_order(device, name, form) -> None:
    function, inputs = forms(SMALL[name], device)[form]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


class Calls(TorchDispatchMode):
    """The operators of ours that run in this context."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "genfast":
            self.names.append(func.name().removeprefix("genfast::"))
        return func(*args, **(kwargs or {}))


def test_computes_only_the_gradients_asked_for(device) -> None:
    needs_kernel(device)
    for wanted, expected in ((0, "_masked_conv2d_grad_input"), (1, "_masked_conv2d_grad_weight")):
        x, weight, mask, bias = (t.detach() for t in Case().inputs(device=device))
        leaf = (x, weight)[wanted].requires_grad_()
        out = masked_conv2d(x, weight, mask, bias)
        with Calls() as calls:
            torch.autograd.grad(out.sum(), leaf)
        assert calls.names == [expected]


@pytest.mark.parametrize("known", [True, False], ids=["taps", "no-taps"])
@pytest.mark.parametrize("name", ["odd", "all", "crop-and-stride", "empty"])
def test_opcheck(device, name, known) -> None:
    case = CASES[name]
    x, weight, mask, bias = case.inputs(device=device)
    taps = list(live_taps(mask)) if known else None
    options = case.arguments
    torch.library.opcheck(OPS.masked_conv2d.default, (x, weight, mask, bias, taps, *options))
    grad = torch.randn_like(masked_conv2d(x, weight, mask, **case.options)).requires_grad_()
    torch.library.opcheck(
        OPS._masked_conv2d_grad_input.default, (grad, weight, mask, taps, case.size, *options)
    )
    torch.library.opcheck(
        OPS._masked_conv2d_grad_weight.default, (grad, x, mask, taps, case.kernel, *options)
    )


@pytest.mark.parametrize("known", [True, False], ids=["taps", "no-taps"])
def test_compiles_without_graph_breaks(device, known) -> None:
    x, weight, mask, bias = Case().inputs(device=device)
    taps = live_taps(mask) if known else None

    def step(x, weight, bias):
        return torch.relu(masked_conv2d(x, weight, mask, bias, padding="same", taps=taps))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for batch in (x.detach(), torch.cat((x, x, x)).detach()):
        for a, b in zip(
            with_gradients(compiled(batch, weight, bias).sum(), (weight, bias), None),
            with_gradients(step(batch, weight, bias).sum(), (weight, bias), None),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_like_conv2d(device, dtype) -> None:
    x, weight, mask, bias = Case().inputs(device=device)
    with torch.autocast(device.type, dtype):
        out = masked_conv2d(x, weight, mask, bias)
        mixed = masked_conv2d(x.to(dtype), weight, mask, bias)
    expected = masked_conv2d(x.to(dtype), weight.to(dtype), mask, bias.to(dtype))
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    assert torch.equal(mixed, expected)
    grads = torch.autograd.grad(out.float().square().sum(), (x, weight, bias))
    assert all(grad.dtype == torch.float32 for grad in grads)


def refusals() -> dict:
    case = Case(C_in=4, C_out=6)
    x, weight, mask, bias = (tensor.detach() for tensor in case.inputs())
    good = {"x": x, "weight": weight, "mask": mask, "bias": bias}
    return {
        name: ({**good, **change}, message)
        for name, (change, message) in {
            "x-dim": ({"x": x[0, 0]}, "expected floating point x of shape"),
            "x-dtype": ({"x": x.int()}, "expected floating point x of shape"),
            "weight-dim": ({"weight": weight[0]}, "expected weight of shape"),
            "channels": ({"weight": weight[:, :3]}, "expected C_out divisible by groups and C_in"),
            "groups": ({"groups": 4}, "expected C_out divisible by groups and C_in"),
            "bias": ({"bias": bias[:2]}, r"expected bias of shape \[C_out=6\], got bias.shape"),
            "dtype": ({"weight": weight.double()}, "expected weight of the dtype and device of x"),
            "mask-dtype": ({"mask": mask.int()}, "expected a bool or floating point mask"),
            "mask-shape": ({"mask": mask[:2]}, "expected a mask .* that broadcasts to the weight"),
            "mask-grad": (
                {"mask": mask.float().requires_grad_()},
                "expected a mask without gradient",
            ),
            "stride": (
                {"stride": 0},
                "expected an integer or a pair of integers >= 1 .* got stride",
            ),
            "padding": (
                {"padding": (1, -1)},
                r"expected .* \(left, right, top, bottom\), .* got pad",
            ),
            "three-sides": ({"padding": (1, 1, 1)}, "expected an integer or a pair .* got padding"),
            "crop": ({"padding": (9, 0, 9, -8)}, "expected padding that crops no more than"),
            "dilation": ({"dilation": (1, 1, 1)}, "expected an integer or a pair .* got dilation"),
            "same-stride": ({"padding": "same", "stride": 2}, 'expected .* with stride 1, "same"'),
            "word": ({"padding": "reflect"}, "expected .* got padding='reflect'"),
            "fit": ({"dilation": 4}, "expected a kernel that fits into the padded input"),
            "tap-range": ({"taps": (0, 9)}, r"expected ascending taps in \[0, kH\*kW=9\)"),
            "tap-order": ({"taps": (3, 1)}, "expected ascending taps"),
        }.items()
    }


@pytest.mark.parametrize("name", refusals())
def test_refuses_bad_input(name) -> None:
    arguments, message = refusals()[name]
    with pytest.raises(InputError, match=f"masked_conv2d: {message}"):
        masked_conv2d(**arguments)


def test_operators_refuse_bad_input_too() -> None:
    x, weight, mask, bias = (t.detach() for t in Case().inputs())
    grad = masked_conv2d(x, weight, mask)
    ones, zeros = (1, 1), (0, 0)
    tail = (ones, (0, 0, 0, 0), ones, 1)
    for operator, arguments, message in (
        (OPS.masked_conv2d, (x[0], weight, mask, bias, None, *tail), "expected x of shape"),
        (OPS.masked_conv2d, (x, weight, mask[:2], bias, None, *tail), "that broadcasts"),
        (OPS.masked_conv2d, (x, weight, mask.int(), bias, None, *tail), "bool or floating point"),
        (OPS.masked_conv2d, (x, weight, mask, bias[1:], None, *tail), "expected bias of shape"),
        (OPS.masked_conv2d, (x, weight, mask, bias, [4, 4], *tail), "expected ascending taps"),
        (OPS.masked_conv2d, (x, weight, mask, bias, [9], *tail), "expected ascending taps"),
        (OPS.masked_conv2d, (x, weight, mask, bias, None, zeros, *tail[1:]), "got stride"),
        (OPS.masked_conv2d, (x, weight, mask, bias, None, ones, zeros, ones, 1), "got padding"),
        (
            OPS.masked_conv2d,
            (x, weight, mask, bias, None, ones, (9, 0, 0, -8), ones, 1),
            "crops no more than the input",
        ),
        (OPS.masked_conv2d, (x, weight.double(), mask, bias, None, *tail), "dtype and device of x"),
        (
            OPS._masked_conv2d_grad_input,
            (grad[..., 1:], weight, mask, None, (7, 6), *tail),
            "expected grad of the output's shape",
        ),
        (
            OPS._masked_conv2d_grad_weight,
            (grad[:1], x, mask, None, (3, 3), *tail),
            "expected grad of the output's shape",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            operator(*arguments)


def test_live_taps() -> None:
    assert live_taps(make_mask("A", (1, 1, 3, 3))) == (0, 1, 2, 3)
    assert live_taps(make_mask("pairs", (2, 2, 3, 3))) == (0, 1, 2, 3, 4)
    assert live_taps(torch.tensor([[0.0, -0.5], [0.0, 2.0]])) == (1, 3)
    assert live_taps(torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])) == (0,)
    assert live_taps(torch.tensor([[torch.nan, 0.0, -torch.inf, 1e-45]])) == (0, 2, 3)
    assert live_taps(torch.zeros(2, 3, 1, 1)) == ()
    with pytest.raises(InputError, match=r"live_taps: expected a mask of shape \[..., kH, kW\]"):
        live_taps(torch.ones(3))


def test_known_taps_change_nothing_and_missing_ones_count_as_dead(device) -> None:
    x, weight, mask, bias = Case(mask="A").inputs(device=device)
    known = masked_conv2d(x, weight, mask, bias, taps=live_taps(mask))
    assert torch.equal(known, masked_conv2d(x, weight, mask, bias))
    fewer = mask.clone()
    fewer[0, 0] = False
    assert torch.equal(
        masked_conv2d(x, weight, mask, bias, taps=(1, 2, 3)),
        masked_conv2d(x, weight, fewer, bias),
    )


def needs_kernel(device: torch.device) -> None:
    if not has_kernel("masked_conv2d", device):
        pytest.skip("the reference computes dead taps too")


@pytest.mark.parametrize("kind", ["A", "B"])
def test_dead_taps_are_never_read(device, kind) -> None:
    needs_kernel(device)
    case = Case(size=(5, 6), mask=kind)
    x, weight, mask, bias = (t.detach() for t in case.inputs(device=device))
    clean = masked_conv2d(x, weight, mask, bias, padding=1)
    weight[..., ~mask] = torch.nan
    for pixel in (0, 13, 29):
        future = x.clone().flatten(2)
        future[..., pixel + (kind == "B") :] = torch.nan
        out = masked_conv2d(future.view_as(x), weight, mask, bias, padding=1)
        before = slice(0, pixel + 1)
        assert torch.equal(out.flatten(2)[..., before], clean.flatten(2)[..., before])
        assert pixel == 29 or out.flatten(2)[..., pixel + 1].isnan().all()
    weight.requires_grad_()
    x.requires_grad_()
    out = masked_conv2d(x, weight, mask, bias, padding=1)
    grad_x, grad_weight = torch.autograd.grad(out.sum(), (x, weight))
    assert grad_x.isfinite().all()
    assert grad_weight.isfinite().all()


def test_causal_by_gradient(device) -> None:
    """Output pixel p of a mask A depends on every pixel near it that comes before, on no other."""
    case = Case(N=1, size=(5, 6), mask="A")
    x, weight, mask, bias = case.inputs(device=device)
    out = masked_conv2d(x, weight.abs(), mask, bias, padding=1).sum(1).flatten()
    for pixel in range(30):
        touched = torch.autograd.grad(out[pixel], x, retain_graph=True)[0].sum(1).view(5, 6) != 0
        row, col = divmod(pixel, 6)
        expected = torch.zeros(5, 6, dtype=torch.bool)
        expected[max(0, row - 1) : row, max(0, col - 1) : col + 2] = True
        expected[row, max(0, col - 1) : col] = True
        assert torch.equal(touched.cpu(), expected)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_masked_weights_get_exactly_no_gradient(device, value) -> None:
    case = Case(mask="pairs", C_out=20)
    x, weight, mask, bias = case.inputs(device=device)
    x = x.detach().clone()
    x[1, 1, 3, 3] = value
    out = masked_conv2d(x, weight, mask, bias, padding=1)
    (grad,) = torch.autograd.grad(out.sum(), weight)
    assert torch.equal(grad[~mask], torch.zeros_like(grad[~mask]))
    assert not grad[mask].isfinite().all()


@pytest.mark.parametrize("where", ["x", "weight", "bias"])
def test_nan_in_nan_out(device, where) -> None:
    case = Case(mask="B")
    x, weight, mask, bias = (t.detach() for t in case.inputs(device=device))
    {"x": x[1, 2, 3], "weight": weight[4, 2, 0], "bias": bias[2:]}[where][1] = torch.nan
    ours = masked_conv2d(x, weight, mask, bias)
    plain = masked_conv2d_reference(x, weight, mask, bias)
    expected = plain.isnan()
    if where == "x":  # plain convolution meets it through dead taps as well
        spread = torch.zeros_like(x)
        spread[1, 2, 3, 1] = 1
        expected = masked_conv2d_reference(spread, torch.ones_like(weight), mask) != 0
    assert expected.any()
    assert torch.equal(ours.isnan(), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_same_bits_for_every_thread_count(threads, stride) -> None:
    _C = pytest.importorskip("genfast._C")
    case = Case(N=5, C_in=33, C_out=40, size=(28, 28), kernel=(5, 5), padding=(2, 2))
    x, weight, mask, bias = case.inputs()

    assert _C.build_info()["threads"], "built without OpenMP: there is nothing to compare"

    def run() -> tuple[torch.Tensor, ...]:
        out = masked_conv2d(x, weight, mask, bias, stride=stride, padding=2)
        return with_gradients(out, (x, weight), torch.ones_like(out))

    ours = run()
    torch.set_num_threads(4)  # the fixture restores the count
    for a, b in zip(ours, run(), strict=True):
        assert torch.equal(a, b)


def test_repeats_bitwise(device) -> None:
    case = CASES["hidden"]
    x, weight, mask, bias = case.inputs(device=device)
    first, second = (
        with_gradients(
            masked_conv2d(x, weight, mask, bias, padding=1), (x, weight), torch.ones_like(x)
        )
        for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_inputs_stay_unchanged(device) -> None:
    inputs = Case(mask="factors").inputs(device=device)
    before = [tensor.detach().clone() for tensor in inputs]
    masked_conv2d(*inputs).sum().backward()
    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy)


def test_function_transforms() -> None:
    x, weight, mask, bias = (t.detach() for t in Case().inputs())

    def loss(images):
        return masked_conv2d(images, weight, mask, bias).square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    _, slope = torch.func.jvp(loss, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, expected.sum(), rtol=1e-4, atol=1e-4)
    batch = torch.stack((x, x + 1))
    torch.testing.assert_close(torch.func.vmap(loss)(batch), torch.stack([*map(loss, batch)]))


def test_meta_tensors_have_a_shape() -> None:
    x, weight, mask, bias = (t.detach().to("meta") for t in Case().inputs())
    expected = masked_conv2d(*Case().inputs()).shape
    assert masked_conv2d(x, weight, mask, bias).shape == expected


def test_options_of_other_integer_types() -> None:
    x, weight, mask, bias = Case().inputs()
    expected = masked_conv2d(x, weight, mask, bias, stride=2, padding=1)
    stride, padding = np.int64(2), np.array([1, 1])
    ours = masked_conv2d(x, weight, mask, bias, stride=stride, padding=padding)
    assert torch.equal(ours, expected)
    for wrong in (1.5, (1.5, 1), (1, 1, 1)):
        with pytest.raises(InputError, match="expected an integer or a pair of integers"):
            masked_conv2d(x, weight, mask, bias, stride=wrong)


def test_weight_gradient_of_a_long_sum_stays_accurate(simd_level) -> None:
    # Nothing cancels: a running sum over all 2,000 pixels would round at its full size each time.
    x, grad = torch.rand(1, 8, 44, 46), torch.rand(1, 8, 44, 46)
    weight, mask = torch.rand(8, 8, 5, 5), torch.ones(5, 5, dtype=torch.bool)

    def gradient(convolve, dtype):
        w = weight.to(dtype).requires_grad_()
        return torch.autograd.grad(convolve(x.to(dtype), w), w, grad.to(dtype))[0].double()

    ours = gradient(lambda a, w: masked_conv2d(a, w, mask, padding=2), torch.float32)
    exact = gradient(lambda a, w: F.conv2d(a, w, padding=2), torch.float64)
    assert (ours - exact).abs().max() <= 6e-7 * exact.abs().max()
