import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from genfast.data import folder
from genfast.errors import DataError, InputError
from tests.data.build import IMAGE_FORMATS, image_bytes, pixels, png_bytes, write

LOSSLESS = ["png", "bmp", "ppm"]


def png(path, array, **options):
    return write(path, image_bytes(array, "png", **options))


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_the_order_of_their_names(tmp_path, suffix, channels):
    images = pixels(3, 5, 4, 3)[..., : 3 if channels == 3 else 1].squeeze()
    for name, image in zip("bca", images, strict=True):
        write(tmp_path / f"{name}.{suffix}", image_bytes(image, suffix))
    data = folder(tmp_path, "all")
    assert data.image_shape == (channels, 5, 4)
    found = np.moveaxis(data.images.numpy(), 1, 3).squeeze()
    assert np.array_equal(found, images[[2, 0, 1]])
    assert (data.labels, data.levels, data.name) == (None, 256, tmp_path.name)


@pytest.mark.parametrize("suffix", sorted(set(IMAGE_FORMATS) - set(LOSSLESS)))
def test_lossy_formats_come_close(tmp_path, suffix):
    ramp = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    write(tmp_path / f"a.{suffix.upper()}", image_bytes(ramp, suffix))
    found = np.moveaxis(folder(tmp_path, "all").images[0].numpy(), 0, 2)
    assert np.abs(found.astype(int) - ramp).mean() < 12


def test_folders_of_classes_give_labels(tmp_path):
    for name, value in (("cat", 1), ("ant", 2), ("bee", 3)):
        for index in range(2):
            png(tmp_path / name / f"{index}.png", np.full((3, 3), 10 * value + index, np.uint8))
    data = folder(tmp_path, "all")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.images[:, 0, 0, 0].tolist() == [20, 21, 30, 31, 10, 11]


def test_folders_of_splits(tmp_path):
    for split, names in (("train", "ab"), ("test", "bc"), ("val", "c")):
        for name in names:
            png(tmp_path / split / name / "x.png", pixels(3, 3))
    assert folder(tmp_path, "train").labels.tolist() == [0, 1]
    # A class keeps its number in a split that lacks another class.
    assert folder(tmp_path, "test").labels.tolist() == [1, 2]
    assert folder(tmp_path, "valid").labels.tolist() == [2]
    assert len(folder(tmp_path, "all")) == 5


def test_a_class_may_be_called_test(tmp_path):
    for name in ("test", "ant"):
        png(tmp_path / name / "x.png", pixels(3, 3))
    assert folder(tmp_path, "all").labels.tolist() == [0, 1]


def test_a_tenth_is_held_out(tmp_path):
    for index in range(20):
        png(tmp_path / f"{index:02}.png", np.full((2, 2), index, np.uint8))
    train, test = (folder(tmp_path, s).images[:, 0, 0, 0].tolist() for s in ("train", "test"))
    assert (len(train), len(test), sorted(train + test)) == (18, 2, list(range(20)))


def test_other_and_hidden_files_are_left_alone(tmp_path):
    png(tmp_path / "a.png", pixels(3, 3))
    for name in ("notes.txt", ".hidden.png", "Thumbs.db", "b.png.part"):
        write(tmp_path / name, b"not an image")
    (tmp_path / ".cache").mkdir()
    assert len(folder(tmp_path, "all")) == 1


def test_grey_turns_to_colour_where_one_image_needs_it(tmp_path):
    grey, colour = pixels(2, 4, 4), pixels(4, 4, 3)
    png(tmp_path / "a.png", grey[0])
    png(tmp_path / "b.png", colour)
    png(tmp_path / "c.png", grey[1])
    data = folder(tmp_path, "all")
    assert data.image_shape == (3, 4, 4)
    for index, image in ((0, grey[0][..., None]), (1, colour), (2, grey[1][..., None])):
        expected = np.broadcast_to(np.moveaxis(image, 2, 0), (3, 4, 4))
        assert np.array_equal(data.images[index].numpy(), expected)
    assert folder(tmp_path, "all", channels=1).image_shape == (1, 4, 4)
    (tmp_path / "b.png").unlink()
    assert folder(tmp_path, "all", channels=3).image_shape == (3, 4, 4)


def test_alpha_is_dropped_and_palettes_are_colour(tmp_path):
    rgba = pixels(4, 4, 4)
    png(tmp_path / "rgba" / "a.png", rgba)
    found = folder(tmp_path / "rgba", "all").images[0].numpy()
    assert np.array_equal(found, np.moveaxis(rgba[..., :3], 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(rgba[..., :3]).quantize(4).save(buffer, "PNG")
    write(tmp_path / "palette" / "a.png", buffer.getvalue())
    assert folder(tmp_path / "palette", "all").image_shape == (3, 4, 4)
    png(tmp_path / "bits" / "a.png", pixels(4, 4) > 127)
    bits = folder(tmp_path / "bits", "all")
    assert np.array_equal(bits.images[0, 0].numpy(), (pixels(4, 4) > 127) * 255)


@pytest.mark.parametrize(("size", "shape"), [(4, (4, 4)), ((2, 6), (2, 6)), (40, (40, 40))])
def test_size_crops_the_middle_and_resizes(tmp_path, size, shape):
    image = np.zeros((8, 24), np.uint8)
    image[:, 8:16] = 200
    png(tmp_path / "a.png", image)
    png(tmp_path / "b.png", np.full((5, 5), 200, np.uint8))
    data = folder(tmp_path, "all", size=size)
    assert data.image_shape == (1, *shape)
    assert bool((data.images[1] == 200).all())
    row = data.images[0, 0, 0].tolist()
    assert row == row[::-1]
    # The bright middle third fills a square; nothing is cropped from a shape of the same aspect.
    assert (np.mean(row) > 150) == (shape[0] == shape[1])


def test_unequal_sizes_are_refused(tmp_path):
    png(tmp_path / "a.png", pixels(3, 4))
    png(tmp_path / "b.png", pixels(4, 3))
    with pytest.raises(DataError, match=r"b.png: expected 3x4 pixels like a.png .* found 4x3"):
        folder(tmp_path, "all")


GREY16 = image_bytes(pixels(3, 3).astype(np.uint16), "png")
PACKED = zlib.compress(b"\0\1\2\3" * 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "readable image"),
        (b"hello", "no known image format"),
        (b"\x89PNG\r\n\x1a\n", "readable image"),
        (GREY16, "8 bits per channel, grey or colour, found mode I;16"),
        (png_bytes(0, 3, PACKED), "found"),
        (png_bytes(3, 3, PACKED[:-8]), "readable image"),
        (png_bytes(3, 3, PACKED, depth=99), "readable image"),
        (png_bytes(60000, 60000, PACKED), "DecompressionBomb|max_pixels"),
        (png_bytes(2**31 - 1, 2**31 - 1, PACKED), "DecompressionBomb|max_pixels"),
        (image_bytes(pixels(9, 9), "bmp")[:-1], "1159|readable|as its header says"),
        (image_bytes(pixels(9, 9), "gif")[:-1], "trailer"),
        (image_bytes(pixels(9, 9), "png")[:-1], "IEND"),
        (b"II*\0" + bytes(100), "no known image format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known image format"),
    ],
)
def test_a_broken_image_says_what_is_wrong(tmp_path, data, message):
    file = write(tmp_path / "broken.png", data)
    with pytest.raises(DataError, match=message) as caught:
        folder(tmp_path, "all")
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_png_is_seen(tmp_path):
    good = image_bytes(pixels(9, 9), "png")
    for index in range(8, len(good)):
        broken = bytearray(good)
        broken[index] ^= 1
        write(tmp_path / "a.png", bytes(broken))
        with pytest.raises(DataError):
            folder(tmp_path, "all")


def test_caps_on_pixels_and_memory(tmp_path):
    for name in "abc":
        png(tmp_path / f"{name}.png", np.zeros((10, 10), np.uint8))
    assert len(folder(tmp_path, "all", max_pixels=100)) == 3
    with pytest.raises(DataError, match=r"max_pixels=99 pixels, found 10x10 = 100"):
        folder(tmp_path, "all", max_pixels=99)
    with pytest.raises(DataError, match=r"decoded image \(10x10\) of at most max_bytes=1199"):
        folder(tmp_path, "all", max_bytes=1199)
    for index in range(12):
        png(tmp_path / f"{index}.png", np.zeros((10, 10), np.uint8))
    with pytest.raises(DataError, match="15 images of at most max_bytes=1499 bytes, found 1500"):
        folder(tmp_path, "all", max_bytes=1499)


def test_layouts_that_are_unclear(tmp_path):
    with pytest.raises(DataError, match="found none"):
        folder(tmp_path)
    png(tmp_path / "cat" / "a.png", pixels(3, 3))
    png(tmp_path / "b.png", pixels(3, 3))
    with pytest.raises(DataError, match=r"found both \(b.png, cat/\)"):
        folder(tmp_path)
    (tmp_path / "b.png").unlink()
    (tmp_path / "cat" / "inner").mkdir()
    with pytest.raises(DataError, match="found folder inner"):
        folder(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        folder(tmp_path / "cat" / "a.png")


@pytest.mark.parametrize(
    "options",
    [{"split": "dev"}, {"channels": 2}, {"size": 0}, {"size": (3, 0)}, {"size": (1, 2, 3)}],
)
def test_impossible_arguments(tmp_path, options):
    with pytest.raises(InputError, match="folder: expected"):
        folder(tmp_path, **options)


def test_links_out_of_the_folder_need_trust(tmp_path):
    outside = png(tmp_path / "outside" / "a.png", pixels(3, 3))
    inside = png(tmp_path / "set" / "a.png", pixels(3, 3))
    os.symlink(inside, tmp_path / "set" / "b.png")
    assert len(folder(tmp_path / "set", "all")) == 2
    os.symlink(outside, tmp_path / "set" / "c.png")
    with pytest.raises(DataError, match=r"c.png: expected a file inside the folder \(follow_links"):
        folder(tmp_path / "set", "all")
    assert len(folder(tmp_path / "set", "all", follow_links=True)) == 3
    os.symlink(tmp_path / "set", tmp_path / "link")
    assert len(folder(tmp_path / "link", "all", follow_links=True)) == 3


def test_a_bmp_that_claims_more_than_it_has(tmp_path):
    data = bytearray(image_bytes(pixels(4, 4), "bmp"))
    data[2:6] = struct.pack("<I", len(data) + 1)
    write(tmp_path / "a.bmp", bytes(data))
    with pytest.raises(DataError, match=f"expected {len(data) + 1} bytes, as its header says"):
        folder(tmp_path, "all")


def test_turning_to_colour_stays_below_the_cap(tmp_path):
    for name in "abcd":
        png(tmp_path / f"{name}.png", pixels(10, 10))
    png(tmp_path / "e.png", pixels(10, 10, 3))
    assert len(folder(tmp_path, "all", max_bytes=2000)) == 5
    with pytest.raises(DataError, match="5 images of at most max_bytes=1999 bytes, found 2000"):
        folder(tmp_path, "all", max_bytes=1999)


def test_pillows_own_limit_holds_beside_a_higher_cap(tmp_path):
    write(tmp_path / "a.png", png_bytes(10_000, 10_000, PACKED))
    with pytest.raises(DataError, match="DecompressionBombWarning"):
        folder(tmp_path, "all", max_pixels=10**9)


def test_unknown_bytes_are_named_without_python_objects(tmp_path):
    (tmp_path / "a.png").write_bytes(b"this is no image")
    with pytest.raises(
        DataError, match=r"a readable image .*, found .*no known image format"
    ) as error:
        folder(tmp_path)
    assert " object at 0x" not in str(error.value)
