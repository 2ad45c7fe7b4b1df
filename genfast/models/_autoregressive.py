"""What the autoregressive models share: conditioning, sums of log-likelihoods, sampling."""

import math
from typing import Any

import torch
from torch import Tensor

from genfast.models._base import GenerativeModel, require, require_count
from genfast.ops import categorical_nll
from genfast.sampling import Sampler, compile_sampler, sample_naive
from genfast.sampling.distributions import Distribution
from genfast.sampling.request import tensor_of

METHODS = ("compiled", "naive")
_SAMPLERS_KEPT = 4


class AutoregressiveModel(GenerativeModel):
    """A model whose `log_prob` is exact: training and measures follow from it."""

    def log_prob(self, x: Tensor, *conditioning: Any, **named: Any) -> Tensor:
        """Return the log-likelihood [N] in nats of integer images or sounds x.

        What a model is conditioned on comes after them, here and in what follows from this.
        """
        raise NotImplementedError

    def bits_per_dim(self, x: Tensor, *conditioning: Any, **named: Any) -> Tensor:
        """Return the negative log-likelihood [N] in bits for each of an event's symbols."""
        nats = -self.log_prob(x, *conditioning, **named)
        return nats / (math.prod(x.shape[1:]) * math.log(2))

    def loss(
        self, x: Tensor, part: str = "model", *conditioning: Any, **named: Any
    ) -> dict[str, Tensor]:
        """Return the mean negative log-likelihood: "loss" in nats an event, "bits_per_dim"."""
        self._check_part(part, ("model",))
        nll = -self.log_prob(x, *conditioning, **named).mean()
        bits_per_dim = nll.detach() / (math.prod(x.shape[1:]) * math.log(2))
        return {"loss": nll, "bits_per_dim": bits_per_dim}


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
    labels = labels if isinstance(labels, Tensor) else tensor_of(where, "labels", labels)
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
    values = values if isinstance(values, Tensor) else tensor_of(where, name, values)
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


def labels_to_draw(where: str, labels: Tensor | None, n: int, classes: int) -> Tensor | None:
    """Return the labels to draw n events with: those given, else 0, 1, 2, ... again and again.

    Raises:
        InputError: n is no count, or the labels are unfit.
    """
    require_count("sample", n)
    labels = torch.arange(n) % classes if labels is None and classes else labels
    return labels_of(where, labels, n, classes)


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

    Compiled samplers stay with the model until four of other shapes were wanted; each notices by
    itself when weights have changed.

    Args:
        model: gives the distribution's parameters.
        n: how many.
        distribution: what the parameters mean.
        conditions: what the model is given besides; those that are None are left out.
        event_shape: the shape of each, by default the model's.
        method: "compiled", or "naive" for a forward pass a symbol.
        **options: `generator`, `seed`, `first`, `known`, `known_mask`, `temperature`, `top_k`,
            `top_p`, `progress` and `return_log_prob`.
    """
    where = type(model).__name__
    require(where, method in METHODS, f"method in {METHODS}", method=method)
    given = {name: value for name, value in conditions.items() if value is not None}
    shape = event_shape or model.event_shape
    if method == "naive":
        return sample_naive(
            model, n, event_shape=shape, distribution=distribution, conditions=given, **options
        )
    kept, key = dict(model.kept_samplers), (shape, *given)
    sampler: Sampler | None = kept.pop(key, None)
    if sampler is None:
        sampler = compile_sampler(model, shape, distribution, conditioning=given)
    newest = [*kept.items(), (key, sampler)][-_SAMPLERS_KEPT:]
    model.kept_samplers = dict(newest)
    return sampler.sample(n, **{**options, **given})
