"""Any bytes whatever either load or raise DataError, in little memory.

GENFAST_FUZZ_EXAMPLES sets the number of examples per test (default 100) and takes new ones each
time; without it the examples are always the same.
"""

import contextlib
import io
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genfast.data import ImageDataset, cifar, folder, idx, npz, open_data
from genfast.errors import DataError
from tests.data.build import (
    cifar_bytes,
    gz,
    idx_bytes,
    image_bytes,
    mnist_folder,
    npy_bytes,
    npz_bytes,
    pixels,
    png_bytes,
    write,
)

EXAMPLES = os.environ.get("GENFAST_FUZZ_EXAMPLES")
CAP = 2**18
# Beside the cap: buffers, pieces of at most 1 MiB, and what this test itself holds.
ALLOWED = CAP + 3 * 2**20

fuzz = settings(
    max_examples=int(EXAMPLES or 100),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

INTERESTING = [0, 1, 2, 7, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1]


@st.composite
def edits(draw, data):
    """`data` after a few overwrites, cuts, insertions and repetitions."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["bytes", "number", "cut", "insert", "repeat", "head"]))
        if kind == "bytes":
            piece = draw(st.binary(min_size=1, max_size=8))
            data[place : place + len(piece)] = piece
        elif kind == "number":
            number = draw(st.sampled_from(INTERESTING))
            order = draw(st.sampled_from("<>"))
            data[place : place + 4] = struct.pack(f"{order}I", number)
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=32))
        elif kind == "repeat":
            data[place:place] = data[place : place + draw(st.integers(1, 200))]
        elif data:
            # Headers are where the decisions are made, so they are hit more often.
            data[draw(st.integers(0, min(40, len(data) - 1)))] = draw(st.integers(0, 255))
    return bytes(data)


def survives(reader, path):
    """Load a file, allowing success, DataError, and nothing else."""
    try:
        data = reader(path, "all", max_bytes=CAP)
        assert isinstance(data, ImageDataset)
        assert data.images.nbytes <= CAP
        assert len(data) > 0
        assert int(data.images.min()) >= 0
        assert int(data.images.max()) < data.levels
    except DataError as error:
        message = str(error)
        assert message.isprintable()
        assert "expected" in message
        assert "found" in message
    # What something else in the process allocates meanwhile does not happen twice.
    assert peak_memory(reader, path) <= ALLOWED or peak_memory(reader, path) <= ALLOWED


def peak_memory(reader, path):
    tracemalloc.start()
    try:
        with contextlib.suppress(DataError):
            reader(path, "all", max_bytes=CAP)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


IMAGES = pixels(3, 4, 3)
PLAIN = {
    "idx": (idx, "x", idx_bytes(IMAGES)),
    "idx-gzip": (idx, "x", gz(idx_bytes(IMAGES))),
    "cifar": (cifar, "x.bin", cifar_bytes(1)),
    "npz-stored": (npz, "x.npz", npz_bytes(False, images=IMAGES, labels=np.arange(3))),
    "npz-deflated": (npz, "x.npz", npz_bytes(True, images=IMAGES, labels=np.arange(3))),
    "png": (folder, "x.png", image_bytes(pixels(5, 4, 3), "png")),
    "jpg": (folder, "x.jpg", image_bytes(pixels(5, 4, 3), "jpg")),
    "bmp": (folder, "x.bmp", image_bytes(pixels(5, 4), "bmp")),
    "gif": (folder, "x.gif", image_bytes(pixels(5, 4), "gif")),
    "ppm": (folder, "x.ppm", image_bytes(pixels(5, 4, 3), "ppm")),
    "webp": (folder, "x.webp", image_bytes(pixels(5, 4, 3), "webp")),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_good_file_after_edits(tmp_path, name):
    reader, file, good = PLAIN[name]
    path = tmp_path / file

    @fuzz
    @given(edits(good))
    def check(data):
        survives(reader, write(path, data).parent if reader is folder else write(path, data))

    check()


@pytest.mark.parametrize("name", ["idx", "cifar", "npz", "png", "any"])
def test_arbitrary_bytes(tmp_path, name):
    reader = {"idx": idx, "cifar": cifar, "npz": npz, "png": folder, "any": open_data}[name]
    magic = {"idx": b"\0\0\x08\x03", "npz": b"PK\x03\x04", "png": b"\x89PNG\r\n\x1a\n"}.get(
        name, b""
    )

    @fuzz
    @given(st.sampled_from([b"", magic]), st.binary(max_size=400))
    def check(head, data):
        path = write(tmp_path / "x.png", head + data)
        survives(reader, path.parent if reader is folder else path)

    check()


def rezip(data, method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("images.npy", data)
    return buffer.getvalue()


# Checksums stop most edits at the door. Here the edits are inside, and the checksums are right.
INNER = {
    "idx": (idx, "x", gz, idx_bytes(IMAGES)),
    "npy-stored": (npz, "x.npz", lambda d: rezip(d, zipfile.ZIP_STORED), npy_bytes(IMAGES)),
    "npy-deflated": (
        npz,
        "x.npz",
        lambda d: rezip(d, zipfile.ZIP_DEFLATED),
        npy_bytes(IMAGES / 255),
    ),
    "png-rows": (folder, "x.png", lambda d: png_bytes(4, 5, zlib.compress(d)), bytes(5 * 5)),
    "png-stream": (folder, "x.png", lambda d: png_bytes(4, 5, d), zlib.compress(bytes(5 * 5))),
    "png-palette": (
        folder,
        "x.png",
        lambda d: png_bytes(4, 5, zlib.compress(bytes(25)), (b"PLTE", d[:9]), colour=3),
        bytes(range(9)),
    ),
}


@pytest.mark.parametrize("name", INNER)
def test_edits_behind_right_checksums(tmp_path, name):
    reader, file, wrap, good = INNER[name]
    path = tmp_path / file

    @fuzz
    @given(edits(good))
    def check(data):
        wrapped = write(path, wrap(data))
        survives(reader, wrapped.parent if reader is folder else wrapped)

    check()


@fuzz
@given(
    st.integers(0, 2**32 - 1) | st.sampled_from(range(1, 9)),
    st.integers(0, 2**32 - 1) | st.sampled_from(range(1, 9)),
    st.sampled_from([1, 2, 4, 8, 16, 3]),
    st.sampled_from([0, 2, 3, 4, 6, 1]),
)
def test_png_headers(tmp_path_factory, width, height, depth, colour):
    path = tmp_path_factory.getbasetemp() / "headers" / "x.png"
    packed = zlib.compress(bytes(200))
    survives(
        folder, write(path, png_bytes(width, height, packed, depth=depth, colour=colour)).parent
    )


@fuzz
@given(
    st.lists(st.integers(0, 9) | st.integers(0, 2**70), max_size=6).map(tuple),
    st.sampled_from(["|u1", "<f4", ">f8", "<i8", "|b1", "|O", "<U9", "V8", "<f16", "u1", ""]),
    st.booleans(),
    st.binary(max_size=80),
)
def test_npy_headers(tmp_path_factory, shape, descr, fortran, data):
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    npy = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data
    path = tmp_path_factory.getbasetemp() / "headers" / "x.npz"
    survives(npz, write(path, rezip(npy, zipfile.ZIP_STORED)))


@fuzz
@given(st.sampled_from(["train-labels-idx1-ubyte", "train-images-idx3-ubyte"]), st.data())
def test_a_folder_with_one_edited_file(tmp_path_factory, name, data):
    root = tmp_path_factory.getbasetemp() / "mnist"
    mnist_folder(root, packed=False, train=6, test=2)
    path = root / name
    write(path, data.draw(edits(path.read_bytes())))
    survives(idx, root)
