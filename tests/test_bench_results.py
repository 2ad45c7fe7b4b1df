"""Results of the op benchmarks: what is computed from the rounds, and what is written of it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from pytest_benchmark.stats import Stats

from benchmarks import _results, render
from benchmarks._harness import IMPLEMENTATIONS
from benchmarks._peaks import measure_peaks
from genfast.bench.render import render as sampling_table

ROOT = Path(__file__).resolve().parents[1]


def timed(
    group: str,
    implementation: str,
    rounds: list[float],
    flops: int = 4_000_000_000,
    bytes_moved: int = 500_000_000,
) -> SimpleNamespace:
    stats = Stats()
    for seconds in rounds:
        stats.update(seconds)
    work = {"bytes_moved": bytes_moved, "flops": flops, "peak_bytes": 3 * 2**20}
    params = {"implementation": implementation}
    return SimpleNamespace(group=group, params=params, stats=stats, extra_info=work)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    peaks = {"copy_gb_per_s": 10.0, "matmul_gflop_per_s": 80.0}
    monkeypatch.setattr(_results, "measure_peaks", lambda *given: peaks)
    rounds = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]  # median 0.35, fifths at 0.2, 0.3, 0.4, 0.5
    benches = [
        timed("conv 3 x 3", "genfast", [0.1]),
        timed("conv 3 x 3", "eager", rounds),
        timed("conv 3 x 3", "compiled", [0.05]),
        timed("loss small", "genfast", [0.2], flops=0),
        timed("loss small", "eager", [0.1], flops=0),
        timed("loss small", "compiled", [0.4], flops=0),
        *(timed("step whole", each, [0.1], 0, 0) for each in IMPLEMENTATIONS),
        timed("unfinished case", "eager", [0.1]),
    ]
    return _results.collect(benches, torch.device("cpu"), "pytest benchmarks")


def test_figures_of_a_case(results: dict[str, Any]) -> None:
    conv, loss, _ = results["cases"]
    assert (conv["op"], conv["name"]) == ("conv", "3 x 3")
    eager = conv["seconds"]["eager"]
    assert eager == {
        "median": 0.35, "quantile_20": 0.2, "quantile_80": 0.5, "rounds": 6,
        "peak_bytes": 3 * 2**20,
    }  # fmt: skip
    assert conv["speedup"] == {"eager": 3.5, "compiled": 0.5}
    assert conv["gb_per_s"] == 5.0
    assert conv["share_of_copy"] == 0.5
    assert conv["gflop_per_s"] == 40.0
    assert conv["share_of_matmul"] == 0.5
    assert loss["speedup"] == {"eager": 0.5, "compiled": 2.0}
    assert results["machine"]["threads"] == torch.get_num_threads()


def test_rendered_files(results: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "ops.json"
    written = render.write(results, path)
    assert json.loads(path.read_text()) == results
    text = (tmp_path / "ops.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    rows = [row for row in rows if row]
    assert len({len(row) for row in rows}) == 1
    conv = dict(zip(rows[0], rows[2], strict=True))
    assert conv["case"] == "conv 3 x 3"
    assert conv["eager, ms"] == "350 (200 to 500)"
    assert conv["x eager"] == "3.50"
    assert conv["of copy"] == "50%"
    assert conv["memory, MiB"] == "3.0 / 3.0 / 3.0"
    assert dict(zip(rows[0], rows[3], strict=True))["GFLOP/s"] == ""  # none are counted
    step = dict(zip(rows[0], rows[4], strict=True))
    assert (step["x eager"], step["GB/s"], step["of copy"]) == ("1.00", "", "")
    plots = [file for file in written if file.suffix == ".svg"]
    assert len(plots) == 2
    for plot in plots:
        assert plot.name in text
        assert "conv" in "".join(ElementTree.parse(plot).getroot().itertext())


def test_rendering_again_changes_nothing(results: dict[str, Any], tmp_path: Path) -> None:
    files = render.write(results, tmp_path / "ops.json")
    before = [file.read_bytes() for file in files]
    command = [sys.executable, "-m", "benchmarks.render", str(tmp_path / "ops.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(map(str, files))
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("content", [None, "{", "[]", '{"cases": []}'])
def test_refuses_other_files(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "ops.json"
    if content is not None:
        path.write_text(content)
    command = [sys.executable, "-m", "benchmarks.render", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "file: expected results" in done.stderr
    assert not (tmp_path / "ops.md").exists()


def test_peaks_are_rates_of_this_machine() -> None:
    peaks = measure_peaks(torch.device("cpu"), seconds=0.05)
    assert 0.1 < peaks["copy_gb_per_s"] < 1e4
    assert 0.1 < peaks["matmul_gflop_per_s"] < 1e5


KEPT = sorted((ROOT / "benchmarks" / "results").glob("*/*.md"))


@pytest.mark.parametrize("path", KEPT, ids=[f"{path.parent.name}/{path.name}" for path in KEPT])
def test_a_kept_table_says_what_its_figures_do(path: Path) -> None:
    results = json.loads(path.with_suffix(".json").read_text())
    assert results["commit"]
    assert results["command"]
    if path.stem == "sampling":
        expected = sampling_table(results)
    else:
        expected = render.render(results, path.stem)
    assert path.read_text() == expected
