import json
import os
import subprocess
import sys


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


HELP = """
import contextlib, io, json, sys
import genfast
before = set(sys.modules)
from genfast.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    codes = [main(["--help"]), main(["train", "--help"]), main(["train", "vae", "--epoch", "1"])]
print(json.dumps([codes, sorted(set(sys.modules) - before)]))
"""


def test_help_and_usage_errors_import_nothing_heavy():
    codes, added = python(HELP)
    assert codes == [0, 0, 2]
    heavy = {"torch", "numpy", "sklearn", "scipy", "matplotlib", "PIL", "jinja2", "tqdm", "rich"}
    heavy |= {f"genfast.{name}" for name in ("models", "data", "training", "evaluation", "info")}
    assert not heavy & set(added)


IMPORT = """
import json, os, time, torch
threads = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 0
start = time.process_time()
import genfast
seconds = time.process_time() - start
after = len(os.listdir("/proc/self/task")) if threads else 0
print(json.dumps([seconds, after - threads, torch.cuda.is_initialized()]))
"""


def test_importing_genfast_takes_little_beside_torch_and_starts_nothing():
    runs = [python(IMPORT) for _ in range(2)]
    assert min(seconds for seconds, _, _ in runs) < 0.05
    assert all(started == 0 and not cuda for _, started, cuda in runs)


def test_waiting_threads_sleep_soon_unless_the_user_decided(monkeypatch):
    from genfast.cli import main

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that the end of the test restores what stood there
        monkeypatch.delenv(name)
    assert main(["--version"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "2000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    main(["--version"])
    assert os.environ["GOMP_SPINCOUNT"] == "77"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    main(["--version"])
    assert "GOMP_SPINCOUNT" not in os.environ
