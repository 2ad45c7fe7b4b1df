"""Is the compiled sampler the model it was made from?"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genfast.errors import ExactnessError, GenfastError, NumericsError, UnsupportedModelError
from genfast.sampling.distributions.distribution import DrawSpec
from genfast.sampling.model_call import TRACED_BATCH, ModelCall, features_at
from genfast.sampling.protocol import Executor
from genfast.sampling.stages import first_line
from genfast.sampling.verify.float64 import run_in_float64

# Largest difference allowed, relative to the range of the model's output.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
_SAME_PLAN = 1e-9  # likewise in float64, of a plan made of a model in another dtype
_TIMES_OWN = 4.0  # the distance from exact numbers, in units of that of the model
_NO_MEASURE = 1.0  # a model this far from exact numbers, relative to their range, is no measure
_HALF_ROUNDINGS = 32  # likewise for other dtypes, in units of their rounding


def tolerance(dtype: torch.dtype) -> float:
    """The largest difference allowed, relative to the range of the model's output."""
    return TOLERANCES.get(dtype, _HALF_ROUNDINGS * torch.finfo(dtype).eps)


def verify(
    executor: Executor,
    tables: Sequence[Tensor],
    call: ModelCall,
    conditions: Mapping[str, Tensor],
    draws: Sequence[DrawSpec],
    output_sizes: Sequence[int],
    offset: int,
    dtype: torch.dtype,
    predicts: str | None,
    seed: int = 1,
) -> tuple[float, tuple[int, ...]]:
    """Compare parameters computed incrementally with those of full forward passes.

    The events compared on are random ones and those of `ModelCall.extreme_planes`. A deep model may
    itself be further from exact numbers than `tolerance`, and one in half precision is anyway: then
    the plan in float64 must be the model in float64, and the plan at hand be as near to that as the
    model is, within a factor.

    Args:
        executor: of the compiled program.
        tables: the conditions as the program's tables.
        call: the model.
        conditions: examples of its conditioning, for two events.
        draws: which features of the output are whose parameters.
        output_sizes: sizes of its feature axes, with or without those of size 1.
        offset: the output at column t predicts the symbol at t + offset.
        dtype: of the program.
        predicts: what the plan was made for, as `compile_sampler` takes it.
        seed: of the random symbols.

    Returns:
        The largest difference, relative to the range of the model's output, and the sizes of all
        feature axes.

    Raises:
        ExactnessError: a difference above what is allowed, or NaN in one of the two only.
        NumericsError: the model itself gives NaN.
    """
    batches = [call.random_planes(seed), *call.extreme_planes()]
    n = TRACED_BATCH * len(batches)
    repeated = [each if len(each) == 1 else torch.cat([each] * len(batches)) for each in tables]
    output = torch.cat([_output(call, planes, conditions) for planes in batches])
    found = executor.begin(n, repeated).forced(torch.cat(batches))
    ways = call.features(output, n)
    width = call.grid[2]
    compared = [
        (*_compare(found, whole, draws, offset, width), way)
        for way, (whole, axes) in enumerate(ways)
        if _without_ones(axes) == _without_ones(output_sizes)
    ]
    if not compared:
        raise ExactnessError(
            f"compile_sampler: expected an output with feature axes {tuple(output_sizes)}, "
            f"got {list(output.shape)}"
        )
    # Sizes alone may not tell which axes are the features: the way that agrees is meant.
    error, where, way = min(compared)
    sizes = ways[way][1]
    allowed, exact = tolerance(dtype), "the model does"
    if error <= allowed and dtype in TOLERANCES:
        return error, sizes
    wide = run_in_float64(call, conditions, draws, predicts, batches)
    if wide is not None:
        plan64, whole64 = wide[0], call.features(wide[1], n)[way][0]
        itself = _as_found(ways[way][0], draws, offset, width)
        own, _ = _compare(itself, whole64, draws, offset, width)
        if own < _NO_MEASURE:
            exact = "the model in float64 does"
            error64, where = _compare(plan64, whole64, draws, offset, width)
            if not error64 <= _SAME_PLAN:
                raise _inexact(_SAME_PLAN, torch.float64, exact, error64, where)
            floor = allowed if dtype in TOLERANCES else torch.finfo(dtype).eps
            allowed = max(_TIMES_OWN * own, floor)
            distance, where = _compare(found, whole64, draws, offset, width)
            if not distance <= allowed:
                raise _inexact(allowed, dtype, exact, distance, where)
            return error, sizes
    if not error <= allowed:
        raise _inexact(allowed, dtype, exact, error, where)
    return error, sizes


def _inexact(
    allowed: float, dtype: torch.dtype, exact: str, error: float, where: str
) -> ExactnessError:
    return ExactnessError(
        f"compile_sampler: expected the compiled sampler to compute what {exact} within "
        f"{allowed:.1g} of its range in {dtype}, got a difference of {error:.3g} at {where}"
    )


def _as_found(whole: Tensor, draws: Sequence[DrawSpec], offset: int, width: int) -> list[Tensor]:
    """An output [n, F, H, W'] as an executor would give it: [n, P, H, W] for every draw."""
    found = []
    for _, _, features in draws:
        seen, left, _ = features_at(whole, features, offset, width)
        placed = seen.new_zeros(*seen.shape[:3], width)
        placed[..., left : left + seen.shape[3]] = seen
        found.append(placed)
    return found


def _output(call: ModelCall, planes: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    try:
        return call.run(call.as_input(planes), conditions)
    except GenfastError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            "compile_sampler: expected a model that takes every symbol of "
            f"{call.distribution!r}, got {first_line(error)}"
        ) from error


def _without_ones(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size != 1)


def _compare(
    found: Sequence[Tensor], whole: Tensor, draws: Sequence[DrawSpec], offset: int, width: int
) -> tuple[float, str]:
    """The largest difference relative to the range, and where it is."""
    worst = (0.0, "nowhere")
    for (first, count, features), seen in zip(draws, found, strict=True):
        expected, left, right = features_at(whole.double(), features, offset, width)
        given = seen[..., left:right].double()
        nan = torch.isnan(expected)
        if nan[:TRACED_BATCH].any():
            at = _position(nan, left)
            raise NumericsError(
                f"compile_sampler: expected a model without NaN in its output, got NaN at {at}"
            )
        finite = expected[torch.isfinite(expected)]
        span = float(finite.max() - finite.min()) if finite.numel() else 0.0
        scale = span or float(finite.abs().max() if finite.numel() else 0.0) or 1.0
        # Equal infinities are no difference; NaN is more than any, but where a model makes it of
        # events that nobody draws.
        equal = (given == expected) | (nan & torch.isnan(given))
        difference = torch.where(equal, 0.0, (given - expected).abs() / scale)
        difference = difference.nan_to_num(nan=torch.inf, posinf=torch.inf)
        if difference.numel() and float(difference.max()) >= worst[0]:
            colours = f"colours {first} .. {first + count - 1}"
            at = f"{_position(difference == difference.max(), left)} of {colours}"
            worst = (float(difference.max()), at)
    return worst


def _position(marks: Tensor, left: int) -> str:
    _, feature, row, column = marks.nonzero()[0].tolist()
    return f"row {row}, column {column + left}, parameter {feature}"
