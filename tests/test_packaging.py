"""What is installed and what an sdist carries."""

import importlib.util
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_elsewhere(code: str, folder: Path) -> str:
    """Runs Python code outside the checkout, so that only what is installed can be imported."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_package_works_elsewhere(tmp_path: Path) -> None:
    out = run_elsewhere(
        "import genfast, importlib.util as u; from genfast._extension import LOAD_ERROR;"
        "print(LOAD_ERROR, u.find_spec('genfast.kernels.triton') is not None)",
        tmp_path,
    )
    assert out.split() == ["None", "True"]


def test_triton_is_the_real_one() -> None:
    spec = importlib.util.find_spec("triton")
    if spec is None:
        pytest.skip("Triton is not installed")
    assert not Path(spec.origin).is_relative_to(ROOT / "kernels")


def test_import_starts_nothing(tmp_path: Path) -> None:
    # A fork or a CUDA start at import would poison data loaders that fork later.
    code = (
        "import threading, torch; before = threading.active_count(); import genfast;"
        "print(threading.active_count() - before, torch.cuda.is_initialized())"
    )
    assert run_elsewhere(code, tmp_path).split() == ["0", "False"]


def test_every_package_is_listed() -> None:
    listed = set(re.findall(r'"(genfast(?:\.[a-z.]+)?)",', (ROOT / "setup.py").read_text()))
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "genfast").rglob("__init__.py")
    }
    assert listed == found | {"genfast.kernels", "genfast.kernels.triton"}


@pytest.mark.slow
def test_sdist_carries_the_sources(tmp_path: Path) -> None:
    code = "from setuptools.build_meta import build_sdist; import sys; build_sdist(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    native = [*(ROOT / "csrc").glob("*"), *(ROOT / "kernels").rglob("*.[chp]*")]
    native += [*(ROOT / "kernels").rglob("*.cu*"), *(ROOT / "kernels").rglob("*.py")]
    for path in [*native, ROOT / "CMakeLists.txt", ROOT / "setup.py"]:
        if "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in names
    assert not any(name.endswith((".so", ".pyc")) for name in names)
