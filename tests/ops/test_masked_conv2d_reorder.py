"""Copies of images that are contiguous or channels last: what masked_conv2d works with."""

import pytest
import torch

from genfast.ops import masked_conv2d

pytest.importorskip("genfast._C")

SHAPES = [(2, 3, 5, 7), (1, 16, 4, 8), (3, 33, 17, 1), (2, 64, 1, 31), (1, 1, 9, 9), (0, 3, 4, 4)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8]


def reordered(x, channels_last):
    return torch.ops.genfast._masked_conv2d_reorder(x, channels_last)


def memory_format(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format


def check(x, channels_last):
    out = reordered(x, channels_last)
    assert out.is_contiguous(memory_format=memory_format(channels_last))
    assert out.data_ptr() != x.data_ptr() or x.numel() == 0
    assert torch.equal(out, x)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_copies_every_number(simd_level, shape, dtype, channels_last):
    x = (100 * torch.rand(shape)).to(dtype)
    check(x.contiguous(memory_format=memory_format(not channels_last)), channels_last)
    check(x.contiguous(memory_format=memory_format(channels_last)), channels_last)
    check(x.transpose(2, 3), channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bits_survive(channels_last):
    bits = torch.randint(-(2**31), 2**31 - 1, (2, 20, 6, 7), dtype=torch.int32)
    x = bits.contiguous(memory_format=memory_format(not channels_last)).view(torch.float32)
    assert torch.equal(reordered(x, channels_last).view(torch.int32), bits)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_and_derivatives(channels_last):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format(not channels_last)).requires_grad_()
    torch.library.opcheck(torch.ops.genfast._masked_conv2d_reorder.default, (x, channels_last))
    assert torch.autograd.gradcheck(reordered, (x, channels_last))
    assert torch.autograd.gradgradcheck(reordered, (x, channels_last))


def test_it_refuses_what_are_no_images():
    with pytest.raises(RuntimeError, match=r"expected x of shape \[N, C, H, W\]"):
        reordered(torch.ones(3, 4), True)


def test_a_convolution_of_channels_last_images_keeps_them_so_there_and_back():
    weight, mask = torch.randn(20, 17, 3, 3), torch.ones(3, 3)
    x = torch.randn(2, 17, 8, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = masked_conv2d(x, weight, mask, padding=1)
    assert out.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(out.shape).contiguous(memory_format=torch.channels_last)
    (ours,) = torch.autograd.grad(out, x, grad)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    plain = x.detach().contiguous().requires_grad_()
    (expected,) = torch.autograd.grad(masked_conv2d(plain, weight, mask, padding=1), plain, grad)
    assert torch.equal(ours, expected)
