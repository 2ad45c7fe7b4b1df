"""Draws sampling.png: what is computed when, in a gated PixelCNN at one pixel of an image.

python docs/images/draw_sampling.py
"""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

PAGE, TEXT, RULE = "#fdfdfb", "#55565c", "#d9d9d4"
KEPT, AGAIN, BY_ROW, BY_PIXEL = "#c9ccd1", "#b8860b", "#1f6fb5", "#b0306a"
SIZE, ROW, COLUMN = 8, 4, 3
COLUMNS = ("image", "vertical stack", "horizontal stack", "logits")


def naive(part, row, column):
    """One forward pass for each pixel: every number of every layer, again."""
    if part == 0:
        return KEPT if (row, column) < (ROW, COLUMN) else PAGE
    return AGAIN


def at_row(part, row, column):
    """The vertical stack needs finished rows only: a whole row of it at once."""
    if part == 0:
        return KEPT if row in (ROW - 2, ROW - 1) else PAGE
    if part == 1:
        return {ROW - 1: BY_ROW, ROW - 2: KEPT}.get(row, PAGE)
    return PAGE


def at_pixel(part, row, column):
    """The rest needs the pixels to the left: one pixel of it at a time."""
    if part == 0:
        return KEPT if row == ROW and column in (COLUMN - 2, COLUMN - 1) else PAGE
    if part == 1:
        return KEPT if (row, column) == (ROW - 1, COLUMN) else PAGE
    if part == 2 and row == ROW:
        return {COLUMN: BY_PIXEL, COLUMN - 1: KEPT}.get(column, PAGE)
    return BY_PIXEL if part == 3 and (row, column) == (ROW, COLUMN) else PAGE


LINES = (
    (naive, AGAIN, "Naive", "a forward pass\nfor every pixel:\nall numbers again"),
    (at_row, BY_ROW, "By row", "when a row is drawn:\nwhat needs only\nfinished rows"),
    (at_pixel, BY_PIXEL, "By pixel", "at every pixel:\nwhat needs those\nto its left"),
)


def draw(path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(9.6, 6.4), dpi=120, facecolor=PAGE)
    FigureCanvasAgg(figure)
    for line, (colour_of, colour, title, words) in enumerate(LINES):
        bottom = 0.655 - 0.31 * line
        figure.text(0.02, bottom + 0.2, title, color=colour, weight="bold", size=11, va="center")
        figure.text(0.02, bottom + 0.13, words, color=TEXT, size=9.5, va="center")
        for part, name in enumerate(COLUMNS):
            axes = figure.add_axes((0.2 + 0.2 * part, bottom, 0.18, 0.27))
            for row in range(SIZE):
                for column in range(SIZE):
                    corner = (column, SIZE - 1 - row)
                    fill = colour_of(part, row, column)
                    axes.add_patch(Rectangle(corner, 1, 1, facecolor=fill, edgecolor=RULE, lw=0.8))
            axes.add_patch(
                Rectangle((COLUMN, SIZE - 1 - ROW), 1, 1, fill=False, edgecolor="#222326", lw=1.6)
            )
            axes.set(xlim=(-0.1, SIZE + 0.1), ylim=(-0.1, SIZE + 0.1), aspect="equal")
            axes.axis("off")
            if line == 0:
                axes.set_title(name, color=TEXT, size=10.5, pad=6)
    keys = (
        (AGAIN, "computed once more"),
        (BY_ROW, ""),
        (BY_PIXEL, "computed now, for the only time"),
        (KEPT, "read, kept from before"),
    )
    left = 0.2
    for colour, label in keys:
        figure.patches.append(
            Rectangle((left, 0.008), 0.012, 0.018, transform=figure.transFigure, facecolor=colour)
        )
        left += 0.016
        if label:
            figure.text(left + 0.004, 0.017, label, color=TEXT, size=9, va="center")
            left += 0.025 + 0.0078 * len(label)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(__file__).with_name("sampling.png"))
