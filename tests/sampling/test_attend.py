"""Attention in the reference executor, against the literal interpreter and PyTorch's own."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from genfast.sampling.program import Attend, Buffer, Draw, Program, Read, Table, When
from genfast.sampling.reference import ReferenceExecutor
from tests.sampling.random_attention import RandomAttention


def assert_literal(made, program, n, executor, **tolerance):
    """The executor's parameters are those of the program run literally."""
    x = made.inputs(n)
    found = executor.begin(n, made.conditions(n)).forced(x)
    for each, expected in zip(found, made.interpret(program, n), strict=True):
        expected = torch.from_numpy(expected)
        inside = ~expected.isnan()
        torch.testing.assert_close(each.double()[inside], expected[inside], **tolerance)


@pytest.mark.parametrize("seed", range(40))
def test_random_programs(seed):
    made = RandomAttention(seed)
    program = made.build()
    assert_literal(made, program, 2, ReferenceExecutor(program), rtol=1e-10, atol=1e-10)


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


@pytest.mark.parametrize(("heads", "depth", "width"), [(1, 1, 1), (2, 7, 3), (3, 16, 40)])
def test_pytorchs_attention(heads, depth, width):
    height, columns = 3, 5
    seen = height * columns
    causal = torch.zeros(seen, seen, dtype=torch.float64)
    causal.masked_fill_(torch.ones(seen, seen).triu(1) > 0, -torch.inf)
    program = attention(heads, depth, width, causal, height, columns)
    data = program.tables[0].data.flatten(0, 2)
    q, k, v = (
        part.unflatten(1, (heads, -1)).transpose(0, 1)
        for part in data.split([heads * depth, heads * depth, heads * width], dim=1)
    )
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected = expected.permute(0, 2, 1).reshape(1, -1, height, columns)
    x = torch.zeros(1, 1, height, columns, dtype=torch.float64)
    (found,) = ReferenceExecutor(program).begin(1).forced(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_heads_that_see_nothing_and_numbers_that_are_not_seen():
    # Head 0 sees nothing, head 1 position 2 alone, head 2 positions 0 and 3, where NaN is.
    bias = torch.full((4, 3, 4), -torch.inf)
    bias[:, 1, 2] = 0.5
    bias[:, 2, 0] = bias[:, 2, 3] = 0
    program = attention(3, 2, 5, bias.flatten(1).double(), 2, 2)
    qkv, hidden = program.tables
    data = qkv.data.clone()
    data[0, 0, 0, 6 : 6 + 4] = data[0, 0, 0, 12 : 12 + 10] = torch.nan
    data[0, 0, 1, 6:] = torch.inf
    data[0, 1, 1, 6 + 4] = torch.nan
    program = replace(program, tables=(replace(qkv, data=data), hidden))
    (found,) = ReferenceExecutor(program).begin(1).forced(torch.zeros(1, 1, 2, 2).double())
    assert (found[0, :5] == 0).all()
    expected = data[0, 1, 0, 12 + 5 : 12 + 10, None, None].expand(5, 2, 2)
    assert torch.equal(found[0, 5:10], expected)
    assert found[0, 10:].isnan().all()
