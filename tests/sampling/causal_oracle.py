"""Causality by trying: change each number that goes in, and see which numbers come out changed."""

from collections.abc import Callable

import torch
from torch import Tensor

# Of the largest output: rounding differs between images of a batch, influence is far above.
ROUNDING = 1e-11


def symbols(shape: tuple[int, ...], levels: int, n: int, seed: int = 0) -> Tensor:
    """Draw levels [n, *shape], uniformly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, levels, (n, *shape), generator=generator)


def influence(
    run: Callable[[Tensor], Tensor], shape: tuple[int, ...], levels: int, trials: int = 6
) -> Tensor:
    """Tell which symbols change which outputs, bool [outputs of one image, symbols].

    Each symbol in turn takes another level, at several random images. `run` maps levels
    [n, *shape] to the model's numbers [n, ...] in float64.
    """
    size = torch.Size(shape).numel()
    found = torch.zeros(1, size, dtype=torch.bool)
    for seed in range(trials):
        base = symbols(shape, levels, 1, seed)
        changed = base.flatten(1).repeat(size, 1)
        shift = symbols((size,), levels - 1, 1, seed + 1000)[0] + 1
        changed.diagonal().copy_((changed.diagonal() + shift) % levels)
        with torch.no_grad():
            out = run(torch.cat((base, changed.view(size, *shape)))).flatten(1)
        assert out.isfinite().all()
        found = found | ((out[1:] - out[:1]).abs() > ROUNDING * out.abs().max()).T
    return found


def as_image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Colours, height and width of an event: (T,) and (C, T) are sounds of one row."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return (shape[0], 1, shape[1]) if len(shape) == 2 else (1, 1, shape[0])


def drawn_at(shape: tuple[int, ...]) -> Tensor:
    """Number the symbols of an event in the order they are drawn, int64 [C, H, W]."""
    colours, height, width = as_image(shape)
    order = torch.arange(height * width * colours)
    return order.view(height, width, colours).permute(2, 0, 1)
