"""masked_conv2d in Triton: on a GPU, or on the CPU under the interpreter."""

import pytest
import torch

from genfast.ops import masked_conv2d_reference
from tests.ops.test_masked_conv2d import CASES, Case
from tests.tolerances import assert_as_accurate_as_eager
from tests.triton_support import DEVICE, compile_ahead, triton_kernels

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SLOW = ("hidden", "one-channel")  # under the interpreter


def exact_gradients(inputs, slope, options) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[:2]]
    out = masked_conv2d_reference(*leaves, *inputs[2:], **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if name not in SLOW])
def test_matches_reference(name: str, dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if dtype == torch.float16 and name not in ("odd", "groups", "stride"):
        pytest.skip("bfloat16 stands for both half types here")
    case: Case = CASES[name]
    kernels = triton_kernels("masked_conv2d")
    inputs = [tensor.detach() for tensor in case.inputs(dtype, DEVICE)]
    x, weight, mask, bias = inputs
    out = kernels.masked_conv2d(x, weight, mask, bias, None, *case.arguments)
    slope = torch.randn(out.shape, dtype=torch.float64).to(out)
    ours = [
        out,
        kernels.masked_conv2d_grad_input(slope, weight, mask, None, x.shape[2:], *case.arguments),
        kernels.masked_conv2d_grad_weight(slope, x, mask, None, weight.shape[2:], *case.arguments),
    ]
    wide = [x.double(), weight.double(), mask, bias.double()]
    eager = exact_gradients(inputs, slope, case.options)
    exact = exact_gradients(wide, slope.double(), case.options)
    for result, plain, truth in zip(ours, eager, exact, strict=True):
        assert result.dtype == dtype
        assert_as_accurate_as_eager(result.cpu(), plain.cpu(), truth.cpu())


def test_taps_left_out_are_dead() -> None:
    kernels = triton_kernels("masked_conv2d")
    case = CASES["odd"]
    x, weight, mask, bias = (tensor.detach() for tensor in case.inputs(device=DEVICE))
    weight[..., 1, 1] = float("nan")
    out = kernels.masked_conv2d(x, weight, mask, bias, [0, 2], *case.arguments)
    expected = masked_conv2d_reference(x, weight, mask, bias, taps=[0, 2], **case.options)
    torch.testing.assert_close(out, expected)
    slope = torch.randn_like(out)
    grad = kernels.masked_conv2d_grad_weight(slope, x, mask, [0, 2], (3, 3), *case.arguments)
    assert grad.flatten(2)[..., [0, 2]].ne(0).all()
    assert grad.flatten(2)[..., [1, 3, 4, 5, 6, 7, 8]].eq(0).all()


def test_compiles_ahead() -> None:
    sizes = ("tap_count", "pixels", "grid_h", "grid_w", "in_h", "in_w", "K", "M")
    steps = ("grid_step_h", "grid_step_w", "tap_step_h", "tap_step_w", "first_h", "first_w")
    kernels = []
    for t, precision, wide in (("fp32", "ieee", False), ("bf16", "tf32", True)):
        common = {"taps": "*i32"} | dict.fromkeys((*sizes, *steps), "i32")
        pointers = ("image", "packed", "bias", "out")
        flags = {"HAS_BIAS": True, "DIVISOR_H": 1, "DIVISOR_W": 2, "WIDE": wide}
        blocks = {"PRECISION": precision, "BLOCK_P": 128, "BLOCK_K": 32, "BLOCK_M": 64}
        kernels.append(
            ("_correlate_kernel", common | dict.fromkeys(pointers, f"*{t}"), flags | blocks)
        )
        common |= dict.fromkeys(("split_pixels", "groups"), "i32") | {"partial": "*fp32"}
        blocks = {"PRECISION": precision, "BLOCK_R": 64, "BLOCK_P": 32, "BLOCK_M": 64}
        pointers = dict.fromkeys(("image", "grad"), f"*{t}")
        kernels.append(("_grad_weight_kernel", common | pointers, {"WIDE": wide} | blocks))
    compile_ahead("masked_conv2d", kernels)
