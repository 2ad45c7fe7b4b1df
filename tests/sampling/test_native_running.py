"""How native runs live beside others: the interpreter, forks, threads, interrupts, misuse."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch

from genfast import _C as extension
from genfast.errors import InputError, UnsupportedModelError
from genfast.sampling.distributions import Categorical
from genfast.sampling.program import Gemm, Read
from genfast.sampling.run.native import NativeExecutor
from tests.sampling import programs

NINE = Categorical(9, "signed")


@pytest.fixture
def executor():
    return NativeExecutor(programs.gated(3, 32, 9, 8, 9).program)


@pytest.fixture
def many_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    extension.share_sampling(True)
    yield
    extension.share_sampling(False)
    torch.set_num_threads(before)


def sample(executor, n=4, rows=1):
    program = executor.program
    size = (n, 1, program.height, program.width)
    noise = torch.rand(size, generator=torch.Generator().manual_seed(0))
    symbols = torch.zeros(size, dtype=torch.int32)
    run = executor.begin(n)
    while not run.done:
        run.sample(NINE, noise, symbols, rows=rows)
    return symbols


def test_the_interpreter_runs_on_meanwhile():
    executor = NativeExecutor(programs.gated(12, 96, 9, 20, 20).program)
    ticks, stop = 0, threading.Event()

    def count():
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    time.sleep(0.01)
    before, start = ticks, time.perf_counter()
    sample(executor, 16, rows=20)  # a single call
    passed, took = ticks - before, time.perf_counter() - start
    stop.set()
    counter.join()
    assert took > 0.02
    assert passed >= 3


def test_a_forked_child_samples_too(executor, many_threads):
    expected = sample(executor)
    # Results go through a pipe: a child of a process with threads should do little else.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        same = torch.equal(sample(executor), expected)
        os.write(writer, b"y" if same else b"n")
        os._exit(0)
    deadline = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.read(reader, 1) == b"y"
    os.close(reader)
    os.close(writer)


def test_runs_of_one_and_of_two_executors_at_the_same_time(executor, many_threads):
    other = NativeExecutor(programs.plain(2, 16, 9, 6, 7).program)
    expected = [sample(executor), sample(other)]
    found = {}

    def work(number, which):
        found[number] = [sample(which) for _ in range(5)]

    pairs = [(0, executor), (1, other), (2, executor), (3, other)]
    workers = [threading.Thread(target=work, args=pair) for pair in pairs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number, results in found.items():
        assert all(torch.equal(each, expected[number % 2]) for each in results)
    assert len(found) == 4


def test_an_interrupt_between_rows_leaves_the_executor_usable(executor):
    expected = sample(executor)
    program = executor.program
    symbols = torch.zeros(4, 1, program.height, program.width, dtype=torch.int32)
    run = executor.begin(4)
    noise = torch.rand(symbols.shape, generator=torch.Generator().manual_seed(0))

    def rows():
        for row in range(program.height):
            if row == 3:
                signal.raise_signal(signal.SIGINT)
            run.sample(NINE, noise, symbols)

    with pytest.raises(KeyboardInterrupt):
        rows()
    assert run.position == (0, 3, 0)
    assert torch.equal(sample(executor), expected)
    while not run.done:
        run.sample(NINE, noise, symbols)
    assert torch.equal(symbols, expected)


def test_the_number_of_threads_may_change_during_a_run(executor, many_threads):
    expected = sample(executor)
    program = executor.program
    symbols = torch.zeros_like(expected)
    noise = torch.rand(symbols.shape, generator=torch.Generator().manual_seed(0))
    run = executor.begin(4)
    for threads in [1, 5, 2, 3, 1, 8, 4, 2][: program.height]:
        torch.set_num_threads(threads)
        run.sample(NINE, noise, symbols)
    assert torch.equal(symbols, expected)


def test_memory_is_reported(executor):
    small, large = executor.begin(1).bytes, executor.begin(64).bytes
    assert 30 * small < large <= 64 * small
    weights = [
        tap.weight for step in executor.program.instructions if isinstance(step, Gemm)
        for tap in step.taps
    ]  # fmt: skip
    numbers = 4 * sum(weight.numel() for weight in weights)
    assert numbers <= executor.bytes < 2 * numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_refused(executor, dtype):
    with pytest.raises(UnsupportedModelError, match="expected float32 or float64"):
        NativeExecutor(replace(executor.program, dtype=dtype))


def test_other_devices_are_refused(executor):
    with pytest.raises(UnsupportedModelError, match="on the CPU"):
        NativeExecutor(replace(executor.program, device=torch.device("meta")))


def broken(program, **changes):
    """The program with its first instruction changed."""
    first = replace(program.instructions[0], **changes)
    return replace(program, instructions=(first, *program.instructions[1:]))


def test_malformed_programs_are_refused(executor):
    program = executor.program
    tap = program.instructions[0].taps[0]
    beyond = replace(tap, read=replace(tap.read, start=1))
    elsewhere = replace(tap, read=replace(tap.read, source=99))
    thin = replace(tap, weight=tap.weight[:, :3])
    cases = [
        (broken(program, out=99), "a buffer that exists"),
        (broken(program, out=-1), "a buffer that exists"),
        (broken(program, first=1), "features of the buffer"),
        (broken(program, taps=(beyond,)), "features of the source"),
        (broken(program, taps=(elsewhere,)), "a source that exists"),
        (broken(program, taps=(thin,)), r"a weight \[features read, count\]"),
        (broken(program, bias=torch.zeros(3)), r"a bias \[count\]"),
        (broken(program, up=0), "up >= 1"),
        (broken(program, when=replace(program.instructions[0].when, row_scale=0)), "scale >= 1"),
        (broken(program, when=replace(program.instructions[0].when, before=-1)), "before >= 0"),
        (replace(program, draws=()), "draws"),
        (replace(program, span=0), "span >= 1"),
        (replace(program, colours=2), "colours \\* encoded features"),
        (replace(program, height=0), "height in 1"),
        (replace(program, buffers=(replace(program.buffers[0], rows=0),)), "rows >= 1"),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match=message):
            NativeExecutor(bad)


def test_reads_far_outside_see_nothing(executor):
    program = executor.program
    first = program.instructions[0]
    far = [
        replace(first.taps[0], read=replace(first.taps[0].read, **change))
        for change in (
            {"dy": 10**9}, {"dx": -(10**9)}, {"dy": -5, "top": -(10**12)},
            {"dx": 3, "right": 10**12}, {"dy": 4, "bottom": 1 << 60},
        )
    ]  # fmt: skip
    run = NativeExecutor(broken(program, taps=tuple(far), bias=first.bias)).begin(2)
    assert run.parameters().isfinite().all()


def test_misuse_of_a_run_is_refused(executor):
    run = executor.begin(2)
    with pytest.raises(RuntimeError, match=r"parameters\(\) before supply\(\)"):
        run.supply(torch.zeros(2, 1))
    run.parameters()
    with pytest.raises(ValueError, match="contiguous symbols"):
        run.supply(torch.zeros(3, 1))
    with pytest.raises(RuntimeError, match="a run that has just begun"):
        run.forced(torch.zeros(2, 1, 8, 9))
    symbols = torch.zeros(2, 1, 8, 9, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="beginning of a row"):
        run.sample(NINE, torch.zeros(2, 1, 8, 9), symbols)
    ended = executor.begin(2)
    ended.forced(torch.zeros(2, 1, 8, 9))
    assert ended.done
    assert not ended.has_parameters
    with pytest.raises(RuntimeError, match="end of the image"):
        ended.parameters()
    with pytest.raises(ValueError, match="n >= 1"):
        executor.begin(0)


def test_conditions_must_fit():
    from tests.sampling.hand_planned import everything

    planned = everything(1, 4, 3)
    executor = NativeExecutor(planned.program)
    first, second = planned.conditions(2)
    with pytest.raises(InputError, match="expected 2 conditions, got 1"):
        executor.begin(2, [first])
    for bad in ([first[..., :5], second], [first[0], second], [first.repeat(2, 1, 1, 1), second]):
        with pytest.raises(ValueError, match="expected condition"):
            executor.begin(2, bad)
    small = [first, second[:, :2, :2]]  # positions beyond a condition are outside
    assert executor.begin(2, small).parameters().isfinite().all()


def test_a_read_of_a_table_may_be_anywhere_where_it_is_constant(executor):
    read = Read(0, 0, 1, 1, dy=-(10**9), top=-(1 << 60), left=-(1 << 60), table=True)
    from genfast.sampling.program import Draw, Table

    table = Table("t", 1, 8, 9, torch.full((1, 1, 1, 1), 2.5))
    program = replace(executor.program, tables=(table,), draws=(Draw(0, 1, (read,)),))
    assert NativeExecutor(program).begin(1).parameters().tolist() == [[2.5]]
