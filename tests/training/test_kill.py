"""kill -9: training goes on from the last checkpoint, and saving leaves whole checkpoints."""

import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from genfast.training import read_log
from genfast.training.checkpoint import list_checkpoints, load_latest
from tests.training.fakes import comparable, fingerprint
from tests.training.trainee import FAMILIES, save_forever, train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start at once, forked from one that has imported torch and done nothing."""
    context = multiprocessing.get_context("forkserver")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    context.set_forkserver_preload(["tests.training.trainee"])
    warm_up = context.Process(target=time.sleep, args=(0,))
    warm_up.start()
    warm_up.join()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    return context


def newest_step(run: Path) -> int:
    found = list_checkpoints(run)
    return int(found[0].name[5:]) if found else -1


def run_and_kill(
    context: ForkServerContext,
    due: Callable[[], bool],
    pause: float,
    target: Callable[..., None],
    *args: Any,
) -> int | None:
    """Run a function in a process; kill it some time after it is due; return the exit code."""
    process = context.Process(target=target, args=args)
    process.start()
    while process.exitcode is None and not due():
        time.sleep(0.001)
    process.join(pause)
    process.kill()
    process.join()
    return process.exitcode


def train_with_kills(
    context: ForkServerContext, run: Path, name: str, kills: int, moments: random.Random
) -> int:
    """Kill a training at random moments until it is done or the kills are spent; return those left.

    A moment is some steps after the process began, and then some time, so that it may fall into a
    step, a save or anything between, on a machine of any speed.
    """
    while kills:
        before = newest_step(run)
        goal = before + moments.randint(0, 12)
        pause = moments.uniform(0, 0.03)
        due = partial(lambda goal: newest_step(run) >= goal, goal)
        code = run_and_kill(context, due, pause, train, run, name)
        if code == 0:
            return kills
        assert code == -9
        kills -= 1
        if list_checkpoints(run):
            assert load_latest(run).step >= max(before, goal)
    assert run_and_kill(context, lambda: False, 0, train, run, name) == 0
    return 0


def check_kills(
    context: ForkServerContext, tmp_path: Path, name: str, kills: int, moments: random.Random
) -> None:
    """Spend the kills on as many runs as it takes; all must end as one that was left alone."""
    whole = tmp_path / "whole"
    train_with_kills(context, whole, name, 0, moments)
    for number in itertools.count():
        run = tmp_path / f"killed{number}"
        kills = train_with_kills(context, run, name, kills, moments)
        assert fingerprint(run) == fingerprint(whole)
        assert comparable(read_log(run)) == comparable(read_log(whole))
        assert not list(run.rglob("*.tmp"))
        if kills == 0:
            break


def test_killed_training_ends_the_same(processes: ForkServerContext, tmp_path: Path) -> None:
    check_kills(processes, tmp_path, "fake", 4, random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fake", *FAMILIES])
def test_twenty_kills(processes: ForkServerContext, tmp_path: Path, name: str) -> None:
    check_kills(processes, tmp_path, name, 20, random.Random(1))


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_while_saving_leaves_old_or_new(
    processes: ForkServerContext, tmp_path: Path, kills: int
) -> None:
    moments = random.Random(2)
    newest = 0
    for _ in range(kills):
        pause = moments.uniform(0.02, 0.4)
        assert run_and_kill(processes, lambda: True, pause, save_forever, tmp_path) == -9
        if list_checkpoints(tmp_path):
            found = load_latest(tmp_path)  # any damage is a warning, and so an error here
            newest = max(newest, found.step)
            for tensors in (found.weights(), found.training()):
                assert tensors["x"].equal(torch.full((2000,), float(found.state["step"])))
    assert newest > 1
