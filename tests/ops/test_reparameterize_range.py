"""reparameterize where exp(logvar) or its root has no number: infinities, and never NaN."""

import itertools

import pytest
import torch
from mpmath import mp, mpf

from genfast.ops import philox_normal, reparameterize
from tests.triton_support import DEVICE, on_gpu, triton_kernels

# Around 0, the ends of float32 (exp(88.7), its root at 177.4) and of float64 (709.8 and 1419.6).
EDGES = [1e-3, 1.0, 60.0, 88.5, 89.0, 100.0, 177.0, 178.0, 700.0, 709.5, 710.0, 1419.0, 1421.0, 1e4]
LOGVARS = [-v for v in reversed(EDGES)] + [0.0] + EDGES
MEANS = [-1e4, -0.5, 0.0, 2.0]
# (gradient of z, gradient of kl); None: only the other output was used.
GRADIENTS = [
    (1.0, None),
    (-3.0, None),
    (None, 1.0),
    (None, 1e-4),
    (1.0, 1.0),
    (-1.0, 1.0),
    (-2.5, 1e-6),
    (1.0, -1.0),
    (0.0, 1.0),
    (1.0, 0.0),
]
WEIGHTS = [(1.0, 0.0), (0.0, 0.0), (0.25, 0.7)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCES = {
    torch.float32: 2e-5,  # of exp(logvar / 2) at the end of its range, squared
    torch.float64: 1e-12,
    torch.bfloat16: 8e-3,
    torch.float16: 2e-3,
}
SEED = 3


def grid(dtype, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    axes = (torch.tensor(values, dtype=torch.float64) for values in (MEANS, LOGVARS))
    return tuple(t.to(device, dtype) for t in torch.meshgrid(*axes, indexing="ij"))


def columns(*tensors):
    return zip(*(tensor.double().flatten().tolist() for tensor in tensors), strict=True)


def exact(mu, logvar, noise, gradients, beta, free_bits):
    """z, kl and both gradients of each element, in numbers without a largest one."""
    mp.dps = 40
    of_z, of_kl = (mpf(g or 0) for g in gradients)
    for m, v, e in columns(mu, logvar, noise):
        std, variance = mp.exp(mpf(v) / 2), mp.exp(mpf(v))
        kl = (mpf(m) ** 2 + mp.expm1(mpf(v)) - mpf(v)) / 2
        flat = free_bits > 0 and kl <= free_bits
        slope = 0 if flat else of_kl * mpf(beta)
        yield (
            m + std * mpf(e),
            mpf(beta) * (mpf(free_bits) if flat else kl),
            of_z + slope * m,
            (of_z * std * mpf(e) + slope * (variance - 1)) / 2,
        )


def assert_right_or_overflown(ours, wanted, logvar, dtype) -> None:
    """Right where exp(logvar) has a number, else right or an infinity of the right sign."""
    computed = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    largest = mpf(torch.finfo(dtype).max)
    bound = mp.log(mpf(torch.finfo(computed).max)) - mpf("0.001")
    for value, right, (v,) in zip(ours, wanted, columns(logvar), strict=True):
        where = f"logvar={v}: got {value}, expected {mp.nstr(right, 8)}"
        fits = abs(right) < largest * mpf("0.99")
        if value in (float("inf"), -float("inf")):
            assert (value > 0) == (right > 0), where
            assert v > bound or not fits, where
        else:
            assert fits or abs(value) > 0.9 * largest, where
            error = abs(mpf(value) - right)
            tiny = 4 * mpf(torch.finfo(dtype).tiny)
            # exp(logvar) - 1 - logvar loses digits at small logvar; the KL is near 0 there.
            assert error <= TOLERANCES[dtype] * (abs(right) + mpf("0.01")) + tiny, where


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_over_the_whole_range(device, dtype) -> None:
    check_values(dtype, device, reparameterize_values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_over_the_whole_range(device, dtype) -> None:
    check_gradients(dtype, device, torch.ops.genfast._reparameterize_backward)


def test_the_whole_range_on_every_simd_level(simd_level) -> None:
    for dtype in (torch.float32, torch.float64):
        check_values(dtype, "cpu", reparameterize_values)
        check_gradients(dtype, "cpu", torch.ops.genfast._reparameterize_backward)


@on_gpu
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, under the interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_whole_range_in_triton(dtype) -> None:
    kernels = triton_kernels("reparameterize")
    # The interpreter takes its time for each row.
    check_values(dtype, DEVICE, kernels.reparameterize, rows=1)
    check_gradients(dtype, DEVICE, kernels.reparameterize_backward, WEIGHTS[1:])


def reparameterize_values(mu, logvar, seed, offset, beta, free_bits):
    return reparameterize(mu, logvar, seed=int(seed), offset=offset, beta=beta, free_bits=free_bits)


def check_values(dtype, device, function, rows=4) -> None:
    # The divergence of an example is that of one dimension here.
    mu, logvar = (t[-rows:].reshape(-1, 1) for t in grid(dtype, device))
    noise = philox_normal(mu.shape, seed=SEED)
    for beta, free_bits in WEIGHTS:
        ours = function(mu, logvar, torch.tensor([SEED]), 0, beta, free_bits)
        wanted = zip(*exact(mu, logvar, noise, (0, 0), beta, free_bits), strict=True)
        for result, right in zip(ours, list(wanted)[:2], strict=True):
            assert_right_or_overflown(result.double().flatten().tolist(), right, logvar, dtype)


def check_gradients(dtype, device, function, weights=WEIGHTS) -> None:
    mu, logvar = grid(dtype, device)
    noise = philox_normal(mu.shape, seed=SEED)
    for (beta, free_bits), gradients in itertools.product(weights, GRADIENTS):
        of_z, of_kl = (
            None if g is None else torch.full(shape, g, dtype=dtype, device=device)
            for g, shape in zip(gradients, (mu.shape, mu.shape[:1]), strict=True)
        )
        ours = function(of_z, of_kl, mu, logvar, torch.tensor([SEED]), 0, beta, free_bits)
        rounded = [g if g is None else g.flatten()[0].item() for g in (of_z, of_kl)]
        wanted = zip(*exact(mu, logvar, noise, rounded, beta, free_bits), strict=True)
        for result, right in zip(ours, list(wanted)[2:], strict=True):
            assert_right_or_overflown(result.double().flatten().tolist(), right, logvar, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_of_one_output_alone_is_as_plain_torch_has_it(device, dtype) -> None:
    logvar = torch.tensor([[88.0, 100.0, 150.0, 200.0, -1e4]], dtype=dtype, device=device)
    mu = torch.zeros_like(logvar)
    leaves = mu.requires_grad_(), logvar.requires_grad_()
    noise = philox_normal(mu.shape, seed=SEED, device=device)
    for output in (0, 1):
        ours = torch.autograd.grad(reparameterize(*leaves, seed=SEED)[output].sum(), leaves)
        wide = mu.float(), logvar.float()
        plain = (
            wide[0] + torch.exp(wide[1] / 2) * noise,
            0.5 * (wide[0].square() + torch.expm1(wide[1]) - wide[1]),
        )[output]
        wanted = torch.autograd.grad(plain.sum(), leaves, allow_unused=True)
        for a, b in zip(ours, wanted, strict=True):
            assert not a.isnan().any()
            torch.testing.assert_close(a, b)


def test_nan_does_not_reach_the_gradient_of_an_output_that_lacks_it(device) -> None:
    mu = torch.tensor([[float("nan"), 1.0]], device=device, requires_grad=True)
    logvar = torch.zeros_like(mu, requires_grad=True)
    z, kl = reparameterize(mu, logvar, seed=SEED)
    grads = torch.autograd.grad(z.sum(), (mu, logvar), retain_graph=True)
    assert torch.equal(grads[0], torch.ones_like(mu))
    assert grads[1].isfinite().all()
    grad_mu, grad_logvar = torch.autograd.grad(kl.sum(), (mu, logvar))
    assert grad_mu.isnan().tolist() == [[True, False]]
    assert not grad_logvar.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_noise_of_zero_takes_nothing_from_an_infinite_deviation(device, dtype) -> None:
    # About one normal in four million is exactly zero.
    noise = philox_normal((1 << 21,), seed=0)
    at = int((noise == 0).nonzero()[0])
    mu = torch.full((1, 1), 1.5, dtype=dtype, device=device, requires_grad=True)
    logvar = torch.full_like(mu, 1e4, requires_grad=True)
    z, _ = reparameterize(mu, logvar, seed=0, offset=at)
    assert z.item() == 1.5
    assert torch.autograd.grad(z.sum(), logvar)[0].item() == 0
