"""The reference executor computes, pixel by pixel, what the whole model computes at once."""

import pytest
import torch

from genfast.errors import InputError
from genfast.sampling.run.reference import ReferenceExecutor
from tests.sampling.hand_planned import (
    behind_tokens,
    everything,
    inputs,
    masked_stack,
    sound,
    strided,
    two_stacks,
)
from tests.sampling.random_programs import RandomProgram

PLANNED = {
    "one colour": lambda: masked_stack(1, 1, 1, 5, 4),
    "three colours": lambda: masked_stack(2, 3, 1, 4, 5, layers=3),
    "two numbers a colour, wide kernel": lambda: masked_stack(3, 2, 2, 6, 3, kernel=5),
    "one pixel": lambda: masked_stack(4, 2, 1, 1, 1),
    "one column": lambda: masked_stack(5, 1, 1, 7, 1, layers=3),
    "vertical stack by rows": lambda: two_stacks(6, 6, 5),
    "sound by spans": lambda: sound(7, 30),
    "sound, one long span": lambda: sound(8, 9, dilation=5, span=5),
    "long sound": lambda: sound(9, 600),
    "two tokens before a sequence": lambda: behind_tokens(13, 9, 2),
    "more tokens than a span": lambda: behind_tokens(14, 11, 7, span=3),
    "one token, one sample": lambda: behind_tokens(15, 1, 1, span=1),
    "strides": lambda: strided(10, 6, 8),
    "odd strides": lambda: strided(11, 5, 7),
    "everything else": lambda: everything(12, 4, 3),
}


@pytest.fixture(params=PLANNED, ids=str)
def planned(request):
    return PLANNED[request.param]()


def begin(planned, n, **options):
    executor = ReferenceExecutor(planned.program, **options)
    return executor.begin(n, planned.conditions(n) if planned.conditions else ())


@pytest.mark.parametrize("n", [1, 3])
def test_forced_parameters_are_those_of_the_whole_model(planned, n):
    x = inputs(planned, n)
    for found, expected in zip(begin(planned, n).forced(x), planned.direct(x), strict=True):
        assert found.shape == expected.shape
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(200, 240))
def test_random_programs(seed):
    made = RandomProgram(seed)
    program = made.build()
    found = ReferenceExecutor(program).begin(2, made.conditions(2)).forced(made.inputs(2))
    for parameters, expected in zip(found, made.interpret(program, 2), strict=True):
        present = ~torch.from_numpy(expected).isnan()
        right = torch.from_numpy(expected)[present]
        torch.testing.assert_close(parameters[present], right, rtol=1e-11, atol=1e-11)


def test_stepping_by_hand_visits_every_draw_in_order(planned):
    program = planned.program
    x = inputs(planned, 2)
    expected = planned.direct(x)
    run = begin(planned, 2)
    for row in range(program.height):
        for column in range(program.width):
            for number, draw in enumerate(program.draws):
                assert run.position == (number, row, column)
                assert not run.done
                if run.has_parameters:
                    torch.testing.assert_close(
                        run.parameters(), expected[number][:, :, row, column],
                        rtol=1e-12, atol=1e-12,
                    )  # fmt: skip
                first = draw.first * program.encoded
                size = draw.count * program.encoded
                run.supply(x[:, first : first + size, row, column])
    assert run.done


def test_work_replayed_on_fixed_memory_gives_the_same(planned):
    replays = []

    def capture(work):
        def replay():
            replays.append(work)
            work()

        return replay

    executor = ReferenceExecutor(planned.program, capture=capture)
    for n, seed in [(2, 1), (2, 2), (3, 3), (2, 4)]:
        x = inputs(planned, n, seed)
        run = executor.begin(n, planned.conditions(n) if planned.conditions else ())
        for found, expected in zip(run.forced(x), planned.direct(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert len(replays) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graphs_give_the_same(planned):
    from dataclasses import replace

    device = torch.device("cuda")
    moved = replace(planned.program, device=device)
    executor = ReferenceExecutor(moved)
    for n, seed in [(2, 1), (2, 2), (3, 3)]:
        x = inputs(planned, n, seed)
        conditions = planned.conditions(n) if planned.conditions else ()
        run = executor.begin(n, [each.to(device) for each in conditions])
        for found, expected in zip(run.forced(x.to(device)), planned.direct(x), strict=True):
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
def test_other_dtypes(dtype, tolerance):
    single = masked_stack(2, 2, 1, 4, 5, dtype=dtype)
    double = masked_stack(2, 2, 1, 4, 5)
    x = inputs(single, 2)
    for found, expected in zip(begin(single, 2).forced(x), double.direct(x.double()), strict=True):
        assert found.dtype == dtype
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < tolerance


def test_only_positions_within_reach_have_parameters():
    planned = sound(1, 12)
    run = begin(planned, 1)
    seen = []
    while not run.done:
        seen.append(run.has_parameters)
        assert torch.isfinite(run.parameters()).all()
        run.supply(torch.ones(1, 2))
    assert seen == [False] + [True] * 11


def test_a_batch_draws_what_its_parts_draw():
    planned = two_stacks(3, 4, 4)
    x = inputs(planned, 5)
    together = begin(planned, 5).forced(x)[0]
    alone = torch.cat([begin(planned, 1).forced(x[k : k + 1])[0] for k in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=1e-13)


def test_runs_of_one_executor_on_the_cpu_do_not_share_memory():
    planned = masked_stack(1, 1, 1, 3, 3)
    executor = ReferenceExecutor(planned.program)
    x = inputs(planned, 2)
    first, second = executor.begin(2), executor.begin(2)
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(first.parameters(), second.parameters())
            first.supply(x[:, :, row, column])
            second.supply(x[:, :, row, column])


def test_refuses_what_does_not_fit():
    planned = masked_stack(1, 2, 1, 1, 2)
    run = begin(planned, 2)
    with pytest.raises(InputError, match=r"encoded \[2, 1\], got \[2, 2\]"):
        run.supply(torch.zeros(2, 2))
    with pytest.raises(InputError, match=r"forced: expected x \[2, 2, 1, 2\]"):
        begin(planned, 2).forced(torch.zeros(2, 2, 2, 2))
    while not run.done:
        run.supply(torch.zeros(2, 1))
    with pytest.raises(InputError, match="done"):
        run.parameters()
    with pytest.raises(InputError, match="beginning"):
        run.forced(torch.zeros(2, 2, 1, 2))
    conditional = everything(1, 2, 2)
    executor = ReferenceExecutor(conditional.program)
    with pytest.raises(InputError, match="1 conditions or more"):
        executor.begin(2)
    with pytest.raises(InputError, match=r"condition 0 \[2 or 1, rows, columns, 6\]"):
        executor.begin(2, [torch.zeros(3, 1, 1, 6), torch.zeros(1, 2, 2, 2)])
