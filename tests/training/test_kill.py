"""kill -9: training goes on from the last checkpoint, and saving leaves whole checkpoints."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
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


def kill_after(
    context: ForkServerContext, seconds: float, target: Callable[..., None], *args: Any
) -> int | None:
    """Run a function in a process, kill it if it takes longer; return the exit code."""
    process = context.Process(target=target, args=args)
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def check_kills(
    context: ForkServerContext, tmp_path: Path, name: str, kills: int, moments: random.Random
) -> None:
    """Kill a training again and again until all kills are spent; compare its end."""
    started = time.perf_counter()
    assert kill_after(context, 60, train, tmp_path / "whole", name) == 0
    duration = time.perf_counter() - started
    done, lost, run = 0, 0, tmp_path / "killed"
    while done < kills:
        before = list_checkpoints(run)
        seconds = moments.uniform(0.02, 0.6 * duration)
        code = kill_after(context, seconds, train, run, name)
        assert code in (0, -9)
        done += code == -9
        lost += list_checkpoints(run) == before
        if code == 0:  # finished before the kills are spent: go on killing another run
            assert fingerprint(run) == fingerprint(tmp_path / "whole")
            run = tmp_path / f"killed{done}"
        elif before:
            assert load_latest(run).step >= int(before[0].name[5:])
    assert lost < done, "no kill came after a new checkpoint"
    assert kill_after(context, 60, train, run, name) == 0
    assert fingerprint(run) == fingerprint(tmp_path / "whole")
    assert comparable(read_log(run)) == comparable(read_log(tmp_path / "whole"))
    left = [path.name for path in run.rglob("*.tmp")]
    assert not left


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
        seconds = moments.uniform(0.02, 0.4)
        assert kill_after(processes, seconds, save_forever, tmp_path) == -9
        if list_checkpoints(tmp_path):
            found = load_latest(tmp_path)  # any damage is a warning, and so an error here
            newest = max(newest, found.step)
            for tensors in (found.weights(), found.training()):
                assert tensors["x"].equal(torch.full((2000,), float(found.state["step"])))
    assert newest > 1
