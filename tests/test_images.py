"""Grids of images as PNG files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genfast.errors import InputError
from genfast.images import grid, png, save_grid


def test_grid_places_each_image_row_after_row() -> None:
    images = torch.arange(5).view(5, 1, 1, 1).expand(5, 1, 40, 36)
    picture = np.asarray(grid(images, levels=5, columns=3))
    assert picture.shape == (2 * 40 + 2, 3 * 36 + 2 * 2)
    assert [picture[20, x] for x in (18, 56, 94)] == [0, 64, 128]
    assert [picture[62, x] for x in (18, 56)] == [191, 255]
    assert (picture[:, 36:38] == 255).all()
    assert (picture[42:, 76:] == 255).all()  # no sixth image


def test_small_images_are_enlarged_by_whole_factors() -> None:
    image = torch.randint(0, 17, (1, 1, 8, 8))
    picture = np.asarray(grid(image, levels=17))
    assert picture.shape == (32, 32)
    np.testing.assert_array_equal(picture[::4, ::4], np.rint(image[0, 0].numpy() * 255 / 16))
    np.testing.assert_array_equal(picture, picture[::4, ::4].repeat(4, 0).repeat(4, 1))


def test_colour_keeps_its_channels() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 2] = 255
    assert grid(image).mode == "RGB"
    assert tuple(np.asarray(grid(image))[5, 5]) == (0, 0, 255)


def test_many_levels_reach_black_and_white() -> None:
    image = torch.tensor([0, 65535], dtype=torch.int32).view(2, 1, 1, 1)
    picture = np.asarray(grid(image, levels=65536))
    assert (picture.min(), picture.max()) == (0, 255)


def test_default_is_about_square() -> None:
    assert grid(torch.zeros(9, 1, 32, 32, dtype=torch.uint8)).size == (100, 100)


def test_saved_file_is_the_grid(tmp_path: Path) -> None:
    images = torch.randint(0, 4, (6, 1, 8, 8))
    path = save_grid(images, tmp_path / "new" / "folder" / "grid.png", levels=4, columns=2)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(grid(images, 4, 2)))
    assert path.read_bytes() == png(images, 4, 2)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_save_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = save_grid(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), tmp_path / "grid.png")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(InputError, match=r"grid\.png: No space left on device, \d+ bytes needed"):
        save_grid(torch.full((1, 1, 8, 8), 200), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["grid.png"]


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(1, 8, 8, dtype=torch.uint8), {}, r"\[N, C, H, W\]"),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), {}, "none empty"),
        (np.zeros((1, 1, 8, 8)), {}, "got shape=ndarray"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.uint8), {}, "C=2"),
        (torch.zeros(1, 1, 8, 8), {}, "torch.float32"),
        (torch.full((1, 1, 8, 8), 17), {"levels": 17}, r"0 \.\. 16, got 17 \.\. 17"),
        (torch.full((1, 1, 8, 8), -1), {}, r"got -1 \.\. -1"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), {"levels": 1}, "levels=1"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), {"columns": 0}, "columns=0"),
    ],
)
def test_refuses_what_is_no_batch_of_images(images, options, message) -> None:
    with pytest.raises(InputError, match=message):
        grid(images, **options)


def test_refuses_another_file_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.png"):
        save_grid(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), tmp_path / "grid.pickle")


def test_refuses_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        save_grid(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), tmp_path / "file" / "grid.png")
