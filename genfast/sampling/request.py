"""What a call of a sampler asks for, checked."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from genfast.errors import InputError
from genfast.ops import philox_uniform
from genfast.sampling.distributions import Distribution


@dataclass(frozen=True)
class Options:
    """How symbols are drawn from their parameters."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.temperature, int | float) and self.temperature > 0
        require(number, "temperature > 0", temperature=self.temperature)
        finite = self.temperature < float("inf")
        require(finite, "a finite temperature", temperature=self.temperature)
        if self.top_k is not None:
            is_count = isinstance(self.top_k, Integral) and not isinstance(self.top_k, bool)
            require(is_count and self.top_k >= 1, "an integer top_k >= 1", top_k=self.top_k)
        if self.top_p is not None:
            number = isinstance(self.top_p, int | float) and 0 < self.top_p <= 1
            require(number, "top_p in (0, 1]", top_p=self.top_p)

    def draw(self, distribution: Distribution, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """Symbols [N, count] from parameters [N, P] and uniforms [N, U]."""
        return distribution.draw(parameters, uniforms, self.temperature, self.top_k, self.top_p)


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
    size = (n, per_pixel, *grid)
    image = per_pixel * grid[0] * grid[1]
    return philox_uniform(size, seed=seed, generator=generator, offset=first * image, device=device)


def known_symbols(
    size: tuple[int, ...],
    distribution: Distribution,
    dtype: torch.dtype,
    known: Tensor | None,
    known_mask: Tensor | None,
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
    require(known_mask.dtype == torch.bool, "a bool mask", known_mask=known_mask.dtype)
    given: dict[str, Any] = {"known": known, "known_mask": known_mask}
    for name, tensor in given.items():
        try:
            given[name] = tensor.to("cpu").expand(size)
        except RuntimeError:
            rule = f"a shape that broadcasts to {list(size)}"
            require(False, rule, **{name: list(tensor.shape)})
    values, keep = given["known"], given["known_mask"]
    distribution.check("sample: known", values[keep])
    return torch.where(keep, values, 0).to(dtype), keep.clone()


def require(condition: bool, rule: str, **values: Any) -> None:
    """Raise InputError in the package's form unless the condition holds."""
    if not condition:
        got = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise InputError(f"sample: expected {rule}, got {got}")
