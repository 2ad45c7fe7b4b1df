"""categorical_nll: forward and backward of the loss of a 256-way PixelCNN and WaveNet.

The floor is traffic. Forward: the logits are read once. Backward: they are read again and the
gradient is written; what the forward keeps beside them is 2 / K of their size. Reading twice is
cheaper than keeping the gradient from the forward, which would be written, read and written again.
An exponential for each logit, twice, is about 40 operations on vectors for 16 logits: 0.4 ms of
arithmetic for each million of logits on a core with AVX-512 at 3 GHz, less than the time of their
12 MB in memory. Gradients above 32 MB are fresh pages from the system at every step, in every
implementation; their first touch costs more than the copy of as many bytes.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks._harness import IMPLEMENTATIONS, Case, time_case
from genfast.ops import categorical_nll

# shape of the logits, layout, classes innermost in memory
SIZES = {
    "mnist": ((64, 256, 28, 28), "KC", False),
    "mnist channels last": ((64, 256, 28, 28), "KC", True),
    "digits": ((64, 17, 1, 8, 8), "KC", False),
    "rgb": ((16, 3, 256, 32, 32), "CK", False),
    "wavenet": ((4, 256, 1, 16_000), "KC", False),
}
FLOPS_PER_LOGIT = 40


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", SIZES)
def bench_categorical_nll(benchmark, name: str, implementation: str) -> None:
    shape, layout, innermost = SIZES[name]
    axis = 1 if layout == "KC" else 2
    logits = torch.randn(shape)
    if innermost:
        logits = logits.movedim(axis, -1).contiguous().movedim(-1, axis)
    logits.requires_grad_()
    classes = shape[axis]
    symbols = torch.randint(0, classes, (*shape[:axis], *shape[axis + 1 :]))

    def eager(logits: torch.Tensor) -> torch.Tensor:
        if innermost:  # faster than the same numbers as [N, K, H, W]
            rows = logits.movedim(axis, -1).reshape(-1, classes)
            return F.cross_entropy(rows, symbols.flatten(), reduction="sum") / len(symbols)
        each = F.cross_entropy(logits.movedim(axis, 1), symbols, reduction="sum")
        return each / len(symbols)

    def ours(logits: torch.Tensor) -> torch.Tensor:
        return categorical_nll(logits, symbols, layout=layout).mean()

    def check() -> None:
        losses = ours(logits), eager(logits)
        torch.testing.assert_close(*losses)
        gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)

    benchmark.group = f"categorical_nll {name} {shape}"
    case = Case(
        (logits,), bytes_moved=12 * logits.numel(), flops=FLOPS_PER_LOGIT * math.prod(shape)
    )
    time_case(benchmark, implementation, case, eager=eager, genfast=ours, check=check)
