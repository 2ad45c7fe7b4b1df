"""Small files, or sparse ones, that ask for absurd amounts of memory or time.

Run as a module, it loads those in a folder and prints what came of it, how much its peak memory
grew and how long each took: a process of its own has no earlier peak to hide behind.
"""

import io
import json
import os
import resource
import struct
import sys
import time
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from genfast.data import cifar, folder, idx, npz
from genfast.errors import DataError
from tests.data.build import (
    cifar_bytes,
    gz,
    idx_bytes,
    image_bytes,
    npy_bytes,
    npz_bytes,
    pixels,
    png_bytes,
    write,
)

CAP = 2**20  # the `max_bytes` every bomb is loaded with
BIG = 128 * 2**20


def _head(*shape):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def _zeros(size, wbits=31, head=b""):
    """`head` and `size` zeros, deflated a piece at a time."""
    packer = zlib.compressobj(1, zlib.DEFLATED, wbits)
    pieces = [packer.compress(head)]
    pieces += [packer.compress(bytes(2**20)) for _ in range(size // 2**20)]
    return b"".join([*pieces, packer.flush()])


def _zip(method, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def _npy(shape, descr="|u1", data=b"", version=1, header_size=None):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = len(text) if header_size is None else header_size
    packed = struct.pack("<H" if version == 1 else "<I", size)
    return b"\x93NUMPY" + bytes([version, 0]) + packed + text + data


def _lying_zip(file_size, compress_size=None):
    """An archive whose directory and local header claim other sizes than there are."""
    data = bytearray(_zip(zipfile.ZIP_DEFLATED, images=_npy((2, 2, 2), data=bytes(8))))
    for mark, offset in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):
        at = data.index(mark) + offset
        packed, _ = struct.unpack_from("<II", data, at)
        packed = packed if compress_size is None else compress_size
        struct.pack_into("<II", data, at, packed, file_size)
    return bytes(data)


def _huge_directory(size):
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, size, 4, 0)
    return b"PK\x03\x04" + b"PK\x01\x02" * (size // 4) + end


def _many_members():
    return _head(1, 2, 2) + bytes(4), gz(b"") * 20_000


def _bmp(width, height):
    data = bytearray(image_bytes(pixels(4, 4), "bmp"))
    struct.pack_into("<ii", data, 18, width, height)
    return bytes(data)


def _gif(width, height):
    data = bytearray(image_bytes(pixels(4, 4), "gif"))
    struct.pack_into("<HH", data, 6, width, height)
    return bytes(data)


def _jpeg(width, height):
    data = bytearray(image_bytes(pixels(8, 8), "jpg"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


def _webp(width, height):
    data = bytearray(image_bytes(pixels(8, 8), "webp", lossless=True))
    at = data.index(b"VP8L") + 9
    (word,) = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at, word & ~0xFFFFFFF | (width - 1) | (height - 1) << 14)
    return bytes(data)


def _gif_of_frames(count):
    frames = [image_bytes(pixels(4, 4, seed=seed), "gif") for seed in range(2)]
    body = frames[1][frames[1].index(b",") : -1]
    return frames[0][:-1] + body * count + b";"


def _idx_files():
    small, members = _many_members()
    yield "idx-2^96", _head(*[2**32 - 1] * 3)
    yield "idx-2^128", _head(*[2**32 - 1] * 4) + bytes(100)
    yield "idx-many-images", _head(2**32 - 1, 1, 1) + bytes(1000)
    yield "idx-flat", _head(1, 65535, 65535) + bytes(1000)
    yield "idx-gzip-claims-2^96", gz(_head(*[2**32 - 1] * 3))
    yield "idx-gzip-claims-above-cap", gz(_head(64, 256, 256))
    yield "idx-gzip-more-than-claimed", _zeros(BIG, head=_head(1, 2, 2))
    yield "idx-gzip-true-but-above-cap", _zeros(BIG, head=_head(128, 1024, 1024))
    yield "idx-gzip-of-gzip", gz(_zeros(BIG, head=_head(128, 1024, 1024)))
    yield "idx-gzip-empty-members", gz(small) + members
    yield "idx-gzip-no-header", _zeros(BIG)
    yield "idx-gzip-long-name", b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 500_000


def _npz_files():
    stored, deflated = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    yield "npz-shape-2^90", _zip(stored, images=_npy((2**30, 2**30, 2**30)))
    yield "npz-shape-overflows", _zip(stored, images=_npy((2**62, 2, 2), "<f8"))
    yield "npz-many-dimensions", _zip(stored, images=_npy((1,) * 3000))
    yield "npz-header-4-gib", _zip(stored, images=_npy((2, 2, 2), version=2, header_size=2**32 - 1))
    yield "npz-header-64-kib", _zip(stored, images=_npy((2, 2, 2), header_size=65535))
    yield "npz-deflate-above-cap", _zip(deflated, images=_npy((128, 1024, 1024), data=bytes(BIG)))
    yield "npz-deflate-unclaimed", _zip(deflated, images=_npy((1, 2, 2), data=bytes(BIG)))
    yield "npz-floats-above-cap", npz_bytes(images=np.zeros((4, 200, 200)))
    yield "npz-labels-bomb", npz_bytes(images=pixels(2, 2, 2), labels=np.zeros(2**24, np.uint8))
    yield "npz-levels-bomb", npz_bytes(images=pixels(2, 2, 2), levels=np.zeros(2**24, np.uint8))
    yield "npz-directory-lies", _lying_zip(2**32 - 2)
    yield "npz-directory-lies-twice", _lying_zip(2**32 - 2, 2**32 - 2)
    yield "npz-directory-huge", _huge_directory(2**24)
    yield "npz-objects", npz_bytes(images=np.array([[[None]]], object))
    yield "npz-lzma", _zip(zipfile.ZIP_LZMA, images=npy_bytes(np.zeros((8, 1024, 1024))))
    yield "npz-bzip2", _zip(zipfile.ZIP_BZIP2, images=npy_bytes(np.zeros((8, 1024, 1024))))


def _image_files():
    packed = zlib.compress(bytes(12))
    deflated = _zeros(BIG, wbits=15)
    yield "png-60000-square", png_bytes(60_000, 60_000, packed)
    yield "png-2^31-square", png_bytes(2**31 - 1, 2**31 - 1, packed)
    yield "png-true-but-above-cap", png_bytes(9000, 9000, deflated)
    yield "png-more-than-claimed", png_bytes(3, 3, deflated)
    yield "png-text", png_bytes(3, 3, packed, (b"zTXt", b"a\0\0" + deflated))
    yield "png-profile", png_bytes(3, 3, packed, (b"iCCP", b"a\0\0" + deflated))
    yield "bmp-huge", _bmp(2**31 - 1, 2**31 - 1)
    yield "bmp-true-but-above-cap", _bmp(9000, 9000)
    yield "gif-huge", _gif(65535, 65535)
    yield "gif-many-frames", _gif_of_frames(5000)
    yield "jpg-huge", _jpeg(65500, 65500)
    yield "webp-huge", _webp(16383, 16383)
    yield "ppm-huge", b"P6 999999 999999 255\n" + bytes(100)
    yield "ppm-long-number", b"P6 " + b"9" * 500_000 + b" 1 255\n"
    yield "ppm-no-end", b"P2 # " + b"c" * 500_000


def write_bombs(root):
    """Write every bomb into a folder of its own under `root`."""
    for name, data in _idx_files():
        write(root / name / "x", data)
    for name, data in _npz_files():
        write(root / name / "x.npz", data)
    for name, data in _image_files():
        write(root / name / f"x.{name.split('-')[0]}", data)
    for name, data, size in (
        ("cifar-sparse-10/x.bin", b"", 3073 * 10**7),
        ("cifar-sparse-100/x.bin", b"", 3074 * 10**7),
        ("idx-sparse/x", _head(3_000_000, 1000, 1000), 16 + 3 * 10**12),
        ("png-sparse/x.png", b"\x89PNG\r\n\x1a\n", 10**12),
    ):
        os.truncate(write(root / name, data), size)


def loads(root):
    """Return `{name: function that loads it}` for what `write_bombs` wrote."""
    readers = {"idx": idx, "npz": npz, "cifar": cifar}
    found = {}
    for path in sorted(Path(root).iterdir()):
        reader = readers.get(path.name.split("-")[0], folder)
        target = path if reader is folder else next(path.iterdir())
        found[path.name] = partial(reader, target, "all", max_bytes=CAP)
    return found


def warm_up(root):
    """Use every reader once, so that what libraries load at first use is not counted."""
    files = {"x": idx_bytes(pixels(3, 2, 2)), "x.npz": npz_bytes(images=pixels(3, 2, 2))}
    files["x.bin"] = cifar_bytes(3)
    for reader, name in ((idx, "x"), (npz, "x.npz"), (cifar, "x.bin")):
        reader(write(Path(root, "good", name), files[name]), "all")
    for suffix in ("png", "jpg", "bmp", "gif", "ppm", "webp"):
        path = write(Path(root, f"good-{suffix}", f"x.{suffix}"), image_bytes(pixels(9, 9), suffix))
        folder(path.parent, "all")


def peak():
    """Return the peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(bombs, scratch):
    """Load all bombs; print the growth of peak memory and the seconds of each."""
    warm_up(scratch)
    report = {}
    for name, load in loads(bombs).items():
        before, start = peak(), time.perf_counter()
        try:
            load()
            outcome = "loaded"
        except DataError as error:
            outcome = str(error)
        report[name] = (outcome, peak() - before, time.perf_counter() - start)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
