"""Have a model's weights changed?"""

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from genfast._extension import loaded

Numbers = tuple[tuple[str, torch.dtype, torch.device, tuple[int, ...], int], ...]
Fingerprint = tuple[Numbers, tuple[tuple[str, str], ...]]


def fingerprint(model: nn.Module) -> Fingerprint:
    """What every parameter and buffer is: name, dtype, device, shape and a hash of its bits.

    Tensors that are plain attributes of a module, or in a list or dict of one, as some masks are,
    count too, and so do the numbers, words and hooks of modules. The hash depends on where each
    number stands, so exchanging two of them changes it.
    """
    with torch.no_grad():
        tensors = tuple(
            (name, tensor.dtype, tensor.device, tuple(tensor.shape), _hash(tensor))
            for name, tensor in _tensors(model)
        )
    return tensors, tuple(_structure(model))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_"):
                yield from _within(f"{name}.{key}", value)


def _within(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors in an attribute, or in lists, tuples and dicts of one."""
    if isinstance(value, Tensor):
        if value.layout == torch.strided:
            yield name, value
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _within(f"{name}.{number}", each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _within(f"{name}.{key}", each)


def _structure(model: nn.Module) -> Iterator[tuple[str, str]]:
    """What a forward pass may depend on beside tensors: classes, numbers and words, hooks."""
    for name, module in model.named_modules():
        yield name, type(module).__qualname__
        yield name, f"{len(module._forward_hooks)} {len(module._forward_pre_hooks)}"
        for key, value in vars(module).items():
            if key != "training" and isinstance(value, bool | int | float | str):
                yield f"{name}.{key}", repr(value)


def _hash(tensor: Tensor) -> int:
    """Hash the bits of a tensor, in compiled code where it lies on the CPU."""
    dense = tensor.device.type == "cpu" and tensor.layout == torch.strided
    if dense and loaded():
        return int(importlib.import_module("genfast._C").hash_bits(tensor.detach()))
    return int(_sum_of_words(tensor))


def _sum_of_words(tensor: Tensor) -> Tensor:
    """A sum of the bits, in words of 8 bytes, times odd numbers that differ from word to word."""
    # Modulo 2^64; the factors are multiples of an odd constant without pattern, made odd again.
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if data.numel() % 8:
        data = torch.nn.functional.pad(data, (0, -data.numel() % 8))
    words = data.view(torch.int64)
    factors = torch.arange(words.numel(), device=words.device) * -7046029254386353131 | 1
    return (words * factors).sum()
