"""How much of a value must be kept: the rows and columns of its ring."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genfast.sampling.plan.schedule import Clock
from genfast.sampling.probe.dependence import Edge, Map, scatter
from genfast.sampling.program import When


@dataclass(frozen=True, eq=False)
class Reading:
    """Positions of a reader, at these ticks (NEVER: not read), read a value by `edge`."""

    edge: Edge
    ticks: Map


def ring(clock: Clock, written: When, readings: list[Reading], never: int) -> tuple[int, int]:
    """Return the (rows, columns) to keep so that nothing is overwritten before its last reading.

    There is room for all columns that are computed at once, read or not: threads may share them.
    """
    rows = 1
    whole_rows = False
    ticks = clock.ticks(written)
    columns = int(np.unique(ticks[0], return_counts=True)[1].max())
    row_step = written.row_scale * clock.width * clock.per_pixel
    for reading in readings:
        at, p, q = _positions(reading, never)
        if len(at) == 0:
            continue
        latest = np.minimum(p + (at - ticks[p, q]) // row_step, written.height - 1)
        rows = max(rows, int((latest - p).max()) + 1)
        next_row = ticks[0, 0] + (p + 1) * row_step
        whole_rows |= bool(((at >= next_row) & (p + 1 < written.height)).any())
        newest = np.searchsorted(ticks[0], at - p * row_step, side="right") - 1
        columns = max(columns, int((newest - q).max()) + 1)
    if rows > 1 or whole_rows:
        columns = written.width
    return rows, min(columns, written.width)


def _positions(reading: Reading, never: int) -> tuple[npt.NDArray[np.int64], Map, Map]:
    """Return the ticks of a reader's readings, and the rows and columns read."""
    edge, ticks = reading.edge, reading.ticks
    if edge.sight is not None:  # the latest reading of a position counts
        latest = np.full((edge.origin.height, edge.origin.width), -1, dtype=np.int64)
        scatter(edge, np.where(ticks < never, ticks, -1), latest, np.maximum)
        p, q = np.nonzero(latest >= 0)
        return latest[p, q], p, q
    rows = reading.edge.rows(reading.ticks.shape[0])
    columns = reading.edge.columns(reading.ticks.shape[1])
    valid = (rows >= 0)[:, None] & (columns >= 0)[None, :] & (reading.ticks < never)
    i, j = np.nonzero(valid)
    return reading.ticks[i, j], rows[i], columns[j]
