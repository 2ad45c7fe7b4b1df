"""reparameterize: the reference, its gradients, its registrations, its refusals, its properties."""

import math

import pytest
import torch

from genfast.errors import InputError
from genfast.ops import philox_normal, reparameterize, reparameterize_reference
from tests.tolerances import assert_as_accurate_as_eager
from tests.triton_support import DEVICE, compile_ahead, on_gpu, triton_kernels

SHAPES = [(1, 1), (4, 20), (3, 7), (2, 257), (5, 3, 4, 2), (6,), (0, 8), (3, 0), (1, 5003)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OFFSETS = [0, 5]
# (beta, free_bits): plain; each alone; both, with about half of the divergences of `samples` below.
WEIGHTS = [(1.0, 0.0), (0.25, 0.0), (1.0, 0.7), (3.0, 1.3)]
weighted = pytest.mark.parametrize(("beta", "free_bits"), WEIGHTS[1:])


def samples(shape, dtype=torch.float32, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    mu = torch.randn(shape, dtype=torch.float64).to(dtype=dtype, device=device)
    return mu, (2 * torch.randn(shape, dtype=torch.float64)).to(dtype=dtype, device=device)


def expected(mu, logvar, noise, beta=1.0, free_bits=0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, on given noise."""
    z = mu + torch.exp(logvar / 2) * noise
    kl = 0.5 * (mu.square() + torch.exp(logvar) - 1 - logvar)
    if free_bits > 0:
        kl = torch.maximum(kl, torch.tensor(free_bits, dtype=kl.dtype))
    return z, beta * (kl.flatten(1).sum(1) if kl.dim() > 1 else kl)


def eager_and_exact(mu, logvar, seed: int, offset: int, *weights):
    """What is expected at the input's dtype and in float64, on the noise of the stream."""
    mu, logvar = mu.cpu(), logvar.cpu()
    noise = philox_normal(mu.shape, seed=seed, offset=offset)
    eager = expected(mu, logvar, noise.to(mu.dtype), *weights)
    return eager, expected(mu.double(), logvar.double(), noise.double(), *weights)


def loss_gradients(function, mu, logvar, weights) -> tuple[torch.Tensor, ...]:
    """Gradients of a weighted sum of both outputs."""
    mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    z, kl = function(mu, logvar)
    total = (z * weights[0].to(z)).sum() + (kl * weights[1].to(z)).sum()
    return torch.autograd.grad(total, (mu, logvar))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(device, shape, dtype) -> None:
    mu, logvar = samples(shape, dtype, device)
    for offset in OFFSETS:
        ours = reparameterize(mu, logvar, seed=9, offset=offset)
        for result, eager, exact in zip(ours, *eager_and_exact(mu, logvar, 9, offset), strict=True):
            assert_as_accurate_as_eager(result.cpu(), eager, exact)


@pytest.mark.parametrize(("beta", "free_bits"), WEIGHTS)
def test_matches_reference_on_every_simd_level(simd_level, beta, free_bits) -> None:
    mu, logvar = samples((17, 301))
    ours = reparameterize(mu, logvar, seed=9, beta=beta, free_bits=free_bits)
    wanted = eager_and_exact(mu, logvar, 9, 0, beta, free_bits)
    for result, eager, exact in zip(ours, *wanted, strict=True):
        assert_as_accurate_as_eager(result, eager, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 20), (5, 3, 4, 2), (6,), (0, 8), (3, 0)], ids=str)
@weighted
def test_free_bits_and_beta_match_reference(device, shape, dtype, beta, free_bits) -> None:
    mu, logvar = samples(shape, dtype, device)
    ours = reparameterize(mu, logvar, seed=9, beta=beta, free_bits=free_bits)
    wanted = eager_and_exact(mu, logvar, 9, 0, beta, free_bits)
    for result, eager, exact in zip(ours, *wanted, strict=True):
        assert_as_accurate_as_eager(result.cpu(), eager, exact)
    plain = reparameterize_reference(mu, logvar, torch.tensor([9]), 0, beta, free_bits)
    tolerance = max(4 * torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(ours[1], plain[1], rtol=tolerance, atol=8 * tolerance)


@weighted
def test_gradients_with_free_bits_and_beta_match_reference(device, beta, free_bits) -> None:
    mu, logvar = samples((7, 33), device=device)
    weights = torch.randn(7, 33, device=device), torch.randn(7, device=device)
    noise = philox_normal(mu.shape, seed=2)

    def ours(mu, logvar):
        return reparameterize(mu, logvar, seed=2, beta=beta, free_bits=free_bits)

    def reference(mu, logvar):
        return expected(mu, logvar, noise.to(mu), beta, free_bits)

    plain = mu.cpu(), logvar.cpu(), [w.cpu() for w in weights]
    results = (
        loss_gradients(ours, mu, logvar, weights),
        loss_gradients(reference, *plain),
        loss_gradients(reference, plain[0].double(), plain[1].double(), plain[2]),
    )
    for a, b, c in zip(*results, strict=True):
        assert_as_accurate_as_eager(a.cpu(), b, c)


def test_free_bits_have_no_slope_below_and_the_whole_slope_above(device) -> None:
    mu = torch.tensor([[0.1, 2.0, -0.1], [3.0, 0.0, 1.0]], dtype=torch.float64, device=device)
    mu.requires_grad_()
    logvar = torch.zeros_like(mu, requires_grad=True)  # kl_nd = mu^2 / 2; the last one is a tie
    _, kl = reparameterize(mu, logvar, seed=1, beta=2.0, free_bits=0.5)
    torch.testing.assert_close(kl.cpu(), torch.tensor([6.0, 11.0], dtype=torch.float64))
    grad_mu, grad_logvar = torch.autograd.grad(kl.sum(), (mu, logvar))
    above = torch.tensor([[0, 1, 0], [1, 0, 0]], dtype=torch.float64, device=device)
    torch.testing.assert_close(grad_mu, 2 * above * mu.detach())
    assert not grad_logvar.any()


def test_zero_free_bits_and_beta_one_change_no_bit(device) -> None:
    mu, logvar = samples((9, 77), device=device)
    for a, b in zip(
        reparameterize(mu, logvar, seed=3),
        reparameterize(mu, logvar, seed=3, beta=1, free_bits=0),
        strict=True,
    ):
        assert torch.equal(a, b)
    z, kl = reparameterize(mu, logvar, seed=3, free_bits=1e6)
    assert torch.equal(z, reparameterize(mu, logvar, seed=3)[0])
    torch.testing.assert_close(kl, torch.full_like(kl, 77e6))


@pytest.mark.parametrize("name", ["beta", "free_bits"])
@pytest.mark.parametrize("value", [-1e-9, -math.inf, math.inf, math.nan])
def test_refuses_weights_that_are_negative_or_not_finite(name, value) -> None:
    mu, logvar = samples((3, 5))
    with pytest.raises(InputError, match=f"reparameterize: expected a finite {name} >= 0, got"):
        reparameterize(mu, logvar, **{name: value})
    ops = torch.ops.genfast
    with pytest.raises(RuntimeError, match=f"reparameterize: expected a finite {name} >= 0, got"):
        ops.reparameterize(mu, logvar, torch.tensor([1]), 0, **{name: value})
    with pytest.raises(RuntimeError, match=f"reparameterize: expected a finite {name} >= 0, got"):
        ops._reparameterize_backward(mu, None, mu, logvar, torch.tensor([1]), 0, **{name: value})


def test_gradients_that_are_one_number_are_the_dense_ones(device) -> None:
    mu, logvar = samples((6, 301), device=device)
    seed, backward = torch.tensor([4]), torch.ops.genfast._reparameterize_backward
    one, two = (torch.tensor(v, device=device) for v in (0.7, -1.5))
    given = one.expand(6, 301), two.expand(6)
    dense = [g.contiguous() for g in given]
    every_other = torch.stack((dense[1], dense[1] + 1), 1)[:, 0]
    wanted = backward(*dense, mu, logvar, seed, 0)
    for grads in (given, (given[0], every_other), (dense[0].t().contiguous().t(), given[1])):
        for a, b in zip(backward(*grads, mu, logvar, seed, 0), wanted, strict=True):
            assert torch.equal(a, b)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(4, 20), (5, 3, 4, 2), (2, 2500), (0, 8), (6,)], ids=str)
@pytest.mark.parametrize(("beta", "free_bits"), [WEIGHTS[0], WEIGHTS[-1]])
def test_triton_matches_reference(beta, free_bits, shape, dtype) -> None:
    kernels = triton_kernels("reparameterize")
    mu, logvar = samples(shape, dtype, DEVICE)
    ours = kernels.reparameterize(mu, logvar, torch.tensor([9]), 5, beta, free_bits)
    wanted = eager_and_exact(mu, logvar, 9, 5, beta, free_bits)
    for result, eager, exact in zip(ours, *wanted, strict=True):
        assert_as_accurate_as_eager(result.cpu(), eager, exact)
    grads = (torch.randn_like(mu), torch.randn_like(ours[1]))
    for grad_z, grad_kl in (grads, (grads[0], None), (None, grads[1])):
        arguments = (grad_z, grad_kl, mu, logvar, torch.tensor([9]), 5, beta, free_bits)
        triton = kernels.reparameterize_backward(*arguments)
        native = torch.ops.genfast._reparameterize_backward(*arguments)
        exact = torch.ops.genfast._reparameterize_backward(
            *(a.double() if a is not None else None for a in arguments[:4]), *arguments[4:]
        )
        for ours_grad, native_grad, exact_grad in zip(triton, native, exact, strict=True):
            assert_as_accurate_as_eager(ours_grad.cpu(), native_grad.cpu(), exact_grad.cpu())


def test_triton_compiles_ahead() -> None:
    kernels = []
    for t in ("fp32", "bf16", "fp16"):
        common = {"seed": "*i64", "offset": "i64", "D": "i64"}
        common |= {"mu_stride_n": "i64", "logvar_stride_n": "i64"}
        common |= {"beta": "fp32", "free_bits": "fp32"}
        forward = common | dict.fromkeys(("mu", "logvar", "z", "kl"), f"*{t}")
        flags = {"HAS_FREE_BITS": True, "BLOCK": 1024}
        kernels.append(("_reparameterize_fwd_kernel", forward, flags))
        names = ("grad_z", "grad_kl", "mu", "logvar", "grad_mu", "grad_logvar")
        backward = common | dict.fromkeys(names, f"*{t}")
        flags = {"HAS_GRAD_Z": True, "HAS_GRAD_KL": True, "HAS_FREE_BITS": True, "BLOCK": 64}
        kernels.append(("_reparameterize_bwd_kernel", backward, flags))
    compile_ahead("reparameterize", kernels)


def test_strides_change_nothing(device) -> None:
    mu, logvar = samples((6, 4, 5), device=device)
    packed = reparameterize(mu, logvar, seed=1)
    halves = torch.cat((mu, logvar), dim=1)
    variants = {
        "split halves": halves.chunk(2, dim=1),
        "transposed": tuple(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (mu, logvar)),
        "every other row": tuple(t.repeat_interleave(2, 0)[::2] for t in (mu, logvar)),
        "mixed": (halves[:, :4], logvar),
    }
    for name, (m, v) in variants.items():
        assert torch.equal(m, mu), name
        for a, b in zip(packed, reparameterize(m, v, seed=1), strict=True):
            assert torch.equal(a, b), name


def test_gradients_match_reference(device) -> None:
    mu, logvar = samples((7, 33), device=device)
    weights = torch.randn(7, 33, device=device), torch.randn(7, device=device)
    noise = philox_normal(mu.shape, seed=2, device=device)

    def reference(mu, logvar):
        return expected(mu, logvar, noise.to(mu))

    ours = loss_gradients(lambda m, v: reparameterize(m, v, seed=2), mu, logvar, weights)
    eager, exact = (
        loss_gradients(reference, mu, logvar, weights),
        loss_gradients(reference, mu.double(), logvar.double(), weights),
    )
    for a, b, c in zip(ours, eager, exact, strict=True):
        assert_as_accurate_as_eager(a, b, c)


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_one_output_alone(device, output) -> None:
    mu, logvar = (t.requires_grad_() for t in samples((3, 4), torch.float64, device))
    ours = torch.autograd.grad(reparameterize(mu, logvar, seed=2)[output].sum(), (mu, logvar))
    noise = philox_normal(mu.shape, seed=2, dtype=torch.float64, device=device)
    wanted = torch.autograd.grad(expected(mu, logvar, noise)[output].sum(), (mu, logvar))
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("beta", "free_bits"), WEIGHTS)
def test_gradcheck(device, beta, free_bits) -> None:
    arguments = tuple(t.requires_grad_() for t in samples((3, 5), torch.float64, device))

    def draw(mu, logvar):
        return reparameterize(mu, logvar, seed=4, offset=3, beta=beta, free_bits=free_bits)

    assert torch.autograd.gradcheck(draw, arguments)


def test_second_derivative_is_refused_not_zero(device) -> None:
    mu, logvar = (t.requires_grad_() for t in samples((3, 5), device=device))
    kl = reparameterize(mu, logvar, seed=4)[1].sum()
    (gradient,) = torch.autograd.grad(kl, mu, create_graph=True)
    with pytest.raises(RuntimeError, match="expected a first derivative"):
        gradient.sum().backward()


def test_opcheck(device) -> None:
    mu, logvar = (t.requires_grad_() for t in samples((3, 5), device=device))
    seed = torch.tensor([3])
    torch.library.opcheck(torch.ops.genfast.reparameterize.default, (mu, logvar, seed, 1))
    m, v = mu.detach(), logvar.detach()
    backward = torch.ops.genfast._reparameterize_backward.default
    torch.library.opcheck(backward, (m, None, m, v, seed, 1))
    torch.library.opcheck(backward, (m, v.sum(1), m, v, seed, 1))
    weights = (0.5, 0.7)
    torch.library.opcheck(torch.ops.genfast.reparameterize.default, (mu, logvar, seed, 1, *weights))
    torch.library.opcheck(backward, (m, v.sum(1), m, v, seed, 1, *weights))


@pytest.mark.parametrize(("beta", "free_bits"), [WEIGHTS[0], WEIGHTS[-1]])
def test_compiles_without_graph_breaks(beta, free_bits) -> None:
    def loss(mu, logvar):
        z, kl = reparameterize(mu, logvar, seed=8, beta=beta, free_bits=free_bits)
        return z.square().sum() + kl.sum()

    mu, logvar = (t.requires_grad_() for t in samples((9, 6)))
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(mu, logvar), loss(mu, logvar))
    for a, b in zip(
        torch.autograd.grad(compiled(mu, logvar), (mu, logvar)),
        torch.autograd.grad(loss(mu, logvar), (mu, logvar)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_autocast_computes_in_float32(device) -> None:
    mu, logvar = samples((3, 5), torch.bfloat16, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        z, kl = reparameterize(mu, logvar, seed=1)
    assert z.dtype == kl.dtype == torch.float32


def test_refuses_bad_input() -> None:
    mu, logvar = samples((3, 5))
    with pytest.raises(
        InputError, match=r"expected logvar of the shape of mu \(3, 5\), got logvar"
    ):
        reparameterize(mu, logvar[:2])
    with pytest.raises(
        InputError, match=r"expected logvar of the dtype and device of mu .* got log"
    ):
        reparameterize(mu, logvar.double())
    with pytest.raises(InputError, match=r"expected floating point mu of shape \[N, ...\], got"):
        reparameterize(mu.long(), logvar.long())
    with pytest.raises(InputError, match=r"expected floating point mu of shape \[N, ...\], got"):
        reparameterize(mu[0, 0], logvar[0, 0])
    with pytest.raises(InputError, match=r"expected offset >= 0, got offset=-2"):
        reparameterize(mu, logvar, offset=-2)
    op = torch.ops.genfast.reparameterize
    with pytest.raises(RuntimeError, match="expected logvar of the shape of mu"):
        op(mu, logvar[:2], torch.tensor([1]), 0)
    with pytest.raises(RuntimeError, match="expected offset >= 0, got offset=-1"):
        op(mu, logvar, torch.tensor([1]), -1)
    with pytest.raises(RuntimeError, match="expected a floating point tensor"):
        op(mu.long(), logvar.long(), torch.tensor([1]), 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_draws_the_same_noise(dtype) -> None:
    mu, logvar = samples((40, 33), dtype)
    ours = reparameterize(mu, logvar, seed=5, offset=6)
    plain = reparameterize_reference(mu, logvar, torch.tensor([5]), 6)
    # Its normals may lie 2 ulp of float32 beside the kernels', at every dtype.
    tolerance = max(4 * torch.finfo(dtype).eps, 1e-6)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=8 * tolerance)


def test_inputs_are_not_changed(device) -> None:
    mu, logvar = samples((3, 5), device=device)
    before = mu.clone(), logvar.clone()
    reparameterize(mu, logvar)
    assert torch.equal(mu, before[0])
    assert torch.equal(logvar, before[1])


@pytest.mark.parametrize("free_bits", [0.0, 0.5])
def test_nan_stays_where_it_is(device, free_bits) -> None:
    mu, logvar = samples((4, 6), device=device)
    mu[1, 2] = logvar[3, 4] = math.nan
    leaves = [t.requires_grad_() for t in (mu, logvar)]
    z, kl = reparameterize(mu, logvar, seed=1, free_bits=free_bits)
    bad = mu.isnan() | logvar.isnan()
    assert torch.equal(z.isnan(), bad)
    assert kl.isnan().tolist() == [False, True, False, True]
    grads = torch.autograd.grad(kl.sum(), leaves)
    assert torch.equal(grads[0].isnan() | grads[1].isnan(), bad)


@pytest.mark.parametrize("free_bits", [0.0, 0.5])
def test_extreme_log_variances_do_as_the_reference(device, free_bits) -> None:
    logvar = torch.tensor([[1e4, -1e4, 88.0, -88.0, 30.0, -30.0, 1e-4, -1e-4]], device=device)
    mu = torch.linspace(-1e4, 1e4, 8, device=device)[None]
    ours = reparameterize(mu, logvar, seed=1, free_bits=free_bits)
    wanted = reparameterize_reference(mu, logvar, torch.tensor([1]), 0, 1.0, free_bits)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


def test_noise_is_the_stream(device) -> None:
    zeros = torch.zeros(4, 6, device=device)
    z, kl = reparameterize(zeros, zeros, seed=31, offset=2)
    assert torch.equal(z.flatten(), philox_normal((24,), seed=31, offset=2, device=device))
    assert torch.equal(kl, torch.zeros(4, device=device))


def test_splitting_the_batch_changes_nothing(device, threads) -> None:
    mu, logvar = samples((64, 91), device=device)
    weights = {"seed": 6, "beta": 0.5, "free_bits": 0.3}
    whole = reparameterize(mu, logvar, **weights)
    first = reparameterize(mu[:23], logvar[:23], **weights)
    rest = reparameterize(mu[23:], logvar[23:], **weights, offset=23 * 91)
    for w, a, b in zip(whole, first, rest, strict=True):
        assert torch.equal(w, torch.cat((a, b)))


def test_moments() -> None:
    mu, logvar = torch.full((200_000, 1), 1.5), torch.full((200_000, 1), math.log(4.0))
    z, kl = reparameterize(mu, logvar, seed=77)
    assert abs(z.mean().item() - 1.5) < 5 * 2 / math.sqrt(200_000)
    assert abs(z.std().item() - 2.0) < 5 * 2 / math.sqrt(2 * 200_000)
    torch.testing.assert_close(
        kl[0].item(), 0.5 * (1.5**2 + 4 - 1 - math.log(4)), rtol=1e-6, atol=0
    )


def test_refuses_to_run_past_the_end_of_the_stream() -> None:
    mu, logvar = samples((3, 5))
    with pytest.raises(InputError, match=r"expected offset \+ 15 elements < 2\*\*63, got offset="):
        reparameterize(mu, logvar, seed=1, offset=2**63 - 15)
    with pytest.raises(RuntimeError, match=r"expected offset \+ 15 elements < 2\*\*63"):
        torch.ops.genfast.reparameterize(mu, logvar, torch.tensor([1]), 2**63 - 15)


def test_backward_refuses_gradients_that_do_not_fit(device) -> None:
    mu, logvar = samples((3, 5), device=device)
    seed, backward = torch.tensor([1]), torch.ops.genfast._reparameterize_backward
    for grad_z in (mu[:2], mu.double()):
        with pytest.raises(RuntimeError, match="reparameterize: expected grad_z of the"):
            backward(grad_z, None, mu, logvar, seed, 0)
    for grad_kl in (mu[:2, 0], mu[:, 0].double(), mu[:, :1]):
        with pytest.raises(RuntimeError, match=r"expected grad_kl of shape \[N\] and of the dtype"):
            backward(None, grad_kl, mu, logvar, seed, 0)


def test_function_transforms() -> None:
    mu, logvar = samples((3, 5))

    def loss(means):
        z, kl = reparameterize(means, logvar, seed=4)
        return z.square().sum() + kl.sum()

    leaf = mu.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(mu), expected)
    _, slope = torch.func.jvp(loss, (mu,), (torch.ones_like(mu),))
    torch.testing.assert_close(slope, expected.sum())
    batch = torch.stack((mu, mu + 1))
    torch.testing.assert_close(torch.func.vmap(loss)(batch), torch.stack([*map(loss, batch)]))
