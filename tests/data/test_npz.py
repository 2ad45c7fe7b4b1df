import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from genfast.data import npz
from genfast.errors import DataError, InputError
from tests.data.build import npz_bytes, pixels, write


def archive(method=zipfile.ZIP_STORED, **members):
    """A zip of raw bytes under the names of arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(header, data=b"", version=(1, 0)):
    text = header.encode("latin-1")
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + data


def header(descr="'|u1'", fortran="False", shape="(2, 2, 2)"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("compressed", [True, False])
def test_images_and_labels(tmp_path, compressed):
    images, labels = pixels(6, 4, 5), np.arange(6)
    file = write(tmp_path / "mine.npz", npz_bytes(compressed, images=images, labels=labels))
    data = npz(file, "all")
    assert np.array_equal(data.images[:, 0].numpy(), images)
    assert np.array_equal(data.labels.numpy(), labels)
    assert (data.levels, data.name) == (256, "mine")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "<i4", ">i8", "<f2", ">f4", "<f8"])
def test_every_plain_dtype_in_either_order(tmp_path, dtype, order):
    truth = pixels(6, 3, 4, 5, high=17)
    values = truth / 16 if "f" in dtype else truth
    images = np.asarray(values.astype(dtype), order=order)
    file = write(tmp_path / "x.npz", npz_bytes(images=images))
    assert np.array_equal(npz(file, "all", levels=17).images.numpy(), truth)


@pytest.mark.parametrize(
    ("images", "extra", "levels"),
    [
        (pixels(4, 3, 3, high=2), {}, 2),
        (pixels(4, 3, 3, high=2) > 0, {}, 2),
        (pixels(4, 3, 3, high=2), {"levels": 256}, 256),
        (pixels(4, 3, 3, high=2), {"levels": 2}, 2),
        (pixels(4, 3, 3).astype(np.int32), {"levels": 65536}, 65536),
        (pixels(4, 3, 3, high=17), {"levels": np.uint8(17)}, 17),
        (pixels(4, 3, 3).astype(np.uint16) * 257, {}, 65536),
        (pixels(4, 3, 3) / np.float32(255), {}, 256),
    ],
)
def test_levels_come_from_the_archive_or_the_values(tmp_path, images, extra, levels):
    data = npz(write(tmp_path / "x.npz", npz_bytes(images=images, **extra)), "all")
    assert data.levels == levels
    expected = np.rint(images * 255) if images.dtype == np.float32 else images
    assert np.array_equal(data.images[:, 0].numpy(), expected)


def test_channels_last_is_seen_or_told(tmp_path):
    file = write(tmp_path / "x.npz", npz_bytes(images=pixels(4, 6, 5, 3)))
    expected = np.moveaxis(pixels(4, 6, 5, 3), 3, 1)
    assert np.array_equal(npz(file, "all").images.numpy(), expected)
    assert npz(file, "all", channels_last=False).image_shape == (6, 5, 3)
    odd = write(tmp_path / "y.npz", npz_bytes(images=pixels(4, 6, 5, 2)))
    assert npz(odd, "all").image_shape == (6, 5, 2)
    assert npz(odd, "all", channels_last=True).image_shape == (2, 6, 5)


@pytest.mark.parametrize(
    ("images", "labels"), [("x_{}", "y_{}"), ("{}_images", "{}_labels")], ids=["keras", "medmnist"]
)
def test_splits_inside_one_archive(tmp_path, images, labels):
    arrays = {}
    for split, count in (("train", 5), ("val", 3), ("test", 2)):
        arrays[images.format(split)] = pixels(count, 6, 6, seed=count)
        arrays[labels.format(split)] = np.full((count, 1), count)
    file = write(tmp_path / "x.npz", npz_bytes(**arrays))
    for split, count in (("train", 5), ("valid", 3), ("test", 2)):
        data = npz(file, split)
        assert np.array_equal(data.images[:, 0].numpy(), pixels(count, 6, 6, seed=count))
        assert data.labels.tolist() == [count] * count
    assert len(npz(file, "all")) == 10


def test_a_folder_of_splits_and_one_of_them_named(tmp_path):
    for split, count in (("train", 20), ("test", 4), ("valid", 3)):
        write(tmp_path / f"{split}.npz", npz_bytes(images=pixels(count, 2, 2)))
    for path in (tmp_path, tmp_path / "train.npz"):
        assert [len(npz(path, split)) for split in ("train", "test", "valid")] == [20, 4, 3]
    (tmp_path / "valid.npz").rename(tmp_path / "val.npz")
    assert len(npz(tmp_path / "train.npz", "valid")) == 3
    (tmp_path / "val.npz").rename(tmp_path / "other.npz")
    assert [len(npz(tmp_path / "train.npz", split)) for split in ("train", "test")] == [20, 4]
    (tmp_path / "other.npz").rename(tmp_path / "valid.npz")
    assert len(npz(tmp_path, "all")) == 27
    assert len(npz(tmp_path / "train.npz", "all")) == 20
    (tmp_path / "test.npz").unlink()
    assert [len(npz(tmp_path, split)) for split in ("train", "test", "valid")] == [18, 2, 3]


def test_another_key(tmp_path):
    file = write(tmp_path / "x.npz", npz_bytes(faces=pixels(3, 2, 2), labels=np.arange(3)))
    assert npz(file, "all", "faces").labels.tolist() == [0, 1, 2]
    with pytest.raises(
        DataError, match="'images', 'x_train' or 'train_images', found faces, labels"
    ):
        npz(file, "all")


U1 = np.zeros((2, 2, 2), np.uint8)
GOOD = npy(header(), U1.tobytes())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "zip archive .* found 0x$"),
        (b"\x93NUMPY" + bytes(60), "zip archive .* found 0x934e554d"),
        (npz_bytes(images=U1)[:-1], "complete zip archive"),
        (npz_bytes(False, images=U1)[50:], "byte 0: expected a zip archive"),
        (npz_bytes(images=np.array([[[None]]], object)), r"no objects.*found dtype '\|O'"),
        (npz_bytes(images=np.array([[["a"]]])), "dtype '<U1'"),
        (npz_bytes(images=np.zeros((1, 1, 1), complex)), "dtype '<c16'"),
        (npz_bytes(images=np.zeros((1, 1, 1), "M8[s]")), "dtype"),
        (npz_bytes(images=np.zeros((1, 1, 1), [("a", "u1")])), "plain dtype and a shape"),
        (
            npz_bytes(images=np.zeros((0, 4, 4), np.uint8)),
            r"none of them 0, found shape \[0, 4, 4\]",
        ),
        (npz_bytes(images=np.zeros((4, 4), np.uint8)), "3 or 4 dimensions"),
        (npz_bytes(images=np.zeros((1, 1, 1, 1, 1), np.uint8)), "3 or 4 dimensions"),
        (npz_bytes(images=-np.ones((1, 2, 2), np.int8)), "-1"),
        (npz_bytes(images=np.full((1, 2, 2), 2**40)), "1099511627776"),
        (npz_bytes(images=np.full((1, 2, 2), 1.5)), r"floats in \[0, 1\]"),
        (npz_bytes(images=np.full((1, 2, 2), np.nan)), "nan"),
        (npz_bytes(images=U1, levels=1), "levels: expected an integer in 2 .. 65536, found 1"),
        (npz_bytes(images=U1, levels=7.5), "levels"),
        (npz_bytes(images=U1, levels=np.arange(3)), "levels"),
        (npz_bytes(images=U1 + 9, levels=9), r"integers in 0 .. 8, found 9"),
        (npz_bytes(images=U1, labels=np.arange(3)), "labels: expected 2 integer labels"),
        (npz_bytes(images=U1, labels=np.zeros(2)), "labels: expected 2 integer labels"),
        (npz_bytes(images=U1, labels=np.array([0, -1])), r"labels\[1\]: .* found -1"),
        (npz_bytes(images=U1, labels=np.array([0, 2**31 - 1])), r"labels\[1\]"),
        (npz_bytes(images=U1, labels=np.array([0, None])), "no objects"),
        (archive(images=GOOD[:-1]), "expected 71 bytes for shape|bytes for shape"),
        (archive(images=GOOD + b"\0"), "bytes for shape"),
        (archive(images=b"\x93NUMPX" + GOOD[6:]), "byte 0: expected npy version"),
        (archive(images=b"\x93NUMPY\x03\0" + GOOD[8:]), "npy version 1.0 or 2.0"),
        (archive(images=npy(header(fortran="1"), bytes(8))), "plain dtype and a shape"),
        (archive(images=npy(header(shape="(2, -2, 2)"), bytes(8))), "plain dtype and a shape"),
        (archive(images=npy(header(shape=f"({10**30}, 2, 2)"), bytes(8))), "and a shape"),
        (archive(images=npy(header(shape="(1e3, 2, 2)"), bytes(8))), "and a shape"),
        (archive(images=npy(header(shape=f"({'1, ' * 40})"), bytes(1))), "and a shape"),
        (archive(images=npy(header("__import__('os')"), bytes(8))), "and a shape"),
        (archive(images=npy("(" * 9000)), "and a shape"),
        (archive(images=npy("{" + "-" * 9000)), "and a shape"),
        (archive(images=npy(header() + " " * 9999, bytes(8))), "at most 10000 bytes, found"),
        (archive(images=npy(header(shape="(99, 99, 99)"), bytes(8))), "bytes for shape"),
        (archive(images=npy(header(shape=f"({2**62}, 4, 1)"))), "bytes for shape"),
        (archive(images=npy(header(shape=f"({2**32}, {2**32}, 1)"))), "bytes for shape"),
        (archive(images=npy(header("'|b1'"), b"\x02" * 8)), "booleans 0 or 1, found 2"),
        (archive(zipfile.ZIP_LZMA, images=GOOD), "stored or deflated entry, found method 14"),
        (archive(zipfile.ZIP_BZIP2, images=GOOD), "stored or deflated entry, found method 12"),
        (archive(**{"images.txt": b"x"}), "an array called 'images'"),
    ],
)
def test_a_broken_archive_says_what_is_wrong(tmp_path, data, message):
    file = write(tmp_path / "broken.npz", data)
    with pytest.raises(DataError, match=message) as caught:
        npz(file, "all")
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_the_header_parser_is_the_format_s(tmp_path):
    for data in (
        GOOD,
        npy(header(), U1.tobytes(), (2, 0)),
        npy(header().replace("'", '"'), bytes(8)),
    ):
        assert len(npz(write(tmp_path / "x.npz", archive(images=data)), "all")) == 2


def test_sizes_that_agree_but_cannot_be_there(tmp_path):
    text = header(shape="(2048, 1024, 1024)")
    data = bytearray(archive(zipfile.ZIP_DEFLATED, images=npy(text, bytes(99))))
    claimed = len(npy(text)) + 2**31
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(mark) + offset, claimed)
    file = write(tmp_path / "x.npz", bytes(data))
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"from \d+ compressed, found {claimed}"):
        npz(file, "all")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_wrong_crc_is_seen(tmp_path):
    data = bytearray(npz_bytes(False, images=pixels(4, 5, 5)))
    data[data.index(pixels(4, 5, 5).tobytes()) + 7] ^= 1
    with pytest.raises(DataError, match="CRC"):
        npz(write(tmp_path / "x.npz", bytes(data)), "all")


def test_an_encrypted_entry_is_refused(tmp_path):
    data = bytearray(archive(images=GOOD))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    with pytest.raises(DataError, match="password"):
        npz(write(tmp_path / "x.npz", bytes(data)), "all")


def test_a_name_twice_is_refused(tmp_path):
    data = archive(images=GOOD, imagez=GOOD).replace(b"imagez", b"images")
    with pytest.raises(DataError, match="every name once"):
        npz(write(tmp_path / "x.npz", data), "all")


def test_the_cap_counts_the_copy_too(tmp_path):
    grey = write(tmp_path / "a.npz", npz_bytes(images=pixels(10, 10, 10)))
    assert len(npz(grey, "all", max_bytes=1000)) == 10
    floats = write(tmp_path / "b.npz", npz_bytes(images=np.zeros((10, 10, 10), np.float32)))
    assert len(npz(floats, "all", max_bytes=5000)) == 10
    last = write(tmp_path / "c.npz", npz_bytes(images=pixels(10, 10, 10, 3)))
    assert len(npz(last, "all", max_bytes=6000)) == 10
    fortran = write(tmp_path / "d.npz", npz_bytes(images=np.asfortranarray(pixels(10, 10, 10))))
    assert len(npz(fortran, "all", max_bytes=2000)) == 10
    caps = ((grey, 999), (floats, 4999), (floats, 3999), (last, 5999), (fortran, 1999))
    for file, cap in caps:
        with pytest.raises(DataError, match=f"max_bytes={cap}"):
            npz(file, "all", max_bytes=cap)


def test_the_cap_counts_labels_as_they_become(tmp_path):
    labels = np.zeros(100, np.uint8)
    file = write(tmp_path / "x.npz", npz_bytes(images=pixels(100, 1, 1), labels=labels))
    assert len(npz(file, "all", max_bytes=800)) == 100
    with pytest.raises(DataError, match="labels of at most max_bytes=799"):
        npz(file, "all", max_bytes=799)


def test_labels_above_the_classes(tmp_path):
    file = write(tmp_path / "x.npz", npz_bytes(images=U1, labels=np.array([0, 10])))
    assert npz(file, "all", classes=11).labels.tolist() == [0, 10]
    with pytest.raises(DataError, match=r"labels\[1\]: expected labels in 0 .. 9, found 10"):
        npz(file, "all", classes=10)


def test_impossible_arguments(tmp_path):
    with pytest.raises(InputError, match="levels=1"):
        npz("x", levels=1)
    with pytest.raises(InputError, match="split='dev'"):
        npz("x", "dev")
    with pytest.raises(DataError, match=r"train.npz or test.npz, found neither"):
        npz(tmp_path)
    write(tmp_path / "train.npz", npz_bytes(x_train=U1, x_test=U1))
    with pytest.raises(DataError, match="found splits train, test"):
        npz(tmp_path)


def test_splits_of_unlike_images_are_not_joined(tmp_path):
    write(tmp_path / "train.npz", npz_bytes(images=pixels(3, 2, 2)))
    write(tmp_path / "test.npz", npz_bytes(images=pixels(3, 2, 3)))
    with pytest.raises(DataError, match="every split with"):
        npz(tmp_path, "all")
