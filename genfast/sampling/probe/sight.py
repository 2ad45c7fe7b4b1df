"""Which positions an attention sees: what its dependence on keys and values is, for all readers.

A causal attention has as many pairs of positions as an image has pixels, squared. Where every
reader sees the first few positions in raster order, running maxima answer in one pass.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]


class Sight:
    """Position p of a reader sees position q of what it reads where `seen` [P, Q] is true."""

    def __init__(self, seen: Marks) -> None:
        count = seen.sum(axis=1)
        prefix = bool((seen == (np.arange(seen.shape[1]) < count[:, None])).all())
        self._seen: Marks | None = seen
        self._first: Array | None = count if prefix else None

    @staticmethod
    def of_first(counts: Array) -> "Sight":
        """Return what sees for each reader the first `counts` of as many positions as readers."""
        sight = Sight(np.zeros((0, 0), np.bool_))
        sight._seen, sight._first = None, counts
        return sight

    @property
    def seen(self) -> Marks:
        """Which positions [P, Q] see which."""
        if self._seen is None:
            assert self._first is not None
            self._seen = np.arange(len(self._first)) < self._first[:, None]
        return self._seen

    def latest(self, times: Array, missing: int) -> Array:
        """Return for each reader the greatest of the numbers [Q] that it sees, or `missing`."""
        if self._first is not None:
            so_far = np.concatenate([[missing], np.maximum.accumulate(times)])
            return np.where(self._first > 0, so_far[self._first], missing)
        seen: Array = np.where(self.seen, times, np.int64(-1) << 60).max(axis=1, initial=-(1 << 60))
        return np.where(self.seen.any(axis=1), seen, missing)

    def newest(self, reader: int, times: Array) -> int:
        """Return the position with the greatest number among those that one reader sees, or -1."""
        first = self._first
        places = np.flatnonzero(self.seen[reader]) if first is None else np.arange(first[reader])
        return int(places[times[places].argmax()]) if len(places) else -1

    def combine(self, numbers: npt.NDArray[np.int64], target: Array, by: np.ufunc) -> None:
        """Combine the numbers [P] of all that see a position into those of the target [Q]."""
        if self._first is not None:
            readers = self._first > 0
            if not readers.any():
                return
            last = np.sort(np.unique(self._first[readers])) - 1
            ends = np.searchsorted(last, self._first[readers] - 1)
            own = numbers[readers]
            groups = own[np.argsort(ends, kind="stable")]
            starts = np.searchsorted(np.sort(ends), np.arange(len(last)))
            whole = by.accumulate(by.reduceat(groups, starts)[::-1])[::-1]
            place = np.searchsorted(last, np.arange(last[-1] + 1))
            target[: last[-1] + 1] = by(target[: last[-1] + 1], whole[place])
            return
        for reader in np.flatnonzero(self.seen.any(axis=1)).tolist():
            marks = self.seen[reader]
            target[marks] = by(target[marks], numbers[reader])
