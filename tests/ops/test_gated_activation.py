"""gated_activation: the reference, gradients, registrations, refusals, properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genfast.errors import InputError
from genfast.ops import gated_activation, gated_activation_reference
from tests.tolerances import assert_as_accurate_as_eager

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(1, 2), (3, 10), (2, 6, 1), (1, 4, 5000), (2, 34, 7, 5), (3, 2, 1, 1), (2, 4, 3, 2, 5)]
CONDITIONS = ["none", "example", "full"]
OP = torch.ops.genfast.gated_activation.default
BACKWARD = torch.ops.genfast._gated_activation_backward.default


def arguments(shape, condition, dtype=torch.float32, device="cpu", scale=2.0):
    """x and, unless there is none, the condition; both require gradients."""
    shapes = {"none": [shape], "example": [shape, shape[:2]], "full": [shape, shape]}[condition]
    return [
        (scale * torch.randn(each, dtype=torch.float64))
        .to(dtype)
        .to(device)
        .detach()
        .requires_grad_()
        for each in shapes
    ]


def output_and_gradients(function, given):
    out = function(*given)
    slope = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    return (out, *torch.autograd.grad(out, given, slope))


def assert_match(given, results) -> None:
    """Outputs and gradients, at most twice as far from float64 as eager PyTorch."""
    plain = [each.detach().cpu().requires_grad_() for each in given]
    exact = [each.detach().cpu().double().requires_grad_() for each in given]
    eager = output_and_gradients(gated_activation_reference, plain)
    true = output_and_gradients(gated_activation_reference, exact)
    for ours, theirs, right in zip(results, eager, true, strict=True):
        assert_as_accurate_as_eager(ours.detach().cpu(), theirs.detach(), right.detach())


def test_reference_is_the_definition() -> None:
    x, condition = (each.detach() for each in arguments((3, 8, 5), "full", torch.float64))
    pairs = (x + condition).numpy()
    wanted = np.tanh(pairs[:, :4]) / (1 + np.exp(-pairs[:, 4:]))
    ours = gated_activation_reference(x, condition)
    np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-14)
    everywhere = condition[:, :, :1].expand_as(x)
    torch.testing.assert_close(
        gated_activation_reference(x, condition[:, :, 0]),
        gated_activation_reference(x, everywhere),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_match_reference(device, shape, condition, dtype) -> None:
    given = arguments(shape, condition, dtype, device)
    before = [each.detach().clone() for each in given]
    assert_match(given, output_and_gradients(gated_activation, given))
    assert all(torch.equal(each, old) for each, old in zip(given, before, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_simd_level(simd_level, condition, channels_last) -> None:
    for dtype in (torch.float32, torch.float64):
        x, *rest = arguments((2, 38, 9, 11), condition, dtype)
        if channels_last:
            x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
        assert_match([x, *rest], output_and_gradients(gated_activation, [x, *rest]))


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The numbers of x [N, 2C, H, W] in other places of memory."""
    return {
        "channels last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "channels of a larger tensor": torch.cat((x, x), 1)[:, : x.shape[1]],
        "every other example": x.repeat_interleave(2, 0)[::2],
        "batch second": x.transpose(0, 1).contiguous().transpose(0, 1),
        "offset": torch.cat((x[:1], x))[1:],
        "channels last, every other": x.to(memory_format=torch.channels_last)
        .repeat_interleave(2, 0)
        .to(memory_format=torch.channels_last)[::2],
    }


@pytest.mark.parametrize("condition", CONDITIONS)
def test_strides_change_nothing(device, condition) -> None:
    given = arguments((3, 6, 5, 7), condition, device=device)
    packed = output_and_gradients(gated_activation, given)
    slope = torch.linspace(-1, 2, packed[0].numel()).view(packed[0].shape).to(packed[0])
    for index in range(len(given)):
        if given[index].dim() < 4:
            continue
        for name, moved in layouts(given[index].detach()).items():
            moved.requires_grad_()
            arranged = [*given[:index], moved, *given[index + 1 :]]
            results = output_and_gradients(gated_activation, arranged)
            for ours, wanted in zip(results, packed, strict=True):
                torch.testing.assert_close(ours, wanted, msg=name)
    for name, moved in layouts(slope).items():
        grads = torch.autograd.grad(gated_activation(*given), given, moved)
        for ours, wanted in zip(grads, packed[1:], strict=True):
            torch.testing.assert_close(ours, wanted, msg=name)
    expanded = torch.autograd.grad(gated_activation(*given).sum(), given)
    whole = torch.autograd.grad(gated_activation(*given), given, torch.ones_like(slope))
    assert all(torch.equal(a, b) for a, b in zip(expanded, whole, strict=True))


def test_keeps_the_memory_format(device) -> None:
    x = torch.randn(2, 6, 5, 4, device=device).to(memory_format=torch.channels_last)
    x.requires_grad_()
    out = gated_activation(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    assert gated_activation(x.contiguous()).is_contiguous()


@pytest.mark.parametrize("shape", [(0, 4), (2, 4, 0), (0, 4, 3), (2, 4, 3, 0)], ids=str)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_empty_batches(device, shape, condition) -> None:
    given = arguments(shape, condition, device=device)
    out = gated_activation(*given)
    assert out.shape == (shape[0], 2, *shape[2:])
    for grad, each in zip(torch.autograd.grad(out.sum(), given), given, strict=True):
        assert grad.shape == each.shape
        assert not grad.any()


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("condition", ["example", "full"])
def test_gradient_of_one_argument_alone(device, condition, wanted) -> None:
    given = arguments((3, 4, 5), condition, device=device)
    plain = [each if i == wanted else each.detach() for i, each in enumerate(given)]
    (ours,) = torch.autograd.grad(gated_activation(*plain).sum(), plain[wanted])
    both = torch.autograd.grad(gated_activation(*given).sum(), given)
    assert torch.equal(ours, both[wanted])
    assert not gated_activation(*(each.detach() for each in given)).requires_grad


@pytest.mark.parametrize("shape", [(2, 4), (2, 6, 3), (2, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_gradcheck(device, shape, condition) -> None:
    given = arguments(shape, condition, torch.float64, device, scale=1.0)
    assert torch.autograd.gradcheck(gated_activation, given)
    assert torch.autograd.gradgradcheck(gated_activation, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_second_derivatives_match_reference(device, condition, dtype) -> None:
    given = arguments((2, 6, 50), condition, dtype, device)
    directions = [torch.randn(each.shape, dtype=torch.float64) for each in given]

    def hessian_vector(function, given):
        grads = torch.autograd.grad(function(*given).square().sum(), given, create_graph=True)
        pairs = zip(grads, directions, strict=True)
        return torch.autograd.grad(sum((g * v.to(g)).sum() for g, v in pairs), given)

    plain = [each.detach().cpu().requires_grad_() for each in given]
    exact = [each.detach().cpu().double().requires_grad_() for each in given]
    for ours, eager, right in zip(
        hessian_vector(gated_activation, given),
        hessian_vector(gated_activation_reference, plain),
        hessian_vector(gated_activation_reference, exact),
        strict=True,
    ):
        assert_as_accurate_as_eager(ours.cpu(), eager, right)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_opcheck(device, condition, channels_last) -> None:
    given = arguments((2, 6, 4, 3), condition, device=device)
    if channels_last:
        given[0] = given[0].detach().to(memory_format=torch.channels_last).requires_grad_()
    of_x = given[0]
    added = None if condition == "none" else given[1]
    if condition == "example":
        added = added.detach()[:, :, None, None].requires_grad_()
    torch.library.opcheck(OP, (of_x, added))
    plain = (of_x.detach(), None if added is None else added.detach())
    torch.library.opcheck(OP, plain)
    grad = torch.randn(2, 3, 4, 3, device=device, requires_grad=True)
    torch.library.opcheck(BACKWARD, (grad, of_x, added))
    torch.library.opcheck(BACKWARD, (grad.detach(), *plain))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_compiles_without_graph_breaks(condition) -> None:
    given = arguments((2, 6, 4, 3), condition)

    def function(*given):
        return 2 * gated_activation(*given)

    compiled = torch.compile(function, fullgraph=True)
    for ours, wanted in zip(
        output_and_gradients(compiled, given), output_and_gradients(function, given), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def test_autocast_keeps_the_dtype_of_x(device) -> None:
    x, condition = arguments((2, 6, 5), "example", torch.bfloat16, device)
    wanted = gated_activation(x, condition)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(gated_activation(x, condition.float()), wanted)
        whole = gated_activation(x.float(), condition)
    assert wanted.dtype == torch.bfloat16
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, gated_activation(x.float(), condition.float()))
    (grad,) = torch.autograd.grad(whole.sum(), condition)
    assert grad.dtype == torch.bfloat16


def test_functorch_and_forward_mode(device) -> None:
    x, condition = (each.detach() for each in arguments((3, 4, 5), "full", torch.float64, device))
    whole = gated_activation(x, condition)
    mapped = torch.func.vmap(gated_activation)(x[:, None], condition[:, None])
    torch.testing.assert_close(mapped[:, 0], whole)
    _, tangent = torch.func.jvp(gated_activation, (x,), (condition,))
    _, wanted = torch.func.jvp(gated_activation_reference, (x,), (condition,))
    torch.testing.assert_close(tangent, wanted)


def test_thread_counts_change_no_bit(threads) -> None:
    for condition in CONDITIONS:
        for shape in ((3, 6, 4001), (1, 64, 40, 41)):
            generator = torch.Generator().manual_seed(1)
            x = torch.randn(shape, generator=generator)
            shapes = {"none": None, "example": shape[:2], "full": shape}[condition]
            added = None if shapes is None else torch.randn(shapes, generator=generator)
            for each in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
                given = [each.clone().requires_grad_()]
                given += [] if added is None else [added.clone().requires_grad_()]
                results = output_and_gradients(gated_activation, given)
                torch.set_num_threads(1)
                alone = output_and_gradients(gated_activation, given)
                torch.set_num_threads(threads)
                assert all(torch.equal(a, b) for a, b in zip(results, alone, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extremes(device, dtype) -> None:
    large = [0.0, 1e-3, 1.0, 20.0, 90.0, 120.0, 800.0, 1e4, math.inf]
    values = torch.tensor([s * v for v in large for s in (1, -1)], dtype=dtype, device=device)
    a, b = torch.meshgrid(values, values, indexing="ij")
    x = torch.stack((a.flatten(), b.flatten()), 1).requires_grad_()
    out, grad = output_and_gradients(gated_activation, [x])
    assert out.isfinite().all()
    assert grad.isfinite().all()
    assert_match([x], (out, grad))
    wanted = torch.tensor([[math.inf, -math.inf], [-math.inf, math.inf]], dtype=dtype).to(device)
    ends = gated_activation(wanted)
    assert ends.flatten().tolist() == [0, -1]


def test_small_arguments_keep_their_digits(simd_level) -> None:
    for dtype in (torch.float32, torch.float64):
        a = torch.logspace(-30, 0, 61, dtype=dtype)
        ours = gated_activation(torch.stack((a, torch.full_like(a, 30)), 1))[:, 0]
        wanted = torch.tanh(a.double()) * torch.sigmoid(torch.tensor(30.0).double())
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(ours.double(), wanted, rtol=6 * eps, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_where_it_is(device, dtype, channels_last) -> None:
    x, condition = (each.detach() for each in arguments((2, 6, 9, 5), "full", dtype, device))
    x[0, 1, 2, 3] = math.nan  # in a
    condition[1, 4, 8, 4] = math.nan  # in b
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    out, grad = output_and_gradients(lambda x: gated_activation(x, condition), [x])
    where = out.isnan().nonzero().tolist()
    assert where == [[0, 1, 2, 3], [1, 1, 8, 4]]
    assert grad.isnan().nonzero().tolist() == [
        [n, c + half, h, w] for n, c, h, w in where for half in (0, 3)
    ]


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    channels=st.integers(1, 20),
    scale=st.floats(0, 50),
)
def test_gate_is_bounded_and_odd(shape, channels, scale) -> None:
    x = scale * torch.randn(shape[0], 2 * channels, *shape[1:])
    out = gated_activation(x)
    assert out.abs().max() <= 1
    flipped = torch.cat((-x[:, :channels], x[:, channels:]), 1)
    assert torch.equal(gated_activation(flipped), -out)
    opposite = torch.cat((x[:, :channels], -x[:, channels:]), 1)  # sigmoid(b) + sigmoid(-b) = 1
    torch.testing.assert_close(out + gated_activation(opposite), torch.tanh(x[:, :channels]))


def test_refuses_bad_input() -> None:
    x = torch.zeros(2, 4, 3)
    cases = [
        (r"expected floating point x of shape \[N, 2C, ...\], got x.shape=\(4,\)", (x[0, :, 0],)),
        (r"got x.shape=\(2, 3, 3\)", (x[:, :3],)),
        (r"got x.shape=\(2, 0, 3\)", (x[:, :0],)),
        (r"got .*x.dtype=torch.int64", (x.long(),)),
        (r"or of the shape of x \(2, 4, 3\), got condition.shape=\(4,\)", (x, x[0, :, 0])),
        (r"got condition.shape=\(2, 4, 2\)", (x, x[:, :, :2])),
        (r"got condition.shape=\(1, 4\)", (x, x[:1, :, 0])),
        (
            r"the dtype and device of x \(torch.float32 on cpu\), got condition.dtype",
            (x, x.double()),
        ),
        (r"got .*, condition.device=meta", (x, x.to("meta"))),
    ]
    for message, wrong in cases:
        with pytest.raises(InputError, match=f"gated_activation: .*{message}"):
            gated_activation(*wrong)


def test_ops_refuse_bad_input() -> None:
    x, grad = torch.zeros(2, 4, 3), torch.zeros(2, 2, 3)
    cases = [
        ("expected a floating point tensor", (x.long(), None)),
        (r"expected x of shape \[N, 2C, ...\]", (x[:, :3], None)),
        (r"expected condition of shape \[N, 2C, 1, ...\]", (x, x[:, :, 0])),
        (r"expected condition of shape \[N, 2C, 1, ...\]", (x, x[:1])),
        ("expected condition of the dtype and device of x", (x, x.double())),
    ]
    for message, wrong in cases:
        with pytest.raises(RuntimeError, match=f"gated_activation: {message}"):
            OP(*wrong)
        with pytest.raises(RuntimeError, match=f"gated_activation: {message}"):
            BACKWARD(grad, *wrong)
    for wrong in (grad[:1], grad.double(), x):
        with pytest.raises(RuntimeError, match="expected grad of the output's shape"):
            BACKWARD(wrong, x, None)
