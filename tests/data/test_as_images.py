import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from genfast.data import ImageDataset, as_images
from genfast.errors import InputError
from tests.data.build import pixels


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index % len(self.items)]  # raises no IndexError, like many in the wild


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


class SizedStream(Stream):
    def __len__(self):
        return len(self.items)


def test_an_image_dataset_is_returned_itself():
    data = ImageDataset(pixels(2, 1, 3, 3, high=17), levels=17)
    assert as_images(data) is data
    assert as_images(data, levels=17) is data
    with pytest.raises(InputError, match="levels=17"):
        as_images(data, levels=256)


@pytest.mark.parametrize("kind", ["array", "tensor", "float64", "float16", "bfloat16"])
def test_floats_round_to_the_nearest_level(kind):
    levels = 17
    truth = pixels(3, 2, 4, 5, high=levels)
    unit = truth / (levels - 1)
    data = {
        "array": unit.astype(np.float32),
        "tensor": torch.from_numpy(unit).float().requires_grad_(),
        "float64": unit + 0.4 / (levels - 1) * (unit < 0.9),
        "float16": torch.from_numpy(unit).half(),
        "bfloat16": torch.from_numpy(unit).bfloat16(),
    }[kind]
    assert np.array_equal(as_images(data, levels=levels).images.numpy(), truth)


def test_floats_without_levels_have_256():
    data = as_images(torch.tensor([[[[0.0, 1.0, 0.5]]]]))
    assert data.levels == 256
    assert data.images.flatten().tolist() == [0, 255, 128]


def test_many_levels_round_exactly():
    truth = np.arange(65536, dtype=np.int32).reshape(1, 1, 256, 256)
    assert np.array_equal(as_images(truth / 65535, levels=65536).images.numpy(), truth)


@pytest.mark.parametrize(
    ("array", "levels"),
    [
        (np.array([0, 1]), 2),
        (np.array([True, False]), 2),
        (np.array([0, 2]), 256),
        (np.array([0, 255]), 256),
        (np.array([0, 256]), 65536),
    ],
)
def test_levels_of_integers_follow_the_values(array, levels):
    data = as_images(array.reshape(1, 1, 1, 2))
    assert data.levels == levels
    assert data.images.flatten().tolist() == array.astype(int).tolist()


def test_three_dimensions_are_grey():
    assert as_images(pixels(6, 4, 5)).image_shape == (1, 4, 5)


@pytest.mark.parametrize(
    ("data", "levels", "message"),
    [
        (np.array([[[[0.0, 1.01]]]]), None, r"1\.01 at index \[0, 0, 0, 1\]"),
        (np.array([[[[0.0, np.nan]]]]), None, "nan"),
        (np.array([[[[-0.1]]]]), None, r"-0\.1"),
        (np.array([[[[17]]]]), 17, r"0 \.\. 16, got 17"),
        (np.array([[[[-1]]]]), None, "-1"),
        (np.array([[[[70000]]]]), None, "70000"),
        (np.array([[[[1 + 2j]]]]), None, "dtype complex"),
        (np.array([[[["a"]]]]), 256, "dtype"),
        (np.zeros((2, 8)), None, "shape"),
        (np.zeros((2, 8, 8, 3)), None, "last axis"),
        (np.zeros((2, 1, 1, 1)), 1, "levels=1"),
        ("digits", None, "str"),
        (7, None, "int"),
        (Items([{"x": 1}]), None, "dict"),
        (Items([]), None, "empty"),
        (Items([torch.zeros(1, 2, 2), torch.zeros(1, 2, 3)]), None, "one shape"),
        (Items([torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).int()]), None, "throughout"),
        (Items([torch.zeros(1, 2, 2).int(), torch.zeros(1, 2, 2)]), None, "throughout"),
    ],
)
def test_what_is_no_image_is_refused(data, levels, message):
    with pytest.raises(InputError, match=message):
        as_images(data, levels)


@pytest.mark.parametrize("kind", [Items, Stream, SizedStream, list])
def test_items_with_labels(kind):
    images = pixels(5, 3, 4, 4)
    items = [(torch.from_numpy(image), label) for label, image in enumerate(images)]
    data = as_images(kind(items))
    assert np.array_equal(data.images.numpy(), images)
    assert data.labels.tolist() == [0, 1, 2, 3, 4]


def test_items_that_are_only_images_have_no_labels():
    images = pixels(5, 4, 4)
    data = as_images(Items(list(torch.from_numpy(images))))
    assert data.image_shape == (1, 4, 4)
    assert data.labels is None


@pytest.mark.parametrize("label", [0.5, [1, 2], "cat", -1, [[1], [2, 3]]])
def test_what_is_no_class_number_is_no_label(label):
    items = [(image, 1) for image in pixels(4, 4, 4)]
    items.insert(2, (pixels(4, 4), label))
    assert as_images(items).labels is None


def test_pillow_images_as_torchvision_gives_them():
    colour = pixels(3, 4, 5, 3)
    data = as_images(Items([(Image.fromarray(image), 2) for image in colour]))
    assert np.array_equal(data.images.numpy(), np.moveaxis(colour, 3, 1))
    grey = as_images(Items([Image.fromarray(image) for image in colour[..., 0]]))
    assert np.array_equal(grey.images[:, 0].numpy(), colour[..., 0])


@pytest.mark.parametrize("grey", [True, False])
def test_a_dataloader_is_read_to_its_end(grey):
    images = torch.from_numpy(pixels(7, *(() if grey else (2,)), 4, 4))
    loader = DataLoader(TensorDataset(images.float() / 255, torch.arange(7)), batch_size=3)
    data = as_images(loader)
    assert torch.equal(data.images, images.reshape(7, -1, 4, 4))
    assert data.labels.tolist() == list(range(7))
    assert as_images(DataLoader(list(images), batch_size=3)).labels is None


@pytest.mark.parametrize("wrap", [DataLoader, lambda data: Subset(data, range(3))])
def test_what_wraps_our_dataset_keeps_its_levels(wrap):
    data = ImageDataset(torch.full((4, 1, 2, 2), 3), levels=5)
    assert as_images(wrap(data)).levels == 5


def test_an_empty_array_is_an_empty_dataset():
    data = as_images(np.zeros((0, 1, 2, 2), np.int64))
    assert (len(data), data.levels) == (0, 256)


def test_canonical_tensors_are_not_copied():
    images = torch.from_numpy(pixels(2, 1, 3, 3))
    assert as_images(images).images.data_ptr() == images.data_ptr()


@pytest.mark.parametrize(("largest", "levels"), [(1, 2), (255, 256), (256, 65536)])
def test_levels_of_integer_items_follow_all_of_them(largest, levels):
    items = [torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), largest)]
    data = as_images(Items(items))
    assert (data.levels, int(data.images.max())) == (levels, largest)


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((2, 5, 5, 3), True),
        ((2, 5, 5, 1), True),
        ((2, 9, 5, 4), True),
        ((2, 5, 5, 2), False),
        ((2, 4, 5, 3), False),
        ((2, 8, 4, 4), False),
        ((2, 3, 32, 3), False),
    ],
)
def test_channel_last_is_refused_only_where_it_is_plain(shape, last):
    if last:
        with pytest.raises(InputError, match="last axis"):
            as_images(pixels(*shape))
    else:
        assert as_images(pixels(*shape)).image_shape == shape[1:]
