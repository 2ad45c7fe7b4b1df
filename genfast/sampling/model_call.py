"""How a user's model is called: from symbols to its input, and from its output to features."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import torch
from torch import Tensor, nn

from genfast.errors import InputError, NumericsError, UnsupportedModelError
from genfast.nn import evaluating
from genfast.sampling.distributions import Distribution
from genfast.sampling.lower.flat import output_ways, places_of_grid
from genfast.sampling.stages import first_line
from genfast.sampling.surroundings import callers_device, ordinary_tensors

Forward = Callable[..., Tensor]
TRACED_BATCH = 2


@dataclass(eq=False)
class ModelCall:
    """A model, what its input is made of, and how it is called.

    Args:
        model: any module.
        event_shape: (C, H, W), (C, T) or (T,) symbols; a sound counts as an image of one row.
        distribution: encodes symbols; None for a model that takes numbers of any kind.
        forward: `forward(model, x, **conditioning)`, by default the call itself.
        where: the public function that all this is for; errors begin with it.
    """

    model: nn.Module
    event_shape: tuple[int, ...]
    distribution: Distribution | None
    forward: Forward | None = None
    where: str = "compile_sampler"
    integers: bool | None = field(default=None, init=False)  # None: not found out yet

    def __post_init__(self) -> None:
        shape = self.event_shape
        is_shape = isinstance(shape, list | tuple | torch.Size) and 1 <= len(shape) <= 3
        sizes = is_shape and all(
            isinstance(s, Integral) and not isinstance(s, bool) and s >= 1 for s in shape
        )
        if not sizes:
            rule = "event_shape (C, H, W), (C, T) or (T,) of positive integers"
            raise InputError(f"{self.where}: expected {rule}, got event_shape={shape!r}")
        self.event_shape = tuple(int(size) for size in shape)
        if self.forward is not None and not callable(self.forward):
            rule = "a function forward(model, x, **conditioning)"
            raise InputError(f"{self.where}: expected {rule}, got forward={self.forward!r}")
        if len(shape) == 1 and self.encoded != 1:
            raise InputError(
                f"{self.where}: expected event_shape (1, T) for symbols that are "
                f"{self.encoded} numbers each, got event_shape={self.event_shape}"
            )

    @property
    def encoded(self) -> int:
        """Numbers the model sees for a symbol."""
        return 1 if self.distribution is None else self.distribution.encoded

    @property
    def grid(self) -> tuple[int, int, int]:
        """Colours, height and width."""
        shape = self.event_shape
        padded = {1: (1, 1, *shape), 2: (*shape[:1], 1, *shape[1:])}.get(len(shape), shape)
        colours, height, width = padded
        return colours, height, width

    @property
    def spatial(self) -> tuple[int, ...]:
        """(H, W), or (T,)."""
        return self.event_shape[1:] if len(self.event_shape) > 1 else self.event_shape

    def placed(self) -> tuple[torch.dtype, torch.device]:
        """Dtype and device of the model's numbers: those of its first parameter or buffer."""
        floating: Iterator[Tensor] = (
            each
            for tensors in (self.model.parameters(), self.model.buffers())
            for each in tensors
            if each.is_floating_point()
        )
        first = next(floating, None)
        if first is None:
            return torch.get_default_dtype(), torch.device("cpu")
        return first.dtype, first.device

    def symbol_dtype(self) -> torch.dtype:
        """The dtype of symbols."""
        own = None if self.distribution is None else self.distribution.dtype
        return self.placed()[0] if own is None else own

    def planes(self, symbols: Tensor) -> Tensor:
        """Symbols [N, C, H, W] as the model sees them, [N, C * encoded, H, W]."""
        assert self.distribution is not None
        encoded = self.distribution.encode(symbols.permute(0, 2, 3, 1))
        return encoded.permute(0, 3, 1, 2)

    def as_input(self, planes: Tensor) -> Tensor:
        """Planes [N, C * encoded, H, W] in the shape and dtype that the model takes."""
        dtype, device = self.placed()
        keep = not planes.is_floating_point() and self.integers is not False
        planes = planes.to(device, planes.dtype if keep else dtype)
        rows = self.event_shape[1:] if len(self.event_shape) > 1 else self.event_shape
        features = planes.shape[1:2] if len(self.event_shape) > 1 else ()
        return planes.reshape(planes.shape[0], *features, *rows)

    def run(self, x: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The model's output for an input, in evaluation mode and without gradients."""
        with ordinary_tensors(), evaluating(self.model):
            return self.call(self.model, x, **conditions)

    def call(self, model: nn.Module, x: Tensor, /, **conditions: Tensor) -> Tensor:
        """The user's forward, or else `capture.default_forward`."""
        from genfast.sampling.capture.model import default_forward

        with callers_device():
            return (self.forward or default_forward)(model, x, **conditions)

    def example(self, conditions: Mapping[str, Tensor], seed: int = 0) -> Tensor:
        """A random input for two events, of the kind that the model takes.

        Symbols that are integers are shown as such; if the model fails on them, as floats.

        Raises:
            UnsupportedModelError: it fails on both.
            NumericsError: weights that are not finite make its output so.
            InputError: its weights are not there.
        """
        if self.placed()[1].type == "meta":
            raise InputError(
                f"{self.where}: expected a model with numbers in it, got one on the meta device"
            )
        planes = self.random_planes(seed)
        errors: list[Exception] = []
        for integers in (True, False) if not planes.is_floating_point() else (False,):
            self.integers = integers
            x = self.as_input(planes)
            try:
                output = self.run(x, conditions)
            except UnsupportedModelError:
                raise
            except Exception as error:
                errors.append(error)
                continue
            self._require_numbers(output)
            self._require_finite(output)
            return x
        self.integers = None
        lines = [first_line(each) for each in errors]
        kinds = "as integers and as floats" if len(errors) > 1 else "as floats"
        taken = [f"{name} {list(each.shape)}" for name, each in conditions.items()]
        given = ", ".join((f"x {list(x.shape)}", *taken))
        given += " (the first axis of each counts images)" if taken else ""
        hint = "; distribution= says what it takes" if self.distribution is None else ""
        raise UnsupportedModelError(
            f"{self.where}: expected a model that takes {given}, tried {kinds}, "
            f"got {'; then '.join(lines)}{hint}"
        ) from errors[-1]

    def _require_numbers(self, output: object) -> None:
        """Refuse what cannot be parameters of symbols, whatever it was computed from."""
        got = type(output).__name__
        if isinstance(output, Tensor):
            if not output.is_complex() and output.layout == torch.strided:
                if output.dim() < 2:
                    self.features(output, TRACED_BATCH)
                return
            got = f"{output.dtype}, {output.layout}"
        raise UnsupportedModelError(
            f"{self.where}: expected a dense tensor of real numbers as the model's output, "
            f"got {got}; forward= can make one of it"
        )

    def _require_finite(self, output: Tensor) -> None:
        """Refuse weights that make the output NaN or infinite, rather than what follows from it.

        Infinities that nothing trains may be meant, such as those of a mask, and NaN that the
        output does not show is not used.
        """
        if bool(torch.isfinite(output).all()):
            return
        has_nan = bool(torch.isnan(output).any())
        found = []
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            is_nan = bool(torch.isnan(tensor).any())
            if not (tensor.requires_grad or has_nan) or (is_nan and not has_nan):
                continue
            if not bool(torch.isfinite(tensor).all()):
                found.append(f"{name}={'NaN' if is_nan else 'inf'}")
        if found:
            rest = ", ..." if len(found) > 3 else ""
            got = ", ".join(found[:3]) + rest
            raise NumericsError(f"{self.where}: expected finite weights, got {got}")

    def random_planes(self, seed: int) -> Tensor:
        """Two random events as the model sees them; without a distribution, numbers in [-1, 1]."""
        symbols = self.random_symbols(seed)
        return symbols if self.distribution is None else self.planes(symbols)

    def random_symbols(self, seed: int) -> Tensor:
        """Two events of random symbols, int64 or the model's dtype."""
        generator = torch.Generator().manual_seed(seed)
        size = (TRACED_BATCH, *self.grid)
        noise = torch.rand(size, generator=generator, dtype=torch.float64)
        dtype, device = self.placed()
        if self.levels is None:
            return (2 * noise - 1).to(device, dtype)
        return (noise * (self.levels or 2)).long().to(device)

    @property
    def levels(self) -> int | None:
        """How many levels a symbol has; None for numbers without levels."""
        if self.distribution is None or self.distribution.dtype is None:
            return None
        return int(getattr(self.distribution, "levels", None) or 2)

    def symbol_values(self) -> Tensor | None:
        """All numbers that the model can see, in any order; None if they have no levels."""
        if self.levels is None:
            return None
        assert self.distribution is not None
        values = self.distribution.encode(torch.arange(self.levels)[:, None])
        return values if not values.is_floating_point() else values.to(self.placed()[0])

    def extreme_planes(self) -> list[Tensor]:
        """Events two by two as the model sees them: what random ones may never show.

        All lowest and all highest; then levels rising from one position to the next, and falling:
        every level, where there are as many positions. The first position has the start symbol.
        """
        levels = self.levels
        blank = torch.zeros(self.grid, dtype=torch.int64)
        if self.distribution is None or levels is None:
            dtype, device = self.placed()
            ends = torch.stack([blank - 1, blank + 1]).to(device, dtype)
            return [ends if self.distribution is None else self.planes(ends)]
        place = torch.arange(blank.numel()).view(blank.shape)
        if levels > blank.numel():
            place = place * (levels - 1) // max(blank.numel() - 1, 1)
        rising = place % levels
        falling = levels - 1 - rising
        rising[:, 0, 0] = int(self.distribution.start)
        device = self.placed()[1]
        pairs = ([blank, blank + levels - 1], [rising, falling])
        return [self.planes(torch.stack(pair).to(device)) for pair in pairs]

    def features(self, output: Tensor, n: int) -> list[tuple[Tensor, tuple[int, ...]]]:
        """Ways to see an output as features on a grid: [N, F, H', W'], and sizes of feature axes.

        The axes are taken as images, features, grid; then as images, grid, features; then as
        features on both sides of the grid; an output [N * H * W, ...] as images, grid, features.
        Else one axis may hold all positions, with features outside or inside: see `output_ways`. A
        sound may be longer or shorter than the input.
        """
        spatial, rank = self.spatial, len(self.spatial)
        ways: list[Tensor] = []
        if output.dim() == 0:
            ways = []
        elif output.shape[0] == n and output.dim() > rank:
            ways = [
                output.movedim(tuple(range(first, first + rank)), tuple(range(-rank, 0)))
                for first in (1 + place for place in places_of_grid(output.dim() - 1, rank))
            ]
        elif rank == 1 and output.shape[0] % n == 0 and output.dim() > 1:
            ways = [output.unflatten(0, (n, -1)).movedim(1, -1)]  # type: ignore[no-untyped-call]
        elif output.shape[0] == n * math.prod(spatial):
            split = torch.unflatten(output, 0, (n, *spatial))
            ways = [split.movedim(tuple(range(1, 1 + rank)), tuple(range(-rank, 0)))]
        exact = [way for way in ways if tuple(way.shape[-rank:]) == spatial]
        flat = []
        if output.shape[:1] == (n,) and not exact:
            for before, after in output_ways(output.shape[1:], spatial):
                split = output.reshape(n, *before, *spatial, *after)
                first = 1 + len(before)
                grid = tuple(range(first, first + rank))
                flat.append(split.movedim(grid, tuple(range(-rank, 0))))
        if output.dim() > 2 and rank == 1:  # else all of its features are in the axis of positions
            flat = [*ways, *flat]
        found = exact or flat or (ways if rank == 1 else [])
        if not found:
            raise UnsupportedModelError(
                f"{self.where}: expected an output [N, ..., {', '.join(map(str, spatial))}], "
                f"got {list(output.shape)} for N = {n}; forward= can choose another tensor"
            )
        height, width = self.grid[1], -1
        return [
            (
                way.reshape(n, math.prod(way.shape[1:-rank]), height, width),
                tuple(way.shape[1:-rank]),
            )
            for way in found
        ]


def features_at(
    planes: Tensor, features: Sequence[int], offset: int, width: int
) -> tuple[Tensor, int, int]:
    """Features [N, P, H, columns] of an output, and the columns first .. last - 1 they predict.

    The output at column t predicts the symbol at column t + offset of `width`.
    """
    first, last = max(0, offset), min(width, planes.shape[3] + offset)
    return planes[:, list(features), :, first - offset : last - offset], first, last
