"""The results of the op benchmarks for readers: `python -m benchmarks.render FILE.json`.

Beside FILE.json it writes FILE.md, the table, and two plots: FILE-speedup.svg, how many times as
fast as eager and compiled PyTorch each case is, and FILE-roofline.svg, its arithmetic rate below
what copy bandwidth and matrix products of the same machine allow.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import _plots
from genfast._files import write_atomic
from genfast.bench.measure import digits

COLUMNS = (
    "case", "eager, ms", "compiled, ms", "genfast, ms", "x eager", "x compiled",
    "GB/s", "of copy", "GFLOP/s", "of matmul", "memory, MiB",
)  # fmt: skip


def render(results: Mapping[str, Any], stem: str) -> str:
    """The results as Markdown, with the machine, the versions, the commit and the command.

    Args:
        results: JSON content, as `_results.collect` makes it.
        stem: File name of the plots without `-speedup.svg` and `-roofline.svg`.
    """
    return "\n".join(_lines(results, stem)) + "\n"


def write(results: Mapping[str, Any], path: Path) -> list[Path]:
    """Write the results as JSON, the table and the plots beside it; returns the files."""
    files = {
        path: (json.dumps(results, indent=1) + "\n").encode(),
        path.with_suffix(".md"): render(results, path.stem).encode(),
    }
    if results["cases"]:
        files[path.with_name(f"{path.stem}-speedup.svg")] = _plots.speedup_svg(results)
        files[path.with_name(f"{path.stem}-roofline.svg")] = _plots.roofline_svg(results)
    for file, content in files.items():
        write_atomic(file, content)
    return list(files)


def table(results: Mapping[str, Any]) -> list[str]:
    """The lines of the table: Markdown, and aligned for a terminal too."""
    rows = [COLUMNS, *map(_cells, results["cases"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in rows
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [lines[0], f"| {' | '.join(rule)} |", *lines[1:]]


def _lines(results: Mapping[str, Any], stem: str) -> Iterator[str]:
    of, versions, peaks = results["machine"], results["versions"], results["peaks"]
    where = of["accelerator"] or f"{of['threads']} of {of['cores']} cores"
    yield (
        f"{of['processor']}, {where}, {of['system']}; torch {versions['torch']}, genfast "
        f"{versions['genfast']} at {results['commit'] or 'an unknown commit'}, SIMD level "
        f"{results['simd_level'] or 'none: the extension is not loaded'}; {_numbers(results)}."
    )
    yield ""
    yield f"`{results['command']}`"
    yield ""
    yield (
        "Forward and backward, or whole training steps where the name says so; medians, with the "
        "quantiles 0.2 to 0.8 in brackets. Rates of genfast are the least traffic and the "
        "arithmetic of a case over its time, where these are counted. They are shares "
        "of what the same run measured in plain PyTorch: copies of large tensors at "
        f"{digits(peaks['copy_gb_per_s'])} GB/s and {results['dtype']} matrix products at "
        f"{digits(peaks['matmul_gflop_per_s'])} GFLOP/s. Cases that fit a cache exceed the first. "
        "Memory is by how much one step grows it, of eager, compiled and genfast."
    )
    yield ""
    yield from table(results)
    if results["cases"]:
        yield ""
        yield f"![Times the speed of eager and compiled PyTorch]({stem}-speedup.svg)"
        yield ""
        yield f"![Roofline]({stem}-roofline.svg)"


def _numbers(results: Mapping[str, Any]) -> str:
    """The dtype of the case, and what a GPU might have made of it."""
    exact = results["machine"]["accelerator"] and results["dtype"] == "float32"
    return f"{results['dtype']}{', without TF32' if exact else ''}"


def _cells(case: Mapping[str, Any]) -> tuple[str, ...]:
    seconds, speedup = case["seconds"], case["speedup"]
    return (
        f"{case['op']} {case['name']}",
        *(_milliseconds(seconds[name]) for name in ("eager", "compiled", "genfast")),
        digits(speedup["eager"]),
        digits(speedup["compiled"]),
        digits(case["gb_per_s"]) if case["bytes_moved"] else "",
        f"{case['share_of_copy']:.0%}" if case["bytes_moved"] else "",
        digits(case["gflop_per_s"]) if case["flops"] else "",
        f"{case['share_of_matmul']:.0%}" if case["flops"] else "",
        " / ".join(_mebibytes(timing["peak_bytes"]) for timing in seconds.values()),
    )


def _milliseconds(timing: Mapping[str, Any]) -> str:
    median, low, high = (
        digits(1e3 * timing[name]) for name in ("median", "quantile_20", "quantile_80")
    )
    return f"{median} ({low} to {high})"


def _mebibytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**20:.1f}"


def main() -> None:
    """Render a file of results."""
    parser = argparse.ArgumentParser(description="Render results of the op benchmarks.")
    parser.add_argument("file", type=Path, metavar="FILE.json", help="written by make bench")
    path = parser.parse_args().file
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"file: expected results as JSON, got {path}: {error}")
    if not isinstance(results, dict) or "peaks" not in results or "cases" not in results:
        parser.error(f"file: expected results of the op benchmarks, got {path}")
    for written in write(results, path):
        print(written)


if __name__ == "__main__":
    main()
