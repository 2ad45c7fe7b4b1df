"""Loss curves, drawn without pyplot so that nothing global of matplotlib is touched."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Series = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Theme:
    """Colours of a plot on a light or a dark page."""

    text: str
    rule: str
    lines: tuple[str, ...]


def loss_png(curves: Mapping[str, Series], theme: Theme, colour: int, y_label: str) -> bytes:
    """Losses against training steps, as a PNG with a transparent background.

    Args:
        curves: Name to (steps, values); one line each.
        theme: Colours of the page.
        colour: Which of `theme.lines` is the model's; its first curve takes it, any other is grey.
        y_label: What the values are, with their unit.
    """
    figure = Figure(figsize=(3.7, 2.3), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    own = theme.lines[colour % len(theme.lines)]
    styles = [(own, "-"), (theme.text, "--"), (theme.text, ":"), (theme.text, "-.")]
    for index, (name, (steps, values)) in enumerate(curves.items()):
        line_colour, style = styles[min(index, 3)]
        dot = "o" if len(values) == 1 else None
        axes.plot(steps, values, style, lw=1.3, ms=3, marker=dot, color=line_colour, label=name)
    axes.set_ylim(*_limits([values for _, values in curves.values()]))
    axes.set_xlim(left=0)
    axes.set_xlabel("training step", color=theme.text, fontsize=8)
    axes.set_ylabel(y_label, color=theme.text, fontsize=8)
    axes.tick_params(colors=theme.text, labelsize=8, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color=theme.rule, lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.rule)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=theme.text, handlelength=1.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _limits(series: Sequence[Sequence[float]]) -> tuple[float, float]:
    """A range with all but the largest 2 % of values, so that a first spike flattens nothing."""
    values = np.concatenate([np.asarray(each, dtype=np.float64) for each in series])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(np.quantile(values, 0.98))
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin
