"""The one table of tolerances. No value depends on the machine or the environment.

The rule behind it: our error against a float64 reference is at most twice the error of eager
PyTorch at the same dtype, plus a floor of a few roundings for results that eager happens to hit
exactly.
"""

import torch

# (relative, absolute) floors: about eight roundings of the dtype.
FLOORS = {
    torch.float64: (1e-14, 1e-14),
    torch.float32: (1e-6, 1e-6),
    torch.bfloat16: (8e-3, 8e-3),
    torch.float16: (1e-3, 1e-3),
}


def assert_as_accurate_as_eager(
    ours: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, factor: float = 2.0
) -> None:
    """Fails unless max |ours - exact| <= factor * max |eager - exact| + floor.

    Args:
        ours: Result under test.
        eager: The same in plain PyTorch at the same dtype.
        exact: The same in float64.
        factor: How much worse than eager is allowed.
    """
    assert ours.shape == eager.shape == exact.shape
    assert ours.dtype == eager.dtype, (ours.dtype, eager.dtype)
    if exact.numel() == 0:
        return
    relative, absolute = FLOORS[ours.dtype]
    ours_error = (ours.double() - exact).abs().max().item()
    eager_error = (eager.double() - exact).abs().max().item()
    bound = factor * eager_error + relative * exact.abs().max().item() + absolute
    assert ours_error <= bound, (
        f"error {ours_error:.3g}, eager's {eager_error:.3g}, bound {bound:.3g}"
    )
