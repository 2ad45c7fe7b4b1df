"""Is the compiled sampler the model it was made from?"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genfast.errors import ExactnessError, GenfastError, NumericsError, UnsupportedModelError
from genfast.sampling.distributions.distribution import DrawSpec
from genfast.sampling.model_call import TRACED_BATCH, ModelCall, features_at
from genfast.sampling.protocol import Executor
from genfast.sampling.stages import first_line

# Largest difference allowed, relative to the range of the model's output.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
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
    seed: int = 1,
) -> tuple[float, tuple[int, ...]]:
    """Compare parameters computed incrementally with those of full forward passes.

    The events compared on are random ones and those of `ModelCall.extreme_planes`.

    Args:
        executor: of the compiled program.
        tables: the conditions as the program's tables.
        call: the model.
        conditions: examples of its conditioning, for two events.
        draws: which features of the output are whose parameters.
        output_sizes: sizes of its feature axes, with or without those of size 1.
        offset: the output at column t predicts the symbol at t + offset.
        dtype: of the program.
        seed: of the random symbols.

    Returns:
        The largest difference, relative to the range of the model's output, and the sizes of all
        feature axes.

    Raises:
        ExactnessError: a difference above `tolerance(dtype)`, or NaN in one of the two only.
        NumericsError: the model itself gives NaN.
    """
    batches = [call.random_planes(seed), *call.extreme_planes()]
    n = TRACED_BATCH * len(batches)
    repeated = [each if len(each) == 1 else torch.cat([each] * len(batches)) for each in tables]
    output = torch.cat([_output(call, planes, conditions) for planes in batches])
    found = executor.begin(n, repeated).forced(torch.cat(batches))
    ways = call.features(output, n)
    fitting = [way for way in ways if _without_ones(way[1]) == _without_ones(output_sizes)]
    # Sizes alone may not tell which axes are the features: the one that agrees is.
    differences = [
        (*_compare(found, whole, draws, offset, call.grid[2]), sizes) for whole, sizes in fitting
    ]
    if not differences:
        raise ExactnessError(
            f"compile_sampler: expected an output with feature axes {tuple(output_sizes)}, "
            f"got {list(output.shape)}"
        )
    error, where, sizes = min(differences)
    allowed = tolerance(dtype)
    if not error <= allowed:
        raise ExactnessError(
            "compile_sampler: expected the compiled sampler to compute what the model does within "
            f"{allowed:.1g} of its range in {dtype}, got a difference of {error:.3g} at {where}"
        )
    return error, sizes


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
