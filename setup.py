"""Builds genfast. The native build is described in CMakeLists.txt; this file only calls CMake.

Environment: GENFAST_CUDA=auto|on|off, GENFAST_CUDA_ARCHS=80,90, GENFAST_JOBS, GENFAST_DEBUG=1,
GENFAST_WERROR=1, GENFAST_SANITIZE=address,undefined.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
GIB = 1024**3
MEMORY_PER_JOB = 3 * GIB  # a file that includes torch's headers, or an nvcc run, with room to spare


def available_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's if less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            memory = min(memory, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return memory


def fail(message: str) -> None:
    """Stops the build with an explanation instead of a traceback."""
    sys.exit(f"\ngenfast: {message}\n")


def jobs() -> int:
    """How many compilers run side by side: GENFAST_JOBS, or what cores and memory allow."""
    asked = os.environ.get("GENFAST_JOBS")
    if asked:
        if not asked.isdecimal() or int(asked) == 0:
            fail(f"GENFAST_JOBS: expected a number of compilers >= 1, got {asked}")
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, available_memory() // MEMORY_PER_JOB))


def torch_facts() -> dict[str, str]:
    """What CMake must know about the installed torch."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        fail(
            f"the build needs torch in this environment ({sys.executable}): {error}.\n"
            "Install torch first, then build without isolation, so that the extension is built "
            "for that torch:\n"
            "  pip install torch\n"
            "  pip install --no-build-isolation ."
        )
    import pybind11

    return {
        "GENFAST_TORCH_VERSION": torch.__version__,
        "GENFAST_TORCH_CUDA": torch.version.cuda or "",
        "GENFAST_CXX11_ABI": str(int(torch._C._GLIBCXX_USE_CXX11_ABI)),
        # pybind11 first: torch carries an older copy.
        "GENFAST_TORCH_INCLUDE": ";".join([pybind11.get_include(), *cpp_extension.include_paths()]),
        "GENFAST_TORCH_LIB": ";".join(cpp_extension.library_paths()),
    }


class CMakeBuild(build_ext):
    """Builds genfast._C by CMake and ninja, and records what it was built for."""

    def build_extension(self, ext: Extension) -> None:
        """Configures and builds; CMakeLists.txt says what."""
        compilers = jobs()
        # The environment's own tools first: it may not have been activated.
        path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
        cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
        if cmake is None or ninja is None:
            fail("the build needs cmake and ninja: pip install cmake ninja")
        if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            fail("the build needs a C++20 compiler: install g++ or clang++, or set CXX to one")
        facts = torch_facts()
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        sanitize = os.environ.get("GENFAST_SANITIZE", "")
        # One build folder per torch and sanitizers: switching between them rebuilds nothing.
        name = f"{sysconfig.get_platform()}-torch-{facts['GENFAST_TORCH_VERSION']}"
        build = ROOT / "build" / "-".join([name, *filter(None, sanitize.split(","))])
        build.mkdir(parents=True, exist_ok=True)
        definitions = {
            **facts,
            "CMAKE_BUILD_TYPE": "Debug" if os.environ.get("GENFAST_DEBUG") == "1" else "Release",
            "GENFAST_CUDA": os.environ.get("GENFAST_CUDA", "auto"),
            "GENFAST_CUDA_ARCHS": os.environ.get("GENFAST_CUDA_ARCHS", "80,90"),
            "GENFAST_WERROR": "ON" if os.environ.get("GENFAST_WERROR") == "1" else "OFF",
            "GENFAST_SANITIZE": sanitize,
            "GENFAST_OUTPUT_DIRECTORY": str(module.parent),
            "GENFAST_MODULE_SUFFIX": module.name.removeprefix("_C"),
            "GENFAST_PYTHON_INCLUDE": sysconfig.get_paths()["include"],
            "CMAKE_MAKE_PROGRAM": ninja,
        }
        for name, value in definitions.items():
            print(f"genfast: {name} = {value}")
        configure = [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in definitions.items()]
        for command in (configure, [cmake, "--build", str(build), "-j", str(compilers)]):
            if subprocess.run(command, check=False).returncode != 0:
                fail("the native build failed; the reason stands above")
        record = {
            "torch": facts["GENFAST_TORCH_VERSION"],
            "cuda": facts["GENFAST_TORCH_CUDA"],
        }
        # An editable install takes the module from here, but the record from the checkout.
        for folder in {module.parent, ROOT / "genfast"} if self.editable_mode else {module.parent}:
            (folder / "_build_info.json").write_text(json.dumps(record, indent=2) + "\n")


setup(
    # Listed by hand: kernels/ holds the folders of C++ and CUDA too, which are no packages.
    packages=[
        "genfast",
        "genfast.bench",
        "genfast.cli",
        "genfast.data",
        "genfast.evaluation",
        "genfast.kernels",
        "genfast.kernels.triton",
        "genfast.models",
        "genfast.nn",
        "genfast.ops",
        "genfast.sampling",
        "genfast.sampling.capture",
        "genfast.sampling.distributions",
        "genfast.sampling.lower",
        "genfast.sampling.lower.rules",
        "genfast.sampling.naive",
        "genfast.sampling.plan",
        "genfast.sampling.probe",
        "genfast.sampling.run",
        "genfast.sampling.verify",
        "genfast.training",
    ],
    package_dir={"genfast": "genfast", "genfast.kernels": "kernels"},
    package_data={
        "genfast": ["py.typed", "_build_info.json"],
        "genfast.evaluation": ["templates/*"],
    },
    include_package_data=False,
    ext_modules=[Extension("genfast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
