"""Arguments of all ops: kinds of numbers and dtypes, autocast; every refusal is an InputError."""

import itertools

import numpy as np
import pytest
import torch

from genfast import ops
from genfast.errors import InputError

CONV = {"x": torch.randn(2, 4, 6, 6), "weight": torch.randn(4, 4, 3, 3), "mask": torch.ones(3, 3)}
LAYER = {
    "x": torch.randn(2, 3, 9),
    "weight": torch.randn(4, 3, 2),
    "skip_weight": torch.randn(5, 2, 1),
}
LATENT = {"mu": torch.randn(3, 4), "logvar": torch.randn(3, 4)}
MIXTURE = {"parameters": torch.randn(2, 6, 4), "symbols": torch.zeros(2, 1, 4, dtype=torch.int64)}
CLASSES = {"logits": torch.randn(2, 6, 4), "symbols": torch.zeros(2, 4, dtype=torch.int64)}
GAN = {"fake": torch.randn(4), "real": torch.randn(4)}
PIXELS = "an integer or a pair of integers"

REFUSED = [
    (ops.masked_conv2d, CONV, "taps", [0.5], "expected ascending taps .* got taps="),
    (ops.masked_conv2d, CONV, "taps", [0, True], "expected ascending taps"),
    (ops.masked_conv2d, CONV, "taps", "01", "expected ascending taps"),
    (ops.masked_conv2d, CONV, "groups", 1.0, "expected an integer .* got groups=1.0"),
    (ops.masked_conv2d, CONV, "groups", 0, "expected an integer .* got groups=0"),
    (ops.masked_conv2d, CONV, "groups", (1,), "expected an integer .* got groups="),
    (ops.masked_conv2d, CONV, "groups", True, "expected an integer .* got groups=True"),
    (ops.masked_conv2d, CONV, "stride", 1.0, f"expected {PIXELS}"),
    (ops.masked_conv2d, CONV, "stride", True, f"expected {PIXELS}"),
    (ops.masked_conv2d, CONV, "stride", None, f"expected {PIXELS}"),
    (ops.masked_conv2d, CONV, "stride", 2**31, f"expected {PIXELS}"),
    (ops.masked_conv2d, CONV, "dilation", 2**62, f"expected {PIXELS}"),
    (ops.masked_conv2d, CONV, "dilation", (1, False), f"expected {PIXELS}"),
    (ops.masked_conv2d, CONV, "padding", 2**62, "expected .* none beyond 2147483647, got padding="),
    (
        ops.masked_conv2d,
        CONV,
        "padding",
        (2**63,) * 4,
        "expected .* none beyond 2147483647, got padding=",
    ),
    (ops.masked_conv2d, CONV, "padding", (1, 1, 1, -(2**62)), "expected .* got padding="),
    (ops.masked_conv2d, CONV, "padding", True, f"expected {PIXELS}"),
    (ops.masked_conv2d, CONV, "mask", None, "expected a tensor, got mask=None"),
    (ops.masked_conv2d, CONV, "weight", None, "expected a tensor, got weight=None"),
    (ops.masked_conv2d, CONV, "x", np.zeros((1, 1, 1, 1)), "expected a tensor, got x="),
    (ops.causal_conv1d, LAYER, "dilation", True, "expected an integer .* got dilation=True"),
    (ops.causal_conv1d, LAYER, "dilation", 2.0, "expected an integer .* got dilation=2.0"),
    (ops.causal_conv1d, LAYER, "dilation", 2**62, "expected an integer .* got dilation="),
    (ops.causal_conv1d, LAYER, "dilation", "2", "expected an integer .* got dilation='2'"),
    (ops.causal_conv1d, LAYER, "dilation", [2], r"expected an integer .* got dilation=\[2\]"),
    (ops.causal_conv1d, LAYER, "weight", None, "expected a tensor, got weight=None"),
    (ops.causal_conv1d, LAYER, "skip_weight", None, "expected a tensor, got skip_weight=None"),
    (ops.causal_conv1d, LAYER, "x", None, "expected a tensor, got x=None"),
    (ops.reparameterize, LATENT, "beta", "1", "expected a number, got beta='1'"),
    (ops.reparameterize, LATENT, "beta", torch.ones(2), "expected a number, got beta=tensor of"),
    (ops.reparameterize, LATENT, "free_bits", None, "expected a number, got free_bits=None"),
    (ops.reparameterize, LATENT, "mu", None, "expected a tensor, got mu=None"),
    (ops.reparameterize, LATENT, "logvar", 0.0, "expected a tensor, got logvar=0.0"),
    (ops.logistic_mixture_nll, MIXTURE, "levels", 256.0, "expected an integer .* levels=256.0"),
    (ops.logistic_mixture_nll, MIXTURE, "levels", 1, "expected an integer in 2 .. .* levels=1"),
    (ops.logistic_mixture_nll, MIXTURE, "levels", "256", "expected an integer .* levels='256'"),
    (ops.logistic_mixture_nll, MIXTURE, "lowest_log_scale", "-7", "expected a number, got lowest"),
    (ops.logistic_mixture_nll, MIXTURE, "formula", ["exact"], "expected formula in"),
    (ops.logistic_mixture_nll, MIXTURE, "symbols", None, "expected a tensor, got symbols=None"),
    (ops.categorical_nll, CLASSES, "symbols", None, "expected a tensor, got symbols=None"),
    (ops.categorical_nll, CLASSES, "logits", [0.0], "expected a tensor, got logits="),
    (ops.gan_loss, GAN, "fake", None, "expected a tensor, got fake=None"),
    (ops.gan_loss, GAN, "real", 1.0, "expected a tensor, got real=1.0"),
    (ops.gan_loss, GAN, "label_smoothing", "0", "expected a number, got label_smoothing='0'"),
    (ops.gated_activation, {}, "x", None, "expected a tensor, got x=None"),
    (ops.live_taps, {}, "mask", None, "expected a tensor, got mask=None"),
]


@pytest.mark.parametrize(("op", "given", "name", "value", "message"), REFUSED)
def test_refuses(op, given, name, value, message) -> None:
    where = "logistic_mixture" if op is ops.logistic_mixture_nll else op.__name__
    with pytest.raises(InputError, match=f"{where}: {message}"):
        op(**(given | {name: value}))


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, torch.tensor])
def test_other_integers_are_the_same_numbers(integer) -> None:
    one, two = integer(1), integer(2)
    options = {"stride": two, "padding": (one, one), "dilation": one, "groups": two}
    conv = CONV | {"weight": CONV["weight"][:, :2]}
    numbers = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2}
    assert torch.equal(
        ops.masked_conv2d(**conv, **options, taps=[one, two]),
        ops.masked_conv2d(**conv, **numbers, taps=[1, 2]),
    )
    for ours, wanted in zip(
        ops.causal_conv1d(**LAYER, dilation=two),
        ops.causal_conv1d(**LAYER, dilation=2),
        strict=True,
    ):
        assert torch.equal(ours, wanted)


def test_a_number_of_numpy_is_a_number() -> None:
    for ours, wanted in zip(
        ops.reparameterize(**LATENT, seed=1, beta=np.float32(0.5), free_bits=np.float64(0.25)),
        ops.reparameterize(**LATENT, seed=1, beta=0.5, free_bits=0.25),
        strict=True,
    ):
        assert torch.equal(ours, wanted)
    levels = np.int64(16)
    assert torch.equal(
        ops.logistic_mixture_nll(**MIXTURE, levels=levels),
        ops.logistic_mixture_nll(**MIXTURE, levels=16),
    )


def test_operators_refuse_geometry_beyond_their_integers() -> None:
    x, weight, mask = CONV.values()
    conv = torch.ops.genfast.masked_conv2d
    for padding in ([2**62] * 4, [2**63 - 1] * 4, [0, 0, 0, -(2**62)]):
        with pytest.raises(RuntimeError, match="masked_conv2d: expected padding"):
            conv(x, weight, mask, None, None, [1, 1], padding, [1, 1], 1)
    with pytest.raises(RuntimeError, match=r"masked_conv2d: expected a pair .* got dilation"):
        conv(x, weight, mask, None, None, [1, 1], [0] * 4, [2**62, 1], 1)
    grad = torch.ones(2, 4, 4, 4)
    with pytest.raises(RuntimeError, match=r"masked_conv2d: expected a pair .* got input_size"):
        torch.ops.genfast._masked_conv2d_grad_input(
            grad, weight, mask, None, [2**63 - 1, 6], [1, 1], [0] * 4, [1, 1], 1
        )


INTEGER_DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
WIDE = [torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", [*INTEGER_DTYPES, *WIDE], ids=str)
def test_symbols_of_every_integer_dtype(dtype) -> None:
    levels = 100
    symbols = torch.randint(0, levels, (3, 1, 7))
    parameters, logits = torch.randn(3, 6, 7), torch.randn(3, levels, 1, 7)
    given = symbols.to(dtype)
    for op in (ops.logistic_mixture_nll, ops.logistic_mixture_nll_reference):
        assert torch.equal(
            op(parameters, given, levels=levels), op(parameters, symbols, levels=levels)
        )
    for op in (ops.categorical_nll, ops.categorical_nll_reference):
        assert torch.equal(op(logits, given), op(logits, symbols))
    beyond = given.clone()
    beyond[1, 0, 3] = levels
    with pytest.raises(InputError, match=r"expected levels in 0 .. 99, got .* largest=100"):
        ops.logistic_mixture_nll(parameters, beyond, levels=levels)
    with pytest.raises(InputError, match=r"expected symbols in 0 .. 99, got .* largest=100"):
        ops.categorical_nll(logits, beyond)


def test_the_largest_level_of_sixteen_bits() -> None:
    symbols = torch.tensor([0, 40_000, 65_535]).reshape(3, 1, 1)
    parameters = torch.randn(3, 6, 1)
    ours = ops.logistic_mixture_nll(parameters, symbols.to(torch.uint16), levels=65_536)
    assert torch.equal(ours, ops.logistic_mixture_nll(parameters, symbols, levels=65_536))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32, torch.float16], ids=str)
def test_symbols_that_are_no_integers(dtype) -> None:
    with pytest.raises(InputError, match=r"expected integer levels, got symbols.dtype=torch"):
        ops.logistic_mixture_nll(MIXTURE["parameters"], MIXTURE["symbols"].to(dtype))
    with pytest.raises(InputError, match=r"expected integer symbols, got symbols.dtype=torch"):
        ops.categorical_nll(CLASSES["logits"], CLASSES["symbols"].to(dtype))


MIXED = [
    (ops.reparameterize, LATENT | {"seed": 1}),
    (ops.gan_loss, GAN),
    (ops.masked_conv2d, CONV | {"bias": torch.randn(4), "residual": torch.randn(2, 4, 4, 4)}),
    (ops.causal_conv1d, LAYER | {"bias": torch.randn(4), "condition": torch.randn(2, 4)}),
]


@pytest.mark.parametrize(("op", "given"), MIXED)
def test_autocast_makes_mixed_dtypes_alike(device, op, given) -> None:
    tensors = {k: v.to(device) for k, v in given.items() if isinstance(v, torch.Tensor)}
    low = torch.bfloat16
    floating = [name for name, tensor in tensors.items() if name != "mask"]
    with torch.autocast(device.type, dtype=low):
        every = given | {k: v.to(low) if k in floating else v for k, v in tensors.items()}
        wanted = op(**every)
        for name, dtype in itertools.product(floating, (torch.float32, torch.float16)):
            # The same numbers in another dtype.
            ours = op(**(every | {name: every[name].to(dtype)}))
            for a, b in zip(
                ours if isinstance(ours, tuple) else (ours,),
                wanted if isinstance(wanted, tuple) else (wanted,),
                strict=True,
            ):
                torch.testing.assert_close(a, b, check_dtype=False, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("op", "given"), MIXED)
def test_autocast_leaves_float64_alone(op, given) -> None:
    tensors = {k: v for k, v in given.items() if isinstance(v, torch.Tensor) and k != "mask"}
    for name in list(tensors)[1:]:
        for other in (torch.float64, torch.int64):
            with (
                torch.autocast("cpu", dtype=torch.bfloat16),
                pytest.raises(InputError, match=rf"{op.__name__}: expected .*got {name}\."),
            ):
                op(**(given | {name: tensors[name].to(other)}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = op(**(given | {name: tensor.double() for name, tensor in tensors.items()}))
    for result in results if isinstance(results, tuple) else (results,):
        assert result.dtype == torch.float64


def test_gradients_of_mixed_dtypes_keep_them() -> None:
    mu, logvar = torch.randn(3, 4, dtype=torch.bfloat16), torch.randn(3, 4)
    leaves = mu.requires_grad_(), logvar.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, kl = ops.reparameterize(*leaves, seed=1)
    grads = torch.autograd.grad(z.sum() + kl.sum(), leaves)
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32]
