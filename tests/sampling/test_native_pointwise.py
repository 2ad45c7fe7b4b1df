"""Every operation of the native executor against PyTorch's, to a few units in the last place."""

import math

import pytest
import torch

from genfast.sampling.pointwise import POINTWISE
from genfast.sampling.program import (
    Buffer,
    Draw,
    Lookup,
    Pointwise,
    Program,
    Read,
    Reduce,
    Step,
    Table,
    When,
)
from genfast.sampling.run.native import NativeExecutor

DOMAIN = {
    "sqrt": (0, 50), "rsqrt": (1e-3, 50), "log": (1e-6, 50), "log1p": (-0.99, 50),
    "exp": (-100, 80), "expm1": (-60, 80),
}  # fmt: skip
EXACT = {
    "neg", "abs", "sign", "reciprocal", "relu", "floor", "ceil", "round", "trunc", "not",
    "add", "sub", "mul", "div", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge",
    "leaky_relu", "where", "remainder", "fmod",
}  # fmt: skip
SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-30, -1e-30, 0.5])


def operands(op):
    code = POINTWISE[op]
    for count in (1, 2, 3):
        try:
            code(*([torch.ones(1)] * count))
        except TypeError:
            continue
        return count
    raise AssertionError(op)


def program_of(tables, instructions, features, dtype):
    """A program of one pixel whose parameters are all features of its last buffer."""
    buffers = (Buffer("x", 1, 1, 1, 1, 1), Buffer("out", features, 1, 1, 1, 1))
    draws = (Draw(0, 1, (Read(1, 0, 1, features),)),)
    return Program(
        1, 1, 1, 1, 1, dtype, torch.device("cpu"), buffers, tuple(tables), tuple(instructions),
        draws,
    )  # fmt: skip


def apply(op, values):
    """One operation on vectors, each from a table of its own."""
    count = len(values[0])
    tables = [Table("t", count, 1, 1, each.view(1, 1, 1, -1)) for each in values]
    reads = tuple(Read(number, 0, 1, count, table=True) for number in range(len(values)))
    steps = (Step(op, tuple(range(len(values)))),)
    step = Pointwise(1, 0, count, When(1, 1), reads, (), steps)
    executor = NativeExecutor(program_of(tables, [step], count, values[0].dtype))
    return executor.begin(1).parameters()[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", POINTWISE)
def test_operation(op, dtype):
    generator = torch.Generator().manual_seed(0)
    low, high = DOMAIN.get(op, (-9, 9))
    count = operands(op)
    for size in (1, 7, 16, 1031):
        values = []
        for number in range(count):
            drawn = torch.rand(size, generator=generator, dtype=torch.float64)
            drawn = low + (high - low) * drawn
            if op == "softplus":
                drawn = [drawn, drawn.abs() + 0.5, drawn.abs() * 4][number]
            drawn[::5] = drawn[::5].round()
            drawn[1::7] *= 1e-3
            if op == "pow":
                drawn = drawn.abs() + 0.1 if number == 0 else drawn / 3
            values.append(drawn.clamp(low if op in DOMAIN else -99, high).to(dtype))
        found = apply(op, values)
        if op in EXACT:
            torch.testing.assert_close(
                found, POINTWISE[op](*values), rtol=0, atol=0, equal_nan=True
            )
        else:
            exact = POINTWISE[op](*(each.double() for each in values))
            eager = (POINTWISE[op](*values).double() - exact).abs()
            ulp = torch.finfo(dtype).eps * exact.abs()
            error = (found.double() - exact).abs()
            assert exact.isfinite().all()
            if op.startswith("gelu"):  # 1 + erf(x) cancels, in PyTorch as here
                ulp = torch.finfo(dtype).eps * values[0].double().abs()
            # The float64 "truth" is PyTorch's own, a few units off itself.
            assert (error <= 4 * ulp + 2 * eager + 1e-300).all(), (op, (error / ulp).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", [op for op in POINTWISE if operands(op) == 1])
def test_special_values(op, dtype):
    values = torch.cat((SPECIAL, torch.tensor([1e4, -1e4, 88.5, -88.5, 104.5, -104.5]))).to(dtype)
    if op.startswith("gelu"):
        values = values[values.abs() != math.inf]  # PyTorch's depends on which of its kernels runs
    found, expected = apply(op, [values]), POINTWISE[op](values)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("op", ["maximum", "minimum", "lt", "ne", "where", "div", "remainder"])
def test_special_pairs(op):
    first = SPECIAL.repeat_interleave(len(SPECIAL))
    values = [first, SPECIAL.repeat(len(SPECIAL)), first.flip(0)][: operands(op)]
    found, expected = apply(op, values), POINTWISE[op](*values)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op", ["sum", "max"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 7), (1, 300, 1), (17, 2, 1), (1, 4, 33)])
def test_reduce(op, sizes):
    outer, size, inner = sizes
    total = outer * size * inner
    data = torch.linspace(-3, 5, total)[torch.randperm(total)]
    tables = [Table("t", total, 1, 1, data.view(1, 1, 1, -1))]
    step = Reduce(1, 0, When(1, 1), (Read(0, 0, 1, total, table=True),), op, outer, size, inner)
    executor = NativeExecutor(program_of(tables, [step], outer * inner, torch.float32))
    found = executor.begin(1).parameters()[0]
    cube = data.view(outer, size, inner).double()
    expected = (cube.sum(1) if op == "sum" else cube.amax(1)).flatten().float()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("index", [-1.0, 5.0, math.nan, 1e30])
def test_an_index_outside_the_embedding_is_refused(index):
    tables = [Table("t", 1, 1, 1, torch.tensor(index).view(1, 1, 1, 1))]
    step = Lookup(1, 0, When(1, 1), Read(0, 0, 1, 1, table=True), torch.ones(5, 3))
    run = NativeExecutor(program_of(tables, [step], 3, torch.float32)).begin(1)
    with pytest.raises(IndexError, match="expected indices of an embedding within its rows"):
        run.parameters()
