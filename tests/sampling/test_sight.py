"""What readers see of what they read, by running maxima and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genfast.sampling.probe.sight import Sight
from tests.sampling.property_settings import checked


@st.composite
def masks(draw):
    """Prefixes of any order, bands, or anything; with readers of nothing and positions unread."""
    readers, positions = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    p, q = np.arange(readers)[:, None], np.arange(positions)
    kind = draw(st.sampled_from(["prefix", "causal", "band", "any"]))
    random = np.random.default_rng(draw(st.integers(0, 9999)))
    if kind == "prefix":
        return q < random.integers(0, positions + 1, (readers, 1))
    if kind == "causal":
        return q < p + draw(st.integers(-3, 3))
    if kind == "band":
        return (q <= p - draw(st.integers(0, 2))) & (q > p - draw(st.integers(1, 4)))
    seen = random.random((readers, positions)) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    seen[random.random(readers) < 0.2] = False
    seen[:, random.random(positions) < 0.2] = False
    return seen


def is_prefix(seen):
    """Whether no reader sees a position without those before it."""
    return all(not row[i + 1] or row[i] for row in seen for i in range(len(row) - 1))


def test_masks_of_both_ways_are_drawn():
    found = set()

    @checked(60)
    @given(masks())
    def try_one(seen):
        empty = not seen.any(axis=1).all(), not seen.any(axis=0).all()
        found.update([("prefix", is_prefix(seen)), ("rows", empty[0]), ("columns", empty[1])])

    try_one()
    assert found == {(name, value) for name in ("prefix", "rows", "columns") for value in (0, 1)}


@checked(200)
@given(masks(), st.integers(0, 9999), st.sampled_from([-1, -7, 99]))
def test_the_latest_that_is_seen(seen, seed, missing):
    times = np.random.default_rng(seed).integers(0, 12, seen.shape[1])
    wanted = [max((int(times[q]) for q in np.flatnonzero(row)), default=missing) for row in seen]
    assert Sight(seen).latest(times, missing).tolist() == wanted


@checked(200)
@given(masks(), st.integers(0, 9999))
def test_the_position_of_the_newest_that_is_seen(seen, seed):
    times = np.random.default_rng(seed).integers(-1, 12, seen.shape[1])
    sight = Sight(seen)
    for reader, row in enumerate(seen):
        newest, places = sight.newest(reader, times), np.flatnonzero(row)
        if len(places) == 0:
            assert newest == -1
        else:
            assert row[newest]
            assert times[newest] == times[places].max()


def test_the_first_few_without_a_table():
    counts, times = np.array([1, 3, 3, 0, 5]), np.array([4, 9, 2, 9, 7])
    table, found = Sight(np.arange(5) < counts[:, None]), Sight.of_first(counts)
    assert found.latest(times, -1).tolist() == table.latest(times, -1).tolist()
    newest = [[sight.newest(p, times) for p in range(5)] for sight in (found, table)]
    assert newest[0] == newest[1] == [0, 1, 1, -1, 1]
    assert (found.seen == table.seen).all()


@pytest.mark.parametrize("by", [np.minimum, np.maximum])
@pytest.mark.parametrize("marks", [False, True])
def test_numbers_of_all_that_see_a_position(by, marks):
    @checked(200)
    @given(masks(), st.integers(0, 9999))
    def try_one(seen, seed):
        random, high = np.random.default_rng(seed), 2 if marks else 20
        numbers, target = (random.integers(0, high, size) for size in seen.shape)
        if marks:
            numbers, target = numbers.astype(bool), target.astype(bool)
        choose = min if by is np.minimum else max
        wanted = [
            choose([target[q].item(), *(numbers[p].item() for p in np.flatnonzero(seen[:, q]))])
            for q in range(seen.shape[1])
        ]
        Sight(seen).combine(numbers, target, by)
        assert target.dtype == numbers.dtype
        assert target.tolist() == wanted

    try_one()
