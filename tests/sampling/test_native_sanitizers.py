"""The engine's core, threads included, under sanitizers: built alone, without Python or torch."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = [
    "csrc/sampling_arrange.cpp", "csrc/sampling_attend.cpp", "csrc/sampling_draw.cpp",
    "csrc/sampling_plan.cpp", "csrc/sampling_run.cpp", "csrc/sampling_team.cpp",
    "csrc/sampling_worker.cpp", "csrc/simd_level.cpp", "tests/sampling/engine_stress.cpp",
]  # fmt: skip
LEVELS = {
    "kBaseline": [],
    "kAvx2": ["-mavx2", "-mfma"],
    "kAvx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
}
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def build(folder: Path, sanitizer: str) -> Path:
    """Compile core and kernels for every SIMD level, as CMakeLists.txt does."""
    assert COMPILER is not None
    common = [
        COMPILER, "-std=c++20", "-O1", "-g", f"-I{ROOT}", f"-fsanitize={sanitizer}",
        "-fno-sanitize-recover=all", "-ffp-contract=off", "-DGENFAST_X86_LEVELS", "-c",
    ]  # fmt: skip
    jobs = [[*common, source, "-o", str(folder / f"{Path(source).stem}.o")] for source in CORE]
    for level, flags in LEVELS.items():
        for kernel in sorted((ROOT / "kernels/cpu").glob("sampling_*.cpp")):
            target = str(folder / f"{kernel.stem}_{level}.o")
            define = f"-DGENFAST_SIMD_LEVEL=SimdLevel::{level}"
            jobs.append([*common, *flags, define, str(kernel), "-o", target])

    def compile_one(job: list[str]) -> None:
        subprocess.run(job, cwd=ROOT, check=True, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, jobs))
    program = folder / "stress"
    objects = [job[-1] for job in jobs]
    link = [COMPILER, f"-fsanitize={sanitizer}", *objects, "-o", str(program), "-pthread"]
    subprocess.run(link, check=True, capture_output=True, text=True)
    return program


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_core_is_clean(tmp_path: Path, sanitizer: str) -> None:
    if COMPILER is None or platform.machine() != "x86_64":
        pytest.skip("needs a C++ compiler for x86-64")
    trial = tmp_path / "trial.cpp"
    trial.write_text("int main() { return 0; }\n")
    try:
        command = [COMPILER, f"-fsanitize={sanitizer}", str(trial), "-o", str(tmp_path / "trial")]
        subprocess.run(command, check=True, capture_output=True)
        subprocess.run([str(tmp_path / "trial")], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        pytest.skip(f"the compiler has no sanitizer {sanitizer}")
    done = subprocess.run([str(build(tmp_path, sanitizer))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "baseline: well" in done.stdout
