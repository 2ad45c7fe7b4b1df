import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from genfast.data import ImageDataset
from genfast.errors import InputError
from tests.data.build import pixels


def test_images_and_labels_come_back_as_they_were():
    images, labels = pixels(7, 3, 4, 5), np.arange(7)
    data = ImageDataset(images, labels, name="seven")
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert (len(data), data.image_shape, data.levels, data.name) == (7, (3, 4, 5), 256, "seven")
    image, label = data[3]
    assert torch.equal(image, torch.from_numpy(images[3]))
    assert (label, type(label)) == (3, int)
    assert repr(data) == "ImageDataset('seven', 7 images 3x4x5, 256 levels)"


def test_label_is_minus_one_without_labels():
    assert ImageDataset(pixels(2, 1, 2, 2))[1][1] == -1


def test_many_levels_are_int32_and_few_are_uint8():
    wide = ImageDataset(np.full((2, 1, 2, 2), 999, np.int64), levels=1000)
    assert wide.images.dtype == torch.int32
    assert int(wide.images.max()) == 999
    assert ImageDataset(np.ones((2, 1, 2, 2), np.int64), levels=2).images.dtype == torch.uint8
    assert ImageDataset(np.full((2, 1, 2, 2), 300, np.uint16), levels=301).images.max() == 300


@pytest.mark.parametrize("levels", [1, 0, -3, 65537])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(InputError, match="levels"):
        ImageDataset(np.zeros((1, 1, 2, 2), np.uint8), levels=levels)


@pytest.mark.parametrize(
    ("images", "labels", "levels", "message"),
    [
        (np.zeros((2, 3, 3), np.uint8), None, 256, r"\[N, C, H, W\]"),
        (np.zeros((2, 0, 3, 3), np.uint8), None, 256, r"\[N, C, H, W\]"),
        (np.zeros((2, 1, 3, 3), np.float32), None, 256, "integer images"),
        (np.full((2, 1, 3, 3), 16, np.uint8), None, 16, r"0 \.\. 15, got 16 \.\. 16"),
        (np.full((2, 1, 3, 3), 256, np.int32), None, 256, r"0 \.\. 255"),
        (np.full((2, 1, 3, 3), -1, np.int64), None, 256, r"0 \.\. 255"),
        (np.zeros((2, 1, 3, 3), np.uint8), [1], 256, "2 integer labels"),
        (np.zeros((2, 1, 3, 3), np.uint8), [[1], [2]], 256, "2 integer labels"),
        (np.zeros((2, 1, 3, 3), np.uint8), [0.5, 1.0], 256, "2 integer labels"),
        (np.zeros((2, 1, 3, 3), np.uint8), [0, -1], 256, "label=-1"),
    ],
)
def test_wrong_arguments_are_refused(images, labels, levels, message):
    with pytest.raises(InputError, match=message):
        ImageDataset(images, labels, levels)


@pytest.mark.parametrize(
    "indices", [[4, 0, 0], np.array([4, 0, 0]), torch.tensor([-1, 0, -5]), range(4, -1, -2), []]
)
def test_subset_takes_the_items_in_order(indices):
    images = pixels(5, 1, 2, 2)
    chosen = np.asarray(indices, dtype=int)
    part = ImageDataset(images, np.arange(5), 256, "five").subset(indices)
    assert np.array_equal(part.images.numpy(), images[chosen])
    assert np.array_equal(part.labels.numpy(), np.arange(5)[chosen])
    assert part.name == "five"


def test_subset_of_a_subset_does_not_share_memory():
    data = ImageDataset(pixels(5, 1, 2, 2))
    data.subset([0]).images.fill_(7)
    assert np.array_equal(data.images.numpy(), pixels(5, 1, 2, 2))


@pytest.mark.parametrize("indices", [[5], [-6], [0, 99]])
def test_subset_beyond_the_end_is_refused(indices):
    with pytest.raises(InputError, match="indices below 5"):
        ImageDataset(pixels(5, 1, 2, 2)).subset(indices)


@pytest.mark.parametrize("change", ["read-only", "reversed", "big-endian", "strided"])
def test_arrays_torch_cannot_share_are_accepted(change):
    values = pixels(6, 1, 2, 2).astype(np.int32)
    array = {
        "read-only": values.copy(),
        "reversed": values[::-1],
        "big-endian": values.astype(">i4"),
        "strided": values[::2],
    }[change]
    if change == "read-only":
        array.flags.writeable = False
    assert np.array_equal(ImageDataset(array).images.numpy(), array)


def test_a_dataloader_takes_it():
    batches = list(DataLoader(ImageDataset(pixels(5, 1, 2, 2), np.arange(5)), batch_size=3))
    assert [tuple(x.shape) for x, _ in batches] == [(3, 1, 2, 2), (2, 1, 2, 2)]
    assert batches[1][1].tolist() == [3, 4]
