import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import genfast as package
from genfast import _extension
from genfast.info import _is_served, collect, render

OPS = _extension.OPS


def test_info_tells_for_each_op_what_runs_on_which_device(genfast):
    result = genfast("info")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"genfast {package.__version__}\n")
    lines = result.out.splitlines()
    for (op, device), found in _extension.IMPLEMENTATIONS.items():
        (line,) = [line for line in lines if line.split()[:2] == [op, device]]
        assert line.split(maxsplit=2)[2].split(maxsplit=1) == [found.name, found.reason]


def test_info_names_the_versions(genfast):
    out = genfast("info").out
    assert torch.__version__ in out
    assert "Python" in out
    assert "Triton" in out
    assert "GPU" in out


@pytest.mark.skipif(not _extension.loaded(), reason="the extension is not built")
def test_info_tells_how_the_extension_was_built(genfast):
    from genfast import _C

    facts = json.loads(genfast("info", "--json").out)
    assert facts["extension"]["loaded"] is True
    assert facts["extension"]["simd_level"] == _C.simd_level()
    assert {**facts["extension"], **_C.build_info()} == facts["extension"]
    assert facts["ops"].keys() == set(OPS)


def broken_copy(folder: Path, *, build_info: dict[str, str] | None = None) -> None:
    """The package without its compiled code; with `build_info` that of another build."""
    here = Path(package.__file__).parent
    shutil.copytree(here, folder / "genfast", ignore=shutil.ignore_patterns("*.so", "_build*"))
    if build_info is not None:
        (folder / "genfast" / "_build_info.json").write_text(json.dumps(build_info))
        (folder / "genfast" / "_C.so").touch()


def run_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    words = (sys.executable, *words)
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)


def test_info_without_the_extension_says_so(tmp_path):
    broken_copy(tmp_path)
    done = run_in(tmp_path, "-m", "genfast.info")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "compiled extension: not in use" in done.stdout
    assert "expected a compiled extension" in done.stdout
    for op in OPS:
        for device in ("cpu", "cuda"):
            row = [op, device, "reference", "the", "extension", "is", "not", "built"]
            assert row in [line.split() for line in done.stdout.splitlines()]


def test_info_with_an_extension_of_another_torch_names_both(tmp_path):
    broken_copy(tmp_path, build_info={"torch": "1.0.0"})
    done = run_in(tmp_path, "-m", "genfast.cli", "info", "--json")
    assert done.returncode == 0
    facts = json.loads(done.stdout)
    assert "built for torch 1.0.0" in facts["extension"]["reason"]
    assert torch.__version__ in facts["extension"]["reason"]
    runs = {found["runs"] for devices in facts["ops"].values() for found in devices.values()}
    assert runs == {"reference"}


def test_info_without_torch_tells_the_rest(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    facts = collect()
    assert facts["torch"] is None
    text = render(facts)
    assert "torch   cannot be imported: import of torch halted" in text
    assert f"genfast {package.__version__}" in text


def pretend_gpu(monkeypatch, major: int, minor: int) -> None:
    class Properties:
        name, total_memory = "Some GPU", 80 * 2**30

    Properties.major, Properties.minor = major, minor
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)


def test_info_names_the_gpu(monkeypatch):
    pretend_gpu(monkeypatch, 9, 0)
    text = render(collect())
    assert "Some GPU, compute capability 9.0, 80.0 GiB" in text
    assert "not built for it" not in text


def test_info_tells_that_the_kernels_are_not_built_for_a_gpu(monkeypatch):
    pretend_gpu(monkeypatch, 7, 5)
    facts = collect()
    facts["gpus"][0]["served"] = _is_served("7.5", "80,90")
    assert "not built for it: rebuild with GENFAST_CUDA_ARCHS=75" in render(facts)


@pytest.mark.parametrize(
    ("capability", "served"),
    [("7.5", False), ("8.0", True), ("8.9", True), ("9.0", True), ("10.0", True), ("12.1", True)],
)
def test_a_gpu_is_served_by_its_own_major_version_or_by_ptx(capability, served):
    assert _is_served(capability, "80,90a") is served


def test_info_says_why_torch_uses_no_gpu(monkeypatch):
    def unavailable() -> bool:
        import warnings

        warnings.warn("The NVIDIA driver is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    assert "none in use: The NVIDIA driver is too old" in render(collect())


@pytest.mark.skipif(not _extension.loaded(), reason="the extension is not built")
def test_info_of_a_build_without_cuda():
    facts = collect()
    facts["extension"] |= {"cuda": None, "cuda_archs": None}
    (line,) = [line for line in render(facts).splitlines() if line.startswith("  CUDA")]
    assert line.split(maxsplit=1)[1] == "not in this build"
