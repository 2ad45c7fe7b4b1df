"""categorical_nll: against the definition, its gradient, registrations, refusals, properties."""

import math

import pytest
import torch

from genfast import _C
from genfast.errors import InputError
from genfast.ops import categorical_nll, categorical_nll_reference
from tests.tolerances import assert_as_accurate_as_eager

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# (shape of the logits, layout): one class, one place, none, odd, prime, more than a chunk.
CASES = [
    ((2, 1, 3), "KC"),
    ((3, 5), "KC"),
    ((1, 2, 1, 1), "KC"),
    ((2, 256, 1, 5, 7), "KC"),
    ((2, 17, 3, 4, 5), "KC"),
    ((2, 16, 17, 19), "KC"),
    ((2, 3, 33, 4, 5), "CK"),
    ((2, 2, 19, 23), "CK"),
    ((2, 3, 7), "CK"),
]
every_case = pytest.mark.parametrize(("shape", "layout"), CASES, ids=str)


def samples(shape, layout, dtype=torch.float32, device="cpu", scale=3.0):
    """Logits that require gradients, and symbols."""
    axis = 1 if layout == "KC" else 2
    logits = (scale * torch.randn(shape, dtype=torch.float64)).to(device=device, dtype=dtype)
    symbols = torch.randint(0, shape[axis], (*shape[:axis], *shape[axis + 1 :]), device=device)
    return logits.requires_grad_(), symbols


def loss_and_gradient(function, logits, symbols, layout):
    """The losses, and the gradient of their sum with a different weight each."""
    loss = function(logits, symbols, layout=layout)
    weights = torch.linspace(0.5, 2.0, len(loss), dtype=loss.dtype, device=loss.device)
    return loss, *torch.autograd.grad((loss * weights).sum(), logits)


def eager_and_exact(logits, symbols, layout):
    plain = logits.detach().cpu()
    return tuple(
        loss_and_gradient(categorical_nll_reference, x.requires_grad_(), symbols.cpu(), layout)
        for x in (plain.clone(), plain.double())
    )


def assert_match(ours, eager, exact) -> None:
    for results in zip(ours, eager, exact, strict=True):
        assert_as_accurate_as_eager(*(result.detach().cpu() for result in results))


@every_case
def test_reference_is_the_definition(shape, layout) -> None:
    logits, symbols = samples(shape, layout, torch.float64)
    axis = 1 if layout == "KC" else 2
    probabilities = logits.exp() / logits.exp().sum(dim=axis, keepdim=True)
    chosen = probabilities.gather(axis, symbols.unsqueeze(axis)).squeeze(axis)
    wanted = -chosen.reshape(shape[0], -1).log().sum(dim=1)
    torch.testing.assert_close(categorical_nll_reference(logits, symbols, layout=layout), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_case
def test_loss_and_gradient_match_reference(device, shape, layout, dtype) -> None:
    logits, symbols = samples(shape, layout, dtype, device)
    before = logits.detach().clone()
    ours = loss_and_gradient(categorical_nll, logits, symbols, layout)
    assert_match(ours, *eager_and_exact(logits, symbols, layout))
    assert torch.equal(logits, before)
    with torch.no_grad():
        assert torch.equal(categorical_nll(logits, symbols, layout=layout), ours[0])


def assert_same(ours: torch.Tensor, wanted: torch.Tensor, name: str = "") -> None:
    """The same bits on the CPU; a GPU adds up in another order where the classes are innermost."""
    if ours.is_cpu:
        assert torch.equal(ours, wanted), name
    else:
        torch.testing.assert_close(ours, wanted, rtol=4e-6, atol=1e-7, msg=name or None)


def test_strides_change_nothing(device) -> None:
    shape = (3, 19, 3, 9, 11)
    logits, symbols = samples(shape, "KC", device=device)
    logits = logits.detach()
    packed = loss_and_gradient(categorical_nll, logits.clone().requires_grad_(), symbols, "KC")

    def rearranged(*order):
        back = sorted(range(5), key=order.__getitem__)
        return logits.permute(order).contiguous().permute(back)

    variants = {
        "of the other layout": rearranged(0, 2, 1, 3, 4),
        "classes innermost": rearranged(0, 2, 3, 4, 1),
        "channels last, colours outside classes": rearranged(0, 3, 4, 2, 1),
        "channels last, classes outside colours": rearranged(0, 3, 4, 1, 2),
        "transposed": rearranged(0, 1, 2, 4, 3),
        "batch innermost": rearranged(1, 2, 3, 4, 0),
        "every other": logits.repeat_interleave(2, 4)[..., ::2],
        "offset": torch.cat((logits[:1], logits))[1:],
        "slice of classes": torch.cat((logits, logits), dim=1)[:, :19],
    }
    for name, variant in variants.items():
        ours = loss_and_gradient(categorical_nll, variant.requires_grad_(), symbols, "KC")
        for a, b in zip(ours, packed, strict=True):
            assert_same(a, b, name)
        view = variant.detach().transpose(1, 2).requires_grad_()
        loss, gradient = loss_and_gradient(categorical_nll, view, symbols, "CK")
        assert_same(loss, packed[0], name)
        assert_same(gradient.transpose(1, 2), packed[1], name)
    others = symbols.transpose(2, 3).contiguous().transpose(2, 3).to(torch.uint8)
    assert_same(categorical_nll(logits, others), packed[0])
    one = torch.randn(1, 7, 1, 1, device=device)
    zeros = torch.zeros(2, 5, 4, dtype=torch.int32, device=device)
    expanded = one.expand(2, 7, 5, 4)
    assert_same(categorical_nll(expanded, zeros), categorical_nll(expanded.contiguous(), zeros))


def test_one_colour_may_have_its_axis(device) -> None:
    logits, symbols = samples((2, 9, 4, 5), "KC", device=device)
    wanted = categorical_nll(logits, symbols)
    assert torch.equal(categorical_nll(logits, symbols[:, None]), wanted)
    assert torch.equal(categorical_nll(logits[:, :, None], symbols[:, None]), wanted)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (0, 4), (0, 4, 2, 0, 3)], ids=str)
def test_empty(device, shape) -> None:
    logits, symbols = samples(shape, "KC", device=device)
    loss, gradient = loss_and_gradient(categorical_nll, logits, symbols, "KC")
    assert loss.shape == shape[:1]
    assert not loss.any()
    assert gradient.shape == shape


@pytest.mark.parametrize(("shape", "layout"), [((2, 5, 3), "KC"), ((2, 3, 18, 2), "CK")], ids=str)
def test_gradcheck(device, shape, layout) -> None:
    logits, symbols = samples(shape, layout, torch.float64, device)
    assert torch.autograd.gradcheck(lambda x: categorical_nll(x, symbols, layout=layout), logits)


def test_second_derivative_is_refused_not_zero(device) -> None:
    logits, symbols = samples((2, 5, 3), "KC", device=device)
    loss = categorical_nll(logits, symbols).sum()
    (first,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="expected a first derivative"):
        first.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axis", [1, 2])
def test_opcheck(device, axis, dtype) -> None:
    ops = torch.ops.genfast
    logits, symbols = samples((2, 5, 6, 3, 4), "KC" if axis == 1 else "CK", dtype, device)
    plain = logits.detach()
    innermost = plain.movedim(axis, -1).contiguous().movedim(-1, axis)
    for given in (plain, innermost, plain.transpose(3, 4).contiguous().transpose(3, 4)):
        torch.library.opcheck(ops.categorical_nll.default, (given, symbols, axis))
        loss, most, total = ops._categorical_nll_with_sums(given, symbols, axis)
        torch.library.opcheck(ops._categorical_nll_with_sums.default, (given, symbols, axis))
        arguments = (torch.ones_like(loss), given, symbols, most, total, axis)
        torch.library.opcheck(ops._categorical_nll_backward.default, arguments)
    torch.library.opcheck(ops.categorical_nll.default, (logits, symbols, axis))


def test_compiles_without_graph_breaks() -> None:
    logits, symbols = samples((2, 5, 3, 4), "KC")

    def step(logits, symbols):
        both = categorical_nll(2 * logits, symbols)
        return (both + categorical_nll(logits[:, None], symbols[:, None], layout="CK")).mean()

    compiled = torch.compile(step, fullgraph=True)
    ours, wanted = (
        (f(logits, symbols), *torch.autograd.grad(f(logits, symbols), logits))
        for f in (compiled, step)
    )
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_computes_in_float32(device) -> None:
    logits, symbols = samples((3, 6, 4), "KC", torch.bfloat16, device)
    wanted = categorical_nll(logits.float(), symbols)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = categorical_nll(logits, symbols)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wanted)
    assert torch.autograd.grad(loss.sum(), logits)[0].dtype == torch.bfloat16


def test_refuses_bad_input() -> None:
    logits, symbols = torch.zeros(2, 6, 4), torch.zeros(2, 4, dtype=torch.int64)
    beyond = symbols.clone()
    beyond[1, 2] = 6
    cases = [
        (r"expected symbols in 0 .. 5, got smallest=0, largest=6", {"symbols": beyond}),
        (r"expected symbols in 0 .. 5, got smallest=-1", {"symbols": symbols - 1}),
        (r"expected symbols \[2, 4\] .* got symbols.shape=\[2, 3\]", {"symbols": symbols[:, 1:]}),
        (r"expected symbols \[2, 6\] .* of layout 'CK'", {"layout": "CK"}),
        (r"expected layout in \('KC', 'CK'\), got layout='NKC'", {"layout": "NKC"}),
        (r"expected integer symbols, got symbols.dtype=.*float32", {"symbols": symbols.float()}),
        (r"floating point logits \[N, K, ...\], got .*int64", {"logits": logits.long()}),
        (r"floating point logits \[N, C, K, ...\]", {"logits": logits[:, :, 0], "layout": "CK"}),
        (r"floating point logits .* got logits.shape=\[2, 0, 4\]", {"logits": logits[:, :0]}),
        (r"on cpu .* on meta", {"symbols": symbols.to("meta")}),
    ]  # fmt: skip
    for message, changed in cases:
        with pytest.raises(InputError, match=f"categorical_nll: .*{message}"):
            categorical_nll(**({"logits": logits, "symbols": symbols} | changed))


def test_ops_refuse_bad_input() -> None:
    logits, symbols = torch.zeros(2, 6, 4), torch.zeros(2, 4, dtype=torch.int64)
    cases = [
        ("expected a floating point tensor", (logits.long(), symbols, 1)),
        ("expected integer symbols", (logits, symbols.float(), 1)),
        (r"expected symbols \[2, 4\] beside", (logits, symbols[:, :3], 1)),
        (r"expected symbols \[2, 6\] beside", (logits, symbols, 2)),
        (r"expected axis in 1 .. 2", (logits, symbols, 0)),
        (r"expected axis in 1 .. 2", (logits, symbols, 3)),
        (r"expected at least one class", (logits[:, :0], symbols, 1)),
    ]
    ops = torch.ops.genfast
    for message, arguments in cases:
        for op in (ops.categorical_nll, ops._categorical_nll_with_sums):
            with pytest.raises(RuntimeError, match=f"categorical_nll: {message}"):
                op(*arguments)
    for wrong in (-1, 6, 2**32):
        outside = symbols.clone()
        outside[1, 3] = wrong
        with pytest.raises(ValueError, match=r"expected symbols in 0 .. 5"):
            ops.categorical_nll(logits, outside, 1)
    loss, most, total = ops._categorical_nll_with_sums(logits, symbols, 1)
    with pytest.raises(RuntimeError, match=r"expected grad_loss \[2\]"):
        ops._categorical_nll_backward(loss[:1], logits, symbols, most, total, 1)
    with pytest.raises(RuntimeError, match="expected most and sum as the forward made them"):
        ops._categorical_nll_backward(loss, logits, symbols, most, total[:1], 1)
    # No forward has seen these symbols: they must not reach memory outside the gradient.
    ops._categorical_nll_backward(loss, logits, symbols + 2**40, most, total, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["KC", "CK"])
def test_extreme_logits_are_finite_and_right(device, dtype, layout) -> None:
    far = torch.tensor([0.0, 1e4, -1e4, 65_504.0, -65_504.0, 88.0, -104.0, 1e-6])
    logits = far[torch.randint(0, len(far), (30, 3, 20, 2))].to(dtype=dtype, device=device)
    symbols = torch.randint(0, logits.shape[1 if layout == "KC" else 2], (30, 3, 20, 2))
    symbols = (symbols[:, 0] if layout == "KC" else symbols[:, :, 0]).to(device)
    ours = loss_and_gradient(categorical_nll, logits.requires_grad_(), symbols, layout)
    assert ours[0].isfinite().all()
    assert ours[1].isfinite().all()
    assert_match(ours, *eager_and_exact(logits, symbols, layout))


def test_infinite_logits_do_as_the_reference(device) -> None:
    infinity = math.inf
    rows = [
        [0.0, -infinity, 1.0],
        [-infinity, 2.0, 1.0],
        [-infinity, -infinity, -infinity],
        [1.0, infinity, 0.0],
        [infinity, 0.0, -infinity],
        [-torch.finfo(torch.float32).max, 0.0, 1.0],
    ]
    few = torch.tensor(rows, device=device)
    many = torch.cat((torch.full((len(rows), 40), -infinity, device=device), few), dim=1)
    for logits in (few, many):
        for symbol in (logits.shape[1] - 3, logits.shape[1] - 1):
            symbols = torch.full((len(rows),), symbol, device=device)
            ours = loss_and_gradient(categorical_nll, logits.requires_grad_(), symbols, "KC")
            eager, _ = eager_and_exact(logits, symbols, "KC")
            for a, b in zip(ours, eager, strict=True):
                torch.testing.assert_close(a.cpu(), b, equal_nan=True)


def test_nan_in_gives_nan_out(device) -> None:
    plain, symbols = samples((3, 20, 6, 7), "KC", device=device)
    for channel in (0, 7, 19):
        logits = plain.detach().clone()
        logits[1, channel, 2, 3] = math.nan
        loss, gradient = loss_and_gradient(categorical_nll, logits.requires_grad_(), symbols, "KC")
        assert loss.isnan().tolist() == [False, True, False]
        nan = torch.zeros_like(gradient, dtype=torch.bool)
        nan[1, :, 2, 3] = True
        assert torch.equal(gradient.isnan(), nan)


def test_equal_logits_cost_the_logarithm_of_their_number(device) -> None:
    symbols = torch.randint(0, 256, (2, 5, 5), device=device)
    loss = categorical_nll(torch.full((2, 256, 5, 5), 7.5, device=device), symbols)
    torch.testing.assert_close(loss, torch.full_like(loss, 25 * math.log(256)))


def test_adding_a_constant_changes_nothing_but_rounding(device) -> None:
    logits, symbols = samples((2, 33, 5), "KC", torch.float64, device)
    shifted = categorical_nll(logits + 1_000, symbols)
    torch.testing.assert_close(shifted, categorical_nll(logits, symbols), rtol=1e-10, atol=0)


@pytest.mark.parametrize("axis_last", [False, True])
def test_same_bits_for_every_number_of_threads(threads, axis_last) -> None:
    logits, symbols = samples((3, 21, 40, 33), "KC")
    if axis_last:
        logits = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    ours = loss_and_gradient(categorical_nll, logits, symbols, "KC")
    torch.set_num_threads(1)
    for a, b in zip(ours, loss_and_gradient(categorical_nll, logits, symbols, "KC"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [5, 256])
def test_same_bits_at_every_simd_level(simd_level, classes, dtype) -> None:
    logits, symbols = samples((2, classes, 11, 7), "KC", dtype)
    last = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    ours = loss_and_gradient(categorical_nll, logits, symbols, "KC")
    others = loss_and_gradient(categorical_nll, last, symbols, "KC")
    assert _C.set_simd_level("baseline")
    wanted = loss_and_gradient(categorical_nll, logits, symbols, "KC")
    for a, b, c in zip(ours, others, wanted, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)


def test_function_transforms() -> None:
    logits, symbols = samples((2, 4, 3), "KC", torch.float64)

    def loss(x):
        return categorical_nll(x, symbols).sum()

    (expected,) = torch.autograd.grad(loss(logits), logits)
    plain = logits.detach()
    torch.testing.assert_close(torch.func.grad(loss)(plain), expected)
    _, slope = torch.func.jvp(loss, (plain,), (torch.ones_like(plain),))
    torch.testing.assert_close(slope, expected.sum(), rtol=0, atol=1e-12)
