"""What a model is conditioned on: examples of it when compiling, numbers for n events later."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genfast.errors import InputError
from genfast.sampling.model_call import TRACED_BATCH
from genfast.sampling.request import tensor_of


def conditions_of(
    conditioning: Mapping[str, Any], n: int, device: torch.device, like: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Conditioning for n images: tensors [n, ...] from tensors, numbers or lists.

    A first axis of 1, or none where the example has one, is repeated for all images.

    Args:
        conditioning: what the user gives.
        n: number of images.
        device: where the tensors go.
        like: the examples given when compiling: their names are the ones allowed and needed.

    Raises:
        InputError: a name, dtype or batch size does not fit, or there are no numbers.
    """
    if like is not None and set(conditioning) != set(like):
        raise InputError(
            f"sample: expected conditioning {sorted(like) or 'of no names'}, "
            f"got {sorted(conditioning) or 'none'}"
        )
    found = {}
    for name, value in conditioning.items():
        tensor = tensor_of("sample", name, value).to(device)
        if like is not None:
            tensor = _of_dtype(name, tensor, like[name].dtype)
        rank = like[name].dim() if like is not None else max(1, tensor.dim())
        if rank > 0:
            each = tensor[None] if tensor.dim() == rank - 1 else tensor
            if each.dim() != rank or each.shape[0] not in (1, n):
                raise InputError(
                    f"sample: expected {name} for {n} images, got {name}={list(tensor.shape)}"
                )
            tensor = each.expand(n, *each.shape[1:])
        found[name] = tensor
    return found


def _of_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Conditioning in the dtype of its example; integers may stand for real numbers."""
    kinds = (_kind(tensor.dtype), _kind(dtype))
    if kinds[0] != kinds[1] and kinds != ("integer", "floating point"):
        raise InputError(
            f"sample: expected {name} to be {kinds[1]} as its example is, got {name}={tensor.dtype}"
        )
    if kinds[1] == "integer" and tensor.numel() > 0:
        low, high, held = int(tensor.min()), int(tensor.max()), torch.iinfo(dtype)
        if low < held.min or high > held.max:
            raise InputError(
                f"sample: expected {name} within {dtype} as its example is, "
                f"got {name}={low} .. {high}"
            )
    return tensor.to(dtype)


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool or dtype.is_complex:
        return "complex" if dtype.is_complex else "bool"
    return "floating point" if dtype.is_floating_point else "integer"


def traced_conditions(conditioning: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Examples of conditioning, repeated or cut to the two images that a model is traced with."""
    traced = {}
    for name, value in (conditioning or {}).items():
        tensor = tensor_of("compile_sampler", name, value)
        if tensor.dim() > 0:
            if tensor.shape[0] == 0:
                raise InputError(
                    f"compile_sampler: expected an example of {name}, got {list(tensor.shape)}"
                )
            times = -(-TRACED_BATCH // tensor.shape[0])
            tensor = tensor.repeat(times, *[1] * (tensor.dim() - 1))[:TRACED_BATCH]
        traced[name] = tensor
    return traced
