"""Numbers too small to be normal: zero inside convolutions, and nowhere else."""

import platform

import pytest
import torch

from genfast.ops import causal_conv1d, masked_conv2d

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors take them as they are"
)

TINY = torch.finfo(torch.float32).tiny


def convolve(x: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(3, 3, dtype=torch.bool)
    return masked_conv2d(x, torch.ones(4, 4, 3, 3), mask, padding=1)


def convolve_sound(x: torch.Tensor) -> torch.Tensor:
    return causal_conv1d(x.flatten(2), torch.ones(8, 4, 2), skip_weight=torch.ones(4, 4, 1))[1]


@pytest.mark.parametrize("convolution", [convolve, convolve_sound])
def test_subnormal_operands_count_as_zero(convolution) -> None:
    x = torch.randn(1, 4, 9, 40)
    x[..., ::3] = TINY / 8
    zeroed = x.where(x.abs() >= TINY, 0)
    assert not torch.equal(x, zeroed)
    x, zeroed = x.requires_grad_(), zeroed.requires_grad_()
    results = [convolution(x), convolution(zeroed)]
    assert torch.equal(*results)
    grads = [torch.autograd.grad(y.sum(), z)[0] for y, z in zip(results, (x, zeroed), strict=True)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("convolution", [convolve, convolve_sound])
@pytest.mark.parametrize("threads", [1, 2])
def test_other_arithmetic_keeps_its_subnormals(convolution, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(8, 4, 64, 64, requires_grad=True)
        y = convolution(x)
        y.sum().backward()
        small = torch.full((1 << 20,), TINY / 8)  # enough for all threads
        assert bool((small * 0.5 == TINY / 16).all())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("activation", ["elu", "gate"])
def test_saturated_units_have_no_subnormal_gradients(activation: str) -> None:
    before = -torch.linspace(0, 120, 2000).view(1, 2, 40, 25)
    grad = torch.full((1, 1 if activation == "gate" else 2, 40, 25), 1e-3)
    operator = torch.ops.genfast._masked_conv2d_activation_backward
    gradient, _ = operator(grad, before, activation, False)
    assert gradient[gradient != 0].abs().min() >= TINY
