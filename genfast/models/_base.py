"""What the models share: the training parts, the checks on images, and the checks on settings."""

from collections.abc import Mapping
from math import prod
from numbers import Integral
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from genfast.errors import InputError
from genfast.ops import philox_normal


class LevelConfig(Protocol):
    """The setting that every model has."""

    @property
    def levels(self) -> int:
        """Number of levels of a pixel or a sample."""
        ...


class ImageConfig(LevelConfig, Protocol):
    """The two settings that every model of images has."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        ...


class GenerativeModel(nn.Module):
    """A model of integer images [N, C, H, W], or sounds [N, 1, T], of levels 0 .. levels - 1.

    `loss(x, part)` and `parts(step)` are all that a training loop needs to know: which losses to
    take one step on, in which order, and which parameters each of them trains. Models with
    `classes` in their config take `labels=` in `loss` and `sample` too.

    Attributes:
        config: its settings.
        domain: "images" or "sounds": what it is a model of.
        kept_samplers: the compiled samplers used last, by what they were compiled for, the newest
            at the end; they are part of no copy, pickle or state dict.
    """

    config: LevelConfig
    domain: ClassVar[str] = "images"
    kept_samplers: Mapping[Any, Any] = MappingProxyType({})

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one image or sound: (C, H, W) or (1, T)."""
        config: Any = self.config
        return tuple(config.image_shape)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        state.pop("kept_samplers", None)
        return state

    def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
        """Return scalars to report, among them "loss", the one to minimise for this part."""
        raise NotImplementedError

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
        first: int = 0,
    ) -> Tensor:
        """Draw n images of integer levels [n, C, H, W], or sounds [n, 1, T].

        `first` is the number of the first one: with a generator in the same state, `sample(4,
        first=4)` are the last four of `sample(8)`.
        """
        raise NotImplementedError

    def parts(self, step: int) -> tuple[str, ...]:
        """Name the parts that take an optimizer step at this step, counted from 0, in order."""
        return ("model",)

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        """List the parameters that this part's loss trains."""
        self._check_part(part, ("model",))
        return list(self.parameters())

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @property
    def level_dtype(self) -> torch.dtype:
        """The dtype of integers with this many levels: uint8 up to 256, else int32."""
        return torch.uint8 if self.config.levels <= 256 else torch.int32

    def _check_part(self, part: str, known: tuple[str, ...]) -> None:
        require(type(self).__name__, part in known, f"part in {known}", part=part)

    def _check_images(self, x: Tensor) -> None:
        """Refuse what is not a batch of this model's images."""
        shape = self.event_shape
        fits = x.dim() == 1 + len(shape) and tuple(x.shape[1:]) == shape
        rule = f"images [N, {', '.join(map(str, shape))}]"
        require(type(self).__name__, fits, rule, shape=list(x.shape))
        self._check_levels(x)

    def _check_levels(self, x: Tensor) -> None:
        """Refuse what are no integer levels of this model.

        The range is looked at on the CPU only: elsewhere it would wait for the device. Not when
        compiling either: it would cut the graph in two.
        """
        name, levels = type(self).__name__, self.config.levels
        is_integer = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
        require(name, is_integer, "integer levels", dtype=x.dtype)
        if x.device.type == "cpu" and x.numel() > 0 and not torch.compiler.is_compiling():
            low, high = x.min().item(), x.max().item()
            rule = f"levels in 0 .. {levels - 1}"
            require(name, low >= 0 and high < levels, rule, smallest=low, largest=high)

    def _normal(
        self, *size: int, generator: torch.Generator | None = None, first: int = 0
    ) -> Tensor:
        """Draw standard normal noise: the same for a seed on every device.

        It begins `first` rows down what the seed gives.
        """
        offset = first * prod(size[1:])
        return philox_normal(size, generator=generator, offset=offset, device=self.device)


def require(where: str, condition: bool, rule: str, **values: Any) -> None:
    """Raise InputError in the package's form unless the condition holds."""
    if not condition:
        got = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise InputError(f"{where}: expected {rule}, got {got}")


def require_count(where: str, n: int) -> None:
    """Refuse what is no number of images to draw; NumPy's integers count."""
    is_count = isinstance(n, Integral) and not isinstance(n, bool) and n >= 1
    require(where, is_count, "an integer n >= 1", n=n)


def check_image(config: ImageConfig) -> None:
    """Check `image_shape` and `levels`; make the shape a tuple, since JSON gives a list."""
    where, shape = type(config).__name__, config.image_shape
    is_shape = isinstance(shape, list | tuple) and len(shape) == 3 and all(map(_is_size, shape))
    require(where, is_shape, "image_shape (C, H, W) of positive integers", image_shape=shape)
    object.__setattr__(config, "image_shape", tuple(shape))
    check_levels(config)


def check_levels(config: LevelConfig) -> None:
    """Check `levels`."""
    where = type(config).__name__
    is_count = _is_size(config.levels) and 2 <= config.levels <= 65536
    require(where, is_count, "levels in 2 .. 65536", levels=config.levels)


def check_sizes(config: Any, *names: str, minimum: int = 1) -> None:
    """Check that these settings are integers of at least the minimum."""
    for name in names:
        value = getattr(config, name)
        good = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
        require(
            type(config).__name__, good, f"{name} to be an integer >= {minimum}", **{name: value}
        )


def check_number(config: Any, name: str, low: float, high: float = float("inf")) -> None:
    """Check that a setting is a finite number in low .. high."""
    value = getattr(config, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    good = number and low <= value <= high and abs(value) != float("inf")
    require(type(config).__name__, good, f"{name} in {low} .. {high}", **{name: value})


def check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Check that a setting is one of a few words."""
    value = getattr(config, name)
    require(type(config).__name__, value in choices, f"{name} in {choices}", **{name: value})


def check_widths(config: Any, name: str) -> None:
    """Check that a setting is a list of positive integers, perhaps empty; make it a tuple."""
    widths = getattr(config, name)
    good = isinstance(widths, list | tuple) and all(map(_is_size, widths))
    require(type(config).__name__, good, f"{name} to be positive integers", **{name: widths})
    object.__setattr__(config, name, tuple(widths))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
