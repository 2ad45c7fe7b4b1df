"""Counter-based random numbers, Philox4x32-10: the same on the CPU, in CUDA and in Triton.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; normals
by Box and Muller, "A note on the generation of random normal deviates", 1958.
"""

import math
from collections.abc import Sequence

import torch

from genfast._extension import has_kernel, loaded
from genfast.errors import InputError
from genfast.random import as_seed, check_offset

_WORD = 0xFFFFFFFF


def philox_uniform(
    size: Sequence[int],
    *,
    seed: int | None = None,
    offset: int = 0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Uniform numbers in [0, 1): multiples of 2^-24, elements offset, offset+1, ... of a stream.

    Args:
        size: Shape of the result.
        seed: Which stream, in [0, 2**63). Default: drawn from `generator`.
        offset: Position of the first element in the stream, in elements.
        generator: Where a missing seed comes from; default: torch's CPU generator.
        dtype: float32 or float64. The numbers are the same.
        device: Where the result lives.

    Returns:
        Tensor of shape `size`. No gradient.

    Raises:
        InputError: if an argument breaks a rule above.
    """
    return _philox(size, seed, offset, generator, dtype, device, normal=False)


def philox_normal(
    size: Sequence[int],
    *,
    seed: int | None = None,
    offset: int = 0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Standard normal numbers, elements offset, offset+1, ... of a stream; at most 6.76 from zero.

    They are made in float32 whatever the dtype: one seed means one noise at every precision.
    Arguments, result and errors as in `philox_uniform`.
    """
    return _philox(size, seed, offset, generator, dtype, device, normal=True)


def _philox(
    size: Sequence[int],
    seed: int | None,
    offset: int,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    normal: bool,
) -> torch.Tensor:
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"philox: expected dtype float32 or float64, got dtype={dtype}")
    check_offset("philox", offset, math.prod(size))
    seed_tensor = as_seed("philox", seed, generator)
    out = torch.empty(tuple(size), dtype=dtype, device=device)
    if has_kernel("philox", out.device):
        torch.ops.genfast.philox_fill(out, seed_tensor, offset, normal)
        return out
    return philox_reference(size, seed_tensor, offset, normal=normal).to(dtype=dtype, device=device)


def philox_reference(
    size: Sequence[int], seed: torch.Tensor, offset: int, *, normal: bool
) -> torch.Tensor:
    """The stream in plain PyTorch: uniforms bit for bit, normals within 2 ulp of the kernels'.

    Args:
        size: Shape of the result.
        seed: int64 tensor [1].
        offset: Stream position of the first element.
        normal: Normal instead of uniform numbers.

    Returns:
        float32 tensor of shape `size` on the device of `seed`.
    """
    count = math.prod(size)
    first = offset // 4
    blocks = torch.arange(first, (offset + count + 3) // 4, dtype=torch.int64, device=seed.device)
    lanes = _philox4x32_10(blocks, seed)
    values = _normals(lanes) if normal else _uniforms(lanes)
    start = offset - 4 * first
    return values.flatten()[start : start + count].reshape(tuple(size))


def _philox4x32_10(blocks: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Ten rounds on counters (block, 0); returns words in [0, 2**32) as int64 [blocks, 4]."""
    c0, c1 = blocks & _WORD, (blocks >> 32) & _WORD
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return torch.stack((c0, c1, c2, c3), dim=1)


def _multiply(factor: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two halves of a 32x32-bit product, by 16-bit pieces: int64 cannot hold all 64 bits."""
    low = (word & 0xFFFF) * factor
    high = (word >> 16) * factor + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _uniforms(words: torch.Tensor) -> torch.Tensor:
    return (words >> 8).to(torch.float32) * 2.0**-24


def _normals(words: torch.Tensor) -> torch.Tensor:
    """Box and Muller on word pairs, in float64 and then rounded: the kernels' intended value."""
    radius_word, angle_word = words[:, 0::2], words[:, 1::2]
    # Rounded to float32 where the kernels round: next to 1 the logarithm magnifies the difference.
    u = radius_word.float().double().mul(2.0**-32).add(2.0**-33).float().double()
    radius = torch.sqrt(-2.0 * torch.log(u))
    angle = (2.0 * math.pi) * (angle_word >> 8).to(torch.float64) * 2.0**-24
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=2)
    return pairs.to(torch.float32)


if loaded():

    @torch.library.register_fake("genfast::philox_fill")
    def _philox_fill_fake(out: torch.Tensor, seed: torch.Tensor, offset: int, normal: bool) -> None:
        """Writes in place: no new tensor, nothing to describe."""
