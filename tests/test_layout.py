"""The architecture, held by tests: one op is one stem in every room, and the rooms stay apart."""

import re
import subprocess
from pathlib import Path

import pytest

from genfast._extension import OPS

ROOT = Path(__file__).resolve().parents[1]

ROOMS = {
    "meaning": "genfast/ops/{op}.py",
    "schema": "csrc/{op}.cpp",
    "contract": "kernels/{op}.h",
    "CPU kernel": "kernels/cpu/{op}.cpp",
    "CUDA kernel": "kernels/cuda/{op}.cu",
    "Triton kernel": "kernels/triton/{op}.py",
    "tests": "tests/ops/test_{op}.py",
    "benchmark": "benchmarks/ops/bench_{op}.py",
}

# (op, room) -> why the file is absent.
ABSENT = {
    ("logistic_mixture_nll", "Triton kernel"): "one GPU kernel is enough until a GPU times both",
    ("categorical_nll", "Triton kernel"): "the same",
    ("gated_activation", "Triton kernel"): "the same",
    ("causal_conv1d", "CUDA kernel"): "composed of torch's convolutions and gated_activation",
    ("causal_conv1d", "Triton kernel"): "composed of torch's convolutions and gated_activation",
}

# What is no op: the sampling engine, a class with state. Its parts carry its name in both rooms.
ENGINE = "sampling_"

LONGEST_FILE = 700  # lines


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository: tracked ones and new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def code_files() -> list[Path]:
    return tracked("*.py", "*.cpp", "*.cu", "*.cuh", "*.h")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("room", ROOMS)
def test_every_op_is_in_every_room(op: str, room: str) -> None:
    present = (ROOT / ROOMS[room].format(op=op)).is_file()
    excused = (op, room) in ABSENT
    assert present != excused, f"{op}: {room} is {'present but excused' if present else 'missing'}"


@pytest.mark.parametrize(
    ("room", "folder", "suffix"),
    [
        ("schema", "csrc", ".cpp"),
        ("CPU kernel", "kernels/cpu", ".cpp"),
        ("CUDA kernel", "kernels/cuda", ".cu"),
        ("tests", "tests/ops", ".py"),
        ("benchmark", "benchmarks/ops", ".py"),
    ],
)
def test_no_file_without_an_op(room: str, folder: str, suffix: str) -> None:
    # A large op may have several files in a room: they all begin with its name.
    beside = {"fingerprint", "module", "simd_level"} if folder == "csrc" else set()
    prefix = Path(ROOMS[room].format(op="")).stem
    for path in (ROOT / folder).glob(f"*{suffix}"):
        stem = path.stem.removeprefix(prefix)
        owned = any(stem == op or stem.startswith(f"{op}_") for op in OPS)
        engine = folder in ("csrc", "kernels/cpu") and stem.startswith(ENGINE)
        assert owned or engine or path.stem in beside, path


def test_every_source_is_in_the_build() -> None:
    build = (ROOT / "CMakeLists.txt").read_text()
    for path in tracked("csrc/*.cpp", "kernels/cpu/*.cpp", "kernels/cuda/*.cu"):
        assert str(path.relative_to(ROOT)) in build


def test_kernels_know_no_torch() -> None:
    for path in tracked("kernels/*.h", "kernels/cpu/*", "kernels/cuda/*"):
        text = path.read_text()
        assert not re.search(r"#include [<\"](torch|ATen|c10|pybind11|csrc)/", text), path


def test_nobody_imports_tests_or_benchmarks_or_bare_kernels() -> None:
    bare = re.compile(r"^\s*(from|import) (tests|benchmarks|kernels)\b", re.MULTILINE)
    for path in tracked("genfast/*.py", "kernels/*.py"):
        assert not bare.search(path.read_text()), path


def test_no_pickle_and_no_network() -> None:
    banned = re.compile(r"^\s*(from|import) (pickle|marshal|shelve|urllib|requests|socket)\b", re.M)
    loads = re.compile(r"\btorch\.load\(|allow_pickle=True")
    for path in tracked("genfast/*.py", "kernels/*.py"):
        text = path.read_text()
        assert not banned.search(text), path
        assert not loads.search(text), path


def test_no_file_is_too_long() -> None:
    files = code_files()
    assert files
    for path in files:
        lines = len(path.read_text().splitlines())
        assert lines <= LONGEST_FILE, f"{path}: {lines} lines"
