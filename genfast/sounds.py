"""Batches of integer sounds as WAV files."""

import io
from pathlib import Path

import torch
from torch import Tensor

from genfast._files import make_folder, write_atomic
from genfast.data.companding import decode
from genfast.errors import InputError


def save_sounds(
    sounds: Tensor,
    folder: str | Path,
    sample_rate: int,
    levels: int = 256,
    companding: str = "mu-law",
) -> list[Path]:
    """Write each sound to a WAV file of 16 bits: 0000.wav, 0001.wav, ... in a folder.

    Args:
        sounds: [N, 1, T] integer levels 0 .. levels - 1.
        folder: made if missing; a reader sees the whole old or the whole new file of each name.
        sample_rate: in Hz.
        levels: number of levels of a sample.
        companding: "mu-law" or "linear", see `genfast.data.companding`.

    Returns:
        The paths, in order.

    Raises:
        InputError: if the sounds are not as above, or a file cannot be written.
    """
    if sounds.dim() != 3 or sounds.shape[1] != 1 or sounds.numel() == 0:
        shape = list(sounds.shape)
        raise InputError(f"save_sounds: expected sounds [N, 1, T], none empty, got shape={shape}")
    amplitudes = decode(sounds.detach().cpu(), levels, companding)
    folder = make_folder(Path(folder))
    paths = []
    for index, amplitude in enumerate(amplitudes):
        path, data = folder / f"{index:04d}.wav", wav_bytes(amplitude[0], sample_rate)
        try:
            write_atomic(path, data)
        except OSError as error:
            reason = f"{error.strerror}, {len(data)} bytes needed"
            raise InputError(f"save_sounds: cannot write {path}: {reason}") from error
        paths.append(path)
    return paths


def wav_bytes(amplitude: Tensor, sample_rate: int) -> bytes:
    """Return amplitudes [T] in -1 .. 1 as the bytes of a WAV file of 16-bit samples.

    Sample s stands for the amplitudes from s / 32768 up to the next step, as linear levels do.
    """
    import soundfile  # loads libsndfile, which is needed only here

    samples = (amplitude.double() * 2**15).floor().clamp(-(2**15), 2**15 - 1).to(torch.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.numpy(), sample_rate, subtype="PCM_16", format="WAV")
    return buffer.getvalue()
