import struct

import numpy as np
import pytest

from genfast.data import idx
from genfast.data.idx import read_idx
from genfast.errors import DataError, InputError
from tests.data.build import gz, idx_bytes, mnist_folder, pixels, write


@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_like_mnists(tmp_path, packed):
    truth = mnist_folder(tmp_path, packed)
    for split, tag in (("train", "train"), ("test", "t10k")):
        data = idx(tmp_path, split)
        assert np.array_equal(data.images[:, 0].numpy(), truth[tag][0])
        assert np.array_equal(data.labels.numpy(), truth[tag][1])
        assert data.levels == 256
        assert data.name == tmp_path.name
    assert len(idx(tmp_path, "all")) == 26


@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [((5, 3, 6, 7), (3, 6, 7)), ((5, 6, 7, 3), (3, 6, 7)), ((5, 6, 7), (1, 6, 7))],
)
def test_grey_and_colour_of_any_size(tmp_path, shape, image_shape):
    array = pixels(*shape)
    data = idx(write(tmp_path / "pictures", idx_bytes(array)), "all")
    assert data.image_shape == image_shape
    expected = array if shape[1] == 3 else np.moveaxis(array, 3, 1) if len(shape) == 4 else array
    assert np.array_equal(data.images.numpy().reshape(expected.shape), expected)
    assert data.labels is None


def test_gzip_is_known_by_its_content_and_not_its_name(tmp_path):
    array = pixels(4, 3, 3)
    for name, data in (("a.gz", idx_bytes(array)), ("b", gz(idx_bytes(array)))):
        assert np.array_equal(read_idx(write(tmp_path / name, data), (3,), 10**6), array)


def test_gzip_in_several_members_and_with_padding(tmp_path):
    data = idx_bytes(pixels(4, 3, 3))
    path = write(tmp_path / "a", gz(data[:9]) + gz(data[9:]) + b"\0" * 7)
    assert np.array_equal(read_idx(path, (3,), 10**6), pixels(4, 3, 3))


def test_one_named_file_brings_its_labels_and_its_partner(tmp_path):
    truth = mnist_folder(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    assert np.array_equal(idx(file).images[:, 0].numpy(), truth["train"][0])
    assert np.array_equal(idx(file, "test").labels.numpy(), truth["t10k"][1])
    assert len(idx(file, "all")) == 20


def test_one_file_alone_holds_a_tenth_out(tmp_path):
    array = np.arange(30, dtype=np.uint8).reshape(30, 1, 1)
    file = write(tmp_path / "x", idx_bytes(array))
    train, test = (idx(file, split).images.flatten().tolist() for split in ("train", "test"))
    assert sorted(train + test) == list(range(30))
    assert len(test) == 3
    assert train == sorted(train)
    # The same three for ever: a model must not meet its test images after an upgrade.
    assert test == [2, 13, 28]


def test_several_sets_in_one_folder_need_a_name(tmp_path):
    truth = mnist_folder(tmp_path, prefix="emnist-letters-")
    mnist_folder(tmp_path, prefix="emnist-digits-", train=3)
    with pytest.raises(DataError, match=r"one set of files .* emnist-digits-\*, emnist-letters-\*"):
        idx(tmp_path)
    data = idx(tmp_path / "emnist-letters-train-images-idx3-ubyte.gz")
    assert np.array_equal(data.images[:, 0].numpy(), truth["train"][0])


def test_a_split_that_is_missing_is_held_out_or_refused(tmp_path):
    mnist_folder(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    assert (len(idx(tmp_path, "train")), len(idx(tmp_path, "test"))) == (18, 2)
    with pytest.raises(DataError, match="validation split"):
        idx(tmp_path, "valid")
    with pytest.raises(InputError, match="split='dev'"):
        idx(tmp_path, "dev")


def test_one_image_cannot_be_split(tmp_path):
    file = write(tmp_path / "x", idx_bytes(pixels(1, 2, 2)))
    assert len(idx(file, "all")) == 1
    with pytest.raises(DataError, match="at least 2 images"):
        idx(file, "train")
    write(file, idx_bytes(pixels(2, 2, 2)))
    assert (len(idx(file, "train")), len(idx(file, "test"))) == (1, 1)


GOOD = idx_bytes(pixels(5, 4, 3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01" + GOOD[1:], r"byte 0: expected IDX magic number 0x00000803 or 0x00000804, found"),
        (idx_bytes(pixels(5, 4, 3), kind=0x0D), "found 0x00000d03"),
        (idx_bytes(pixels(5)), "found 0x00000801"),
        (idx_bytes(pixels(5, 4)), "found 0x00000802"),
        (b"\0\0\x08\x05" + GOOD[4:], "found 0x00000805"),
        (b"\0\0\x08\xff" + GOOD[4:], "found 0x000008ff"),
        (GOOD[:-1], r"expected a file of 76 bytes \(16 \+ 5 x 4 x 3\), found 75 bytes"),
        (GOOD + b"\0", "found 77 bytes"),
        (GOOD[:4] + struct.pack(">3I", 5, 0, 3), r"byte 8: expected dimensions of at least 1"),
        (GOOD[:4] + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1), "found 16 bytes"),
        (gz(GOOD[:4] + struct.pack(">3I", 60000, 28, 28)), r"expected at most \d+ bytes"),
        (gz(GOOD[:-1]), "byte 16: expected 60 bytes of elements, found 59"),
        (gz(GOOD + b"\0"), "byte 76: expected the end of the elements, found more bytes"),
        (gz(GOOD)[:-1], "expected readable the elements"),
        (gz(GOOD)[:-5] + b"\xff" + gz(GOOD)[-4:], "CRC"),
        (gz(GOOD) + b"junk", "[Nn]ot a gzipped file"),
        (gz(gz(GOOD)), "byte 0: expected IDX magic"),
        (b"", "byte 0: expected 4 bytes of IDX magic number, found 0"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path, data, message):
    file = write(tmp_path / "broken-file", data)
    with pytest.raises(DataError, match=message) as caught:
        idx(file, "all")
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_the_cap_counts_before_reading(tmp_path):
    file = write(tmp_path / "x", GOOD)
    assert len(idx(file, "all", max_bytes=60)) == 5
    with pytest.raises(DataError, match="max_bytes=59"):
        idx(file, "all", max_bytes=59)


def test_joined_splits_keep_below_the_cap(tmp_path):
    mnist_folder(tmp_path)
    assert len(idx(tmp_path, "train", max_bytes=26 * 12 - 1)) == 20
    with pytest.raises(DataError, match="found 312 bytes"):
        idx(tmp_path, "all", max_bytes=26 * 12 - 1)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (np.arange(19, dtype=np.uint8), None, "expected 20 labels, one per image, found 19"),
        (pixels(20, 1), None, "magic number 0x00000801, found 0x00000802"),
        (np.arange(20, dtype=np.uint8), 15, r"byte 23: expected a label in 0 .. 14, found 15"),
        (np.arange(20, dtype=np.uint8), 19, r"byte 27: expected a label in 0 .. 18, found 19"),
    ],
)
def test_broken_labels(tmp_path, labels, classes, message):
    mnist_folder(tmp_path, packed=False)
    write(tmp_path / "train-labels-idx1-ubyte", idx_bytes(labels))
    with pytest.raises(DataError, match=message) as caught:
        idx(tmp_path, classes=classes)
    assert "train-labels-idx1-ubyte" in str(caught.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="found none"):
        idx(tmp_path)


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_each_link_out_of_the_folder_needs_trust(tmp_path, kind):
    mnist_folder(tmp_path / "set", packed=False)
    file = next((tmp_path / "set").glob(f"train-{kind}*"))
    outside = file.rename(tmp_path / "outside")
    file.symlink_to(outside)
    with pytest.raises(DataError, match=f"train-{kind}.*follow_links=True"):
        idx(tmp_path / "set")
    assert len(idx(tmp_path / "set", follow_links=True)) == 20
