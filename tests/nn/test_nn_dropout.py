"""Dropout: torch's, with noise of its own on the CPU."""

import pytest
import torch
from torch import nn

from genfast.nn import Dropout


def dropped(x, p=0.3, seed=0):
    torch.manual_seed(seed)
    return Dropout(p)(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_share_p_is_zero_and_the_rest_is_scaled(dtype):
    x = torch.rand(7, 13, 1000, dtype=dtype) + 0.5
    y = dropped(x)
    zeros = y == 0
    # Five standard deviations of the mean of as many coins.
    assert abs(zeros.double().mean().item() - 0.3) < 5 * (0.3 * 0.7 / x.numel()) ** 0.5
    expected = (x[~zeros].double() / 0.7).to(dtype)
    torch.testing.assert_close(y[~zeros], expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
    neighbours = (zeros[..., 1:] & zeros[..., :-1]).double().mean().item()
    assert abs(neighbours - 0.09) < 0.01


def test_zeros_follow_torchs_seed_and_differ_from_call_to_call():
    x = torch.ones(999)
    assert torch.equal(dropped(x, seed=1), dropped(x, seed=1))
    assert not torch.equal(dropped(x, seed=1), dropped(x, seed=2))
    layer = Dropout()
    assert not torch.equal(layer(x), layer(x))


def test_gradients_have_the_same_zeros():
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    y = dropped(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient == 0, y == 0)
    assert torch.autograd.gradcheck(dropped, x)
    assert torch.autograd.gradgradcheck(dropped, x)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_none_and_all(p):
    x = torch.randn(4, 5)
    assert torch.equal(Dropout(p)(x), (1 - p) * x)


def test_eval_mode_returns_the_input():
    x = torch.randn(3)
    assert Dropout(0.9).eval()(x) is x


def test_nothing_and_odd_strides():
    assert Dropout()(torch.empty(0, 3)).shape == (0, 3)
    x = torch.ones(6, 8).t()[::2]
    assert torch.equal(dropped(x), dropped(x.contiguous()))


def test_it_is_torchs_layer_in_all_else():
    layer = Dropout(0.25)
    assert isinstance(layer, nn.Dropout)
    assert repr(layer) == repr(nn.Dropout(0.25))
    with pytest.raises(ValueError, match="has to be between 0 and 1"):
        Dropout(1.5)


def test_compiled_without_graph_breaks():
    x = torch.randn(40)
    compiled = torch.compile(Dropout(0.3), fullgraph=True)
    torch.manual_seed(0)
    assert torch.equal(compiled(x), dropped(x))
    assert not torch.equal(compiled(x), compiled(x))
