"""The native executor computes what Programs say: random ones, planned ones, known models."""

import numpy as np
import pytest
import torch

from genfast import _C as extension
from genfast.sampling.run.native import NativeExecutor
from tests.sampling import programs
from tests.sampling.hand_planned import inputs
from tests.sampling.random_programs import RandomProgram
from tests.sampling.test_reference_executor import PLANNED

SEEDS = range(120)


@pytest.fixture(params=[False, True], ids=["as it likes", "all shared"])
def shared(request):
    before = extension.share_sampling(request.param)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 if request.param else 1)
    yield
    torch.set_num_threads(threads)
    extension.share_sampling(before)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_programs(seed, shared):
    made = RandomProgram(seed)
    program, n = made.build(), seed % 9 + 1
    expected = made.interpret(program, n)
    found = NativeExecutor(program).begin(n, made.conditions(n)).forced(made.inputs(n))
    for parameters, right in zip(found, expected, strict=True):
        present = ~np.isnan(right)
        assert parameters.shape == right.shape
        np.testing.assert_allclose(parameters.numpy()[present], right[present], 1e-11, 1e-11)


def test_most_random_programs_have_parameters_and_rings():
    rings = present = draws = before = 0
    for seed in SEEDS:
        made = RandomProgram(seed)
        program = made.build()
        rings += sum(b.rows * b.columns < b.height * b.width for b in program.buffers)
        before += any(instruction.when.before for instruction in program.instructions)
        for each in made.interpret(program, 1):
            present, draws = present + (~np.isnan(each)).mean(), draws + 1
    assert rings > len(SEEDS)
    assert before > len(SEEDS) / 2
    assert present > draws / 2


@pytest.mark.parametrize("n", [1, 3, 30])
@pytest.mark.parametrize("name", PLANNED)
def test_planned_programs(name, n, shared):
    planned = PLANNED[name]()
    x = inputs(planned, n)
    conditions = planned.conditions(n) if planned.conditions else ()
    found = NativeExecutor(planned.program).begin(n, conditions).forced(x)
    for parameters, expected in zip(found, planned.direct(x), strict=True):
        torch.testing.assert_close(parameters, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PLANNED)
def test_stepping_by_hand_gives_the_same_bits(name):
    planned = PLANNED[name]()
    program, x = planned.program, inputs(planned, 3)
    conditions = planned.conditions(3) if planned.conditions else ()
    executor = NativeExecutor(program)
    forced = executor.begin(3, conditions).forced(x)
    run = executor.begin(3, conditions)
    for row in range(program.height):
        for column in range(program.width):
            for number, draw in enumerate(program.draws):
                assert run.position == (number, row, column)
                assert not run.done
                assert torch.equal(run.parameters(), forced[number][:, :, row, column])
                first, size = draw.first * program.encoded, draw.count * program.encoded
                run.supply(x[:, first : first + size, row, column])
    assert run.done


MODELS = {
    "gated": lambda dtype: programs.gated(3, 40, 20, 6, 9, dtype=dtype),
    "gated, odd": lambda dtype: programs.gated(2, 17, 5, 5, 4, dtype=dtype),
    "gated, wide": lambda dtype: programs.gated(2, 128, 256, 3, 5, dtype=dtype),
    "plain": lambda dtype: programs.plain(2, 12, 9, 7, 6, dtype=dtype),
    "wavenet": lambda dtype: programs.wavenet(20, 33, 8, 6, 2, 200, 16, dtype=dtype),
    "wavenet, odd span": lambda dtype: programs.wavenet(5, 7, 4, 5, 1, 100, 7, dtype=dtype),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", MODELS)
def test_known_models(name, dtype, tolerance, shared):
    made = MODELS[name](dtype)
    program = made.program
    x = torch.randn(4, 1, program.height, program.width, dtype=torch.float64).to(dtype)
    (found,) = NativeExecutor(program).begin(4).forced(x)
    expected = made.module(x)
    error = (found - expected).abs().max() / (expected.max() - expected.min())
    assert expected.std() > 0.1
    assert error <= tolerance
