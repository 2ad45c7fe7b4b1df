"""What a sampler asks of an executor of programs."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from genfast.sampling.distributions import Distribution


class Run(Protocol):
    """Some events on their way, symbol by symbol."""

    @property
    def position(self) -> tuple[int, int, int]:
        """The next draw's number, row and column."""
        ...

    @property
    def has_parameters(self) -> bool:
        """Whether the model predicts the next draw, or its symbols must be given."""
        ...

    def parameters(self) -> Tensor:
        """Parameters [n, P] of the next draw, in the distribution's order."""
        ...

    def supply(self, encoded: Tensor) -> None:
        """Give the next draw's symbols as the model sees them, [n, count * encoded]; move on."""
        ...

    def forced(self, x: Tensor) -> list[Tensor]:
        """Parameters [n, P, H, W] of every draw when the input is x [n, features, H, W]."""
        ...


@runtime_checkable
class DrawingRun(Run, Protocol):
    """A run that can draw by itself, without Python between two symbols."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to draw."""
        ...

    def draws(self, distribution: Distribution) -> bool:
        """Whether it can from this distribution."""
        ...

    def sample(
        self,
        distribution: Distribution,
        noise: Tensor,
        symbols: Tensor,
        *,
        log_probs: Tensor | None = None,
        known_mask: Tensor | None = None,
        temperature: float = 1.0,
        rows: int = 1,
    ) -> None:
        """Draw the symbols of some rows, or spans of a sound; see `NativeRun.sample`."""
        ...


class Executor(Protocol):
    """Runs one program any number of times, one run at a time."""

    def begin(self, n: int, conditions: Sequence[Tensor] = ()) -> Run:
        """Start n events, with the numbers of the program's condition tables."""
        ...
