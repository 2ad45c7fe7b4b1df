"""Triton kernels in tests: run on the GPU or under the interpreter, and compiled ahead of time.

Without a GPU conftest.py turns the interpreter on before Triton is imported, for the whole process;
compiling ahead of time needs a Triton without it and therefore a process of its own.
"""

import importlib
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "kernels" / "triton"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ARCHS = (80, 90)

_PACKAGE = "triton_kernels_under_test"


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Counts a test that launches Triton kernels among those of the GPU, where there is one."""
    return pytest.mark.gpu(test) if DEVICE == "cuda" else test


def triton_kernels(stem: str) -> types.ModuleType:
    """The module kernels/triton/<stem>.py, without the registrations of its package.

    Its launchers take tensors on `DEVICE`.
    """
    if _PACKAGE not in sys.modules:
        if os.environ.get("TRITON_INTERPRET") == "1":
            _mend_interpreter()
        package = types.ModuleType(_PACKAGE)
        package.__path__ = [str(FOLDER)]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{stem}")


def _mend_interpreter() -> None:
    """Makes the interpreter count as hardware does, and loop under NumPy 2.4.

    By itself it rounds the product and the sum of `tl.fma` apart; in float64 the product of two
    float32 numbers is exact. It multiplies the bits of bfloat16 matrices as if they were integers.
    And it converts arrays with one element by `int`, which NumPy refuses.
    """
    from triton.runtime import interpreter

    def create_fma(_self, x, y, z):
        wide = x.data.astype(np.float64) * y.data + z.data
        return interpreter.TensorHandle(wide.astype(z.data.dtype), z.dtype.scalar)

    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(x):
        if not x.dtype.scalar.is_bf16():
            return x
        bits = x.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), interpreter.tl.float32)

    def create_dot(self, a, b, *rest):
        return multiply(self, widened(a), widened(b), *rest)

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter.InterpreterBuilder.create_fma = create_fma
    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter._patch_lang_tensor = patch_tensor_and_index


def compile_ahead(stem: str, kernels: list[tuple[str, dict[str, str], dict[str, object]]]) -> str:
    """Compiles kernels to machine code for every architecture in ARCHS; needs no GPU.

    Args:
        stem: The file kernels/triton/<stem>.py.
        kernels: Name of the jitted function, Triton type of each run-time argument (such as
            {"out": "*fp32", "count": "i64"}), values of the constexpr arguments.

    Returns:
        What the compiling process printed: a line `<kernel> sm_<arch> <bytes of cubin>` each.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton_support", stem, json.dumps(kernels)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(kernels) * len(ARCHS), done.stdout
    return done.stdout


def _compile_here(stem: str, kernels: list[tuple[str, dict[str, str], dict[str, object]]]) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = triton_kernels(stem)
    for name, signature, constants in kernels:
        function = getattr(module, name)
        full = {argument: signature.get(argument, "constexpr") for argument in function.arg_names}
        for arch in ARCHS:
            source = ASTSource(fn=function, signature=full, constexprs=constants)
            compiled = triton.compile(
                source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": False}
            )
            print(name, f"sm_{arch}", len(compiled.asm["cubin"]))


if __name__ == "__main__":
    _compile_here(sys.argv[1], json.loads(sys.argv[2]))
