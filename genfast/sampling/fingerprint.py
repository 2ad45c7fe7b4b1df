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

Fingerprint = tuple[object, ...]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = frozenset((bool, int, str, type(None)))
_NUMBERS_AND_WORDS = (bool, int, float, complex, str)
_SEQUENCE = (list, tuple)
# Equal to nothing but themselves.
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
)
_DEEPEST = 8  # lists within lists; some hold themselves


def fingerprint(model: nn.Module) -> Fingerprint:
    """What a forward pass depends on: every tensor's bits, and what else modules hold.

    Of tensors name, dtype, device, shape and a hash that depends on where each number stands, so
    that exchanging two of them changes it: parameters, buffers, and plain attributes of modules,
    also within lists and dicts, as some masks are. Of modules their classes, hooks, numbers, words
    and functions. It is taken at every call of a sampler, so it is one quick walk.
    """
    found: list[object] = []
    tensors: list[Tensor] = []
    for name, module in _modules(model):
        own = vars(module)
        # Hooks are kept by numbers that are never given twice.
        hooks = tuple(own["_forward_hooks"]), tuple(own["_forward_pre_hooks"])
        found.append((name, type(module), hooks))
        # A traced module holds nothing but the script module that does.
        for group in (own.get("_parameters", {}), own.get("_buffers", {})):
            for key, tensor in group.items():
                if tensor is not None:
                    found.append(key)
                    tensors.append(tensor)
        for key, value in own.items():
            if key not in _OF_EVERY_MODULE:
                _take(key, value, found, tensors)
    return (*found, *_hashes(tensors))


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, with its name in the module that holds it."""
    seen = {id(model)}
    pending = [("", model)]
    while pending:
        name, module = pending.pop()
        yield name, module
        traced = vars(module).get("_actual_script_module")
        children = module._modules.items() if traced is None else [(name, traced)]
        for key, child in children:
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                pending.append((key, child))


def _take(
    key: object, value: Any, found: list[object], tensors: list[Tensor], depth: int = 0
) -> None:
    """Note an attribute: numbers, words, functions, tensors; lists, tuples and dicts of them."""
    kind = type(value)
    if kind in _PLAIN:
        found.append((key, kind, value))
    elif isinstance(value, _NUMBERS_AND_WORDS):
        found.append((key, repr(value)))  # NaN is no change
    elif isinstance(value, Tensor):
        found.append(key)
        tensors.append(value)
    elif isinstance(value, _FUNCTIONS):
        found.append((key, value))
    elif isinstance(value, np.ndarray):
        found.append((key, value.shape, value.dtype.str, hash(value.tobytes())))
    elif depth < _DEEPEST:
        if isinstance(value, _SEQUENCE):
            if _PLAIN.issuperset(map(type, value)):  # sizes of a kernel, say
                found.append((key, tuple(value)))
                return
            for number, each in enumerate(value):
                _take((key, number), each, found, tensors, depth + 1)
        elif isinstance(value, dict):
            for name, each in value.items():
                _take((key, str(name)), each, found, tensors, depth + 1)
        elif isinstance(value, nn.Module):  # one that a list hides from its parent
            found.append(key)
            tensors += [*value.parameters(), *value.buffers()]


def _hashes(tensors: list[Tensor]) -> Iterator[object]:
    """One number for the strided tensors on the CPU together; of each other one what can be had."""
    quick: list[Tensor] = []
    with torch.no_grad():
        for number, tensor in enumerate(tensors):
            dense = tensor.layout == torch.strided and not tensor.is_meta
            if dense and tensor.is_cpu and loaded():
                quick.append(tensor)
                continue
            bits = int(_sum_of_words(tensor)) if dense else None
            yield number, tensor.dtype, tensor.device, tensor.shape, bits
        if quick:
            yield importlib.import_module("genfast._C").hash_bits(quick)


def _sum_of_words(tensor: Tensor) -> Tensor:
    """A sum of the bits, in words of 8 bytes, times odd numbers that differ from word to word."""
    # Modulo 2^64; the factors are multiples of an odd constant without pattern, made odd again.
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if data.numel() % 8:
        data = torch.nn.functional.pad(data, (0, -data.numel() % 8))
    words = data.view(torch.int64)
    factors = torch.arange(words.numel(), device=words.device) * -7046029254386353131 | 1
    return (words * factors).sum()
