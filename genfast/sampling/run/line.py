"""Runs an image's program of one line, see `sampling/line.py`, as if it were one of the image."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genfast.sampling.distributions import Distribution
from genfast.sampling.line import Line
from genfast.sampling.protocol import DrawingRun, Executor, Run


class LineExecutor:
    """An executor of images by one of their lines."""

    def __init__(self, executor: Executor, line: Line, span: int) -> None:
        self._executor, self._line, self._span = executor, line, span

    def begin(self, n: int, conditions: Sequence[Tensor] = ()) -> "LineRun":
        """Start n images."""
        return LineRun(self._executor.begin(n, conditions), self._line, self._span)


class LineRun:
    """n images on their way, as `protocol.DrawingRun` says."""

    def __init__(self, run: Run, line: Line, span: int) -> None:
        self._run, self._line, self._span = run, line, span

    @property
    def position(self) -> tuple[int, int, int]:
        """The next draw's number, row and column."""
        draw, _, column = self._run.position
        row, column, colour = self._line.place(column, 0)
        return (colour if self._line.apart else draw), row, column

    @property
    def has_parameters(self) -> bool:
        """Whether the model predicts the next draw."""
        return self._run.has_parameters

    def parameters(self) -> Tensor:
        """Parameters [n, P] of the next draw."""
        return self._run.parameters()

    def supply(self, encoded: Tensor) -> None:
        """Give the next draw's symbols as the model sees them; move on."""
        self._run.supply(encoded)

    def forced(self, x: Tensor) -> list[Tensor]:
        """Parameters [n, P, H, W] of every draw for the input x [n, features, H, W]."""
        found = self._run.forced(self._line.of_image(x))
        return [draw for each in found for draw in by_draw(each, self._line)]

    @property
    def done(self) -> bool:
        """Whether nothing is left to draw."""
        return isinstance(self._run, DrawingRun) and self._run.done

    def draws(self, distribution: Distribution) -> bool:
        """Whether it draws from this distribution without Python."""
        return isinstance(self._run, DrawingRun) and self._run.draws(distribution)

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
        """Draw the symbols of the next rows at least; see `NativeRun.sample`."""
        assert isinstance(self._run, DrawingRun)
        placed = self._line.of_image(symbols).clone(memory_format=torch.contiguous_format)
        known = None if known_mask is None else self._line.of_image(known_mask).contiguous()
        self._run.sample(
            distribution,
            self._line.of_image(noise).contiguous(),
            placed,
            log_probs=log_probs,
            known_mask=known,
            temperature=temperature,
            rows=-(-rows * self._line.per_row // self._span),
        )
        symbols.copy_(self._line.image(placed))


def by_draw(x: Tensor, line: Line) -> list[Tensor]:
    """What a line has at its places, [..., 1, places], for each draw of the image [..., H, W]."""
    colours, height, width = line.shape
    if not line.apart:
        return [x.reshape(*x.shape[:-2], height, width)]
    return list(x.reshape(*x.shape[:-2], height, width, colours).unbind(-1))


def on_lines(make: Callable[[], Executor], line: Line, span: int) -> Callable[[], Executor]:
    """Make executors of images by those of their lines."""
    return lambda: LineExecutor(make(), line, span)
