"""Failures of the build and of loading explain themselves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str) -> str:
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if found is None:
        pytest.skip(f"no {name}")
    return found


def configure(build: Path, **definitions: str) -> tuple[int, str]:
    """Runs CMake's configuration step alone."""
    command = [tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    command += [f"-D{name}={value}" for name, value in definitions.items()]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "GENFAST"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


# What CMake's search leaves behind on a machine without the CUDA compiler.
NO_NVCC = {"CMAKE_CUDA_COMPILER": "NOTFOUND"}


def test_cuda_on_without_nvcc(tmp_path: Path) -> None:
    code, output = configure(tmp_path, GENFAST_CUDA="on", **NO_NVCC)
    assert code != 0
    assert "GENFAST_CUDA=on: expected the CUDA compiler nvcc, found none" in output
    assert "GENFAST_CUDA=off" in output


def test_cuda_auto_without_nvcc_builds_for_the_cpu(tmp_path: Path) -> None:
    code, output = configure(tmp_path, **NO_NVCC)
    assert code == 0, output
    assert "genfast: CUDA off (GENFAST_CUDA=auto)" in output


def test_cuda_off_is_silent_about_nvcc(tmp_path: Path) -> None:
    code, output = configure(tmp_path / "build", GENFAST_CUDA="off")
    assert code == 0, output
    assert "nvcc" not in output


def test_unknown_switch(tmp_path: Path) -> None:
    code, output = configure(tmp_path / "build", GENFAST_CUDA="maybe")
    assert code != 0
    assert "GENFAST_CUDA: expected auto, on or off, got maybe" in output


def test_cuda_major_unlike_torchs(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    code, output = configure(
        tmp_path / "build", GENFAST_TORCH_VERSION="2.11.0+cu118", GENFAST_TORCH_CUDA="11.8"
    )
    assert code != 0
    assert "torch 2.11.0+cu118 was built with CUDA 11.8, nvcc" in output


def test_no_torch_in_the_environment(tmp_path: Path) -> None:
    # A module named torch that cannot be imported stands for an environment without it.
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')\n")
    code, printed = build_extension(tmp_path, PYTHONPATH=str(tmp_path))
    assert code != 0
    assert "genfast: the build needs torch in this environment" in printed
    assert "pip install --no-build-isolation ." in printed
    assert "Traceback" not in printed


def import_copy(folder: Path, *, built_for: str | None, new_op: bool = False) -> str:
    """Imports a copy of the package whose build record says `built_for`; returns its warnings.

    With `new_op` the copy names an op that its extension does not have.
    """
    copy = folder / "genfast"
    shutil.copytree(ROOT / "genfast", copy, ignore=shutil.ignore_patterns("__pycache__"))
    if built_for is None:
        for module in copy.glob("_C.*"):
            module.unlink()
    else:
        (copy / "_build_info.json").write_text(json.dumps({"torch": built_for}))
    if new_op:
        source = copy / "_extension.py"
        source.write_text(source.read_text().replace("OPS = (", 'OPS = ("brand_new", ', 1))
    code = (
        "import torch, genfast; print(genfast.__file__);"
        "z, kl = genfast.ops.reparameterize(torch.zeros(2, 3), torch.zeros(2, 3), seed=1);"
        "print(z.shape, kl.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(copy) in done.stdout
    assert "torch.Size([2, 3]) [0.0, 0.0]" in done.stdout
    return done.stderr


def test_not_built_warns_once_and_works(tmp_path: Path) -> None:
    printed = import_copy(tmp_path, built_for=None)
    assert printed.count("UserWarning") == 1
    assert "expected a compiled extension in" in printed
    assert "pip install --no-build-isolation -e ." in printed


def test_built_for_another_torch_names_both(tmp_path: Path) -> None:
    printed = import_copy(tmp_path, built_for="2.9.1+cu130")
    assert printed.count("UserWarning") == 1
    assert "built for torch 2.9.1+cu130" in printed
    assert f"this is torch {torch.__version__}" in printed
    assert "pip install --no-build-isolation -e ." in printed


def test_older_than_the_package_names_what_is_missing(tmp_path: Path) -> None:
    printed = import_copy(tmp_path, built_for=torch.__version__, new_op=True)
    assert printed.count("UserWarning") == 1
    assert "the extension is older than the package, it lacks brand_new" in printed


def build_extension(folder: Path, **environment: str) -> tuple[int, str]:
    folders = ["--build-temp", str(folder / "t"), "--build-lib", str(folder / "l")]
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", *folders],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("jobs", ["many", "2.5", "-1", "0"])
def test_jobs_that_are_no_number(tmp_path: Path, jobs: str) -> None:
    code, printed = build_extension(tmp_path, GENFAST_JOBS=jobs)
    assert code != 0
    assert f"GENFAST_JOBS: expected a number of compilers >= 1, got {jobs}" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("archs", ["8.0,9.0", "sm_80", "native", "80,,x"])
def test_archs_that_are_no_numbers(tmp_path: Path, archs: str) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    code, output = configure(tmp_path / "build", GENFAST_CUDA_ARCHS=archs)
    assert code != 0
    assert f"GENFAST_CUDA_ARCHS: expected numbers such as 80,90, got {archs}" in output


def test_simd_levels_whatever_the_users_flags(tmp_path: Path) -> None:
    code, output = configure(
        tmp_path, GENFAST_CUDA="off", CMAKE_CXX_FLAGS="-march=native", CMAKE_CXX_COMPILER="g++"
    )
    assert code == 0, output
    for entry in json.loads((tmp_path / "compile_commands.json").read_text()):
        if entry["file"].endswith("kernels/cpu/masked_conv2d.cpp"):
            done = subprocess.run(
                f"{entry['command']} -fsyntax-only",
                shell=True,
                cwd=entry["directory"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr


def test_unknown_simd_level_warns() -> None:
    code = "import genfast.ops; from genfast import _C; print(_C.simd_level())"
    for level, warned in (("baseline", False), ("avx", True)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"GENFAST_SIMD": level},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (
            f"got GENFAST_SIMD={level}; {done.stdout.strip()} is in use" in done.stderr
        ) is warned


def test_no_compiler(tmp_path: Path) -> None:
    for name in ("cmake", "ninja"):
        (tmp_path / name).symlink_to(tool(name))
    folders = ["--build-temp", str(tmp_path / "t"), "--build-lib", str(tmp_path / "l")]
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", *folders],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "genfast: the build needs a C++20 compiler" in done.stderr
    assert "Traceback" not in done.stderr
