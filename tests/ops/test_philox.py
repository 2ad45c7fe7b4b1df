"""Philox: known answers, one stream on every implementation, the distribution of its numbers."""

import numpy as np
import pytest
import torch

from genfast.errors import InputError
from genfast.ops import philox_normal, philox_reference, philox_uniform
from tests.triton_support import DEVICE, compile_ahead, on_gpu, triton_kernels

SEED = 0x0123_4567_89AB_CDEF


def numpy_philox4x32_10(counter: list[int], key: list[int]) -> list[int]:
    """An implementation of its own: Python integers, straight from the paper's description."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def expected_uniforms(seed: int, offset: int, count: int) -> torch.Tensor:
    words = []
    for block in range(offset // 4, (offset + count + 3) // 4):
        counter = [block & 0xFFFFFFFF, block >> 32, 0, 0]
        words += numpy_philox4x32_10(counter, [seed & 0xFFFFFFFF, seed >> 32])
    start = offset % 4
    return torch.tensor([(w >> 8) * 2.0**-24 for w in words[start : start + count]])


def ulp_distance(a: torch.Tensor, b: torch.Tensor) -> int:
    """Largest distance in units of the last place between float32 tensors of equal signs."""
    a_bits, b_bits = a.cpu().view(torch.int32).long(), b.cpu().view(torch.int32).long()
    ordered = [torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits) for bits in (a_bits, b_bits)]
    return int((ordered[0] - ordered[1]).abs().max())


def test_known_answers_of_the_paper() -> None:
    # The vectors that the authors publish with Philox4x32-10: counter, key, result.
    assert numpy_philox4x32_10([0] * 4, [0] * 2) == [
        0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8,
    ]  # fmt: skip
    assert numpy_philox4x32_10([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [
        0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD,
    ]  # fmt: skip
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert numpy_philox4x32_10(pi, [0xA4093822, 0x299F31D0]) == [
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
    ]  # fmt: skip


@pytest.mark.parametrize("offset", [0, 1, 7, 2**33 + 3, 2**40 + 2])
def test_uniforms_bit_for_bit(device: torch.device, simd_level: str, offset: int) -> None:
    expected = expected_uniforms(SEED, offset, 103)
    assert torch.equal(
        philox_uniform((103,), seed=SEED, offset=offset, device=device).cpu(), expected
    )
    reference = philox_reference((103,), torch.tensor([SEED]), offset, normal=False)
    assert torch.equal(reference, expected)


@on_gpu
@pytest.mark.parametrize("offset", [0, 3, 2**33 + 1])
def test_triton_draws_the_same_stream(offset: int) -> None:
    kernels = triton_kernels("philox")
    for normal, draw in ((False, philox_uniform), (True, philox_normal)):
        out = torch.empty(2051, device=DEVICE)
        kernels.philox_fill(out, torch.tensor([SEED]), offset, normal)
        compiled = draw((2051,), seed=SEED, offset=offset)
        assert ulp_distance(out, compiled) <= (2 if normal else 0)


def test_triton_compiles_ahead() -> None:
    signature = {"out": "*fp32", "seed": "*i64", "count": "i64", "offset": "i64"}
    compile_ahead(
        "philox",
        [("_philox_fill_kernel", signature, {"NORMAL": n, "BLOCK": 1024}) for n in (True, False)],
    )


def test_normals_agree_on_every_simd_level(device: torch.device, simd_level: str) -> None:
    from genfast import _C

    ours = philox_normal((100_003,), seed=5, device=device)
    _C.set_simd_level("baseline")
    assert torch.equal(ours.cpu(), philox_normal((100_003,), seed=5))


def test_normals_are_accurate(device: torch.device) -> None:
    # The reference computes in float64 from the same uniforms and rounds once.
    exact = philox_reference((1_000_003,), torch.tensor([11]), 0, normal=True)
    assert ulp_distance(philox_normal((1_000_003,), seed=11, device=device), exact) <= 4


def test_thread_count_changes_nothing(threads: int) -> None:
    whole = philox_normal((100_000,), seed=3)
    torch.set_num_threads(1)
    assert torch.equal(whole, philox_normal((100_000,), seed=3))


@pytest.mark.parametrize("draw", [philox_uniform, philox_normal])
def test_split_changes_nothing(device: torch.device, draw) -> None:
    whole = draw((1000,), seed=3, offset=10, device=device)
    parts = [draw((n,), seed=3, offset=10 + o, device=device) for o, n in ((0, 333), (333, 667))]
    assert torch.equal(whole, torch.cat(parts))


def test_dtype_changes_nothing(device: torch.device) -> None:
    single = philox_normal((999,), seed=3, device=device)
    double = philox_normal((999,), seed=3, dtype=torch.float64, device=device)
    assert torch.equal(single.double(), double)


def test_manual_seed_and_generator_decide() -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return philox_normal((16,))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    one, two = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    first = philox_uniform((16,), generator=one)
    assert torch.equal(first, philox_uniform((16,), generator=two))
    assert not torch.equal(first, philox_uniform((16,), generator=one))


def test_distribution() -> None:
    from scipy import stats

    uniform = philox_uniform((400_000,), seed=2024).double().numpy()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4
    normal = philox_normal((400_000,), seed=2024).double().numpy()
    assert stats.kstest(normal, "norm").pvalue > 1e-4
    lagged = [np.corrcoef(normal[:-k], normal[k:])[0, 1] for k in (1, 2, 3, 4)]
    assert max(map(abs, lagged)) < 5 / np.sqrt(len(normal))


def test_opcheck(device: torch.device) -> None:
    op = torch.ops.genfast.philox_fill.default
    for normal in (True, False):
        torch.library.opcheck(op, (torch.empty(7, device=device), torch.tensor([3]), 1, normal))


def test_compiles_without_graph_breaks() -> None:
    compiled = torch.compile(lambda: philox_normal((64,), seed=4) * 2, fullgraph=True)
    assert torch.equal(compiled(), philox_normal((64,), seed=4) * 2)


def test_empty() -> None:
    assert philox_normal((0, 3), seed=1).shape == (0, 3)


def test_refuses_bad_input() -> None:
    with pytest.raises(InputError, match=r"philox: expected dtype float32 or float64, got dtype="):
        philox_uniform((2,), seed=1, dtype=torch.float16)
    with pytest.raises(InputError, match=r"philox: expected offset >= 0, got offset=-1"):
        philox_uniform((2,), seed=1, offset=-1)
    with pytest.raises(InputError, match=r"philox: expected seed in \[0, 2\*\*63\), got seed=-1"):
        philox_uniform((2,), seed=-1)
    with pytest.raises(InputError, match="expected seed or generator, got both"):
        philox_uniform((2,), seed=1, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="expected an int64 seed with one element"):
        torch.ops.genfast.philox_fill(torch.empty(2), torch.tensor([1.0]), 0, False)
    with pytest.raises(RuntimeError, match="expected a contiguous tensor"):
        torch.ops.genfast.philox_fill(torch.empty(4, 4).t()[:2], torch.tensor([1]), 0, False)


def test_refuses_to_run_past_the_end_of_the_stream() -> None:
    end = 2**63 - 1
    words = expected_uniforms(7, end - 5, 5)
    assert torch.equal(philox_uniform((5,), seed=7, offset=end - 5), words)
    for offset in (end - 4, 2**63):
        with pytest.raises(
            InputError, match=r"expected offset \+ 5 elements < 2\*\*63, got offset="
        ):
            philox_uniform((5,), seed=7, offset=offset)
    with pytest.raises(RuntimeError, match=r"expected offset \+ 5 elements < 2\*\*63, got offset="):
        torch.ops.genfast.philox_fill(torch.empty(5), torch.tensor([7]), end - 4, False)
