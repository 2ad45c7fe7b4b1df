"""What a call of a sampler asks for, checked."""

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast.errors import InputError
from genfast.ops import philox_uniform
from genfast.random import check_generator, check_seed
from genfast.sampling.distributions import Distribution

_TAKEN_NAMES = frozenset(
    ["self", "model", "n", "x", "seed", "generator", "first", "known", "known_mask", "temperature",
     "top_k", "top_p", "progress", "return_log_prob"]
)  # fmt: skip
# Logits of any size that networks give stay finite in float32 when divided by it.
_LOWEST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Options:
    """How symbols are drawn from their parameters: see `Sampler.sample`."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        positive = _is_number(self.temperature) and self.temperature > 0
        require(positive, "temperature > 0", temperature=self.temperature)
        rule = f"temperature >= {_LOWEST_TEMPERATURE:g} (top_k=1 draws the most probable)"
        require(self.temperature >= _LOWEST_TEMPERATURE, rule, temperature=self.temperature)
        finite = self.temperature < float("inf")
        require(finite, "a finite temperature", temperature=self.temperature)
        object.__setattr__(self, "temperature", float(self.temperature))
        if self.top_k is not None:
            is_count = isinstance(self.top_k, Integral) and not isinstance(self.top_k, bool)
            require(is_count and self.top_k >= 1, "an integer top_k >= 1", top_k=self.top_k)
        if self.top_p is not None:
            fits = _is_number(self.top_p) and 0 < self.top_p <= 1
            require(fits, "top_p in (0, 1]", top_p=self.top_p)
            object.__setattr__(self, "top_p", float(self.top_p))

    def draw(self, distribution: Distribution, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """Symbols [N, count] from parameters [N, P] and uniforms [N, U]."""
        if self.temperature != 1 and parameters.dtype in (torch.float16, torch.bfloat16):
            parameters = parameters.float()  # divided by the temperature they may need the range
        return distribution.draw(parameters, uniforms, self.temperature, self.top_k, self.top_p)


def require_names(conditioning: Iterable[object]) -> None:
    """Refuse names of conditioning that a call of a sampler could not take as keywords."""
    for name in conditioning:
        if not (isinstance(name, str) and name.isidentifier()) or name in _TAKEN_NAMES:
            raise InputError(
                "compile_sampler: expected conditioning by names that calls of a sampler do not "
                f"use themselves (forward= can call the model with others), got name={name!r}"
            )


def require_count(n: int) -> int:
    """Refuse what is no number of images; NumPy's integers count."""
    is_count = isinstance(n, Integral) and not isinstance(n, bool) and n >= 1
    require(is_count, "an integer n >= 1", n=n)
    return int(n)


def draw_noise(
    n: int,
    per_pixel: int,
    grid: tuple[int, int],
    first: int,
    seed: int | None,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """Uniform noise [n, per_pixel, H, W] for images first .. first + n - 1 of a stream.

    An image's noise depends on the seed and its own number only, not on its batch.
    """
    is_count = isinstance(first, Integral) and not isinstance(first, bool) and first >= 0
    require(is_count, "an integer first >= 0", first=first)
    check_generator("sample", generator)
    seed = seed if seed is None else check_seed("sample", seed)
    size = (n, per_pixel, *grid)
    image = per_pixel * grid[0] * grid[1]
    first, last = int(first), 2**63 // image - n  # a product of NumPy's integers would wrap
    require(first < last, f"first < {last}, as a stream has 2**63 numbers", first=first)
    return philox_uniform(size, seed=seed, generator=generator, offset=first * image, device=device)


def known_symbols(
    size: tuple[int, ...],
    distribution: Distribution,
    dtype: torch.dtype,
    known: Any,
    known_mask: Any,
) -> tuple[Tensor, Tensor]:
    """The symbols to begin with, zero where they are to be drawn, and where they are kept.

    Args:
        size: of both results.
        distribution: whose symbols they are.
        dtype: of the symbols.
        known: broadcasts to `size`; without a mask, negative levels or NaN mark what to draw.
        known_mask: bool, broadcasts to `size`.

    Raises:
        InputError: an argument breaks its rule.
    """
    if known is None:
        require(known_mask is None, "known= with known_mask=", known=None)
        return torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=torch.bool)
    known = tensor_of("sample", "known", known).to("cpu")
    levels = distribution.dtype is not None
    if levels:
        is_integer = not (known.is_floating_point() or known.is_complex())
        is_integer = is_integer and known.dtype != torch.bool
        require(is_integer, "integer levels", known=known.dtype)
    else:
        require(known.is_floating_point(), "floating-point numbers", known=known.dtype)
    if known_mask is None:
        unknown = known < 0 if levels else torch.isnan(known)
        sign = "negative values" if levels else "NaN"
        require(bool(unknown.any()), f"known_mask=, or {sign} where to draw", known_mask=None)
        known_mask = ~unknown
    known_mask = tensor_of("sample", "known_mask", known_mask).to("cpu")
    require(known_mask.dtype == torch.bool, "a bool mask", known_mask=known_mask.dtype)
    given: dict[str, Any] = {"known": known, "known_mask": known_mask}
    for name, tensor in given.items():
        try:
            given[name] = tensor.expand(size)
        except RuntimeError:
            rule = f"a shape that broadcasts to {list(size)}"
            require(False, rule, **{name: list(tensor.shape)})
    values, keep = given["known"], given["known_mask"]
    distribution.check("sample: known", values[keep])
    return torch.where(keep, values, 0).to(dtype), keep.clone()


def require(condition: bool, rule: str, **values: Any) -> None:
    """Raise InputError in the package's form unless the condition holds."""
    if not condition:
        got = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in values.items())
        raise InputError(f"sample: expected {rule}, got {got}")


def tensor_of(where: str, name: str, value: Any) -> Tensor:
    """A dense tensor from a tensor, an array, numbers, or lists of them.

    Raises:
        InputError: there are no numbers in it, or not in a regular shape.
    """
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
            if array.dtype.kind not in "biufc":
                raise TypeError(f"{array.dtype} is no kind of numbers")
            # Of NumPy's unsigned integers torch computes with the smallest only.
            is_wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
            dtype = np.dtype(np.int64) if is_wide else array.dtype.newbyteorder("=")
            tensor = torch.as_tensor(np.array(array, dtype))
        except (TypeError, ValueError, RuntimeError) as error:
            rule = f"{name} to be a tensor, an array or lists of numbers"
            got = f"{name}={reprlib.repr(value)}"
            raise InputError(f"{where}: expected {rule}, got {got}") from error
        is_array = isinstance(value, np.ndarray | np.generic)
        is_default = tensor.is_floating_point() and not is_array
        return tensor.to(torch.get_default_dtype()) if is_default else tensor
    if value.layout != torch.strided or value.is_quantized:
        kind = "quantized" if value.is_quantized else value.layout
        raise InputError(f"{where}: expected {name} to be a dense tensor, got {name}={kind}")
    if value.is_meta:
        got = f"{name}={list(value.shape)} on the meta device"
        raise InputError(f"{where}: expected {name} with numbers in it, got {got}")
    is_wide = value.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return value.long() if is_wide else value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
