"""The published files, where GENFAST_DATA names a folder with mnist/ and cifar10/ in it."""

import os
from pathlib import Path

import pytest
import torch

from genfast.data import open_data


def published(name):
    root = os.environ.get("GENFAST_DATA")
    if root is None:
        pytest.skip("GENFAST_DATA is not set to a folder with data sets")
    path = Path(root, name)
    if not path.is_dir():
        pytest.skip(f"there is no {name} folder in GENFAST_DATA")
    return path


def test_mnist():
    train, test = (open_data(published("mnist"), split) for split in ("train", "test"))
    assert (len(train), len(test), train.image_shape) == (60_000, 10_000, (1, 28, 28))
    assert torch.bincount(test.labels).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    # The first training image is the five of so many tutorials.
    assert train[0][1] == 5
    assert 33 < float(train.images.float().mean()) < 34


@pytest.mark.parametrize("name", ["cifar10", "cifar10_jpeg"])
def test_cifar(name):
    train = open_data(published(name), "train")
    assert train.image_shape == (3, 32, 32)
    means = train.images.float().mean((0, 2, 3)) / 255
    assert torch.allclose(means, torch.tensor([0.491, 0.482, 0.447]), atol=0.01)
    assert len(torch.bincount(train.labels)) == 10


def test_binarized_mnist():
    data = open_data(published("binarized_mnist"), "valid")
    assert (len(data), data.image_shape, data.levels) == (10_000, (1, 28, 28), 2)
