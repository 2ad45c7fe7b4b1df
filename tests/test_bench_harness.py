"""The harness of the op benchmarks: nothing is timed that is wrong, in any of its forms."""

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks._harness import IMPLEMENTATIONS, Case, time_case, time_steps


class Clock:
    """Stands for the fixture of pytest-benchmark."""

    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}
        self.timed = 0

    def __call__(self, step: Callable[[], object]) -> None:
        self.timed += 1
        step()


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield Clock()
    torch.compiler.reset()


def cubes(x: torch.Tensor) -> torch.Tensor:
    return (x * x * x).sum()


def powers(x: torch.Tensor) -> torch.Tensor:
    return x.pow(3).sum()


def wrong_value(x: torch.Tensor) -> torch.Tensor:
    return x.pow(3).sum() + 0.1


def wrong_gradient(x: torch.Tensor) -> torch.Tensor:
    return x.detach().pow(3).sum() + 0 * x.sum()


def case() -> Case:
    return Case((torch.linspace(-1, 2, 33, requires_grad=True),), bytes_moved=8)


def passes() -> None:
    pass


def fails() -> None:
    raise AssertionError("the op is wrong")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_right_results_are_timed(clock, implementation) -> None:
    time_case(clock, implementation, case(), eager=cubes, genfast=powers, check=passes)
    assert clock.timed == 1
    assert clock.extra_info["bytes_moved"] == 8


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_check_that_fails_stops_the_clock(clock, implementation) -> None:
    with pytest.raises(AssertionError, match="the op is wrong"):
        time_case(clock, implementation, case(), eager=cubes, genfast=powers, check=fails)
    with pytest.raises(AssertionError, match="the op is wrong"):
        time_steps(
            clock,
            implementation,
            dict.fromkeys(IMPLEMENTATIONS, lambda: passes),
            check=fails,
            device=torch.device("cpu"),
        )
    assert clock.timed == 0


@pytest.mark.parametrize("wrong", [wrong_value, wrong_gradient])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_forms_that_differ_are_not_timed(clock, implementation, wrong) -> None:
    for forms in ({"eager": cubes, "genfast": wrong}, {"eager": wrong, "genfast": powers}):
        with pytest.raises(AssertionError, match="not close"):
            time_case(clock, implementation, case(), **forms, check=passes)
    assert clock.timed == 0


def test_a_compiled_form_that_differs_is_not_timed(clock, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: wrong_value)
    with pytest.raises(AssertionError, match="not close"):
        time_case(clock, "compiled", case(), eager=cubes, genfast=powers, check=passes)
    assert clock.timed == 0


def test_forms_with_noise_of_their_own_are_compared_on_the_same(clock) -> None:
    def noisy(x: torch.Tensor) -> torch.Tensor:
        return (x + torch.randn_like(x)).sum()

    options = {"eager": noisy, "genfast": noisy, "check": passes}
    with pytest.raises(AssertionError, match="not close"):
        time_case(clock, "eager", case(), **options)
    time_case(clock, "eager", case(), **options, compared=(cubes, powers))
    assert clock.timed == 1
    with pytest.raises(AssertionError, match="not close"):
        time_case(clock, "genfast", case(), **options, compared=(cubes, wrong_value))
