"""Every prefix of a good file of every format is refused, by name, before it could do harm."""

import re

import numpy as np
import pytest

from genfast.data import cifar, folder, idx, npz
from genfast.errors import DataError
from tests.data.build import cifar_bytes, gz, idx_bytes, image_bytes, npz_bytes, pixels, write

IMAGES = pixels(3, 4, 3)
LABELS = np.arange(3)

FILES = {
    "idx": idx_bytes(IMAGES),
    "idx.gz": gz(idx_bytes(IMAGES)),
    "bin": cifar_bytes(1),
    "stored.npz": npz_bytes(False, images=IMAGES, labels=LABELS),
    "deflated.npz": npz_bytes(True, images=IMAGES, labels=LABELS),
    "png": image_bytes(pixels(5, 7, 3), "png"),
    "grey.png": image_bytes(pixels(5, 7), "png"),
    "bmp": image_bytes(pixels(5, 7, 3), "bmp"),
    "gif": image_bytes(pixels(5, 7), "gif"),
    "ppm": image_bytes(pixels(5, 7, 3), "ppm"),
    "jpg": image_bytes(pixels(5, 7, 3), "jpg"),
    "progressive.jpg": image_bytes(pixels(5, 7, 3), "jpg", progressive=True),
    "webp": image_bytes(pixels(5, 7, 3), "webp"),
    "lossless.webp": image_bytes(pixels(5, 7, 3), "webp", lossless=True),
}


def load(path):
    if path.suffix in (".idx", ".gz"):
        return idx(path, "all")
    if path.suffix == ".bin":
        return cifar(path, "all", classes=10)
    return npz(path, "all") if path.suffix == ".npz" else folder(path.parent, "all")


@pytest.mark.parametrize("name", FILES)
def test_every_prefix_is_refused(tmp_path, name):
    data = FILES[name]
    path = write(tmp_path / f"file.{name}", data)
    assert len(load(path)) in (1, 3)
    every = range(len(data)) if len(data) < 1500 else [*range(200), *range(200, len(data), 7)]
    for size in [*every, len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=re.escape(str(path))) as caught:
            load(path)
        assert "expected" in str(caught.value), size
        assert "found" in str(caught.value), size
