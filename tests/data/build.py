"""Small well-formed data files as bytes, from which the tests make good and broken ones."""

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 5
IMAGE_FORMATS = {
    "png": "PNG",
    "jpg": "JPEG",
    "bmp": "BMP",
    "gif": "GIF",
    "ppm": "PPM",
    "webp": "WEBP",
}


def pixels(*shape, seed=0, high=256):
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def idx_bytes(array, kind=0x08):
    head = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def gz(data):
    return gzip.compress(data, mtime=0)


def cifar_bytes(count=COUNT, classes=10, seed=0):
    rows = pixels(count, 3074 if classes == 100 else 3073, seed=seed)
    rows[:, 0] %= 10 if classes == 10 else 20
    if classes == 100:
        rows[:, 1] %= 100
    return rows.tobytes()


def npz_bytes(compressed=True, **arrays):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def image_bytes(array, suffix, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, IMAGE_FORMATS[suffix], **options)
    return buffer.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bytes(width, height, packed, *extra, depth=8, colour=0):
    """A PNG whose chunks are right by their CRC and may be wrong in every other way."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), *extra, (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def write(path, data):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def mnist_folder(root, packed=True, train=20, test=6, size=(4, 3), prefix=""):
    """A folder of IDX files named like MNIST's; returns the four arrays."""
    arrays = {}
    for tag, count in (("train", train), ("t10k", test)):
        images, labels = pixels(count, *size, seed=count), pixels(count, seed=count, high=10)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            name = f"{prefix}{tag}-{kind}-ubyte"
            write(Path(root, name + ".gz" * packed), gz(data) if packed else data)
        arrays[tag] = (images, labels)
    return arrays
