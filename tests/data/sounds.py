"""Small WAV files as bytes, written without any library."""

import struct

import numpy as np

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE


def samples_of(values, bits, tag=PCM):
    """Interleaved frames [T, C] as the bytes of a data chunk; integers already have `bits`."""
    values = np.asarray(values)
    if tag == FLOAT:
        return values.astype(f"<f{bits // 8}").tobytes()
    if bits == 8:
        return (values + 128).astype(np.uint8).tobytes()
    if bits == 24:
        return values.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    return values.astype(f"<i{bits // 8}").tobytes()


def chunk(name, data):
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def wav_file(
    values, rate=8000, bits=16, tag=PCM, before=b"", after=b"", extensible=False, **changes
):
    """A WAV file of frames [T] or [T, C]; changes replace fields of its format chunk."""
    values = np.asarray(values)
    channels = values.shape[1] if values.ndim == 2 else 1
    fields = {
        "tag": EXTENSIBLE if extensible else tag,
        "channels": channels,
        "rate": rate,
        "frame": channels * bits // 8,
        "bits": bits,
        **changes,
    }
    form = struct.pack(
        "<HHIIHH",
        fields["tag"],
        fields["channels"],
        fields["rate"],
        fields["rate"] * fields["frame"] % 2**32,
        fields["frame"],
        fields["bits"],
    )
    if extensible:
        guid = struct.pack("<H", tag) + b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
        form += struct.pack("<HHI", 22, bits, 0) + guid
    body = chunk(b"fmt ", form) + before + chunk(b"data", samples_of(values, bits, tag)) + after
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def tone(length=100, seed=0):
    """A noisy sine of 16 bits, [T] int16."""
    noise = np.random.default_rng(seed)
    wave = np.sin(np.arange(length) * noise.uniform(0.05, 0.5)) * 20000
    return (wave + noise.normal(0, 500, length)).clip(-32768, 32767).astype(np.int16)
