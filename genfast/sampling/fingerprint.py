"""Has a model changed?"""

import functools
import importlib
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genfast._extension import loaded

Fingerprint = tuple[tuple[object, ...], ...]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Equal to nothing but themselves.
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
)
_PLAIN = frozenset({bool, int, float, complex, str})
_DEEPEST = 8  # lists within lists; some hold themselves


def fingerprint(model: nn.Module) -> Fingerprint:
    """What a forward pass depends on: every tensor's bits, and what else modules hold.

    Of tensors name, dtype, device, shape and a hash that depends on where each number stands, so
    that exchanging two of them changes it: parameters, buffers, and plain attributes of modules,
    also within lists and dicts, as some masks are. Of modules their classes, hooks, numbers, words
    and functions. It is taken at every call of a sampler, so it is one quick walk.
    """
    hash_bits = importlib.import_module("genfast._C").hash_bits if loaded() else None
    entries: list[tuple[object, ...]] = []
    with torch.no_grad():
        for name, module in model.named_modules():
            # Hooks are kept by numbers that are never given twice.
            hooks = (tuple(module._forward_hooks), tuple(module._forward_pre_hooks))
            entries.append((name, type(module).__qualname__, *hooks))
            for tensors in (module._parameters, module._buffers):
                for key, tensor in tensors.items():
                    if tensor is not None:
                        entries.append(_entry(name, key, tensor, hash_bits))
            for key, value in vars(module).items():
                if key in _OF_EVERY_MODULE:
                    continue
                kind = type(value)
                is_plain = kind is tuple and all(type(each) in _PLAIN for each in value)
                if kind in _PLAIN or is_plain:  # nearly always, so without a generator
                    entries.append((name, key, repr(value)))
                else:
                    for path, each in _within(key, value):
                        is_tensor = isinstance(each, Tensor)
                        entries.append(
                            _entry(name, path, each, hash_bits) if is_tensor else (name, path, each)
                        )
    return tuple(entries)


def _within(path: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Tensors, numbers, words and functions in an attribute, or in lists, tuples, dicts of one."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, bool | int | float | complex | str):
        yield path, repr(value)
    elif isinstance(value, _FUNCTIONS):
        yield path, value
    elif isinstance(value, np.ndarray):
        yield path, (value.shape, value.dtype.str, hash(value.tobytes()))
    elif depth > _DEEPEST:
        return
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _within(f"{path}.{number}", each, depth + 1)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _within(f"{path}.{key}", each, depth + 1)
    elif isinstance(value, nn.Module):  # one that a list hides from its parent
        for name, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield f"{path}.{name}", tensor


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
