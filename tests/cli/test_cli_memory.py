"""A process that trains keeps the memory that a step frees."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
import torch
from genfast.cli._memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(4 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(keep_freed_memory())
faults()
print(faults())
"""


def run(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", COUNT_FAULTS]
    kept, faults = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is asked")
def test_what_is_freed_is_used_again(monkeypatch):
    kept, faults = run({}, monkeypatch)
    if not kept:
        pytest.skip("not glibc, or the environment says how malloc is to behave")
    # Ten tensors of 1,024 pages each.
    assert faults < 1024


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000000"}],
)
def test_the_environment_is_obeyed(environment, monkeypatch):
    kept, _ = run(environment, monkeypatch)
    assert not kept
