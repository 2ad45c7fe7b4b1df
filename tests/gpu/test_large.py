"""Tensors of more than 2^31 elements on a GPU: what lies beyond is computed as what lies before.

Inputs are rows repeated without memory of their own where the op takes them so, and bfloat16. On
the CPU the same tests run on few elements.
"""

from dataclasses import dataclass

import pytest
import torch

from genfast import ops

# Past 2^31 by more than any block of a kernel.
BEYOND = 2**31 + 2**20


@dataclass(frozen=True)
class Place:
    device: torch.device
    rows_small: int

    def rows(self, each: int) -> int:
        """How many rows of `each` elements: few on the CPU, more than 2^31 elements on a GPU."""
        return self.rows_small if self.device.type == "cpu" else -(-BEYOND // each)

    def need(self, gib: int) -> None:
        """Skip where this much memory is not free."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info(self.device)[0] / 2**30
            if free < gib:
                pytest.skip(f"{gib} GiB of GPU memory are not free, {free:.0f} are")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.slow])])
def place(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    yield Place(torch.device(request.param), 5)
    if request.param == "cuda":
        torch.cuda.empty_cache()


def leaf(*shape: int, place: Place) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=place.device)


@pytest.mark.parametrize("draw", [ops.philox_uniform, ops.philox_normal])
def test_philox_large(place, draw) -> None:
    place.need(12)
    count = place.rows(1024) * 1024 + 3
    out = draw((count,), seed=7, device=place.device)
    last = draw((2049,), seed=7, offset=count - 2049, device=place.device)
    assert torch.equal(out[-2049:], last)


def test_reparameterize_large(place) -> None:
    place.need(24)
    row = leaf(1, 1000, place=place), leaf(1, 1000, place=place)
    n = place.rows(1000)
    mu, logvar = (each.expand(n, -1).requires_grad_() for each in row)
    z, kl = ops.reparameterize(mu, logvar, seed=3)
    grads = torch.autograd.grad((z, kl), (mu, logvar), (torch.ones_like(z), torch.ones_like(kl)))
    mu, logvar = (each.detach().clone().requires_grad_() for each in row)
    last, last_kl = ops.reparameterize(mu, logvar, seed=3, offset=(n - 1) * 1000)
    ones = torch.ones_like(last), torch.ones_like(last_kl)
    wanted = torch.autograd.grad((last, last_kl), (mu, logvar), ones)
    assert torch.equal(z[-1:], last)
    assert torch.equal(kl[-1:], last_kl)
    for ours, theirs in zip(grads, wanted, strict=True):
        assert torch.equal(ours[-1:], theirs)


def test_gan_loss_large(place) -> None:
    place.need(24)
    count = place.rows(1024) * 1024 + 5
    fake = torch.zeros(count, dtype=torch.bfloat16, device=place.device)
    fake[-5:] = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0])
    fake.requires_grad_()
    loss = ops.gan_loss(fake=fake, role="generator", kind="least_squares")
    grad_loss = torch.tensor(float(count), device=place.device)
    (grad,) = torch.autograd.grad(loss, fake, grad_loss)
    # Terms (x - 1)^2 / 2: 1/2 for each zero, and 0, 9/2, 2, 25/2, 8.
    expected = ((count - 5) * 0.5 + 27.0) / count
    torch.testing.assert_close(loss.item(), expected, rtol=1e-6, atol=0)
    assert grad[-5:].tolist() == [0.0, -3.0, 2.0, -5.0, 4.0]
    assert grad[-(2**10) : -5].eq(-1).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_gated_activation_large(place, channels_last) -> None:
    place.need(32)
    row = leaf(1, 64, 16, 32, place=place)
    if channels_last:
        row = row.to(memory_format=torch.channels_last)
    n = place.rows(32 * 16 * 32)
    x = row.expand(n, -1, -1, -1).requires_grad_()
    condition = leaf(1, 64, place=place).expand(n, -1)
    out = ops.gated_activation(x, condition)
    (grad,) = torch.autograd.grad(out.sum(), x)
    alone = row.clone().requires_grad_()
    wanted = ops.gated_activation(alone, condition[:1])
    assert torch.equal(out[-1:], wanted)
    assert torch.equal(grad[-1:], torch.autograd.grad(wanted.sum(), alone)[0])


@pytest.mark.parametrize("layout", ["KC", "CK"])
def test_categorical_nll_large(place, layout) -> None:
    place.need(24)
    shape = (256, 3, 100) if layout == "KC" else (3, 256, 100)
    row = leaf(1, *shape, place=place)
    n = place.rows(256 * 300)
    logits = row.expand(n, -1, -1, -1).requires_grad_()
    symbols = torch.randint(0, 256, (1, 3, 100), device=place.device)
    losses = ops.categorical_nll(logits, symbols.expand(n, -1, -1), layout=layout)
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    alone = row.clone().requires_grad_()
    wanted = ops.categorical_nll(alone, symbols, layout=layout)
    assert torch.equal(losses[-1:], wanted)
    assert torch.equal(grad[-1:], torch.autograd.grad(wanted.sum(), alone)[0])


def test_logistic_mixture_nll_large(place) -> None:
    place.need(40)
    row = leaf(1, 30, 1000, place=place)
    n = place.rows(30_000)
    parameters = row.expand(n, -1, -1).requires_grad_()
    symbols = torch.randint(0, 256, (1, 3, 1000), device=place.device)
    losses = ops.logistic_mixture_nll(parameters, symbols.expand(n, -1, -1))
    (grad,) = torch.autograd.grad(losses.sum(), parameters)
    alone = row.clone().requires_grad_()
    wanted = ops.logistic_mixture_nll(alone, symbols)
    assert torch.equal(losses[-1:], wanted)
    assert torch.equal(grad[-1:], torch.autograd.grad(wanted.sum(), alone)[0])


def test_masked_conv2d_large(place) -> None:
    place.need(24)
    row = leaf(1, 2, 32, 32, place=place)
    n = place.rows(64 * 32 * 32)
    x = row.expand(n, -1, -1, -1).requires_grad_()
    weight = leaf(64, 2, 1, 2, place=place).requires_grad_()
    mask = torch.tensor([[True, False]], device=place.device)
    out = ops.masked_conv2d(x, weight, mask, padding=(0, 1))[..., :-1]
    slope = leaf(1, 64, 32, 32, place=place)
    (grad,) = torch.autograd.grad(out, x, slope.expand_as(out))
    alone = row.clone().requires_grad_()
    wanted = ops.masked_conv2d(alone, weight, mask, padding=(0, 1))[..., :-1]
    assert torch.equal(out[-1:], wanted)
    assert torch.equal(grad[-1:], torch.autograd.grad(wanted, alone, slope)[0])
