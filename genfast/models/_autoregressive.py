"""What the autoregressive models share: checks on conditioning, sums of log-likelihoods."""

import torch
import torch.nn.functional as F
from torch import Tensor

from genfast.models._base import require


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
    # Half-precision logits are summed over levels and places in float32.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(logits, x.long(), reduction="none").flatten(1).sum(dim=1)
