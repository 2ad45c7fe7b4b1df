"""The results of one run of the op benchmarks, as JSON content."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pytest_benchmark.stats import Metadata

from benchmarks._harness import IMPLEMENTATIONS
from benchmarks._peaks import measure_peaks
from genfast._commit import commit
from genfast._extension import loaded
from genfast.evaluation.machine import machine, versions


def collect(
    benchmarks: Iterable[Metadata],
    device: torch.device,
    command: str,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Gather what was timed, where and with what, and measure the machine's peaks.

    Args:
        benchmarks: What pytest-benchmark has timed. A group that lacks one of IMPLEMENTATIONS is
            left out.
        device: Where the ops ran.
        command: What was typed.
        dtype: Of the tensors that the ops were timed on.

    Returns:
        JSON content; `benchmarks.render` says how it reads.
    """
    peaks = measure_peaks(device, 1.0, dtype)
    groups: dict[str, dict[str, Metadata]] = {}
    for bench in benchmarks:
        groups.setdefault(bench.group, {})[bench.params["implementation"]] = bench
    return {
        "command": command,
        "commit": commit(),
        "machine": machine(device),
        "versions": versions(),
        "simd_level": _simd_level(),
        "dtype": str(dtype).removeprefix("torch."),
        "peaks": {name: _rounded(value) for name, value in peaks.items()},
        "cases": [
            _case(group, rows, peaks)
            for group, rows in sorted(groups.items())
            if set(IMPLEMENTATIONS) <= set(rows)
        ],
    }


def _case(group: str, rows: Mapping[str, Metadata], peaks: Mapping[str, float]) -> dict[str, Any]:
    op, _, name = group.partition(" ")
    seconds = {implementation: bench.stats.median for implementation, bench in rows.items()}
    work = rows["genfast"].extra_info
    bandwidth = work["bytes_moved"] / seconds["genfast"] / 1e9
    arithmetic = work["flops"] / seconds["genfast"] / 1e9
    return {
        "op": op,
        "name": name,
        "bytes_moved": work["bytes_moved"],
        "flops": work["flops"],
        "seconds": {
            implementation: _timing(rows[implementation]) for implementation in IMPLEMENTATIONS
        },
        "speedup": {
            other: _rounded(seconds[other] / seconds["genfast"]) for other in IMPLEMENTATIONS[:-1]
        },
        "gb_per_s": _rounded(bandwidth),
        "gflop_per_s": _rounded(arithmetic),
        "share_of_copy": _rounded(bandwidth / peaks["copy_gb_per_s"]),
        "share_of_matmul": _rounded(arithmetic / peaks["matmul_gflop_per_s"]),
    }


def _timing(bench: Metadata) -> dict[str, Any]:
    """Median and the quantiles 0.2 and 0.8 of the rounds, in seconds, and the peak of memory."""
    rounds = bench.stats.sorted_data
    low, high = rounds[0], rounds[-1]
    if len(rounds) > 1:
        fifths = statistics.quantiles(rounds, n=5, method="inclusive")
        low, high = fifths[0], fifths[-1]
    return {
        "median": _rounded(bench.stats.median),
        "quantile_20": _rounded(low),
        "quantile_80": _rounded(high),
        "rounds": len(rounds),
        "peak_bytes": bench.extra_info["peak_bytes"],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _simd_level() -> str | None:
    if not loaded():
        return None
    from genfast import _C

    return _C.simd_level()
