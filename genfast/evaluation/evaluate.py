"""Everything the field reports of a generative model, as one JSON-ready dictionary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from genfast.errors import InputError
from genfast.evaluation.metrics import (
    Estimate,
    device_of,
    histogram_bits_per_dim,
    levels_of,
    per_batch,
    reconstruction_error,
    seeded,
    sharpness,
    shuffled,
    squared_error,
)
from genfast.evaluation.properties import properties, sampling_cost
from genfast.evaluation.two_sample import MIN_IMAGES, two_sample_test
from genfast.nn import evaluating

if TYPE_CHECKING:
    from genfast.data import ImageDataset

CLASSIFIER_NAMES = ("forest", "mlp", "logistic")
"""The classifiers a report uses; the first one's result is the headline."""

MAX_IMAGES = 1000
"""Most images per side of a two-sample test, which bounds its time on large test sets."""

ELBO_SAMPLES = 16
"""Latent draws per image behind an ELBO; the bound's mean does not depend on it, its noise does."""


def evaluate(
    model: nn.Module,
    test: ImageDataset,
    *,
    generated: Tensor | None = None,
    classifiers: Sequence[str] = CLASSIFIER_NAMES,
    folds: int = 5,
    seed: int = 0,
    batch_size: int = 256,
    sampling_batch: int = 64,
) -> dict[str, Any]:
    """Evaluate a model on held-out images.

    Args:
        model: A genfast model, or any module with `config.image_shape`, `config.levels` and
            `sample(n, generator=...)`; what else it can do decides what is measured.
        test: Images the model was not trained on, of its shape and levels.
        generated: Samples to judge, `[N, C, H, W]`; as many as test images, at most 1,000, are
            drawn when there are none.
        classifiers: For `two_sample_test`; the first one is the headline.
        folds: Of the two-sample test.
        seed: Of the samples, the classifiers, and the noise in a bound.
        batch_size: Images per call when images go through the model.
        sampling_batch: Images per call when sampling is timed.

    Returns:
        A dictionary of JSON types. Keys: `family`, `config`, `parameters`, `likelihood` (None, or
        `kind` "exact" or "lower bound", `bits_per_dim`, `nats` per image, each with a standard
        error), `reconstruction` (None, or `mse`, `rmse_levels`), `two_sample` (one result per
        classifier), `sharpness` (`value`, `data`, `ratio`), `sampling` (see `sampling_cost`),
        `properties` (see `properties`).

    Raises:
        InputError: The test images do not fit the model, or are too few to judge.
    """
    if getattr(model, "domain", "images") != "images":
        kind = type(model).__name__
        raise InputError(f"evaluate: expected a model of images, got {kind}, a model of sounds")
    levels = levels_of(model)
    config: Any = model.config
    if tuple(test.image_shape) != tuple(config.image_shape) or test.levels != levels:
        raise InputError(
            "evaluate: expected test images of the model's shape and levels, "
            f"{tuple(config.image_shape)} and {levels}, got test={tuple(test.image_shape)} and "
            f"{test.levels}"
        )
    if len(test) < MIN_IMAGES:
        raise InputError(f"evaluate: expected at least {MIN_IMAGES} test images, got {len(test)}")
    images = test.images
    if generated is None:
        generated = generate(model, min(len(test), MAX_IMAGES), seed=seed, batch_size=batch_size)
    cost = sampling_cost(model, batch=sampling_batch, seed=seed)
    labels = test.labels if getattr(config, "classes", 0) else None
    nats = likelihood(model, images, labels, seed=seed, batch_size=batch_size)
    with evaluating(model):
        traits = properties(model, images[:1], cost, None if nats is None else nats["kind"])
    return {
        "family": type(model).__name__,
        "config": asdict(config) if is_dataclass(config) and not isinstance(config, type) else {},
        "parameters": sum(p.numel() for p in model.parameters()),
        "likelihood": nats,
        "reconstruction": _reconstruction(model, images, seed, batch_size),
        "two_sample": judge(images, generated, classifiers, folds=folds, seed=seed),
        "sharpness": _sharpness(generated, images, levels),
        "sampling": cost,
        "properties": traits,
    }


def generate(model: nn.Module, n: int, *, seed: int = 0, batch_size: int = 256) -> Tensor:
    """Draw `n` images `[n, C, H, W]` from a model, on the CPU; the same seed draws the same."""
    sample: Any = model.sample
    batches = []
    with seeded(seed, device_of(model)) as generator:
        for start in range(0, n, batch_size):
            size = min(batch_size, n - start)
            batches.append(sample(size, generator=generator).cpu())
    return torch.cat(batches)


def judge(
    real: Tensor,
    generated: Tensor,
    classifiers: Sequence[str] = CLASSIFIER_NAMES,
    *,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """`two_sample_test` with each classifier, on at most 1,000 images per side."""
    # A long test set may be sorted by class: its head would not stand for it.
    sides = [
        images if len(images) <= MAX_IMAGES else shuffled(images, seed)[:MAX_IMAGES]
        for images in (real, generated)
    ]
    return {
        name: two_sample_test(*sides, classifier=name, folds=folds, seed=seed).as_dict()
        for name in classifiers
    }


def likelihood(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    seed: int = 0,
    batch_size: int = 256,
) -> dict[str, Any] | None:
    """Log-likelihood of images in nats per image and as bits per dimension, exact or a bound.

    Args:
        model: what has `log_prob` or `elbo`.
        images: `[N, C, H, W]` grey levels.
        labels: `[N]`, for a model with classes: then of the images given them.
        seed: of the noise in a bound.
        batch_size: images per call.

    Returns:
        None where the model assigns no probabilities to grey levels: it has neither `log_prob` nor
        `elbo`, its decoder has no likelihood (a Bernoulli decoder with more than two levels), or
        what it is conditioned on is not known.
    """
    named: Any = model
    method: Callable[..., Tensor]
    if hasattr(model, "log_prob"):
        kind, method = "exact", named.log_prob
    elif hasattr(model, "elbo"):
        kind, method = "lower bound", partial(named.elbo, samples=ELBO_SAMPLES)
    else:
        return None
    with evaluating(model), seeded(seed, device_of(model)):
        try:
            per_batch(model, method, images[:1], 1, None if labels is None else labels[:1])
        except InputError:
            return None
        nats = Estimate.of(per_batch(model, method, images, batch_size, labels))
    return {
        "kind": kind,
        "nats": asdict(nats),
        "bits_per_dim": asdict(nats.scaled(-1.0 / (images[0].numel() * math.log(2.0)))),
        "latent_draws": None if kind == "exact" else ELBO_SAMPLES,
    }


def control(
    train: ImageDataset,
    test: ImageDataset,
    classifiers: Sequence[str] = CLASSIFIER_NAMES,
    *,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """What real training images score in the place of samples, and what guesses score."""
    real = shuffled(train.images, seed)[: min(len(test), MAX_IMAGES)]
    mean = torch.mean(train.images.double(), dim=0, keepdim=True)
    guess = squared_error(test.images, mean.expand(len(test), -1, -1, -1), test.levels)
    return {
        "two_sample": judge(test.images, real, classifiers, folds=folds, seed=seed),
        "sharpness": _sharpness(real, test.images, test.levels),
        "bits_per_dim_uniform": math.log2(test.levels),
        "bits_per_dim_histogram": histogram_bits_per_dim(train.images, test.images, test.levels),
        "mean_image": {"mse": guess.mse, "rmse_levels": guess.rmse_levels},
    }


def _reconstruction(
    model: nn.Module, images: Tensor, seed: int, batch_size: int
) -> dict[str, Any] | None:
    if not hasattr(model, "reconstruct"):
        return None
    with evaluating(model), seeded(seed, device_of(model)):
        return asdict(reconstruction_error(model, images, batch_size=batch_size))


def _sharpness(images: Tensor, real: Tensor, levels: int) -> dict[str, float | None]:
    """Sharpness of images and of the data; None where images are too small or the data flat."""
    if min(images.shape[-2:]) < 3:
        return {"value": None, "data": None, "ratio": None}
    value, data = sharpness(images, levels), sharpness(real, levels)
    return {"value": value, "data": data, "ratio": value / data if data > 0 else None}
