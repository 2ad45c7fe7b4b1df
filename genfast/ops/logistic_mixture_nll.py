"""Discretized mixtures of logistics: the likelihood of levels.

Source: Salimans, Karpathy, Chen, Kingma 2017, "PixelCNN++", section 2.1 and 2.2. Levels 0 .. K - 1
stand for x = 2 k / (K - 1) - 1 in [-1, 1]; a level's bin reaches 1 / (K - 1) to both sides, and the
two outermost bins reach to infinity.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genfast._extension import has_kernel, loaded
from genfast.errors import InputError
from genfast.ops import _checks

# Parameters a mixture component has for the levels of a pixel: its logit, and for each colour a
# mean, a log-scale and, with three colours, a coefficient.
PER_COMPONENT = {1: 3, 3: 10}
FORMULAS = ("exact", "reference")

# The most levels that the kernels take; the reference takes any number.
_MOST_LEVELS = 65536
# Log-scales above it lower the logarithm of a bin by as much as they exceed it, which is exact to
# every digit and keeps the width of a bin a normal number.
_WIDEST = 60.0
_NARROWEST = -80.0


def logistic_mixture_nll(
    parameters: Tensor,
    symbols: Tensor,
    *,
    levels: int = 256,
    lowest_log_scale: float = -7.0,
    formula: str = "exact",
) -> Tensor:
    """Negative log-likelihood of images or sounds under a discretized mixture of logistics.

    Args:
        parameters: [N, P, ...] as a network gives them, in the published order. One colour:
            P = 3 M, logits, means, log-scales (M each). Three: P = 10 M, logits, then for each
            colour M means, M log-scales, M coefficients; coefficients before their tanh. The three
            are of green on red, blue on red and blue on green. Any strides; contiguous and channels
            last are read as they are.
        symbols: integers [N, C, ...] in 0 .. levels - 1, of C = 1 or 3 colours. On the GPU a level
            out of range gives NaN, for a check would have to wait.
        levels: K, at least 2.
        lowest_log_scale: log-scales below it count as this; in -80 .. 60.
        formula: "exact", or "reference" for the published approximation, see
            `discretized_logistic_log_prob`.

    Returns:
        [N], nats per example: the sum over all positions. float64 for float64 parameters, else
        float32. The exact formula has first derivatives and, on the CPU, the same bits for every
        number of threads; the loss and its derivative are made in one pass. In float32 a pixel's
        loss is within 1e-6 of itself, and with three colours within half a rounding of the shifted
        means more, times the slopes by the means (2e-6 at scales of exp(-7)).

    Raises:
        InputError: shapes or an argument that do not fit, levels out of range.
    """
    levels = _checks.integer("logistic_mixture", "levels", levels, 2)
    _check(parameters, symbols, formula)
    _check_values(symbols, levels, lowest_log_scale)
    native = formula == "exact" and levels <= _MOST_LEVELS
    if native and has_kernel("logistic_mixture_nll", parameters.device):
        op = torch.ops.genfast.logistic_mixture_nll.default
        loss: Tensor = op(parameters, symbols, levels, lowest_log_scale)
        return loss
    return logistic_mixture_nll_reference(
        parameters,
        symbols,
        levels=levels,
        lowest_log_scale=lowest_log_scale,
        formula=formula,
    )


def logistic_mixture_nll_reference(
    parameters: Tensor,
    symbols: Tensor,
    *,
    levels: int = 256,
    lowest_log_scale: float = -7.0,
    formula: str = "exact",
) -> Tensor:
    """`logistic_mixture_nll` in plain PyTorch; differentiable to any order."""
    log_prob = logistic_mixture_log_prob(
        parameters,
        symbols,
        levels=levels,
        lowest_log_scale=lowest_log_scale,
        formula=formula,
    )
    return -log_prob.flatten(1).sum(dim=1) if log_prob.dim() > 1 else -log_prob


def logistic_mixture_log_prob(
    parameters: Tensor,
    symbols: Tensor,
    *,
    levels: int = 256,
    lowest_log_scale: float = -7.0,
    formula: str = "exact",
) -> Tensor:
    """Log-probability [N, ...] in nats of the levels of each pixel, its colours together.

    1. The components' means of green and blue move by their coefficients times x of the colours
       before them.
    2. log P(pixel | component) = sum over colours of log P(bin).
    3. log P(pixel) = logsumexp of (log_softmax(logits) + log P(pixel | component)).

    Arguments and errors as in `logistic_mixture_nll`.
    """
    levels = _checks.integer("logistic_mixture", "levels", levels, 2)
    colours = _check(parameters, symbols, formula)
    symbols = _checks.signed(symbols)
    logits, means, log_scales, coefficients = split_mixture(parameters, colours, lowest_log_scale)
    x = level_positions(symbols, levels, means.dtype)[:, :, None]
    means = shifted_means(means, coefficients, x)
    each = discretized_logistic_log_prob(
        symbols[:, :, None], means, log_scales, levels=levels, formula=formula
    )
    return torch.logsumexp(logits.log_softmax(dim=1) + each.sum(dim=1), dim=1)


def discretized_logistic_log_prob(
    symbols: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    *,
    levels: int = 256,
    formula: str = "exact",
) -> Tensor:
    """Log-probability in nats of bins of logistic distributions; everything broadcasts.

    With u and l the bin's upper and lower end, minus the mean, over the scale:

        log P = logsigmoid(u) + logsigmoid(-l) + log(1 - exp(-(bin's width / scale)))

    which equals log(sigmoid(u) - sigmoid(l)) without its cancellation: no threshold, finite with
    finite gradients wherever the mean and scale are (at most 2^24 levels). The lowest bin keeps
    only the first term, the highest only the second.

    `formula="reference"` is the published one: log(sigmoid(u) - sigmoid(l)) where that difference
    is above 1e-5, else the density at the bin's centre times the width 2 / (K - 1).
    """
    half = 1 / (levels - 1)
    narrow = log_scale.clamp(max=_WIDEST)
    inverse_scale = torch.exp(-narrow)
    # Numerators are whole numbers, so that a bin ends in the same number where the next begins.
    doubled = symbols.to(mean.dtype) * 2 - levels
    upper = ((doubled + 2) / (levels - 1) - mean) * inverse_scale
    lower = (doubled / (levels - 1) - mean) * inverse_scale
    lowest, highest = symbols == 0, symbols == levels - 1
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
    if formula == "exact":
        inside = below + above + _log_one_minus_exp(2 * half * inverse_scale)
        inside = inside - (log_scale - narrow)
    else:
        mass = torch.sigmoid(upper) - torch.sigmoid(lower)
        centre = (level_positions(symbols, levels, mean.dtype) - mean) * inverse_scale
        approximate = centre - log_scale - 2 * F.softplus(centre) + math.log(2 * half)
        inside = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), approximate)
    return torch.where(lowest, below, torch.where(highest, above, inside))


def split_mixture(
    parameters: Tensor, colours: int, lowest_log_scale: float = -7.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Name the parts of parameters [N, P, ...], in float32 or wider.

    Returns:
        logits [N, M, ...]; means, log-scales (not below `lowest_log_scale`) and coefficients (after
        tanh) [N, C, M, ...]. With one colour there are no coefficients: [N, 0, M, ...].
    """
    parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
    mixtures = parameters.shape[1] // PER_COMPONENT[colours]
    logits, rest = parameters[:, :mixtures], parameters[:, mixtures:]
    kinds = 3 if colours == 3 else 2
    parts = torch.unflatten(rest, 1, (colours, kinds, mixtures))
    means, log_scales = parts[:, :, 0], parts[:, :, 1].clamp(min=lowest_log_scale)
    coefficients = parts[:, :, 2].tanh() if kinds == 3 else parts[:, :0, 0]
    return logits, means, log_scales, coefficients


def shifted_means(means: Tensor, coefficients: Tensor, x: Tensor) -> Tensor:
    """Means [N, C, M, ...] given the pixel's own colours x [N, C, 1, ...] in [-1, 1]."""
    if means.shape[1] == 1:
        return means
    red, green = x[:, 0], x[:, 1]
    return torch.stack(
        (
            means[:, 0],
            means[:, 1] + coefficients[:, 0] * red,
            means[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green,
        ),
        dim=1,
    )


def level_positions(symbols: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Where levels 0 .. levels - 1 lie in [-1, 1]."""
    return symbols.to(dtype) * (2 / (levels - 1)) - 1


_LOG_2 = math.log(2)


def _log_one_minus_exp(width: Tensor) -> Tensor:
    """log(1 - exp(-width)) for width > 0, accurate at both ends, with finite gradients."""
    # The unused branch is kept away from its singularity, where its gradient would be NaN.
    small = torch.log(-torch.expm1(-width.clamp(max=_LOG_2)))
    large = torch.log1p(-torch.exp(-width.clamp(min=_LOG_2)))
    return torch.where(width < _LOG_2, small, large)


def _check(parameters: Tensor, symbols: Tensor, formula: str) -> int:
    """The number of colours."""
    where = "logistic_mixture"
    _checks.check_tensor(where, "parameters", parameters)
    _checks.check_tensor(where, "symbols", symbols)
    colours = symbols.shape[1] if symbols.dim() > 1 else 0
    if not isinstance(formula, str) or formula not in FORMULAS:
        raise InputError(f"{where}: expected formula in {FORMULAS}, got formula={formula!r}")
    if colours not in PER_COMPONENT:
        raise InputError(
            f"{where}: expected levels [N, 1, ...] or [N, 3, ...], got "
            f"symbols.shape={list(symbols.shape)}"
        )
    per = PER_COMPONENT[colours]
    size = tuple(parameters.shape[:1]) + tuple(parameters.shape[2:])
    fits = parameters.dim() == symbols.dim() and parameters.shape[1] % per == 0
    fits = fits and size == tuple(symbols.shape[:1]) + tuple(symbols.shape[2:])
    if not fits or parameters.shape[1] == 0:
        raise InputError(
            f"{where}: expected parameters [N, {per} * mixtures, ...] beside levels "
            f"{list(symbols.shape)}, got parameters.shape={list(parameters.shape)}"
        )
    _checks.check_integer_dtype(where, "symbols", "levels", symbols)
    return colours


def _check_values(symbols: Tensor, levels: int, lowest_log_scale: float) -> None:
    _checks.check_real("logistic_mixture", "lowest_log_scale", lowest_log_scale)
    if not _NARROWEST <= lowest_log_scale <= _WIDEST:
        raise InputError(
            f"logistic_mixture: expected lowest_log_scale in {_NARROWEST:.0f} .. {_WIDEST:.0f}, "
            f"got lowest_log_scale={lowest_log_scale}"
        )
    _checks.check_range("logistic_mixture", "levels", symbols, levels)


if loaded():

    def _computed(parameters: Tensor) -> torch.dtype:
        return torch.float64 if parameters.dtype == torch.float64 else torch.float32

    @torch.library.register_fake("genfast::logistic_mixture_nll")
    def _logistic_mixture_nll_fake(
        parameters: Tensor, symbols: Tensor, levels: int, lowest_log_scale: float
    ) -> Tensor:
        return parameters.new_empty((parameters.shape[0],), dtype=_computed(parameters))

    @torch.library.register_fake("genfast::_logistic_mixture_nll_with_slope")
    def _logistic_mixture_nll_with_slope_fake(
        parameters: Tensor, symbols: Tensor, levels: int, lowest_log_scale: float
    ) -> tuple[Tensor, Tensor]:
        dtype = _computed(parameters)
        last = parameters.movedim(1, -1)
        if not parameters.is_contiguous() and last.is_contiguous():
            slope = parameters.new_empty(last.shape, dtype=dtype).movedim(-1, 1)
        else:
            slope = parameters.new_empty(parameters.shape, dtype=dtype)
        return parameters.new_empty((parameters.shape[0],), dtype=dtype), slope

    for _device in ("cpu", "cuda"):
        torch.library.register_autocast("genfast::logistic_mixture_nll", _device, torch.float32)
