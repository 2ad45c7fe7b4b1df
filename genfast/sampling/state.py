"""Events on their way: what is drawn next, and who decides it."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from genfast.errors import InputError, NumericsError
from genfast.sampling.distributions import Distribution
from genfast.sampling.distributions.distribution import DrawSpec
from genfast.sampling.model_call import ModelCall
from genfast.sampling.protocol import Run
from genfast.sampling.request import Options, tensor_of
from genfast.sampling.surroundings import ordinary_tensors


class SamplerState:
    """n events of a sampler, drawn or supplied symbol by symbol.

    At each position the model's parameters for the next draw can be seen; `step()` draws from them
    and `step(value)` takes symbols from elsewhere, such as a decoder that read the parameters.

    Attributes:
        draws: first colour, count and parameters' features of each draw at a pixel.
        symbols: [n, C, H, W] so far, zero where nothing is drawn yet.
        log_prob: [n] nats, of the symbols that `step()` drew.
    """

    def __init__(
        self,
        run: Run,
        call: ModelCall,
        distribution: Distribution,
        draws: list[DrawSpec],
        noise: Tensor,
        options: Options,
        release: Callable[[], None],
    ) -> None:
        self._run, self._call, self._distribution, self.draws = run, call, distribution, draws
        self._noise, self._options, self._release = noise, options, release
        n, device = noise.shape[0], noise.device
        self.symbols = torch.zeros(n, *call.grid, dtype=call.symbol_dtype(), device=device)
        self.log_prob = torch.zeros(n, dtype=torch.float64, device=device)
        self._parameters: Tensor | None = None
        self._seen = False
        self.count_log_prob = getattr(distribution, "has_log_prob", True)
        # NaN in a row's parameters, looked at when the row is done: a look waits for the device.
        self._nan = torch.zeros((), dtype=torch.bool, device=device)
        self._at = (0, 0, 0)
        self.done = False

    def __getstate__(self) -> NoReturn:
        kind = type(self).__name__
        raise TypeError(f"a {kind} cannot be copied or pickled; start another from its sampler")

    @property
    def position(self) -> tuple[int, int, int]:
        """Row, column and first colour of the next draw."""
        draw, row, column = self._here()
        return row, column, self.draws[draw][0]

    @property
    def parameters(self) -> Tensor | None:
        """The next draw's parameters [n, P] in the distribution's order; None if not predicted."""
        self._here()
        with ordinary_tensors():
            return self._next_parameters()

    @property
    def events(self) -> Tensor:
        """The symbols so far, [n, *event_shape]."""
        return self.symbols.view(-1, *self._call.event_shape)

    def step(self, value: Any = None) -> Tensor:
        """Draw the next symbols, or take `value`, [n, count] or [n]; return them, [n, count].

        Where nothing is predicted, what is drawn is the distribution's start symbol.

        Raises:
            InputError: the values are no symbols, or the events are done.
        """
        draw, _, _ = self._here()
        count = self.draws[draw][1]
        if value is not None:
            n, value = self.symbols.shape[0], tensor_of("step", "value", value)
            if tuple(value.shape) not in [(n, count), *([(n,)] if count == 1 else [])]:
                raise InputError(
                    f"step: expected value [{n}, {count}], got value={list(value.shape)}"
                )
            self._distribution.check("step", value)
            value = value.reshape(n, count).to(self.symbols.device, self.symbols.dtype)
        with ordinary_tensors():
            return self.advance(value, None)

    def advance(self, value: Tensor | None, keep: Tensor | None) -> Tensor:
        """Step with checked values; `keep` [n, count] says which of them stand, all if None.

        It is called among `ordinary_tensors`.
        """
        draw, row, column = self._here()
        first, count, _ = self.draws[draw]
        parameters = self._next_parameters()
        if value is None or keep is not None:
            drawn = self._draw(parameters, draw, row, column, count, value, keep)
        else:
            drawn = value
        self.symbols[:, first : first + count, row, column] = drawn
        self._run.supply(self._distribution.encode(drawn))
        self._parameters, self._seen = None, False
        self._move_on()
        return drawn

    def _next_parameters(self) -> Tensor | None:
        if not self._seen:
            # Asked for where there are none too: executors compute up to the draw when they are.
            found = self._run.parameters()
            self._parameters = found if self._run.has_parameters else None
            self._seen = True
        return self._parameters

    def _draw(
        self,
        parameters: Tensor | None,
        draw: int,
        row: int,
        column: int,
        count: int,
        value: Tensor | None,
        keep: Tensor | None,
    ) -> Tensor:
        per_draw = self._distribution.noise_per_draw
        if parameters is None:
            start = self._distribution.start
            drawn = torch.full_like(self.symbols[:, :count, 0, 0], start)
        else:
            self._nan |= torch.isnan(parameters).any()
            uniforms = self._noise[:, draw * per_draw : (draw + 1) * per_draw, row, column]
            drawn = self._options.draw(self._distribution, parameters, uniforms)
            drawn = drawn.to(self.symbols.dtype)
        if value is not None and keep is not None:
            drawn = torch.where(keep, value, drawn)
        if parameters is not None and self.count_log_prob:
            terms = self._distribution.log_prob(parameters, drawn)
            self.log_prob += terms if keep is None else terms.masked_fill(keep.all(dim=1), 0)
        return drawn

    def _here(self) -> tuple[int, int, int]:
        if self.done:
            raise InputError("step: expected an event with symbols left, got one that is done")
        return self._at

    def _move_on(self) -> None:
        draw, row, column = self._at
        _, height, width = self._call.grid
        if draw + 1 < len(self.draws):
            self._at = (draw + 1, row, column)
            return
        self._at = (0, row, column + 1) if column + 1 < width else (0, row + 1, 0)
        if column + 1 == width and self._nan:
            raise NumericsError(f"sample: expected parameters without NaN, got NaN in row {row}")
        if self._at[1] == height:
            self.done = True
            self._release()
