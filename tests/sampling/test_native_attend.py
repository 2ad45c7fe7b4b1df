"""Attention in the native executor, against the reference and the literal interpreter."""

import pytest
import torch

from genfast.sampling.native import NativeExecutor
from genfast.sampling.reference import ReferenceExecutor
from tests.sampling.random_attention import RandomAttention
from tests.sampling.test_attend import assert_literal

FLOAT = {"rtol": 2e-4, "atol": 2e-5}


@pytest.mark.parametrize("seed", range(40, 120))
def test_random_programs(seed):
    made = RandomAttention(seed)
    program = made.build()
    assert_literal(made, program, 2, NativeExecutor(program), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(120, 150))
def test_random_programs_in_float32(seed):
    made = RandomAttention(seed, torch.float32)
    program = made.build()
    x, conditions = made.inputs(3), made.conditions(3)
    found = NativeExecutor(program).begin(3, conditions).forced(x)
    expected = ReferenceExecutor(program).begin(3, conditions).forced(x)
    for each, right in zip(found, expected, strict=True):
        torch.testing.assert_close(each, right, **FLOAT)
