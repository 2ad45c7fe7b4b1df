"""Pixels in raster order, some left out at an end or zeros put there, while a recording is lowered.

A transformer over the pixels of an image takes them as one sequence and moves it by one: it drops
the last and puts a start token first. A grid has no place for the sequence in between, so what is
left and what was added are kept here, until the sequence is as long as the image again.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genfast.sampling.lower.layout import Axis, Dims, Signal, dim_size

if TYPE_CHECKING:
    from genfast.sampling.lower.lowering import Operand


@dataclass(frozen=True, eq=False)
class Run:
    """Raster positions first .. last - 1 of a signal, along its axis `axis`.

    Of the signal's pixels there are `kept` (the first, and the one after the last), and zero beside
    them. `added` are other operands, each with the number of its first position in the run.
    """

    whole: Signal
    axis: int
    first: int
    last: int
    kept: tuple[int, int]
    added: "tuple[tuple[int, Operand], ...]" = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        sizes = list(map(dim_size, self.whole.dims))
        sizes[self.axis] = self.last - self.first
        return tuple(sizes)

    @property
    def dims(self) -> Dims:
        """The axes of the whole signal."""
        return self.whole.dims


def in_raster_order(x: Signal, axis: int) -> bool:
    """Whether an axis runs over all pixels of an image, row by row."""
    places = (Axis.ROW, Axis.COLUMN)
    axes = tuple(atom.axis for atom in x.dims[axis] if atom.size > 1 or atom.axis in places)
    return axes == places


def whole(x: Signal, axis: int) -> Run:
    """All pixels of a signal along such an axis."""
    return Run(x, axis, 0, x.height * x.width, (0, x.height * x.width))
