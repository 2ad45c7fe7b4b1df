import hashlib

import pytest
import torch

from genfast.data import digits
from genfast.errors import InputError


def test_all_digits_with_17_levels():
    data = digits("all")
    assert (len(data), data.image_shape, data.levels, data.name) == (1797, (1, 8, 8), 17, "digits")
    assert data.images.dtype == torch.uint8
    assert (int(data.images.min()), int(data.images.max())) == (0, 16)
    # The first digits of the bundled file are 0, 1, 2, ...
    assert data.labels[:10].tolist() == list(range(10))


def test_the_split_is_stratified_and_loses_nothing():
    train, test, every = digits("train"), digits("test"), digits("all")
    assert (len(train), len(test)) == (1500, 297)
    shares = torch.bincount(test.labels) / torch.bincount(every.labels)
    assert float((shares - 297 / 1797).abs().max()) < 0.01
    both = torch.cat([train.images, test.images]).flatten(1)
    assert sorted(both.tolist()) == sorted(every.images.flatten(1).tolist())


def test_the_split_is_always_the_same():
    digest = hashlib.sha256(digits("test").images.numpy().tobytes()).hexdigest()
    assert digest[:16] == "f0edf6e22e3d689e"


@pytest.mark.parametrize("split", ["valid", "dev", "", None])
def test_unknown_split_is_refused(split):
    with pytest.raises(InputError, match="split"):
        digits(split)
