"""Batches of integer sounds as WAV files."""

import pytest
import soundfile
import torch

from genfast.data import wav
from genfast.data.companding import decode
from genfast.errors import InputError
from genfast.sounds import save_sounds


def test_sounds_come_back_as_they_were_written(tmp_path):
    sounds = torch.randint(0, 65536, (3, 1, 50))
    paths = save_sounds(sounds, tmp_path / "new", 11025, 65536, "linear")
    assert [path.name for path in paths] == ["0000.wav", "0001.wav", "0002.wav"]
    data = wav(tmp_path / "new", "all")
    assert data.sample_rate == 11025
    assert torch.equal(data.samples.view(3, 1, 50).int() + 2**15, sounds.int())


def test_mu_law_levels_are_expanded(tmp_path):
    sounds = torch.arange(256).view(1, 1, 256)
    (path,) = save_sounds(sounds, tmp_path, 8000)
    samples, rate = soundfile.read(path, dtype="float64")
    assert rate == 8000
    assert soundfile.info(path).subtype == "PCM_16"
    assert abs(samples - decode(sounds[0, 0], 256, "mu-law").numpy()).max() <= 2**-15


@pytest.mark.parametrize(
    ("sounds", "message"),
    [
        (torch.zeros(2, 30, dtype=torch.uint8), r"sounds \[N, 1, T\], none empty"),
        (torch.zeros(2, 2, 30, dtype=torch.uint8), r"sounds \[N, 1, T\]"),
        (torch.zeros(0, 1, 30, dtype=torch.uint8), r"sounds \[N, 1, T\]"),
        (torch.zeros(2, 1, 30), "integer levels"),
        (torch.full((2, 1, 30), 256), r"levels in 0 \.\. 255"),
    ],
)
def test_refuses_what_are_no_sounds(tmp_path, sounds, message):
    with pytest.raises(InputError, match=message):
        save_sounds(sounds, tmp_path, 8000)


def test_refuses_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="the file"):
        save_sounds(torch.zeros(1, 1, 5, dtype=torch.uint8), tmp_path / "taken", 8000)
