"""Ctrl-C and SIGTERM, sent to a training process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genfast.training import fit, read_log
from genfast.training.checkpoint import list_checkpoints, load_latest
from genfast.training.signals import StopRequest
from tests.training.fakes import Fake, fingerprint, images
from tests.training.trainee import SlowFake, train

ROOT = Path(__file__).resolve().parents[2]
TRAINEE = Path(__file__).with_name("trainee.py")


@contextmanager
def training(run: Path, pause: float, epochs: int, after: int) -> Iterator[subprocess.Popen[str]]:
    """A process that trains, once it has saved this many steps."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(TRAINEE), str(run), str(pause), str(epochs)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (found := list_checkpoints(run)) or int(found[0].name[5:]) < after:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    with training(tmp_path / "run", 0.01, 1000, after=2) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    # Python ends by the signal itself after an uncaught KeyboardInterrupt.
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT)
    found = load_latest(tmp_path / "run")
    assert f"stopped after step {found.step}; saved in" in errors
    assert found.step >= 2
    assert ("Traceback" in errors) == (number == signal.SIGINT)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_second_signal_ends_a_step_that_hangs(tmp_path: Path) -> None:
    with training(tmp_path / "run", 60, 1, after=0) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == -signal.SIGTERM
    assert load_latest(tmp_path / "run").step == 0


class Interrupted(SlowFake):
    """Gets a signal in the middle of its fifth step."""

    pause = 0.0
    number = signal.SIGTERM
    calls = 0

    def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == 5:
            os.kill(os.getpid(), self.number)
        return super().loss(x, part)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_run_resumes_to_the_same_end(tmp_path: Path, number: signal.Signals) -> None:
    def run_fit(run: Path, kind: type[Fake]) -> None:
        torch.manual_seed(3)
        options = {"epochs": 3, "batch_size": 5, "ema_decay": 0.9, "checkpoint_every": 4}
        fit(kind(), images(48), run=run, resume=True, progress=False, log_every=2, **options)

    Interrupted.number = number
    Interrupted.__qualname__ = Fake.__qualname__  # the same model, as a checkpoint sees it
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        run_fit(tmp_path / "stopped", Interrupted)
    if number == signal.SIGTERM:
        assert caught.value.args == (143,)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    names = [path.name for path in list_checkpoints(tmp_path / "stopped")]
    assert names == ["step-00000005", "step-00000004"]
    run_fit(tmp_path / "stopped", Fake)
    run_fit(tmp_path / "whole", Fake)
    assert fingerprint(tmp_path / "stopped") == fingerprint(tmp_path / "whole")
    assert [row["step"] for row in read_log(tmp_path / "stopped")] == [*range(2, 28, 2), 27]


def test_no_handlers_outside_the_main_thread(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            train(tmp_path, epochs=1)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
    assert (tmp_path / "summary.json").exists()


def test_second_interrupt_is_a_keyboard_interrupt_where_it_strikes() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert isinstance(stop.exception(), KeyboardInterrupt)
