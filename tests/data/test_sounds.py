import math

import numpy as np
import pytest
import torch

from genfast.data import SoundDataset, crops, mu_law_encode
from genfast.errors import InputError
from tests.data.sounds import tone

LENGTHS = [5, 64, 100, 33, 1, 32]


def dataset(labels=True):
    sounds = [tone(length, seed) for seed, length in enumerate(LENGTHS)]
    return SoundDataset(sounds, range(6) if labels else None, 8000, "tones")


def test_holds_sounds_of_any_length():
    data = dataset()
    assert len(data) == 6
    for index, length in enumerate(LENGTHS):
        sound, label = data[index]
        assert sound.tolist() == tone(length, index).tolist()
        assert label == index
    assert data[-1][1] == 5
    assert repr(data) == "SoundDataset('tones', 6 sounds, 0.0 s at 8000 Hz)"
    with pytest.raises(IndexError):
        data[6]
    part = data.subset([3, 0])
    assert (part[0][0].tolist(), part.labels.tolist()) == (tone(33, 3).tolist(), [3, 0])
    assert dataset(labels=False)[0][1] == -1


def test_floats_become_the_nearest_16_bits():
    data = SoundDataset([np.array([-1.0, 0.0, 1.0, 3.4 / 2**15])])
    assert data.samples.tolist() == [-32768, 0, 32767, 3]


@pytest.mark.parametrize(
    ("sounds", "options", "message"),
    [
        ([np.zeros((2, 3), np.int16)], {}, r"sounds \[T\] of at least 1 sample"),
        ([np.zeros(0, np.int16)], {}, "at least 1 sample"),
        ([np.zeros(3, np.int32)], {}, "int16 or floats, got dtype=torch.int32"),
        ([np.array([0.0, 1.1])], {}, r"floats in -1 \.\. 1"),
        ([np.array([math.nan])], {}, r"floats in -1 \.\. 1"),
        ([tone()], {"labels": [0, 1]}, "1 integer labels"),
        ([tone()], {"sample_rate": 0}, "sample_rate >= 1"),
    ],
)
def test_refuses_what_is_no_sound(sounds, options, message):
    with pytest.raises(InputError, match=message):
        SoundDataset(sounds, **options)


def take(data, length=32, batch=4, **options):
    options = {"seed": 1, "epoch": 0, **options}
    return list(crops(data, length, batch, **options))


def test_crops_in_order_cover_every_sample_once():
    data = dataset()
    found = take(data, shuffle=False, levels=65536, companding="linear")
    assert [len(x) for x, _ in found] == [4, 4, 3]
    windows = torch.cat([x for x, _ in found])[:, 0].long() - 2**15
    labels = torch.cat([y for _, y in found]).tolist()
    assert labels == [0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 5]
    for index, length in enumerate(LENGTHS):
        own = windows[[place for place, label in enumerate(labels) if label == index]].flatten()
        assert own[:length].tolist() == tone(length, index).tolist()
        assert (own[length:] == 0).all()


def test_shuffled_crops_lie_inside_their_sounds():
    data = dataset()
    starts = set()
    for epoch in range(60):
        found = take(data, epoch=epoch, levels=65536, companding="linear", batch=100)
        ((x, labels),) = found
        assert sorted(labels.tolist()) == [0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 5]
        for window, label in zip(x[:, 0].long() - 2**15, labels.tolist(), strict=True):
            whole = torch.from_numpy(tone(LENGTHS[label], label)).long()
            if len(whole) <= 32:
                assert torch.equal(window[: len(whole)], whole)
                assert (window[len(whole) :] == 0).all()
            else:
                places = whole.unfold(0, 32, 1)
                (matches,) = torch.where((places == window).all(dim=1))
                assert len(matches) == 1
                starts.add((label, int(matches[0])))
    assert {start for label, start in starts if label == 1} == set(range(33))
    assert {start for label, start in starts if label == 3} == {0, 1}


def test_seed_and_epoch_decide_and_an_epoch_goes_on_where_it_stopped():
    data = dataset()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    whole = take(data, seed=7, epoch=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    for start in range(4):
        rest = take(data, seed=7, epoch=3, start=start)
        assert len(rest) == 3 - start
        for (x, y), (a, b) in zip(rest, whole[start:], strict=True):
            assert torch.equal(x, a)
            assert torch.equal(y, b)
    assert not torch.equal(whole[0][0], take(data, seed=7, epoch=4)[0][0])
    assert not torch.equal(whole[0][0], take(data, seed=8, epoch=3)[0][0])


def test_levels_are_those_of_mu_law_by_default():
    data = SoundDataset([tone(32)])
    ((x, labels),) = take(data)
    assert x.dtype == torch.uint8
    assert torch.equal(x[0, 0], mu_law_encode(torch.from_numpy(tone(32)) / 2**15))
    assert labels is None


def test_an_incomplete_batch_may_be_left_out():
    assert [len(x) for x, _ in take(dataset(), drop_last=True)] == [4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length >= 1"),
        ({"batch": 0}, "batch_size >= 1"),
        ({"start": 4}, r"start in 0 \.\. 3"),
        ({"start": -1}, r"start in 0 \.\. 3"),
        ({"levels": 1}, "levels"),
        ({"companding": "a-law"}, "companding in"),
    ],
)
def test_refuses_bad_numbers(options, message):
    with pytest.raises(InputError, match=message):
        take(dataset(), **options)
