"""What a model's output means, found out by trying: for models that are only ever called."""

from collections.abc import Mapping

import torch
from torch import Tensor

from genfast.errors import CausalityError, InputError
from genfast.sampling.distributions import Distribution
from genfast.sampling.model_call import TRACED_BATCH, ModelCall

_PIXELS_TRIED = 24
# Changes below this, relative to the output's range, are rounding.
_ROUNDING = 1e-6


def find_causal_way(
    call: ModelCall,
    distribution: Distribution,
    examples: Mapping[str, Tensor],
    predicts: str | None,
) -> tuple[int, int]:
    """Choose how to read a model's output: the first way in which it does not look ahead.

    At some pixels, all symbols from there on are exchanged for others; the predictions up to there
    must not move. A leak at other pixels only, or one that is lost in rounding, goes unseen.

    Returns:
        Which of `call.features(output)`, and by how many columns a prediction is ahead of its
        place.

    Raises:
        CausalityError: there is no such way.
    """
    x, exchanged = call.random_planes(0), call.random_planes(1)
    call.example(examples)
    base = call.run(call.as_input(x), examples)
    _, height, width = call.grid
    pixels = height * width
    tried = sorted({round(k * (pixels - 1) / (_PIXELS_TRIED - 1)) for k in range(_PIXELS_TRIED)})
    moved = {}
    for pixel in tried:
        later = torch.arange(pixels, device=x.device).view(height, width) >= pixel
        moved[pixel] = call.run(call.as_input(torch.where(later, exchanged, x)), examples)

    problem: InputError | None = None
    for number, (planes, sizes) in enumerate(call.features(base, TRACED_BATCH)):
        try:
            draws = distribution.draws(sizes, call.grid[0])
        except InputError as error:
            problem = error
            continue
        missing = width - planes.shape[3]
        offsets = {"current": [missing], "next": [missing + 1]}.get(
            predicts or "", [missing, missing + 1] if height == 1 else [missing]
        )
        others = {
            pixel: call.features(each, TRACED_BATCH)[number][0] for pixel, each in moved.items()
        }
        for offset in offsets:
            # Later colours of a pixel may know those before them, so they count before it only.
            if all(
                _unmoved(planes[:, mine], other[:, mine], pixel - (colour > 0), offset)
                for pixel, other in others.items()
                for colour, _, mine in draws
            ):
                return number, offset
    if problem is not None and len(call.features(base, TRACED_BATCH)) == 1:
        raise problem
    raise CausalityError(
        "not causal in raster order: when symbols are exchanged, predictions before them change "
        f"(tried at {len(tried)} of {pixels} pixels)"
    )


def _unmoved(base: Tensor, other: Tensor, pixel: int, offset: int) -> bool:
    """Are the predictions of symbols up to a pixel what they were?"""
    changed = (other - base).abs().amax(dim=(0, 1))
    height, width = changed.shape
    rows = torch.arange(height, device=changed.device)[:, None]
    columns = torch.arange(width, device=changed.device)[None, :] + offset
    before = rows * width + columns <= pixel  # a sound, whose width may differ, has one row
    span = float(base.max() - base.min())
    return not bool((changed[before] > _ROUNDING * max(span, 1e-30)).any())
