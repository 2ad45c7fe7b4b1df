"""Has a model changed?"""

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from genfast._extension import loaded

Fingerprint = tuple[tuple[object, ...], ...]


def fingerprint(model: nn.Module) -> Fingerprint:
    """What a forward pass depends on: every tensor's bits, and what else modules hold.

    Of tensors name, dtype, device, shape and a hash that depends on where each number stands, so
    that exchanging two of them changes it: parameters, buffers, and plain attributes of modules,
    also within lists and dicts, as some masks are. Of modules their classes, hooks, numbers and
    words. It is taken at every call of a sampler, so it is one quick walk.
    """
    hash_bits = importlib.import_module("genfast._C").hash_bits if loaded() else None
    entries: list[tuple[object, ...]] = []
    with torch.no_grad():
        for name, module in model.named_modules():
            hooks = (len(module._forward_hooks), len(module._forward_pre_hooks))
            entries.append((name, type(module).__qualname__, *hooks))
            for tensors in (module._parameters, module._buffers):
                for key, tensor in tensors.items():
                    if tensor is not None:
                        entries.append(_entry(name, key, tensor, hash_bits))
            for key, value in vars(module).items():
                if key[0] == "_" or key == "training":
                    continue
                if isinstance(value, bool | int | float | str):
                    entries.append((name, key, repr(value)))
                elif isinstance(value, Tensor | list | tuple | dict):
                    within = _within(key, value)
                    entries += [_entry(name, path, each, hash_bits) for path, each in within]
    return tuple(entries)


def _within(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors in an attribute, or in lists, tuples and dicts of one."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _within(f"{path}.{number}", each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _within(f"{path}.{key}", each)


def _entry(name: str, key: str, tensor: Tensor, hash_bits: Any) -> tuple[object, ...]:
    dense = tensor.layout == torch.strided
    number = None
    if dense and hash_bits is not None and tensor.device.type == "cpu":
        number = hash_bits(tensor)
    elif dense:
        number = int(_sum_of_words(tensor))
    return name, key, tensor.dtype, tensor.device, tensor.shape, number


def _sum_of_words(tensor: Tensor) -> Tensor:
    """A sum of the bits, in words of 8 bytes, times odd numbers that differ from word to word."""
    # Modulo 2^64; the factors are multiples of an odd constant without pattern, made odd again.
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if data.numel() % 8:
        data = torch.nn.functional.pad(data, (0, -data.numel() % 8))
    words = data.view(torch.int64)
    factors = torch.arange(words.numel(), device=words.device) * -7046029254386353131 | 1
    return (words * factors).sum()
