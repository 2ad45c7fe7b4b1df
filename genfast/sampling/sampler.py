"""Any causal model, sampled exactly for about the price of one forward pass."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genfast._progress import tqdm
from genfast.errors import ExactnessError, InputError, UnsupportedModelError
from genfast.sampling.compiled import EXECUTORS, Compiled, MakeExecutor, compile_model
from genfast.sampling.conditioning import conditions_of, traced_conditions
from genfast.sampling.distributions import Distribution
from genfast.sampling.fingerprint import fingerprint
from genfast.sampling.model_call import Forward, ModelCall
from genfast.sampling.naive.executor import naive_compiled, warn_slow
from genfast.sampling.protocol import DrawingRun, Run
from genfast.sampling.request import (
    Options,
    draw_noise,
    known_symbols,
    require,
    require_count,
    require_names,
    tensor_of,
)
from genfast.sampling.stages import first_line, stage
from genfast.sampling.state import SamplerState
from genfast.sampling.surroundings import ordinary_tensors

_COLUMNS_AT_ONCE = 512  # of a sound, between two looks at Ctrl-C
_UNNOTICED = 0.02  # seconds that a call may take and the next be longer


def compile_sampler(
    model: nn.Module,
    event_shape: Sequence[int],
    distribution: Distribution,
    *,
    conditioning: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
    predicts: str | None = None,
    executor: str | MakeExecutor = "auto",
    fallback: str | None = None,
) -> "Sampler":
    """Turn a model that predicts each symbol from those before it into a fast, exact sampler.

    1. The model's forward pass is recorded, in evaluation mode. The model is not changed, copied
       or kept in another mode.
    2. From the recording and its weights follows what depends on what; a model that looks at
       symbols not drawn yet is refused.
    3. A plan computes each number once, as soon as the symbols it needs are drawn.
    4. The plan's parameters are compared with a full forward pass before the sampler is returned.

    Args:
        model: maps what it sees of events [N, C * encoded, H, W] (or [N, C * encoded, T], [N, T])
            to parameters of each symbol, causally in raster order, colour by colour.
        event_shape: (C, H, W), (C, T) or (T,).
        distribution: what symbols are, what the model sees of them, and what its output means.
        conditioning: examples [1 or more, ...] of keyword arguments of the model's forward that
            every call of the sampler gives anew; other arguments belong into `forward`.
        forward: `forward(model, x, **conditioning)` gives the output, for models that are called
            in another way; by default `model(x, **conditioning)`, its "logits" or its first or only
            tensor.
        predicts: for sounds, whether output t predicts the symbol at t ("current") or t + 1
            ("next"); by default what is causal.
        executor: "native" (compiled, CPU), "reference" (plain PyTorch, any device), "auto": the
            first where it can; or a function from a program to an executor.
        fallback: "naive" samples a model that cannot be taken by one forward pass per symbol, with
            a warning, instead of refusing it.

    Raises:
        UnsupportedModelError: an operation that cannot be taken, with its source line.
        CausalityError: a model that looks ahead; `error.report` says where.
        NumericsError: weights, or what the model makes of symbols, are NaN or infinite.
        ExactnessError: the plan does not compute what the model does. Please report it.
        InputError: an argument breaks its rule above.
    """
    if fallback not in (None, "naive"):
        rule = "fallback 'naive' or None"
        raise InputError(f"compile_sampler: expected {rule}, got fallback={fallback!r}")
    for name, value, known in (
        ("predicts", predicts, (None, "current", "next")),
        ("executor", executor, EXECUTORS),
    ):
        if not callable(value) and value not in known:
            raise InputError(f"compile_sampler: expected {name} in {known}, got {name}={value!r}")
    if not isinstance(distribution, Distribution):
        rule = "a distribution such as genfast.Categorical(256)"
        raise InputError(f"compile_sampler: expected {rule}, got {distribution!r}")
    if not isinstance(model, nn.Module):
        raise InputError(
            f"compile_sampler: expected a torch.nn.Module, got model={model!r}; a function goes "
            "into forward="
        )
    if conditioning is not None and not isinstance(conditioning, Mapping):
        rule = "conditioning by name, such as {'labels': example}"
        raise InputError(f"compile_sampler: expected {rule}, got {type(conditioning).__name__}")
    require_names(conditioning or ())
    call = ModelCall(model, event_shape, distribution, forward)  # type: ignore[arg-type]
    return Sampler(call, distribution, conditioning or {}, predicts, executor, fallback)


class Sampler:
    """Draws events from a model; made by `genfast.compile_sampler`. `print` it for its plan.

    Weights that change later are noticed at the next call, which then compiles again. A copy or a
    pickle holds the model and what it was compiled with, and compiles again when first used. What
    is computed does not depend on an autocast region around the call.
    """

    def __init__(
        self,
        call: ModelCall,
        distribution: Distribution,
        conditioning: Mapping[str, Any],
        predicts: str | None,
        executor: str | MakeExecutor,
        fallback: str | None,
    ) -> None:
        self._call, self._predicts, self._executor = call, predicts, executor
        self._distribution = distribution
        self._fallback, self._warned = fallback, False
        self._examples = traced_conditions(conditioning)
        self._compiled: Compiled | None = None
        with ordinary_tensors():
            self._current()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_compiled": None}

    @property
    def model(self) -> nn.Module:
        """The user's module."""
        return self._call.model

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Of the events drawn."""
        return self._call.event_shape

    @property
    def distribution(self) -> Distribution:
        """Of their symbols."""
        return self._distribution

    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        known: Any = None,
        known_mask: Any = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        first: int = 0,
        progress: bool = False,
        return_log_prob: bool = False,
        **conditioning: Any,
    ) -> Any:
        """Draw n events, or complete known ones: the same events as `sample_naive` with that seed.

        Args:
            n: at least 1.
            seed: which noise, an integer in [0, 2**63).
            generator: where a missing seed comes from; torch's global one by default.
            known: symbols to complete, a tensor, array or list of a shape that broadcasts to
                [n, *event_shape]; without `known_mask`, negative levels (NaN in continuous symbols)
                mark what to draw.
            known_mask: bool, broadcasts likewise; true where `known` is to be kept.
            temperature: at least 1e-6; see the distribution's `draw`. `top_k=1` is the limit at 0.
            top_k: only the k most probable levels are drawn, see `Categorical.draw`.
            top_p: only the most probable levels that reach this probability are drawn.
            first: number of the first event in its stream of noise: `sample(4, seed=s, first=4)`
                are the last four of `sample(8, seed=s)`.
            progress: show a bar that counts pixels, row by row.
            return_log_prob: return also the log-probabilities [n] in nats of what was drawn, under
                the model itself whatever the temperature.
            **conditioning: what was named when compiling: [n, ...], or one for all events.

        Returns:
            Symbols [n, *event_shape] on the model's device: uint8 up to 256 levels, else int32, or
            the model's dtype where they are continuous. With `return_log_prob` a pair.

        Raises:
            InputError: an argument breaks its rule above.
            NumericsError: the model's parameters are NaN.
            UnsupportedModelError: these symbols make it look beyond the end of a table.
        """
        n, options = require_count(n), Options(temperature, top_k, top_p)
        start, keep = self._known(n, known, known_mask)
        with ordinary_tensors(), _lookups("sample"):
            compiled = self._current()
            given = conditions_of(conditioning, n, compiled.device, self._examples)
            noise = self._noise(n, first, seed, generator, compiled)
            executor = compiled.take()
            run = executor.begin(n, compiled.tables(given, n))
            rows, columns = self._call.grid[1:]
            with tqdm(total=rows * columns, unit="pixel", disable=not progress) as bar:
                simple = options.top_k is None and options.top_p is None
                if simple and isinstance(run, DrawingRun) and run.draws(self.distribution):
                    log_prob = torch.zeros(n, dtype=torch.float64) if return_log_prob else None
                    drawn = (run, noise, start, keep, options.temperature, log_prob, bar)
                    events = self._sample_fast(*drawn)
                else:
                    state = self._state(run, compiled, noise, options)
                    state.count_log_prob = return_log_prob
                    self._sample_generic(state, start, keep, bar)
                    events, log_prob = state.symbols, state.log_prob
        # Not after an exception: then the executor may be in the middle of something.
        compiled.give_back(executor)
        events = events.view(n, *self.event_shape)
        return (events, log_prob) if return_log_prob else events

    def start(
        self,
        n: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        first: int = 0,
        **conditioning: Any,
    ) -> SamplerState:
        """Begin n events that are drawn, or supplied from outside, symbol by symbol.

        Arguments and errors as in `sample`.
        """
        n, options = require_count(n), Options(temperature, top_k, top_p)
        with ordinary_tensors():
            compiled = self._current()
            given = conditions_of(conditioning, n, compiled.device, self._examples)
            noise = self._noise(n, first, seed, generator, compiled)
            executor = compiled.take()
            run = executor.begin(n, compiled.tables(given, n))
            return self._state(run, compiled, noise, options, lambda: compiled.give_back(executor))

    def logits(self, x: Any, **conditioning: Any) -> Tensor:
        """The model's output for events x, computed incrementally, symbol by symbol.

        Args:
            x: symbols [N, *event_shape], a tensor, array or list.
            **conditioning: as in `sample`.

        Returns:
            [N, *feature axes, H, W] (or [N, *feature axes, T]): at each position the parameters of
            the symbol there. For a model whose output at t predicts the symbol at t + k, that is
            its output at t - k. NaN where nothing predicts a symbol.
        """
        x = tensor_of("sampler", "x", x)
        compiled, forced = self._forced(x, conditioning)
        features = 1 + max(max(each) for _, _, each in compiled.draws)
        count = max(features, int(torch.Size(compiled.output_sizes).numel()))
        n, (_, height, width) = len(x), self._call.grid
        output = torch.full(
            (n, count, height, width), torch.nan, dtype=compiled.dtype, device=compiled.device
        )
        for (_, _, mine), seen, where in zip(
            compiled.draws, forced, compiled.predicted, strict=True
        ):
            output[:, mine] = seen.masked_fill(~where.to(seen.device), torch.nan)
        return output.view(n, *compiled.output_sizes, *self._call.spatial)

    def log_prob(self, x: Any, **conditioning: Any) -> Tensor:
        """Log-probabilities [N] in nats of events x [N, *event_shape]; float64.

        Symbols that nothing predicts (the first sample of a sound) do not count.
        """
        x = tensor_of("sampler", "x", x)
        compiled, forced = self._forced(x, conditioning)
        symbols = x.reshape(len(x), *self._call.grid).to(compiled.device)
        total = torch.zeros(len(x), dtype=torch.float64, device=compiled.device)
        for (first, count, _), seen, where in zip(
            compiled.draws, forced, compiled.predicted, strict=True
        ):
            mine = symbols[:, first : first + count]
            # Row by row: in float64 all parameters of a batch at once can be large.
            for row in range(where.shape[0]):
                columns = where[row].nonzero()[:, 0].to(seen.device)
                if len(columns) == 0:
                    continue
                parameters = seen[:, :, row, columns].transpose(1, 2).flatten(0, 1)
                chosen = mine[:, :, row, columns].transpose(1, 2).flatten(0, 1)
                each = self.distribution.log_prob(parameters, chosen)
                total += each.view(len(x), -1).sum(dim=1)
        return total

    def __str__(self) -> str:
        with ordinary_tensors():
            return (self._compiled or self._current()).text

    def _compile(self) -> Compiled:
        examples = {name: each.to(self._call.placed()[1]) for name, each in self._examples.items()}
        try:
            return compile_model(
                self._call, self.distribution, examples, self._predicts, self._executor
            )
        except (UnsupportedModelError, ExactnessError) as error:
            if self._fallback is None:
                raise
            if not self._warned:
                warn_slow(error)
                self._warned = True
            with stage("compile_sampler: expected a model that can be run symbol by symbol"):
                return naive_compiled(self._call, self.distribution, examples, self._predicts)

    def _current(self) -> Compiled:
        """The compiled model, compiled again if its weights are no longer those."""
        compiled = self._compiled
        if compiled is None or fingerprint(self.model) != compiled.weights:
            compiled = self._compiled = self._compile()
        return compiled

    def _known(
        self, n: int, known: Any, known_mask: Any
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """What is known and where, [n, C, H, W] on the CPU; None if nothing is."""
        size, dtype = (n, *self.event_shape), self._call.symbol_dtype()
        start, keep = known_symbols(size, self.distribution, dtype, known, known_mask)
        if known is None:
            return None, None
        shape = (n, *self._call.grid)
        return start.view(shape), keep.view(shape)

    def _noise(
        self,
        n: int,
        first: int,
        seed: int | None,
        generator: torch.Generator | None,
        compiled: Compiled,
    ) -> Tensor:
        require(seed is None or generator is None, "seed or generator", seed=seed, generator="too")
        per_pixel = len(compiled.draws) * self.distribution.noise_per_draw
        grid = self._call.grid[1:]
        return draw_noise(n, per_pixel, grid, first, seed, generator, compiled.device)

    def _state(
        self,
        run: Run,
        compiled: Compiled,
        noise: Tensor,
        options: Options,
        release: Callable[[], None] = lambda: None,
    ) -> SamplerState:
        return SamplerState(
            run,
            self._call,
            self.distribution,
            compiled.draws,
            noise,
            options,
            release,
        )

    def _sample_generic(
        self, state: SamplerState, start: Tensor | None, keep: Tensor | None, bar: Any
    ) -> None:
        draws = len(state.draws)
        counts = {first: count for first, count, _ in state.draws}
        columns = self._call.grid[2]
        if start is not None and keep is not None:
            device = state.symbols.device
            # Looked at on the CPU before the first pixel: a look later would wait for the device.
            some, every = keep.any(dim=0), keep.all(dim=0)
            start, keep = start.to(device), keep.to(device)
        step = 0
        while not state.done:
            row, column, first = state.position
            value = kept = None
            if start is not None and keep is not None:
                mine = slice(first, first + counts[first])
                if every[mine, row, column].all():
                    value = start[:, mine, row, column]
                elif some[mine, row, column].any():
                    value, kept = start[:, mine, row, column], keep[:, mine, row, column]
            state.advance(value, kept)
            step += 1
            if step % (draws * columns) == 0 or step % (draws * _COLUMNS_AT_ONCE) == 0:
                bar.update(step // draws - bar.n)

    def _sample_fast(
        self,
        run: DrawingRun,
        noise: Tensor,
        start: Tensor | None,
        keep: Tensor | None,
        temperature: float,
        log_prob: Tensor | None,
        bar: Any,
    ) -> Tensor:
        """Let the executor draw, some rows (or spans of a sound) at a time, no Python between.

        More of them at a time while a call is over sooner than a person notices.
        """
        dtype = self._call.symbol_dtype()
        kept = torch.int32 if self.distribution.dtype is not None else dtype
        symbols = torch.zeros(len(noise), *self._call.grid, dtype=kept)
        if start is not None:
            symbols.copy_(start)
        known_mask = None if keep is None else keep.contiguous()
        rows = 1
        while not run.done:
            began = time.perf_counter()
            run.sample(
                self.distribution,
                noise,
                symbols,
                log_probs=log_prob,
                known_mask=known_mask,
                temperature=temperature,
                rows=rows,
            )
            if time.perf_counter() - began < _UNNOTICED:
                rows *= 2
            _, row, column = run.position
            done = bar.total if run.done else row * noise.shape[3] + column
            bar.update(done - bar.n)
        return symbols.to(dtype)

    def _forced(self, x: Tensor, conditioning: Mapping[str, Any]) -> tuple[Compiled, list[Tensor]]:
        """Parameters of every draw, teacher-forced."""
        shape = list(self.event_shape)
        if x.dim() != 1 + len(shape) or list(x.shape[1:]) != shape or len(x) == 0:
            rule = f"x [N, {', '.join(map(str, shape))}]"
            raise InputError(f"sampler: expected {rule}, got x={list(x.shape)}")
        self.distribution.check("sampler: x", x)
        with ordinary_tensors(), _lookups("sampler"):
            compiled = self._current()
            given = conditions_of(conditioning, len(x), compiled.device, self._examples)
            executor = compiled.take()
            planes = self._call.planes(x.reshape(len(x), *self._call.grid).to(compiled.device))
            run = executor.begin(len(x), compiled.tables(given, len(x)))
            forced = run.forced(planes)
        compiled.give_back(executor)
        return compiled, forced


@contextmanager
def _lookups(where: str) -> Iterator[None]:
    """Say whose fault it is if symbols lead to a row that a table of the model lacks."""
    try:
        yield
    except IndexError as error:
        raise UnsupportedModelError(
            f"{where}: expected look-ups within the tables of the model, got {first_line(error)}"
        ) from error
