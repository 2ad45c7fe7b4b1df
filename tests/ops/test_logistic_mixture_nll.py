"""logistic_mixture_nll: against float64 and high precision, gradients, refusals, properties."""

import math

import pytest
import torch
from mpmath import mp, mpf

from genfast import _C
from genfast.errors import InputError
from genfast.ops import logistic_mixture_nll, logistic_mixture_nll_reference
from genfast.ops.logistic_mixture_nll import PER_COMPONENT
from tests.tolerances import assert_as_accurate_as_eager

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# (batch, mixtures, spatial shape): one pixel, no spatial axis, odd, prime, more than a chunk.
SIZES = [(1, 1, (1, 1)), (3, 2, ()), (2, 5, (7,)), (2, 3, (5, 13)), (2, 1, (17, 19))]

every_colour = pytest.mark.parametrize("colours", [1, 3])


def samples(colours, batch, mixtures, spatial, levels=256, dtype=torch.float32, device="cpu"):
    """Parameters that require gradients and symbols, the outermost levels often among them."""
    size = (batch, mixtures * PER_COMPONENT[colours], *spatial)
    parameters = (1.5 * torch.randn(size, dtype=torch.float64)).to(device=device, dtype=dtype)
    symbols = torch.randint(-levels // 4, levels + levels // 4 + 1, (batch, colours, *spatial))
    return parameters.requires_grad_(), symbols.clamp(0, levels - 1).to(device)


def loss_and_gradient(function, parameters, symbols, **options):
    """The losses, and the gradient of their sum with a different weight each."""
    loss = function(parameters, symbols, **options)
    weights = torch.linspace(0.5, 2.0, len(loss), dtype=loss.dtype, device=loss.device)
    return loss, *torch.autograd.grad((loss * weights).sum(), parameters)


def eager_and_exact(parameters, symbols, **options):
    plain = parameters.detach().cpu()
    return tuple(
        loss_and_gradient(
            logistic_mixture_nll_reference, p.requires_grad_(), symbols.cpu(), **options
        )
        for p in (plain.clone(), plain.double())
    )


def assert_match(ours, eager, exact) -> None:
    for results in zip(ours, eager, exact, strict=True):
        assert_as_accurate_as_eager(*(result.detach().cpu() for result in results))


@pytest.mark.parametrize("levels", [2, 3, 256, 65536])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@every_colour
def test_loss_and_gradient_match_reference(device, colours, size, dtype, levels) -> None:
    parameters, symbols = samples(colours, *size, levels, dtype, device)
    before = parameters.detach().clone()
    ours = loss_and_gradient(logistic_mixture_nll, parameters, symbols, levels=levels)
    assert_match(ours, *eager_and_exact(parameters, symbols, levels=levels))
    assert torch.equal(parameters, before)
    with torch.no_grad():  # the other kernel, without derivatives
        assert torch.equal(logistic_mixture_nll(parameters, symbols, levels=levels), ours[0])


def exact_bin(level: int, levels: int, mean: float, log_scale: float) -> float:
    """-log P of a bin from the definition, in 60 digits."""
    mp.dps = 60
    scale = mp.exp(mpf(log_scale))
    lower = (mpf(2 * level - levels) / (levels - 1) - mpf(mean)) / scale
    upper = (mpf(2 * level + 2 - levels) / (levels - 1) - mpf(mean)) / scale
    if lower > 0:  # the mirrored bin: differences of small numbers keep their digits
        level, lower, upper = levels - 1 - level, -upper, -lower
    below = mpf(0) if level == 0 else 1 / (1 + mp.exp(-lower))
    above = mpf(1) if level == levels - 1 else 1 / (1 + mp.exp(-upper))
    return float(-mp.log(above - below))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("levels", [256, 65536])
def test_stress_grid(device, simd_level, dtype, rtol, levels) -> None:
    n = 1_000
    mean = 2 * torch.rand(n, dtype=dtype) - 1
    log_scale = 10 * torch.rand(n, dtype=dtype) - 7
    level = torch.randint(0, levels, (n, 1))
    level[:40] = 0
    level[40:80] = levels - 1
    near = (2 * level[80:200, 0] - levels + 1) / (levels - 1)  # means inside and beside the bin
    mean[80:200] = (near + 3 * torch.randn(120) / levels).to(dtype)
    parameters = torch.stack((torch.zeros(n, dtype=dtype), mean, log_scale), dim=1).to(device)
    loss = logistic_mixture_nll(parameters, level.to(device), levels=levels).cpu().double()
    columns = (level[:, 0].tolist(), mean.tolist(), log_scale.tolist())
    exact = [exact_bin(k, levels, m, s) for k, m, s in zip(*columns, strict=True)]
    # Where all probability is in one bin, the loss is the probability of missing it.
    torch.testing.assert_close(
        loss, torch.tensor(exact, dtype=torch.float64), rtol=rtol, atol=1e-30
    )


def exact_colours(levels: int, symbols: list[int], parameters: list[float]) -> float:
    """-log P of a pixel of three colours under one component, in 60 digits."""
    mp.dps = 60
    x = [mpf(2 * symbol + 1 - levels) / (levels - 1) for symbol in symbols]
    means, scales, bends = (parameters[i + 1 :: 3] for i in range(3))
    green, red_of_blue, blue = (mp.tanh(mpf(bend)) for bend in bends)
    shifted = [
        mpf(means[0]),
        mpf(means[1]) + green * x[0],
        mpf(means[2]) + red_of_blue * x[0] + blue * x[1],
    ]
    return sum(map(exact_bin, symbols, [levels] * 3, shifted, scales))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("levels", [256, 65536])
def test_stress_grid_of_colours(device, simd_level, dtype, rtol, levels) -> None:
    n = 400
    parameters = torch.zeros(n, 10, dtype=dtype)
    parameters[:, 1::3] = 2 * torch.rand(n, 3, dtype=dtype) - 1
    parameters[:, 2::3] = 10 * torch.rand(n, 3, dtype=dtype) - 7
    parameters[:, 3::3] = 3 * torch.randn(n, 3, dtype=dtype)
    symbols = torch.randint(0, levels, (n, 3))
    symbols[:20, 0], symbols[20:40, 2], symbols[40:60, 1] = 0, 0, levels - 1
    loss, gradient = loss_and_gradient(
        lambda p, s: logistic_mixture_nll(p, s, levels=levels),
        parameters.to(device).requires_grad_(),
        symbols.to(device),
    )
    rows = zip(symbols.tolist(), parameters.tolist(), strict=True)
    exact = torch.tensor([exact_colours(levels, s, p) for s, p in rows], dtype=torch.float64)
    # A shifted mean is rounded a few times, and a narrow scale magnifies that: one grey level's
    # error is what the loss has by its relative error, this is what it has by its means.
    slopes = gradient / torch.linspace(0.5, 2.0, n, dtype=dtype, device=device)[:, None]
    magnified = slopes[:, 1::3].abs().sum(1).cpu().double()
    sizes = 1 + parameters[:, 1::3].abs().amax(1).double()
    bound = rtol * exact.abs() + torch.finfo(dtype).eps / 2 * sizes * magnified + 1e-30
    assert ((loss.detach().cpu().double() - exact).abs() <= bound).all()


def test_strides_change_nothing(device) -> None:
    for colours in (1, 3):
        parameters, symbols = samples(colours, 3, 4, (9, 11), device=device)
        parameters = parameters.detach()
        packed = loss_and_gradient(
            logistic_mixture_nll, parameters.clone().requires_grad_(), symbols
        )
        variants = {
            "channels last": parameters.to(memory_format=torch.channels_last),
            "transposed": parameters.transpose(2, 3).contiguous().transpose(2, 3),
            "every other": parameters.repeat_interleave(2, 1)[:, ::2],
            "batch innermost": parameters.movedim(0, -1).contiguous().movedim(-1, 0),
            "offset": torch.cat((parameters[:1], parameters))[1:],
        }
        for name, variant in variants.items():
            ours = loss_and_gradient(logistic_mixture_nll, variant.requires_grad_(), symbols)
            for a, b in zip(ours, packed, strict=True):
                assert torch.equal(a, b), name
        others = symbols.transpose(2, 3).contiguous().transpose(2, 3).int()
        assert torch.equal(logistic_mixture_nll(parameters, others), packed[0])
    one = torch.randn(1, 9, 1, 1, device=device)
    wide = torch.zeros(2, 1, 5, 4, dtype=torch.uint8, device=device)
    expanded = one.expand(2, 9, 5, 4)
    assert torch.equal(
        logistic_mixture_nll(expanded, wide), logistic_mixture_nll(expanded.contiguous(), wide)
    )


@pytest.mark.parametrize("shape", [(0, 9, 4), (2, 9, 0), (0, 9), (0, 9, 0, 3)], ids=str)
def test_empty(device, shape) -> None:
    parameters = torch.zeros(shape, device=device, requires_grad=True)
    symbols = torch.zeros((shape[0], 1, *shape[2:]), dtype=torch.int64, device=device)
    loss, gradient = loss_and_gradient(logistic_mixture_nll, parameters, symbols)
    assert loss.shape == (shape[0],)
    assert not loss.any()
    assert gradient.shape == shape


@every_colour
def test_gradcheck(device, colours) -> None:
    parameters, symbols = samples(colours, 2, 3, (2, 3), 8, torch.float64, device)
    assert torch.autograd.gradcheck(
        lambda p: logistic_mixture_nll(p, symbols, levels=8), parameters
    )


def test_gradient_is_the_same_when_asked_for_twice(device) -> None:
    parameters, symbols = samples(3, 2, 3, (4, 4), device=device)
    loss = logistic_mixture_nll(parameters, symbols).mean()
    (first,) = torch.autograd.grad(loss, parameters, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, parameters)
    assert torch.equal(first, kept)
    assert torch.equal(first, second)


def test_second_derivative_is_refused_not_zero(device) -> None:
    parameters, symbols = samples(3, 2, 2, (3,), device=device)
    for retain in (True, False):
        loss = logistic_mixture_nll(parameters, symbols).sum()
        (first,) = torch.autograd.grad(loss, parameters, create_graph=True, retain_graph=retain)
        with pytest.raises(RuntimeError, match="expected a first derivative"):
            first.square().sum().backward()


@every_colour
def test_opcheck(device, colours) -> None:
    ops = torch.ops.genfast
    for dtype in (torch.float32, torch.bfloat16):
        parameters, symbols = samples(colours, 2, 2, (3, 5), dtype=dtype, device=device)
        last = parameters.detach().to(memory_format=torch.channels_last)
        for given in (parameters, parameters.detach(), last, last.clone().requires_grad_()):
            torch.library.opcheck(ops.logistic_mixture_nll.default, (given, symbols, 256, -7.0))
        for given in (parameters.detach(), last):
            torch.library.opcheck(
                ops._logistic_mixture_nll_with_slope.default, (given, symbols, 256, -7.0)
            )


def test_compiles_without_graph_breaks() -> None:
    parameters, symbols = samples(3, 2, 3, (5, 3))

    def step(parameters, symbols):
        return logistic_mixture_nll(2 * parameters, symbols).mean()

    compiled = torch.compile(step, fullgraph=True)
    ours = (
        compiled(parameters, symbols),
        *torch.autograd.grad(compiled(parameters, symbols), parameters),
    )
    wanted = (
        step(parameters, symbols),
        *torch.autograd.grad(step(parameters, symbols), parameters),
    )
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_computes_in_float32(device) -> None:
    parameters, symbols = samples(1, 3, 2, (4,), dtype=torch.bfloat16, device=device)
    wanted = logistic_mixture_nll(parameters.float(), symbols)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = logistic_mixture_nll(parameters, symbols)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wanted)
    assert torch.autograd.grad(loss.sum(), parameters)[0].dtype == torch.bfloat16


def test_refuses_bad_input() -> None:
    parameters, symbols = torch.zeros(2, 6, 4), torch.zeros(2, 1, 4, dtype=torch.int64)
    cases = [
        (
            r"expected levels in 0 .. 255, got smallest=-1, largest=0",
            {"symbols": symbols - (torch.arange(4) == 1).long()},
        ),
        (
            r"expected levels in 0 .. 7, got smallest=8, largest=8",
            {"symbols": symbols + 8, "levels": 8},
        ),
        (
            r"expected lowest_log_scale in -80 .. 60, got lowest_log_scale=-inf",
            {"lowest_log_scale": -math.inf},
        ),
        (r"got lowest_log_scale=nan", {"lowest_log_scale": math.nan}),
        (r"expected parameters \[N, 10 \* mixtures", {"symbols": symbols.expand(2, 3, 4)}),
        (r"expected levels \[N, 1, ...\]", {"symbols": symbols.expand(2, 2, 4)}),
    ]
    for message, changed in cases:
        with pytest.raises(InputError, match=message):
            logistic_mixture_nll(**({"parameters": parameters, "symbols": symbols} | changed))


def test_ops_refuse_bad_input() -> None:
    parameters, symbols = torch.zeros(2, 6, 4), torch.zeros(2, 1, 4, dtype=torch.int64)
    cases = [
        ("expected a floating point tensor", (parameters.long(), symbols, 256, -7.0)),
        ("expected integer symbols", (parameters, symbols.float(), 256, -7.0)),
        (r"expected symbols \[N, 1", (parameters, symbols.expand(2, 2, 4), 256, -7.0)),
        (r"expected parameters \[N, 3", (parameters[:, :5], symbols, 256, -7.0)),
        (r"expected parameters \[N, 3", (parameters[:1], symbols, 256, -7.0)),
        (r"expected levels in 2 .. 65536", (parameters, symbols, 1, -7.0)),
        (r"expected lowest_log_scale in -80 .. 60", (parameters, symbols, 256, math.nan)),
    ]
    ops = torch.ops.genfast
    for message, arguments in cases:
        for op in (ops.logistic_mixture_nll, ops._logistic_mixture_nll_with_slope):
            with pytest.raises(RuntimeError, match=f"logistic_mixture_nll: {message}"):
                op(*arguments)
    for wrong in (-1, 256, 2**32):
        outside = symbols.clone()
        outside[1, 0, 3] = wrong
        with pytest.raises(ValueError, match=r"expected symbols in 0 .. 255"):
            ops.logistic_mixture_nll(parameters, outside, 256, -7.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_colour
def test_extreme_parameters_are_finite_and_right(device, colours, dtype) -> None:
    far = torch.tensor([0.0, -1e4, 1e4, -30.0, 30.0, 88.0, -1e-3])
    mixtures = 2
    size = (len(far) ** 2, mixtures * PER_COMPONENT[colours], 3)
    parameters = far[torch.randint(0, len(far), size)].to(dtype=dtype, device=device)
    symbols = torch.tensor([0, 100, 255], device=device).expand(len(far) ** 2, colours, 3)
    for lowest in (-7.0, -30.0):
        ours = loss_and_gradient(
            logistic_mixture_nll, parameters.requires_grad_(), symbols, lowest_log_scale=lowest
        )
        _, exact = eager_and_exact(parameters, symbols, lowest_log_scale=lowest)
        assert ours[0].isfinite().all()
        torch.testing.assert_close(ours[0].cpu().double(), exact[0], rtol=1e-5, atol=1e-5)
        assert not ours[1].isnan().any()
        assert ours[1].isfinite().all() or dtype == torch.float16  # its largest number is 65,504


def test_beyond_the_widest_log_scale_the_loss_still_grows(device) -> None:
    parameters = torch.tensor([[0.0, 0.2, 60.0], [0.0, 0.2, 1e4]], device=device)
    symbols = torch.full((2, 1), 7, device=device)
    loss, gradient = loss_and_gradient(logistic_mixture_nll, parameters.requires_grad_(), symbols)
    wanted = torch.tensor([60.0, 1e4]) - math.log(2 / 255) + 2 * math.log(2)
    torch.testing.assert_close(loss.cpu(), wanted)
    torch.testing.assert_close(gradient[:, 2].cpu(), torch.tensor([0.5, 2.0]))


@every_colour
def test_nan_in_gives_nan_out(device, colours) -> None:
    plain, symbols = samples(colours, 3, 4, (6, 7), device=device)
    channels = plain.shape[1]
    for channel in (0, 3, channels // 2, channels - 1):
        parameters = plain.detach().clone()
        parameters[1, channel, 2, 3] = math.nan
        loss, gradient = loss_and_gradient(
            logistic_mixture_nll, parameters.requires_grad_(), symbols
        )
        assert loss.isnan().tolist() == [False, True, False]
        nan = gradient.isnan()
        assert nan[1, channel, 2, 3]
        nan[1, :, 2, 3] = False  # the parameters of the same pixel
        assert not nan.any()


@every_colour
def test_probabilities_of_all_pixels_sum_to_one(device, colours) -> None:
    levels = 5
    grid = torch.cartesian_prod(*[torch.arange(levels)] * colours).reshape(-1, colours).to(device)
    parameters = torch.randn(1, 3 * PER_COMPONENT[colours], device=device).double()
    loss = logistic_mixture_nll(parameters.expand(len(grid), -1), grid, levels=levels)
    assert (-loss).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_loss_of_a_batch_is_that_of_its_examples(device) -> None:
    parameters, symbols = samples(3, 4, 2, (20, 20), device=device)
    loss = logistic_mixture_nll(parameters.detach(), symbols)
    alone = [
        logistic_mixture_nll(parameters.detach()[i : i + 1], symbols[i : i + 1]) for i in range(4)
    ]
    assert torch.equal(loss, torch.cat(alone))


@every_colour
def test_same_bits_for_every_number_of_threads(threads, colours) -> None:
    parameters, symbols = samples(colours, 3, 2, (40, 33))
    ours = loss_and_gradient(logistic_mixture_nll, parameters, symbols)
    torch.set_num_threads(1)
    for a, b in zip(
        ours, loss_and_gradient(logistic_mixture_nll, parameters, symbols), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_colour
def test_same_bits_at_every_simd_level(simd_level, colours, dtype) -> None:
    parameters, symbols = samples(colours, 2, 3, (11, 7), dtype=dtype)
    last = parameters.detach().to(memory_format=torch.channels_last).requires_grad_()
    ours = loss_and_gradient(logistic_mixture_nll, parameters, symbols)
    others = loss_and_gradient(logistic_mixture_nll, last, symbols)
    assert _C.set_simd_level("baseline")
    wanted = loss_and_gradient(logistic_mixture_nll, parameters, symbols)
    for a, b, c in zip(ours, others, wanted, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)


def test_function_transforms() -> None:
    parameters, symbols = samples(1, 2, 2, (3,), dtype=torch.float64)

    def loss(p):
        return logistic_mixture_nll(p, symbols).sum()

    (expected,) = torch.autograd.grad(loss(parameters), parameters)
    plain = parameters.detach()
    torch.testing.assert_close(torch.func.grad(loss)(plain), expected)
    _, slope = torch.func.jvp(loss, (plain,), (torch.ones_like(plain),))
    torch.testing.assert_close(slope, expected.sum())


def test_backward_keeps_one_tensor_of_the_size_of_the_parameters() -> None:
    parameters, symbols = samples(3, 2, 4, (16, 16))
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logistic_mixture_nll(parameters, symbols)
    kept.pop(parameters.untyped_storage().data_ptr())
    assert list(kept.values()) == [parameters.nbytes]
