"""Attention in both executors, against the literal interpreter and PyTorch's own."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from genfast.sampling.program import Attend, Buffer, Draw, Program, Read, Table, When
from genfast.sampling.run.native import NativeExecutor
from genfast.sampling.run.reference import ReferenceExecutor
from tests.sampling.random_attention import RandomAttention

EXECUTORS = (ReferenceExecutor, NativeExecutor)
each_executor = pytest.mark.parametrize("executor", EXECUTORS)


def assert_literal(made, program, n, executor, **tolerance):
    """The executor's parameters are those of the program run literally."""
    x = made.inputs(n)
    found = executor.begin(n, made.conditions(n)).forced(x)
    for each, expected in zip(found, made.interpret(program, n), strict=True):
        expected = torch.from_numpy(expected)
        inside = ~expected.isnan()
        torch.testing.assert_close(each.double()[inside], expected[inside], **tolerance)


@pytest.mark.parametrize("seed", range(36))
def test_random_programs(seed):
    made = RandomAttention(seed)
    program = made.build()
    executors = EXECUTORS if seed % 3 == 0 else EXECUTORS[-1:]
    for executor in executors:
        assert_literal(made, program, 2, executor(program), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", [1, 4])
def test_work_replayed_on_fixed_memory_gives_the_same(seed):
    made = RandomAttention(seed)
    program = made.build()
    executor = ReferenceExecutor(program, capture=lambda work: work)
    for _ in range(2):
        x = made.inputs(2)
        found = executor.begin(2, made.conditions(2)).forced(x)
        expected = ReferenceExecutor(program).begin(2, made.conditions(2)).forced(x)
        for each, right in zip(found, expected, strict=True):
            torch.testing.assert_close(each, right, rtol=1e-12, atol=1e-12)


def test_random_programs_see_much_and_lack_much():
    seen = rings = spans = before = 0
    for seed in range(12):
        made = RandomAttention(seed)
        program = made.build()
        attends = [each for each in program.instructions if isinstance(each, Attend)]
        spans += sum(each.when.span for each in attends)
        before += sum(each.when.before > 0 for each in attends)
        for each in attends:
            bias = program.tables[each.bias.source].data
            seen += ((bias > -torch.inf) & (bias != 0)).double().mean()
            read = {one.source for one in (*each.keys, *each.values) if not one.table}
            buffers = [program.buffers[source] for source in read]
            rings += any(b.rows * b.columns < b.height * b.width for b in buffers)
    assert seen > 2
    assert rings > 2
    assert spans > 2
    assert before > 2


def attention(heads, depth, width, bias, height, columns, dtype=torch.float64):
    """An image of random queries, keys and values, which lie in one table; and that table."""
    generator = torch.Generator().manual_seed(5)
    features = heads * (2 * depth + width)
    data = torch.randn(1, height, columns, features, generator=generator, dtype=dtype)
    sizes = (heads * depth, heads * depth, heads * width)
    starts = (0, sizes[0], 2 * sizes[0])
    q, k, v = (Read(0, s, 1, c, table=True) for s, c in zip(starts, sizes, strict=True))
    when = When(height, columns)
    tables = (
        Table("qkv", features, height, columns, data),
        Table("bias", bias.shape[1], height, columns, bias.unflatten(0, (1, height, columns))),
    )
    seen = Read(1, 0, 1, bias.shape[1], table=True)
    attend = Attend(1, 0, when, (q,), (k,), (v,), seen, heads, height, columns, depth**-0.5)
    buffers = (
        Buffer("x", 1, height, columns, 1, 1),
        Buffer("y", heads * width, height, columns, 1, 1),
    )
    draws = (Draw(0, 1, (Read(1, 0, 1, heads * width),)),)
    return Program(
        1, 1, height, columns, columns, dtype, torch.device("cpu"), buffers, tables, (attend,),
        draws,
    )  # fmt: skip


@each_executor
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scores", ["shared", "own"])
@pytest.mark.parametrize(
    ("heads", "depth", "width", "height", "columns"),
    [(1, 1, 1, 3, 5), (2, 7, 3, 1, 40), (3, 16, 40, 6, 2), (11, 33, 20, 5, 7), (2, 64, 64, 9, 9)],
)
def test_pytorchs_attention(heads, depth, width, height, columns, scores, dtype, executor):
    seen = height * columns
    generator = torch.Generator().manual_seed(seen)
    rows = heads if scores == "own" else 1
    bias = torch.randn(seen, rows, seen, generator=generator, dtype=dtype)
    # Some see a part of the past; of heads with a bias of their own, two and two see the same.
    hidden = torch.rand(seen, (rows + 1) // 2, seen, generator=generator) < 0.3
    hidden = (
        hidden.repeat_interleave(2, dim=1)[:, :rows] | (torch.ones(seen, seen).triu(1) > 0)[:, None]
    )
    hidden[torch.arange(seen), :, torch.arange(seen)] = False
    hidden[seen // 2 :, rows // 2] = torch.ones(seen, seen).triu(1)[seen // 2 :] > 0
    bias.masked_fill_(hidden, -torch.inf)
    program = attention(heads, depth, width, bias.flatten(1), height, columns, dtype)
    data = program.tables[0].data.flatten(0, 2)
    q, k, v = (
        part.unflatten(1, (heads, -1)).transpose(0, 1).double()
        for part in data.split([heads * depth, heads * depth, heads * width], dim=1)
    )
    mask = bias.transpose(0, 1).double()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    expected = expected.transpose(1, 2).reshape(1, -1, height, columns)
    x = torch.zeros(1, 1, height, columns, dtype=dtype)
    (found,) = executor(program).begin(1).forced(x)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@each_executor
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_heads_that_see_nothing_and_numbers_that_are_not_seen(dtype, executor):
    # Head 0 sees nothing, head 1 position 2 alone, head 2 positions 0 and 3, where NaN is.
    bias = torch.full((4, 3, 4), -torch.inf, dtype=dtype)
    bias[:, 1, 2] = 0.5
    bias[:, 2, 0] = bias[:, 2, 3] = 0
    program = attention(3, 2, 5, bias.flatten(1), 2, 2, dtype)
    qkv, hidden = program.tables
    data = qkv.data.clone()
    data[0, 0, 0, 6 : 6 + 4] = data[0, 0, 0, 12 : 12 + 10] = torch.nan
    data[0, 0, 1, 6:] = torch.inf
    data[0, 1, 1, 6 + 4] = torch.nan
    program = replace(program, tables=(replace(qkv, data=data), hidden))
    (found,) = executor(program).begin(1).forced(torch.zeros(1, 1, 2, 2, dtype=dtype))
    assert (found[0, :5] == 0).all()
    expected = data[0, 1, 0, 12 + 5 : 12 + 10, None, None].expand(5, 2, 2)
    assert torch.equal(found[0, 5:10], expected)
    assert found[0, 10:].isnan().all()


@each_executor
def test_scores_that_are_not_finite(executor):
    bias = torch.zeros(4, 4, dtype=torch.float64)
    program = attention(1, 1, 1, bias, 1, 4)
    data = torch.tensor([[1.0, 1, 2], [1, 2, 3], [1, -torch.inf, 4], [1, 0, 5]]).double()
    x = torch.zeros(1, 1, 1, 4, dtype=torch.float64)

    def found(keys):
        data[:, 1] = torch.tensor(keys, dtype=torch.float64)
        table = replace(program.tables[0], data=data.view(1, 1, 4, 3))
        changed = replace(program, tables=(table, program.tables[1]))
        return executor(changed).begin(1).forced(x)[0].flatten()

    weight = torch.tensor([1.0, 2, -torch.inf, 0]).double().softmax(0)
    expected = (weight @ data[:, 2]).expand(4)
    torch.testing.assert_close(found([1.0, 2, -torch.inf, 0]), expected)
    assert found([-torch.inf] * 4).isnan().all()
    assert found([1.0, torch.inf, 0, 0]).isnan().all()
    torch.testing.assert_close(found([1e300, -1e300, 0, 0]), data[0, 2].expand(4))
