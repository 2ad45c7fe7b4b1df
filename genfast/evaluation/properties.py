"""What a model is and what sampling from it costs, read off the model object and a run of it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from genfast.evaluation.metrics import device_of, seeded

SLOW = 4.0
"""Seconds after which sampling is not repeated for a better median."""


@dataclass
class Trace:
    """What forward hooks saw while a model sampled.

    Attributes:
        calls: How often each layer with parameters ran.
        latent: Entries per image of what went into `model.generator`, if there is one.
    """

    calls: Counter[nn.Module] = field(default_factory=Counter)
    latent: int | None = None


def sampling_cost(
    model: nn.Module, *, batch: int = 64, seed: int = 0, budget: float = 0.5
) -> dict[str, Any]:
    """Measure what `model.sample(batch)` costs.

    1. Sample two images with a hook on every layer: the calls of the busiest layer are the number
       of forward passes one batch takes; the layers that ran at all hold the parameters it needs.
    2. Sample `batch` images, repeatedly for `budget` seconds but at least three times, and take the
       median time, the first call left out. Past four seconds no further call is made, and a first
       call that takes so long counts, since warming up is no part of its time worth mentioning.

    Args:
        model: Anything with `sample(n, generator=...)`.
        batch: Images per call.
        seed: Of the noise.
        budget: Seconds to spend on repetitions.

    Returns:
        `forward_passes` per batch (None where no layer runs, as in a compiled sampler),
        `parameters` used, `latent` entries (None unless there is a generator), `batch`,
        `seconds_per_batch`, `seconds_per_image` and `repetitions`.
    """
    device = device_of(model)
    sample: Any = model.sample
    with seeded(seed, device) as generator:
        with _traced(model) as trace:
            sample(2, generator=generator)
        is_compiled = bool(getattr(model, "kept_samplers", None))
        if is_compiled:  # the passes above were for compiling
            trace = Trace()
        times: list[float] = []
        while len(times) < 3 or (sum(times) < budget and len(times) < 20):
            _wait_for(device)
            start = time.perf_counter()
            sample(batch, generator=generator)
            _wait_for(device)
            times.append(time.perf_counter() - start)
            if sum(times) > SLOW:
                break
    if len(times) > 1:
        del times[0]
    used = {p for layer in trace.calls for p in layer.parameters(recurse=False)}
    if is_compiled:
        used = set(model.parameters())
    seconds = statistics.median(times)
    return {
        "forward_passes": max(trace.calls.values(), default=None),
        "parameters": sum(p.numel() for p in used),
        "latent": trace.latent,
        "batch": batch,
        "seconds_per_batch": seconds,
        "seconds_per_image": seconds / batch,
        "repetitions": len(times),
    }


def properties(
    model: nn.Module, image: Tensor, cost: dict[str, Any], likelihood: str | None
) -> dict[str, Any]:
    """Place a model among the families by what it can do.

    Args:
        model: The model; the methods it has decide most of the answer.
        image: `[1, C, H, W]` grey levels, encoded once to see how long the latent is.
        cost: What `sampling_cost` returned for this model.
        likelihood: "exact" or "lower bound" where one was measured, else None.

    Returns:
        `density` ("explicit", "implicit" or "none"), `likelihood` ("exact", "lower bound" or
        "none"), `latent` (entries, or None), `encodes`, `reconstructs`, `interpolates`, `prior`
        (where samples start), `networks` trained against each other, and from the measurement
        `forward_passes` and `seconds_per_image`.
    """
    encodes = hasattr(model, "encode")
    explicit = hasattr(model, "log_prob") or hasattr(model, "elbo")
    # Without a probability, a model that encodes was not trained to generate: an autoencoder. One
    # that does not encode maps noise to images: a GAN.
    without = "none" if encodes else "implicit"
    density = "explicit" if explicit else without
    latent = _encoded_size(model, image) if encodes else cost["latent"]
    if latent is None:
        prior = "pixel by pixel, each from its distribution"
    elif density == "none":
        prior = "Gaussian fitted to the training latents"
    else:
        prior = "standard normal latent"
    parts: Any = getattr(model, "parts", lambda step: ("model",))
    return {
        "density": density,
        "likelihood": likelihood or "none",
        "latent": latent,
        "encodes": encodes,
        "reconstructs": hasattr(model, "reconstruct"),
        "interpolates": hasattr(model, "interpolate"),
        "prior": prior,
        "networks": list(parts(0)),
        "forward_passes": cost["forward_passes"],
        "seconds_per_image": cost["seconds_per_image"],
    }


@contextmanager
def _traced(model: nn.Module) -> Iterator[Trace]:
    trace = Trace()

    def count(layer: nn.Module, _: Any) -> None:
        trace.calls[layer] += 1

    def measure(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            trace.latent = inputs[0][0].numel()

    layers = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    handles = [layer.register_forward_pre_hook(count) for layer in layers]
    generator = getattr(model, "generator", None)
    if isinstance(generator, nn.Module):
        handles.append(generator.register_forward_pre_hook(measure))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _encoded_size(model: nn.Module, image: Tensor) -> int:
    encode: Any = model.encode
    with torch.no_grad():
        code = encode(image.to(device_of(model)))
    mean = code if isinstance(code, Tensor) else code[0]
    return int(mean[0].numel())


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
