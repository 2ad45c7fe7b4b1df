"""Two plots of the op benchmarks: bars of speed-up, and the roofline."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

_COLOURS = {"eager": "#4477aa", "compiled": "#ee8866"}
# Text as text and no date: results that did not change leave no difference.
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "genfast", "font.size": 8}


def speedup_svg(results: Mapping[str, Any]) -> bytes:
    """How many times as fast as eager and as compiled PyTorch: two bars a case, log axis."""
    cases = results["cases"]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 1.0 + 0.28 * len(cases)), layout="constrained")
        axes = figure.add_subplot()
        for shift, (other, colour) in zip((-0.2, 0.2), _COLOURS.items(), strict=True):
            values = [case["speedup"][other] for case in cases]
            places = [index + shift for index in range(len(cases))]
            # From 1, the speed of the other: a bar to the left is slower.
            widths = [value - 1 for value in values]
            axes.barh(places, widths, 0.38, left=1, color=colour, label=f"over {other}")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}x")
        axes.axvline(1, color="black", lw=0.8)
        axes.set_yticks(range(len(cases)), [f"{case['op']} {case['name']}" for case in cases])
        axes.invert_yaxis()
        axes.set_xlabel("times the speed, forward and backward")
        axes.legend(frameon=False)
        axes.grid(axis="x", lw=0.3)
        return _svg(figure)


def roofline_svg(results: Mapping[str, Any]) -> bytes:
    """GFLOP/s against FLOPs a byte, below the measured roof; cases that count no FLOPs are out."""
    cases = [case for case in results["cases"] if case["flops"]]
    bandwidth = results["peaks"]["copy_gb_per_s"]
    arithmetic = results["peaks"]["matmul_gflop_per_s"]
    ridge = arithmetic / bandwidth
    intensities = [case["flops"] / case["bytes_moved"] for case in cases]
    ends = (min([ridge, *intensities]) / 2, 2 * max([ridge, *intensities]))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(
            (ends[0], ridge, ends[1]), (ends[0] * bandwidth, arithmetic, arithmetic), "k-", lw=1
        )
        for op in dict.fromkeys(case["op"] for case in cases):
            points = [
                (x, case["gflop_per_s"])
                for x, case in zip(intensities, cases, strict=True)
                if case["op"] == op
            ]
            axes.plot(*zip(*points, strict=True), "o", ms=4, label=op)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        lowest = min([arithmetic, *(case["gflop_per_s"] for case in cases)])
        axes.set_ylim(min(lowest, arithmetic / 10) / 2, 2 * arithmetic)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, position: f"{value:g}")
        axes.set_xlabel("FLOPs for each byte that must move")
        axes.set_ylabel("GFLOP/s")
        axes.set_title(f"copy {bandwidth:.3g} GB/s, matrix product {arithmetic:.3g} GFLOP/s")
        axes.grid(lw=0.3)
        if cases:
            axes.legend(frameon=False)
        return _svg(figure)


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
