"""The steps on a CUDA machine, the most valuable first, and what each of them runs.

Limits are for a machine with 16 cores, above what a step takes there when nothing goes wrong: a
quarter of an hour together. On the CPU, in the dry run, every step takes the same way with less to
do.
"""

import os
import re
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cuda_machine.processes import Command

ROOT = Path(__file__).resolve().parents[2]

_SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
_HANDS = 3  # processes for each of them: they spend their time on the CPU
# Every kernel in every layout, without what launches a kernel many times or starts processes.
_SANITIZED = (
    "(match_reference or matches_reference or strides or empty or nan or triton)"
    " and not float64 and not torch.float16 and not compiles and not simd and not opcheck"
)
# How a test file asks for a GPU: by the fixture or by the mark.
_ON_DEVICE = re.compile(r"\bdevice\b|\bgpu\b|\bon_gpu\b")
_NO_TESTS = 5  # pytest's exit code where nothing in the files was selected
# So little of each step that a dry run takes half a minute.
_FEW_OPS = "draws_the_same_stream or uniforms_bit or graphs or large"
_FEW_OTHERS = ("tests/test_images.py",)
_FEW_BENCHMARKS = "bench_reparameterize and mnist"


@dataclass(frozen=True)
class Machine:
    """What the steps must know.

    Attributes:
        device: "cuda"; "cpu" in a dry run.
        facts: of `facts.collect`.
        scratch: folder for what only the run itself needs, relative to the checkout.
    """

    device: str
    facts: dict[str, Any]
    scratch: Path

    @property
    def dry(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True)
class Absent:
    """Why a step cannot run here; that is no failure."""

    reason: str


Rounds = list[list[Command]]
"""Commands of one round run side by side; a round starts when the one before was good."""


@dataclass(frozen=True)
class Step:
    """A step, how long it may take in seconds, and what it runs."""

    name: str
    meaning: str
    limit: float
    rounds: Callable[[Machine], "Rounds | Absent"]


def _python(name: str, *words: str, **environment: str) -> Command:
    return Command(name, (sys.executable, *words), environment)


def _build(machine: Machine) -> Rounds:
    if machine.dry:
        environment = _as_built()
    else:
        capability = machine.facts["gpu"]["capability"]
        environment = {"GENFAST_CUDA": "on", "GENFAST_CUDA_ARCHS": capability}
    words = ("-m", "pip", "install", "-v", "--disable-pip-version-check", "--no-index")
    words += ("--no-build-isolation", "--no-deps", "--editable", ".")
    look = ("-m", "benchmarks.cuda_machine.facts", machine.device, "--built")
    return [[_python("pip", *words, **environment)], [_python("info", *look)]]


def _as_built() -> dict[str, str]:
    """The switches that the build folder was made with: the dry run builds it as it is."""
    import torch

    name = f"{sysconfig.get_platform()}-torch-{torch.__version__}"
    try:
        lines = (ROOT / "build" / name / "CMakeCache.txt").read_text().splitlines()
    except OSError:
        return {"GENFAST_CUDA": "off"}
    cache = dict(line.split("=", 1) for line in lines if "=" in line)
    cache = {key.partition(":")[0]: value for key, value in cache.items()}
    switches = ("GENFAST_CUDA", "GENFAST_CUDA_ARCHS", "GENFAST_SANITIZE")
    return {name: cache[name] for name in switches if cache.get(name)} | {
        "GENFAST_WERROR": "1" if cache.get("GENFAST_WERROR") == "ON" else "0",
        "GENFAST_DEBUG": "1" if cache.get("CMAKE_BUILD_TYPE") == "Debug" else "0",
    }


def _pytest(*words: str) -> tuple[str, ...]:
    # Warnings of packages that this project has never met are worth reading, and no failures.
    return ("-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", *words)


def _deal(files: Sequence[Path], most: int) -> list[list[Path]]:
    """Files in at most so many hands of about the same size."""
    hands: list[list[Path]] = [[] for _ in range(min(most, len(files)))]
    for file in sorted(files, key=lambda file: -file.stat().st_size):
        min(hands, key=lambda hand: sum(each.stat().st_size for each in hand)).append(file)
    return hands


def _shards(machine: Machine, files: Sequence[Path], *words: str, **environment: str) -> Rounds:
    """Test files dealt to as many processes as there are pairs of cores, long files first."""
    cores = machine.facts["cores"]
    hands = _deal(files, max(1, cores // 2))
    environment |= {"OMP_NUM_THREADS": str(max(1, cores // len(hands)))}
    return [
        [
            Command(
                f"pytest {number}",
                (sys.executable, *_pytest("--durations=8", *words, *_relative(hand))),
                environment,
                good_codes=(0, _NO_TESTS),
            )
            for number, hand in enumerate(hands)
        ]
    ]


def _relative(files: Sequence[Path]) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in sorted(files)]


def _test_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("test_*.py"))


def _device_tests(machine: Machine) -> Rounds:
    if machine.dry:
        return _shards(machine, _test_files("tests/ops", "tests/gpu"), "-k", _FEW_OPS)
    marked = [file for file in _test_files("tests") if _ON_DEVICE.search(file.read_text())]
    return _shards(machine, marked, "-m", "gpu")


def _other_tests(machine: Machine) -> Rounds:
    if machine.dry:
        return _shards(machine, [ROOT / file for file in _FEW_OTHERS])
    # What is not marked is about the CPU: bits that a GPU does not promise, for one.
    return _shards(machine, _test_files("tests"), "-m", "not gpu", CUDA_VISIBLE_DEVICES="")


def _benchmarks(dtype: str) -> Callable[[Machine], Rounds]:
    def rounds(machine: Machine) -> Rounds:
        words = ["benchmarks", "--device", machine.device, "--dtype", dtype]
        words += ["--benchmark-columns=median", "--benchmark-max-time=0.3"]
        words += ["--results", str(machine.scratch / f"ops-{dtype}.json")]
        if machine.dry:  # compiling says nothing about this script, and takes half of the time
            words += ["-k", _FEW_BENCHMARKS]
            return [[_python("pytest", *_pytest(*words), TORCH_COMPILE_DISABLE="1")]]
        return [[_python("pytest", *_pytest(*words))]]

    return rounds


def _sampling(machine: Machine) -> Rounds:
    words = ["-m", "genfast", "bench", "sampling", "--device", machine.device]
    words += ["--out", str(machine.scratch / "sampling.json"), "--threads", "1"]
    # A sound of 16,000 samples takes minutes where every sample waits for a launch.
    cases = ("digits",) if machine.dry else ("gated", "plain", "plus-plus")
    words += [word for case in cases for word in ("--case", case)]
    return [[_python("genfast bench", *words, "--seconds", "0.1" if machine.dry else "2")]]


def _train(machine: Machine) -> Rounds:
    words = ["-m", "benchmarks.cuda_machine.train", machine.device]
    words += ["1", "--families"] if machine.dry else ["3"]
    return [[_python("train", *words)]]


def _sanitize(machine: Machine) -> "Rounds | Absent":
    sanitizer = machine.facts["tools"]["compute-sanitizer"]
    if machine.dry:
        return Absent("the CPU's sanitizers are `make sanitize`")
    if sanitizer is None:
        return Absent("the program compute-sanitizer is not on PATH")
    # Each allocation its own: else the tools do not see where one ends in a cached block.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "2"}
    return [
        [
            Command(
                f"{tool} {number}",
                (
                    sanitizer, "--tool", tool, "--error-exitcode", "99", "--print-limit", "20",
                    "--target-processes", "application-only", sys.executable,
                    *_pytest("-m", "gpu", "-k", _SANITIZED, *_relative(hand)),
                ),
                environment,
                good_codes=(0, _NO_TESTS),
            )
            for tool in _SANITIZERS
            for number, hand in enumerate(_deal(_test_files("tests/ops"), _HANDS))
        ]
    ]  # fmt: skip


STEPS = (
    Step("build", "builds from source, for the GPU that is there", 180, _build),
    Step("test-device", "tests of the ops, and all others that want a GPU", 150, _device_tests),
    Step("bench-float32", "ops in float32", 180, _benchmarks("float32")),
    Step("bench-bfloat16", "ops in bfloat16", 130, _benchmarks("bfloat16")),
    Step("train", "a short training run of every family", 60, _train),
    Step("sanitize", "compute-sanitizer over tests of the ops", 150, _sanitize),
    Step("sampling", "sampling against forward passes", 80, _sampling),
    Step("test-rest", "all other tests", 100, _other_tests),
)

# Files that a step may leave in scratch, and that belong to the results.
RESULTS = ("ops-float32.json", "ops-bfloat16.json", "sampling.json")


def search_path() -> str:
    """PATH with the tools of this Python before the others and those of CUDA behind them."""
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return os.pathsep.join(
        (str(Path(sys.executable).parent), os.environ.get("PATH", ""), f"{cuda}/bin")
    )
