"""Sampling as the definition says it: one full forward pass for every pixel of every colour."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from genfast._progress import tqdm
from genfast.nn import evaluating
from genfast.sampling.conditioning import conditions_of, traced_conditions
from genfast.sampling.distributions import Categorical, Distribution
from genfast.sampling.distributions.categorical import invert_cdf as invert_cdf
from genfast.sampling.model_call import (
    TRACED_BATCH,
    Forward,
    ModelCall,
    features_at,
)
from genfast.sampling.naive.trial import find_causal_way
from genfast.sampling.request import Options, draw_noise, known_symbols, require, require_count


@overload
def sample_naive(
    model: nn.Module, n: int, *args: Any, return_log_prob: Literal[True], **options: Any
) -> tuple[Tensor, Tensor]: ...


@overload
def sample_naive(model: nn.Module, n: int, *args: Any, **options: Any) -> Tensor: ...


def sample_naive(  # type: ignore[misc]  # the overloads abbreviate the parameters
    model: nn.Module,
    n: int,
    generator: torch.Generator | None = None,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
    temperature: float = 1.0,
    progress: bool = False,
    *,
    seed: int | None = None,
    first: int = 0,
    event_shape: Sequence[int] | None = None,
    distribution: Distribution | None = None,
    forward: Forward | None = None,
    conditions: Mapping[str, Any] | None = None,
    offset: int = 0,
    top_k: int | None = None,
    top_p: float | None = None,
    return_log_prob: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw events from a model of symbols in raster order, colour by colour within a pixel.

    1. u [n, U, H, W] is uniform noise, drawn at once; U numbers a pixel.
    2. For each row, column and draw that is not known: the distribution's parameters come from a
       full forward pass over the event so far.
    3. The symbols become what the distribution makes of the parameters and their u: for levels, the
       smallest one whose cumulative probability exceeds u.

    Each symbol has its own noise, so that any other way of computing the same parameters draws
    the same event, and the first events of a batch do not depend on how many follow. That makes
    this the oracle for faster samplers.

    Args:
        model: any module. Without `event_shape` and `distribution`, it gives logits
            [N, levels, C, H, W] for integer images [N, C, H, W], and has `config.image_shape` and
            `config.levels`, as `genfast.models.PixelCNN` does.
        n: number of events, at least 1.
        generator: source of the noise, on any device; torch's global one by default.
        known: symbols to complete, of a shape that broadcasts to [n, *event_shape]; without
            `known_mask`, negative levels (NaN in continuous symbols) mark what is to be drawn.
        known_mask: bool, broadcasts to [n, *event_shape]; true where `known` is to be kept.
        temperature: above 0; below 1 sharpens every conditional distribution, above 1 flattens it.
        progress: show a bar that counts pixels.
        seed: instead of a generator: which noise.
        first: number of the first event in its stream of noise: events 4 .. 7 of a seed are the
            last four of its first eight.
        event_shape: (C, H, W), (C, T) or (T,).
        distribution: what a symbol's parameters mean.
        forward: `forward(model, x, **conditions)` gives the output; by default `model(x,
            **conditions)`, its "logits" or its first or only tensor.
        conditions: what the model is given besides, for each event or for all.
        offset: the output at column t predicts the symbol at t + offset.
        top_k: only the k most probable levels are drawn, see `Categorical.draw`.
        top_p: only the most probable levels that reach this probability are drawn.
        return_log_prob: return also the log-probabilities [n] in nats of what was drawn, under the
            model itself whatever the temperature: sums over the draws with a symbol not known.

    Returns:
        Symbols [n, *event_shape] on the model's device; uint8 up to 256 levels, else int32, or the
        model's dtype where they are continuous. The training mode of every submodule is what it was
        before.

    Raises:
        InputError: an argument breaks its rule above.
    """
    if event_shape is None:
        event_shape = model.config.image_shape  # type: ignore[union-attr,assignment]
    if distribution is None:
        distribution = Categorical(model.config.levels, layout="KC")  # type: ignore[union-attr,arg-type]
    call = ModelCall(model, tuple(event_shape), distribution, forward)  # type: ignore[arg-type]
    n, options = require_count(n), Options(temperature, top_k, top_p)
    require(seed is None or generator is None, "seed or generator", seed=seed, generator=generator)
    device = call.placed()[1]
    size, dtype = (n, *call.event_shape), call.symbol_dtype()
    start, kept = known_symbols(size, distribution, dtype, known, known_mask)
    given = conditions_of(dict(conditions or {}), n, device, None)
    two = traced_conditions(given)
    ways = call.features(call.run(call.example(two), two), TRACED_BATCH)
    # Where the sizes of the output allow several readings, the causal one is meant.
    way = find_causal_way(call, distribution, two, None)[0] if len(ways) > 1 else 0
    sizes = ways[way][1]

    colours, height, width = call.grid
    draws, per_draw = distribution.draws(sizes, colours), distribution.noise_per_draw
    symbols = start.to(device).view(n, colours, height, width)
    keep = kept.to(device).view_as(symbols)
    noise = draw_noise(n, len(draws) * per_draw, (height, width), first, seed, generator, device)
    log_prob = torch.zeros(n, dtype=torch.float64, device=device)
    bar = tqdm(total=height * width, unit="pixel", disable=not progress)
    with evaluating(model), bar:
        for row in range(height):
            for column in range(width):
                for number, (colour, count, features) in enumerate(draws):
                    site = (slice(None), slice(colour, colour + count), row, column)
                    if keep[site].all():
                        continue
                    output = call.run(call.as_input(call.planes(symbols)), given)
                    planes, _ = call.features(output, n)[way]
                    seen, left, right = features_at(planes, features, offset, width)
                    drawn = torch.full_like(symbols[site], distribution.start)
                    if left <= column < right:
                        parameters = seen[:, :, row, column - left]
                        uniforms = noise[:, number * per_draw :, row, column][:, :per_draw]
                        drawn = options.draw(distribution, parameters, uniforms).to(dtype)
                    symbols[site] = torch.where(keep[site], symbols[site], drawn)
                    if return_log_prob and left <= column < right:
                        terms = distribution.log_prob(parameters, symbols[site])
                        log_prob += terms.masked_fill(keep[site].all(dim=1), 0)
                bar.update()
    events = symbols.view(size)
    return (events, log_prob) if return_log_prob else events
