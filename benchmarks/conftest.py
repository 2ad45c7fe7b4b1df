"""Options of the op benchmarks, and the table and file that a run ends with."""

import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks._harness import in_turn
from benchmarks._peaks import synchronized_clock
from benchmarks._results import collect
from benchmarks.render import table, write
from genfast._files import make_folder

DEVICE = pytest.StashKey[torch.device]()
DTYPE = pytest.StashKey[torch.dtype]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("genfast")
    group.addoption(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the ops are timed"
    )
    group.addoption(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the tensors that the ops are timed on",
    )
    group.addoption(
        "--results",
        metavar="FILE.json",
        type=Path,
        help="write the results here, and beside it as a Markdown table and two plots",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[DEVICE] = torch.device(config.getoption("--device"))
    config.stash[DTYPE] = getattr(torch, config.getoption("--dtype"))
    if config.stash[DEVICE].type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device: expected one that is there, got cuda")
    path = config.getoption("--results")
    if path is not None:
        if path.suffix != ".json" or path.is_dir():
            raise pytest.UsageError(f"--results: expected a file name in .json, got {path}")
        make_folder(path.parent)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = in_turn(items)
    if config.stash[DEVICE].type == "cuda":
        # A round holds many steps and ends when the GPU has done them: neither the launch of a
        # kernel nor the wait for it is taken for the time of a step.
        marker = pytest.mark.benchmark(timer=synchronized_clock, min_time=1e-3)
        for item in items:
            item.add_marker(marker)


@pytest.fixture(autouse=True)
def default_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors of a case are made on the device; `time_case` ends this before the clock runs.

    float32 means float32: PyTorch's convolutions would round the factors to TF32 on their own, and
    whoever allows that times another case.
    """
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = request.config.stash[DEVICE]
    torch.set_default_device(device if device.type == "cuda" else None)
    torch.set_default_dtype(request.config.stash[DTYPE])
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    session = getattr(config, "_benchmarksession", None)
    timed = [] if session is None else [each for each in session.benchmarks if each.stats.data]
    if not timed:
        return
    # A run that is cut short ends here too; what it has timed is not to be lost by a late Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    command = shlex.join(["pytest", *sys.argv[1:]])
    results = collect(timed, config.stash[DEVICE], command, dtype=config.stash[DTYPE])
    terminalreporter.write_line("")
    for line in table(results):
        terminalreporter.write_line(line)
    path = config.getoption("--results")
    if path is not None:
        for written in write(results, path):
            terminalreporter.write_line(f"wrote {written}")
