"""The script for a CUDA machine: how it runs commands, what it would run, and what it leaves."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.cuda_machine import __main__ as script
from benchmarks.cuda_machine import summary
from benchmarks.cuda_machine.processes import Command, Outcome, run_together
from benchmarks.cuda_machine.steps import RESULTS, ROOT, STEPS, Absent, Machine, Step
from genfast._extension import OPS

FACTS = {
    "device": "cuda",
    "python": "3.12.3 (python)",
    "system": "Linux",
    "cores": 16,
    "tools": {"compute-sanitizer": "compute-sanitizer"},
    "versions": {"torch": "2.11.0"},
    "missing": [],
    "gpu": {"name": "a GPU", "capability": "90", "memory_gib": 79.0},
    "driver": None,
    "nvcc": "13.0",
    "peaks": {"copy_gb_per_s": 3000.0},
    "problems": [],
}


def python(name: str, code: str, **environment: str) -> Command:
    return Command(name, (sys.executable, "-c", code), environment)


def test_commands_run_side_by_side_and_keep_their_output(tmp_path: Path) -> None:
    start = time.monotonic()
    commands = [
        python("slow", "import time; time.sleep(0.5); print('done')"),
        python("failing", "import os, sys; print(os.environ['OF_STEP']); sys.exit(3)", OF_STEP="7"),
    ]
    slow, failing = run_together(commands, tmp_path, tmp_path, 60)
    assert time.monotonic() - start < 20
    assert (slow.ok, slow.code, slow.output, slow.stopped) == (True, 0, "done\n", False)
    assert (failing.ok, failing.code, failing.output) == (False, 3, "7\n")
    assert slow.seconds >= 0.5
    empty = Command("selects nothing", failing.command.words, {"OF_STEP": "7"}, good_codes=(0, 3))
    assert run_together([empty], tmp_path, tmp_path, 60)[0].ok


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


def test_the_limit_interrupts_and_then_kills_with_children(tmp_path: Path) -> None:
    telling = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('told')"
    deaf = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    start = time.monotonic()
    told, killed = run_together(
        [python("telling", telling), python("deaf", deaf)], tmp_path, tmp_path, 3
    )
    assert time.monotonic() - start < 12
    assert (told.stopped, told.ok, told.output) == (True, False, "told\n")
    assert (killed.stopped, killed.code) == (True, -9)
    while is_alive(int(killed.output)):  # until the system has done what it was told
        assert time.monotonic() - start < 30
        time.sleep(0.05)


def rounds_of(name: str) -> list[list[Command]]:
    (step,) = (step for step in STEPS if step.name == name)
    rounds = step.rounds(Machine("cuda", FACTS, Path("build/scratch")))
    assert not isinstance(rounds, Absent)
    return rounds


def test_the_build_downloads_nothing_and_is_for_the_gpu_that_is_there() -> None:
    pip, look = (commands[0] for commands in rounds_of("build"))
    assert {"--no-index", "--no-build-isolation", "--no-deps"} <= set(pip.words)
    assert pip.environment["GENFAST_CUDA"] == "on"
    assert pip.environment["GENFAST_CUDA_ARCHS"] == "90"
    assert "cuda" in look.words


def test_every_test_file_runs_once_on_the_cpu_and_all_that_want_a_gpu_on_it() -> None:
    def files(commands: list[Command]) -> list[str]:
        return sorted(word for c in commands for word in c.words if word.endswith(".py"))

    (rest,), (marked,) = rounds_of("test-rest"), rounds_of("test-device")
    every = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py"))
    assert files(rest) == every
    assert all(command.environment["CUDA_VISIBLE_DEVICES"] == "" for command in rest)
    assert len(rest) == 8  # of two threads each, on 16 cores
    assert all("CUDA_VISIBLE_DEVICES" not in command.environment for command in marked)
    chosen = files(marked)
    assert {f"tests/ops/test_{op}.py" for op in OPS} <= set(chosen)
    assert "tests/gpu/test_large.py" in chosen
    assert len(set(chosen)) == len(chosen)


def test_four_sanitizers_without_the_caching_allocator() -> None:
    (commands,) = rounds_of("sanitize")
    tools = ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert list(dict.fromkeys(command.words[2] for command in commands)) == tools
    for tool in tools:
        files = [word for c in commands if tool in c.words for word in c.words if "test_" in word]
        assert len(files) == len(list((ROOT / "tests/ops").glob("test_*.py")))
    assert all(c.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1" for c in commands)
    (step,) = (step for step in STEPS if step.name == "sanitize")
    without = Machine("cuda", FACTS | {"tools": {"compute-sanitizer": None}}, Path())
    assert "compute-sanitizer" in step.rounds(without).reason


def ran(name: str, output: str, code: int = 0) -> Outcome:
    return Outcome(Command(name, ()), code, 1.0, False, output)


def test_what_commands_told_is_found() -> None:
    pytest_output = "....\n=== 3 failed, 4 passed, 1 warning in 2.00s ===\n"
    sanitizer = "5 passed in 3.21s\n========= ERROR SUMMARY: 2 errors\n"
    race = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    trained = "vae: 23 steps and samples in 0.3 s; loss 218.6 to 200.5\ngan: failed\n"
    outcomes = [ran("a", pytest_output), ran("b", sanitizer + race), ran("c", trained)]
    assert summary.told(outcomes) == [
        "a: 3 failed, 4 passed, 1 warning in 2.00s",
        "b: 5 passed in 3.21s",
        "b: ERROR SUMMARY: 2 errors",
        "b: RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
        "c: vae: 23 steps and samples in 0.3 s",
        "c: gan: failed",
    ]


def test_long_logs_lose_their_middle() -> None:
    text = "begin\n" + "x" * 5_000_000 + "\nend"
    log = summary.log_of([ran("a", text), ran("b", "short", code=4)])
    assert len(log) < 1_600_000
    assert "begin\n" in log
    assert "x\nend" in log
    assert "#### b: exit code 4" in log


@pytest.fixture
def run_script(monkeypatch, tmp_path):
    """Runs the script with these steps on a made-up machine; returns its code and its summary."""

    def run(steps: list[Step], *words: str, facts: dict = FACTS) -> tuple[int, dict]:
        out = tmp_path / "results"
        monkeypatch.setattr(script, "STEPS", steps)
        monkeypatch.setattr(script, "_facts", lambda device: facts)
        monkeypatch.setattr(script, "ROOT", tmp_path)
        monkeypatch.setattr(sys, "argv", ["cuda_machine", "--out", str(out), *words])
        with monkeypatch.context() as patched:
            patched.setattr(os, "environ", os.environ.copy())
            code = script.main()
        return code, json.loads((out / "summary.json").read_text())

    return run


def step(name: str, code: str, then: str = "print('never')") -> Step:
    return Step(name, name, 30, lambda machine: [[python("a", code)], [python("b", then)]])


def test_a_failing_step_does_not_stop_the_rest(run_script, tmp_path, capsys) -> None:
    leaves = "open('build/cuda_machine/sampling.json', 'w').write('{}')"
    absent = Step("absent", "", 30, lambda machine: Absent("it is not here"))
    steps = [step("bad", "1/0"), absent, step("good", leaves, "print('seen')")]
    code, found = run_script(steps, "--commit", "abc")
    assert code == 1
    assert {name: each["result"] for name, each in found["steps"].items()} == {
        "bad": "FAILED", "absent": "not run: it is not here", "good": "good",
    }  # fmt: skip
    assert found["commit"] == "abc"
    assert [each["name"] for each in found["steps"]["bad"]["commands"]] == ["a"]
    written = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert written == ["logs.txt", "sampling.json", "summary.json", "summary.md"]
    logs = (tmp_path / "results" / "logs.txt").read_text()
    assert "ZeroDivisionError" in logs
    assert "seen" in logs
    assert "never" not in logs
    text = (tmp_path / "results" / "summary.md").read_text()
    assert "a GPU, 79.0 GiB" in text
    assert "| bad | FAILED |" in text
    assert "bad: FAILED" in capsys.readouterr().out
    # A second call on the same folder keeps the steps of the first.
    code, found = run_script(steps, "--steps", "good")
    assert code == 0
    assert list(found["steps"]) == ["bad", "absent", "good"]


def test_a_budget_bounds_the_whole(run_script, monkeypatch) -> None:
    monkeypatch.setattr(script, "_LEAST", 1.0)
    sleeping = step("long", "import time; time.sleep(60)")
    start = time.monotonic()
    code, found = run_script([sleeping, step("last", "print(1)")], "--budget", "3")
    assert time.monotonic() - start < 25
    assert code == 1
    assert found["steps"]["long"]["result"] == "stopped at its limit"
    assert found["steps"]["last"]["result"] == "not run: the time is used up"


def test_a_machine_that_cannot_build_is_refused(run_script, capsys) -> None:
    facts = FACTS | {"problems": ["torch was built with CUDA 12.8, nvcc is 13.0"]}
    code, found = run_script([step("never", "1/0")], facts=facts)
    assert code == 2
    assert found["steps"] == {}
    assert "torch was built with CUDA 12.8" in capsys.readouterr().err


def test_this_machine_tells_what_it_lacks() -> None:
    words = [sys.executable, "-m", "benchmarks.cuda_machine.facts", "cuda"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["versions"]["torch"] == torch.__version__
    if torch.version.cuda is None:
        assert f"torch {torch.__version__} is a build without CUDA" in facts["problems"]
        assert facts["gpu"] is None


def test_results_are_few_files() -> None:
    assert len({"summary.json", "summary.md", "logs.txt", *RESULTS}) <= 8
    assert sum(step.limit for step in STEPS) <= 1100
    assert len({step.name for step in STEPS}) == len(STEPS) == 8
