"""What a sampler knows of a distribution, and what the distributions share."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from genfast.errors import InputError

# First colour, number of colours, and the features of the model's output (its feature axes in
# row-major order) that are the parameters, in the distribution's own order.
DrawSpec = tuple[int, int, list[int]]


@runtime_checkable
class Distribution(Protocol):
    """How the symbols of a pixel come from the numbers that a model gives for it.

    Everything is a pure function: noise comes in as uniforms, so that equal parameters and equal
    noise give equal symbols in every sampler.

    Attributes:
        encoded: numbers the model sees for a symbol.
        noise_per_draw: uniforms a draw takes.
        start: the symbol at positions that nothing predicts.
        dtype: of symbols; None is the model's own, for continuous ones.
    """

    @property
    def encoded(self) -> int: ...  # noqa: D102

    @property
    def noise_per_draw(self) -> int: ...  # noqa: D102

    @property
    def start(self) -> float: ...  # noqa: D102

    @property
    def dtype(self) -> torch.dtype | None: ...  # noqa: D102

    def draws(self, output_sizes: Sequence[int], colours: int) -> list[DrawSpec]:
        """What is drawn together at a pixel, in order.

        Args:
            output_sizes: sizes of the feature axes of the model's output.
            colours: symbols of a pixel.

        Raises:
            InputError: the sizes do not fit; the message names both.
        """
        ...

    def encode(self, symbols: Tensor) -> Tensor:
        """Turn symbols [..., count] to what the model sees, [..., count * encoded]."""
        ...

    def draw(
        self,
        parameters: Tensor,
        uniforms: Tensor,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """Symbols [N, count] from parameters [N, P] and uniforms [N, noise_per_draw] in [0, 1)."""
        ...

    def log_prob(self, parameters: Tensor, symbols: Tensor) -> Tensor:
        """Log-probability (or density) [N] in nats of symbols [N, count], in float64."""
        ...

    def check(self, where: str, symbols: Tensor) -> None:
        """Raise InputError unless these are symbols of this distribution."""
        ...


def features_by_colour(
    where: str, output_sizes: Sequence[int], per_colour: int, colours: int, layout: str | None
) -> list[list[int]]:
    """Features of each colour's parameters in an output with these feature axes.

    K = per_colour parameters and C = colours stand as axes (K, C), (C, K) or joined (K * C,); axes
    of size 1 may stand anywhere. `layout` "KC" or "CK" says which is outer where sizes cannot.

    Raises:
        InputError: the sizes do not fit, or fit two ways without a layout.
    """
    if layout not in (None, "KC", "CK"):
        raise InputError(f"{where}: expected layout 'KC', 'CK' or None, got layout={layout!r}")
    sizes = tuple(output_sizes)
    axes = tuple(size for size in sizes if size != 1)
    total = per_colour * colours
    ways = {"KC": (per_colour, colours), "CK": (colours, per_colour)}
    if min(per_colour, colours) == 1:
        fitting = ["CK"] if math.prod(axes) == total and len(axes) <= 1 else []
    else:
        fitting = [way for way, expected in ways.items() if axes in (expected, (total,))]
        fitting = [way for way in fitting if layout in (None, way)]
    if not fitting:
        kind = f" with layout={layout!r}" if layout else ""
        raise InputError(
            f"{where}: expected {per_colour} parameters for each of {colours} colours{kind}, "
            f"got an output with feature axes {sizes}"
        )
    if len(fitting) == 2:
        raise InputError(
            f"{where}: expected layout='KC' ({per_colour} parameters outer) or layout='CK' "
            f"({colours} colours outer) for feature axes {sizes}, got layout=None"
        )
    if fitting[0] == "KC":
        return [[k * colours + c for k in range(per_colour)] for c in range(colours)]
    return [[c * per_colour + k for k in range(per_colour)] for c in range(colours)]


def refuse_truncation(where: str, top_k: int | None, top_p: float | None) -> None:
    """Refuse top-k and top-p for a distribution without a list of levels to cut."""
    for name, value in (("top_k", top_k), ("top_p", top_p)):
        if value is not None:
            raise InputError(f"{where}: expected {name} with Categorical only, got {name}={value}")


def inner_uniform(uniforms: Tensor) -> Tensor:
    """Move multiples of 2^-24 in [0, 1) to the middle of their steps: float64, never 0 or 1."""
    return uniforms.double() + 2.0**-25


def level_dtype(levels: int) -> torch.dtype:
    """The dtype of symbols with this many levels."""
    return torch.uint8 if levels <= 256 else torch.int32


def check_levels(where: str, symbols: Tensor, levels: int) -> None:
    """Refuse what is no integer tensor of levels 0 .. levels - 1."""
    wrong = symbols.is_floating_point() or symbols.is_complex() or symbols.dtype == torch.bool
    if wrong:
        raise InputError(f"{where}: expected integer symbols, got dtype={symbols.dtype}")
    if symbols.numel() > 0:
        low, high = symbols.min().item(), symbols.max().item()
        if low < 0 or high >= levels:
            raise InputError(f"{where}: expected symbols in 0 .. {levels - 1}, got {low} .. {high}")


def check_count(where: str, name: str, value: Any, minimum: int) -> None:
    """Refuse a setting that is no integer of at least the minimum."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise InputError(f"{where}: expected an integer {name} >= {minimum}, got {name}={value!r}")


class LevelValues:
    """What a model sees for each of K levels: a table [K, D], kept on every device it is used on.

    Args:
        where: whose argument it is, for errors.
        values: None for the numbers 0 .. K - 1 themselves, "unit" for [0, 1], "signed" for
            [-1, 1], or a tensor [K] or [K, D]. Integer tables are shown as integers.
        levels: K.
    """

    def __init__(self, where: str, values: "Tensor | str | None", levels: int) -> None:
        if isinstance(values, Tensor):
            table = values.detach().to("cpu")
            table = table.long() if _is_integer(table) else table.double()
            fits = table.dim() in (1, 2) and table.shape[0] == levels and table.numel() > 0
            if not fits or table.is_complex():
                raise InputError(
                    f"{where}: expected values [{levels}] or [{levels}, D], "
                    f"got {list(values.shape)} {values.dtype}"
                )
            if not bool(torch.isfinite(table).all()):
                raise InputError(f"{where}: expected finite values, got inf or NaN among them")
            table = table.view(levels, -1)
        elif values is None:
            table = torch.arange(levels)[:, None]
        elif values in ("unit", "signed"):
            unit = torch.arange(levels, dtype=torch.float64)[:, None] / (levels - 1)
            table = unit if values == "unit" else 2 * unit - 1
        else:
            rule = "values None, 'unit', 'signed' or a tensor"
            raise InputError(f"{where}: expected {rule}, got values={values!r}")
        self.encoded = table.shape[1]
        self._tables = {table.device: table.contiguous()}
        self._first = self._tables[table.device]

    def encode(self, symbols: Tensor) -> Tensor:
        """Levels [..., count] to [..., count * D]: int64 from an integer table, else float64."""
        table = self._tables.get(symbols.device)
        if table is None:
            table = self._tables[symbols.device] = self._first.to(symbols.device)
        return table[symbols.long()].flatten(-2)


def _is_integer(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()
