"""Sampling as the definition says it: one full forward pass for every pixel of every colour."""

from typing import Any

import torch
from torch import Tensor, nn

from genfast._progress import tqdm
from genfast.errors import InputError
from genfast.nn import evaluating
from genfast.ops import philox_uniform


def sample_naive(
    model: nn.Module,
    n: int,
    generator: torch.Generator | None = None,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
    temperature: float = 1.0,
    progress: bool = False,
) -> Tensor:
    """Draw images from a model of pixels in raster order, colour by colour within a pixel.

    1. u [n, C, H, W] is uniform noise, drawn at once.
    2. For each row, column and colour that is not known: p = softmax(logits / temperature) from a
       full forward pass over the image so far.
    3. The pixel becomes the smallest level whose cumulative probability exceeds its u.

    Each pixel has its own noise, so that any other way of computing the same probabilities draws
    the same image, and the first images of a batch do not depend on how many follow. That makes
    this the oracle for faster samplers.

    Args:
        model: gives logits [N, levels, C, H, W] for integer images [N, C, H, W], and has
            `config.image_shape` and `config.levels`, as `genfast.models.PixelCNN` does.
        n: number of images, at least 1.
        generator: source of the noise, on any device; torch's global one by default.
        known: levels to complete, of a shape that broadcasts to [n, C, H, W]; without
            `known_mask`, negative values mark what is to be drawn.
        known_mask: bool, broadcasts to [n, C, H, W]; true where `known` is to be kept.
        temperature: above 0; below 1 sharpens every conditional distribution, above 1 flattens it.
        progress: show a bar that counts pixels.

    Returns:
        Levels [n, C, H, W] on the model's device; uint8 up to 256 levels, else int32. The training
        mode of every submodule is what it was before.

    Raises:
        InputError: an argument breaks its rule above.
    """
    shape: tuple[int, int, int] = model.config.image_shape  # type: ignore[union-attr,assignment]
    levels: int = model.config.levels  # type: ignore[union-attr,assignment]
    _require(n >= 1, "n >= 1", n=n)
    _require(temperature > 0, "temperature > 0", temperature=temperature)
    device = next(model.parameters()).device
    dtype = torch.uint8 if levels <= 256 else torch.int32
    images, keep = _start((n, *shape), levels, known, known_mask)
    images, keep = images.to(device, dtype), keep.to(device)
    noise = philox_uniform((n, *shape), generator=generator, device=device)

    channels, height, width = shape
    with evaluating(model), tqdm(total=height * width, unit="pixel", disable=not progress) as bar:
        for row in range(height):
            for column in range(width):
                for channel in range(channels):
                    site = (slice(None), channel, row, column)
                    if keep[site].all():
                        continue
                    logits = model(images)[:, :, channel, row, column]
                    drawn = invert_cdf(logits / temperature, noise[site])
                    images[site] = torch.where(keep[site], images[site], drawn.to(dtype))
                bar.update()
    return images


def invert_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw from softmax(logits) with given noise: the inverse of the cumulative distribution.

    Args:
        logits: [N, K].
        uniform: [N], in [0, 1).

    Returns:
        int64 [N], in 0 .. K - 1. Computed in float64, so that it hardly depends on the dtype.
    """
    cumulative = logits.double().softmax(dim=1).cumsum(dim=1)
    # Scaled by the last entry, which rounding can leave below the largest possible u.
    threshold = uniform.double()[:, None] * cumulative[:, -1:]
    return (cumulative <= threshold).sum(dim=1).clamp_(max=logits.shape[1] - 1)


def _start(
    size: tuple[int, ...], levels: int, known: Tensor | None, known_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the first image and where it is to be kept, both of the full size."""
    if known is None:
        _require(known_mask is None, "known= with known_mask=", known=None)
        return torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.bool)
    is_integer = not (known.is_floating_point() or known.is_complex() or known.dtype == torch.bool)
    _require(is_integer, "integer levels", known=known.dtype)
    if known_mask is None:
        some_unknown = bool((known < 0).any())
        _require(some_unknown, "known_mask=, or negative values where to draw", known_mask=None)
        known_mask = known >= 0
    _require(known_mask.dtype == torch.bool, "a bool mask", known_mask=known_mask.dtype)
    given: dict[str, Any] = {"known": known, "known_mask": known_mask}
    for name, tensor in given.items():
        try:
            given[name] = tensor.to("cpu").expand(size)
        except RuntimeError:
            rule = f"a shape that broadcasts to {list(size)}"
            _require(False, rule, **{name: list(tensor.shape)})
    values, keep = given["known"].to(torch.int64), given["known_mask"]
    kept = values[keep]
    in_range = kept.numel() == 0 or bool((kept >= 0).all() and (kept < levels).all())
    _require(in_range, f"known levels in 0 .. {levels - 1} where known_mask is true", known="other")
    return torch.where(keep, values, 0), keep


def _require(condition: bool, rule: str, **values: Any) -> None:
    if not condition:
        got = ", ".join(f"{name}={value}" for name, value in values.items())
        raise InputError(f"sample: expected {rule}, got {got}")
