"""logistic_mixture_nll: forward and backward of the loss of PixelCNN++ and of a 16-bit WaveNet.

The floor. Bytes: the parameters are read once, their gradient is written once and, because the
gradient of the loss comes later, read and written once more. Arithmetic: for each colour of each
component of each pixel four exponentials, one logarithm and one division, about 140 operations on
vectors; with three colours another exponential and division for each coefficient, about 25. On a
core with AVX-512 (two vectors of 16 a cycle) that is 85 cycles for 16 bins: 1.0 ms for the CIFAR-10
case at 2.6 GHz, more than the time of its 26 MB in the cache. The op is bound by arithmetic.
"""

import pytest
import torch

from benchmarks._harness import IMPLEMENTATIONS, Case, time_case
from genfast.ops import logistic_mixture_nll, logistic_mixture_nll_reference

# batch, colours, mixtures, spatial shape, levels, channels last
SIZES = {
    "cifar10": (16, 3, 10, (32, 32), 256, False),
    "cifar10 channels last": (16, 3, 10, (32, 32), 256, True),
    "mnist": (64, 1, 10, (28, 28), 256, False),
    "wavenet": (4, 1, 10, (16_000,), 65_536, False),
}
FLOPS_PER_BIN, FLOPS_PER_COEFFICIENT = 140, 25


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", SIZES)
def bench_logistic_mixture_nll(benchmark, name: str, implementation: str) -> None:
    batch, colours, mixtures, spatial, levels, channels_last = SIZES[name]
    channels = mixtures * (10 if colours == 3 else 3)
    parameters = torch.randn(batch, channels, *spatial)
    if channels_last:
        parameters = parameters.to(memory_format=torch.channels_last)
    parameters.requires_grad_()
    symbols = torch.randint(0, levels, (batch, colours, *spatial))

    # One full-size operation per step of the formula; the published one takes as long.
    def eager(parameters: torch.Tensor) -> torch.Tensor:
        return logistic_mixture_nll_reference(parameters, symbols, levels=levels).mean()

    def ours(parameters: torch.Tensor) -> torch.Tensor:
        return logistic_mixture_nll(parameters, symbols, levels=levels).mean()

    def check() -> None:
        losses = ours(parameters), eager(parameters)
        torch.testing.assert_close(*losses)
        gradients = [torch.autograd.grad(loss, parameters)[0] for loss in losses]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)

    benchmark.group = f"logistic_mixture_nll {name} {(batch, channels, *spatial)}"
    bins = batch * colours * mixtures * spatial[0] * (spatial[1] if len(spatial) > 1 else 1)
    flops = bins * (FLOPS_PER_BIN + (FLOPS_PER_COEFFICIENT if colours == 3 else 0))
    case = Case((parameters,), bytes_moved=16 * parameters.numel(), flops=flops)
    time_case(benchmark, implementation, case, eager=eager, genfast=ours, check=check)
