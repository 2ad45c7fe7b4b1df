"""Between the amplitude of a sound, in -1 .. 1, and the integer levels that models are made for."""

import torch
from torch import Tensor

from genfast.data._levels import MAX_LEVELS
from genfast.errors import InputError

COMPANDINGS = ("mu-law", "linear")


def mu_law_encode(amplitude: Tensor, levels: int = 256) -> Tensor:
    """Return the mu-law level of each amplitude.

    1. y = sign(x) log(1 + mu |x|) / log(1 + mu), with mu = levels - 1.
    2. The level is the nearest integer to mu (y + 1) / 2, so amplitude 0 has level levels // 2.

    Args:
        amplitude: any shape, floating point; what is beyond -1 .. 1 counts as -1 or 1.
        levels: number of levels, 2 to 65,536.

    Returns:
        Levels 0 .. levels - 1 of the same shape: uint8 up to 256 levels, else int32.

    Raises:
        InputError: amplitudes that are no floats or not finite, or `levels` out of range.

    Source: ITU-T G.711, as in van den Oord et al. 2016, "WaveNet", section 2.2.
    """
    x, mu = _amplitudes("mu_law_encode", amplitude, levels), levels - 1
    y = x.sign() * torch.log1p(mu * x.abs()) / torch.log1p(torch.tensor(float(mu)).double())
    return (mu * (y + 1) / 2 + 0.5).floor().to(_dtype(levels))


def mu_law_decode(level: Tensor, levels: int = 256) -> Tensor:
    """Return the amplitude of each mu-law level; `mu_law_encode` gives the level back.

    Args:
        level: any shape, integers 0 .. levels - 1.
        levels: number of levels, 2 to 65,536.

    Returns:
        Amplitudes in -1 .. 1, float32.

    Raises:
        InputError: levels that are no integers or out of range.
    """
    y, mu = 2 * _levels("mu_law_decode", level, levels) / (levels - 1) - 1, levels - 1
    x = y.sign() * torch.expm1(y.abs() * torch.log1p(torch.tensor(float(mu)).double())) / mu
    return x.float()


def encode(amplitude: Tensor, levels: int, companding: str) -> Tensor:
    """Return levels of amplitudes: "mu-law", or "linear" in bins of equal width.

    16-bit samples s, as amplitudes s / 32768, have the linear levels s + 32768 of 65,536.

    Raises:
        InputError: as `mu_law_encode`, or an unknown companding.
    """
    if companding == "mu-law":
        return mu_law_encode(amplitude, levels)
    _check_companding("encode", companding)
    x = _amplitudes("encode", amplitude, levels)
    return ((x + 1) / 2 * levels).floor().clamp(max=levels - 1).to(_dtype(levels))


def decode(level: Tensor, levels: int, companding: str) -> Tensor:
    """Return amplitudes of levels, float32: those of `mu_law_decode`, or the middles of bins.

    Raises:
        InputError: as `mu_law_decode`, or an unknown companding.
    """
    if companding == "mu-law":
        return mu_law_decode(level, levels)
    _check_companding("decode", companding)
    return ((2 * _levels("decode", level, levels) + 1) / levels - 1).float()


def _amplitudes(where: str, amplitude: Tensor, levels: int) -> Tensor:
    _check_levels(where, levels)
    if not amplitude.is_floating_point():
        raise InputError(f"{where}: expected floating-point amplitudes, got {amplitude.dtype}")
    if not bool(amplitude.isfinite().all()):
        raise InputError(f"{where}: expected finite amplitudes, got a value that is not")
    return amplitude.double().clamp(-1, 1)


def _levels(where: str, level: Tensor, levels: int) -> Tensor:
    _check_levels(where, levels)
    if level.is_floating_point() or level.is_complex() or level.dtype == torch.bool:
        raise InputError(f"{where}: expected integer levels, got dtype={level.dtype}")
    if level.numel() and not 0 <= int(level.min()) <= int(level.max()) < levels:
        low, high = int(level.min()), int(level.max())
        raise InputError(f"{where}: expected levels in 0 .. {levels - 1}, got {low} .. {high}")
    return level.double()


def _check_levels(where: str, levels: int) -> None:
    if not 2 <= levels <= MAX_LEVELS:
        raise InputError(f"{where}: expected 2 to {MAX_LEVELS} levels, got {levels=}")


def _check_companding(where: str, companding: str) -> None:
    if companding not in COMPANDINGS:
        raise InputError(f"{where}: expected companding in {COMPANDINGS}, got {companding=}")


def _dtype(levels: int) -> torch.dtype:
    return torch.uint8 if levels <= 256 else torch.int32
