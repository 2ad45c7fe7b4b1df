"""Does a sampler compute and draw what its model says? The full forward pass is the judge."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genfast.errors import ExactnessError
from genfast.sampling import Distribution, Sampler
from genfast.sampling.model_call import ModelCall, features_at
from genfast.sampling.request import draw_noise


@dataclass(frozen=True)
class Agreement:
    """What was compared.

    Attributes:
        error: the largest difference between incremental and full outputs, relative to the range
            of the full ones.
        symbols: how many symbols were drawn.
        same: how many of them the full outputs, given the same symbols before, draw alike.
    """

    error: float
    symbols: int
    same: int


def compare(
    model: nn.Module,
    sampler: Sampler,
    distribution: Distribution,
    *,
    n: int,
    seed: int,
    first: int = 0,
) -> Agreement:
    """Draw n events, and compare them and the outputs behind them with one forward pass.

    The comparison is teacher-forced: the forward pass sees the symbols that the sampler drew, so
    that one symbol that rounding decides otherwise counts once. Models without conditions and
    time offset only.
    """
    call = ModelCall(model, sampler.event_shape, distribution)
    symbols = sampler.sample(n, seed=seed, first=first)
    colours, height, width = call.grid
    planes = call.as_input(call.planes(symbols.view(n, *call.grid)))
    with torch.inference_mode():
        full, sizes = call.features(call.run(planes, {}), n)[0]
    error, same = 0.0, 0
    draws, per_draw = distribution.draws(sizes, colours), distribution.noise_per_draw
    device = symbols.device
    noise = draw_noise(n, len(draws) * per_draw, (height, width), first, seed, None, device)
    found = sampler.logits(symbols).reshape(full.shape)
    span = (full.max() - full.min()).item()
    error = (found - full).abs().max().item() / span
    for number, (colour, count, features) in enumerate(draws):
        parameters = features_at(full, features, 0, width)[0]
        uniforms = noise[:, number * per_draw : (number + 1) * per_draw]
        drawn = distribution.draw(_places(parameters), _places(uniforms))
        given = symbols.view(n, *call.grid)[:, colour : colour + count]
        same += int((drawn == _places(given)).sum())
    return Agreement(error, symbols.numel(), same)


def require_agreement(found: Agreement, tolerance: float, share: float) -> None:
    """Refuse a sampler whose outputs or symbols are not those of its model.

    Raises:
        ExactnessError: the error is above the tolerance, or fewer than the share are the same.
    """
    if not found.error <= tolerance or found.same < share * found.symbols:
        raise ExactnessError(
            f"bench: expected outputs within {tolerance} and {share:.2%} of the symbols the same, "
            f"got {found}"
        )


def _places(planes: Tensor) -> Tensor:
    """[N, F, H, W] to [N * H * W, F]."""
    return planes.permute(0, 2, 3, 1).flatten(0, 2)
