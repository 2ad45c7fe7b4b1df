"""What the autoregressive models share: conditioning, sums of log-likelihoods, sampling."""

from typing import Any

import torch
from torch import Tensor

from genfast.models._base import GenerativeModel, require
from genfast.ops import categorical_nll
from genfast.sampling import compile_sampler, sample_naive
from genfast.sampling.distributions import Distribution

METHODS = ("compiled", "naive")


def labels_of(where: str, labels: Tensor | None, n: int, classes: int) -> Tensor | None:
    """Check the class numbers of a batch, [n] integers in 0 .. classes - 1; None without classes.

    The range is looked at on the CPU only and not when compiling, as that of images is.

    Raises:
        InputError: labels where the model has no classes, none where it has, or unfit ones.
    """
    if classes == 0:
        require(where, labels is None, "no labels, as the model has classes=0", labels=labels)
        return None
    require(where, labels is not None, f"labels [N] in 0 .. {classes - 1}", labels=None)
    assert labels is not None
    is_integer = not (labels.is_floating_point() or labels.is_complex())
    fits = is_integer and labels.dtype != torch.bool and tuple(labels.shape) == (n,)
    rule = f"labels [{n}] of integers"
    require(where, fits, rule, shape=list(labels.shape), dtype=labels.dtype)
    if labels.device.type == "cpu" and n > 0 and not torch.compiler.is_compiling():
        low, high = int(labels.min()), int(labels.max())
        rule = f"labels in 0 .. {classes - 1}"
        require(where, low >= 0 and high < classes, rule, smallest=low, largest=high)
    return labels


def vectors_of(
    where: str, name: str, values: Tensor | None, shape: tuple[int, ...]
) -> Tensor | None:
    """Check a batch of conditioning numbers against a shape; None where its size is 0.

    Raises:
        InputError: numbers where the model takes none, none where it does, or of another shape.
    """
    if 0 in shape[1:]:
        require(where, values is None, f"no {name}, as the model has none", **{name: "some"})
        return None
    require(where, values is not None, f"{name} {list(shape)}", **{name: None})
    assert values is not None
    fits = tuple(values.shape) == shape and values.is_floating_point()
    require(where, fits, f"{name} {list(shape)}", shape=list(values.shape), dtype=values.dtype)
    return values


def categorical_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Sum over everything but the batch the log-probabilities [N] of levels x under the logits.

    Args:
        logits: [N, levels, ...].
        x: [N, ...], integers.
    """
    return -categorical_nll(logits, x)


def classes_in_turn(labels: Tensor | None, n: int, classes: int) -> Tensor | None:
    """Return the labels to draw with: those given, else 0, 1, 2, ... again and again."""
    return torch.arange(n) % classes if labels is None and classes else labels


def draw(
    model: GenerativeModel,
    n: int,
    distribution: Distribution,
    conditions: dict[str, Tensor | None],
    *,
    event_shape: tuple[int, ...] | None = None,
    method: str = "compiled",
    **options: Any,
) -> Any:
    """Draw n images or sounds from a model, the same ones with either method.

    The compiled sampler stays with the model until one of another shape is wanted; it notices by
    itself when weights have changed.

    Args:
        model: gives the distribution's parameters.
        n: how many.
        distribution: what the parameters mean.
        conditions: what the model is given besides; those that are None are left out.
        event_shape: the shape of each, by default the model's.
        method: "compiled", or "naive" for a forward pass a symbol.
        **options: `generator`, `seed`, `known`, `known_mask`, `temperature`, `top_k`, `top_p`,
            `progress` and `return_log_prob`.
    """
    where = type(model).__name__
    require(where, method in METHODS, f"method in {METHODS}", method=method)
    given = {name: value for name, value in conditions.items() if value is not None}
    shape = event_shape or model.event_shape
    if method == "naive":
        return sample_naive(
            model, n, event_shape=shape, distribution=distribution, conditions=given, **options
        )
    key, sampler = model.kept_sampler
    if key != (shape, *given):
        sampler = compile_sampler(model, shape, distribution, conditioning=given)
        model.kept_sampler = ((shape, *given), sampler)
    return sampler.sample(n, **options, **given)
