"""Has a model changed?"""

import enum
import functools
import importlib
import logging
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genfast._extension import loaded

Fingerprint = tuple[object, ...]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = frozenset((bool, int, str, type(None)))
_NUMBERS_AND_WORDS = (bool, int, float, complex, str, bytes, np.generic)
_CONTAINERS = (list, tuple, dict)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
# Equal to nothing but themselves.
_UNIQUE = (*_FUNCTIONS, torch.dtype, torch.device, enum.Enum, type)
_ABOUT_THE_MODEL = ("genfast.sampling.", "torch._")  # its samplers, what compiles it
_NOT_OF_THE_MODEL = (types.ModuleType, logging.Logger)
_DEEPEST = 8  # lists within lists; some hold themselves
# A model may hold the whole of its training by an attribute: of other objects than modules, so
# many attributes are looked at, nearest ones first, and so many bytes of their tensors.
_MOST_ATTRIBUTES = 4096
_MOST_BYTES = 1 << 26


def fingerprint(model: nn.Module) -> Fingerprint:
    """What a forward pass depends on: every tensor's bits, and what else modules hold.

    Of tensors name, dtype, device, shape and a hash that depends on where each number stands, so
    that exchanging two of them changes it: parameters, buffers, and plain attributes of modules,
    also within lists and dicts, as some masks are. Of modules their classes, hooks, numbers, words
    and functions. Of other objects that they hold, such as configurations, the attributes likewise.
    It is taken at every call of a sampler, so it is one quick walk.
    """
    walk = _Walk()
    walk.later("", model)
    while walk.pending:
        key, each = walk.pending.popleft()
        if isinstance(each, nn.Module):
            walk.module(key, each)
        elif walk.left > 0:
            walk.thing(key, each)
    return (*walk.found, *_hashes(walk.tensors))


class _Walk:
    """What was found so far, and the modules and objects still to look into, each once."""

    def __init__(self) -> None:
        self.found: list[object] = []
        self.tensors: list[Tensor] = []
        self.pending: deque[tuple[object, Any]] = deque()
        self.numbers: dict[int, int] = {}  # of modules and objects, by their ids
        self.left, self.bytes_left = _MOST_ATTRIBUTES, _MOST_BYTES

    def later(self, key: object, value: Any) -> None:
        """Look into a module or object, if it is new; else only note which one it is."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.numbers)
            self.pending.append((key, value))
        self.found.append((key, self.numbers[id(value)]))

    def module(self, key: object, module: nn.Module) -> None:
        """Note what a module holds."""
        own, found, tensors = vars(module), self.found, self.tensors
        # Hooks are kept by numbers that are never given twice.
        hooks = tuple(own["_forward_hooks"]), tuple(own["_forward_pre_hooks"])
        found.append((key, type(module), hooks))
        # A traced module holds nothing but the script module that does.
        for group in (own.get("_parameters", {}), own.get("_buffers", {})):
            for name, tensor in group.items():
                if tensor is not None:
                    found.append(name)
                    tensors.append(tensor)
        traced = own.get("_actual_script_module")
        children = {"": traced} if traced is not None else module._modules
        for name, child in children.items():
            if child is not None:
                self.later(name, child)
        for name, value in own.items():
            if name not in _OF_EVERY_MODULE:
                self.take(name, value)

    def thing(self, key: object, value: Any) -> None:
        """Note the attributes of another object; no property of its class is called."""
        own = _attributes(value)
        self.left -= 1 + len(own)
        self.found.append((key, type(value), len(own)))
        for name, each in own.items():
            self.take(name, each, inside=True)

    def take(self, key: object, value: Any, depth: int = 0, inside: bool = False) -> None:
        """Note an attribute: numbers, words, functions, tensors; lists, tuples and dicts of them.

        `inside`: it belongs to an object that is no module.
        """
        kind = type(value)
        if kind in _PLAIN:
            self.found.append((key, kind, value))
        elif isinstance(value, _NUMBERS_AND_WORDS):
            self.found.append((key, repr(value)))  # NaN is no change
        elif isinstance(value, Tensor):
            self.tensor(key, value, inside)
        elif isinstance(value, _UNIQUE):
            self.found.append((key, value))
            if isinstance(value, types.MethodType) and depth < _DEEPEST:
                self.take((key, "self"), value.__self__, depth + 1, inside)
            elif isinstance(value, functools.partial) and depth < _DEEPEST:
                self.take((key, "func"), value.func, depth + 1, inside)
                self.take((key, "with"), (value.args, value.keywords), depth + 1, inside)
        elif isinstance(value, np.ndarray):
            bits = hash(value.tobytes()) if self.may_read(value.nbytes, inside) else id(value)
            self.found.append((key, value.shape, value.dtype.str, bits))
        elif isinstance(value, _CONTAINERS):
            self.container(key, value, depth, inside)
        elif not _is_foreign(value):
            self.later(key, value)

    def container(self, key: object, value: Any, depth: int, inside: bool) -> None:
        """Note what a list, tuple or dict holds."""
        if depth >= _DEEPEST or (inside and self.left <= len(value)):
            self.found.append((key, len(value)))
            return
        if inside:
            self.left -= len(value)
        if isinstance(value, dict):
            for name, each in value.items():
                self.take((key, str(name)), each, depth + 1, inside)
        elif _PLAIN.issuperset(map(type, value)):  # sizes of a kernel, say
            self.found.append((key, tuple(value)))
        else:
            for number, each in enumerate(value):
                self.take((key, number), each, depth + 1, inside)

    def tensor(self, key: object, tensor: Tensor, inside: bool) -> None:
        """Note a tensor; beyond so many bytes in other objects, whether PyTorch wrote to it."""
        self.found.append(key)
        if tensor.layout != torch.strided or self.may_read(tensor.nbytes, inside):
            self.tensors.append(tensor)
        else:
            version = None if tensor.is_inference() else tensor._version
            self.found.append((id(tensor), tensor.shape, version))

    def may_read(self, size: int, inside: bool) -> bool:
        """Whether to read so many bytes; they are then taken off what is left."""
        if not inside:
            return True
        fits = size <= self.bytes_left
        self.bytes_left -= size if fits else 0
        return fits


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds by itself, in its `__dict__` and its `__slots__`."""
    try:
        own = dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        own = {}
    for kind in type(value).__mro__:
        if "__slots__" in vars(kind):
            for name, slot in vars(kind).items():
                if isinstance(slot, types.MemberDescriptorType):
                    try:
                        own[name] = slot.__get__(value)
                    except AttributeError:
                        continue  # not set
    return own


def _is_foreign(value: Any) -> bool:
    """Whether an object is about other things than the model: samplers of it, logs."""
    own = type(value).__module__.startswith(_ABOUT_THE_MODEL)
    return own or isinstance(value, _NOT_OF_THE_MODEL)


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
