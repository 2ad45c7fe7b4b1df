import math

import numpy as np
import pytest
import torch

from genfast.data import mu_law_decode, mu_law_encode
from genfast.data.companding import decode, encode
from genfast.errors import InputError

LEVELS = [2, 3, 17, 256, 257, 65536]


@pytest.mark.parametrize("companding", ["mu-law", "linear"])
@pytest.mark.parametrize("levels", LEVELS)
def test_levels_come_back_from_their_amplitudes(levels, companding):
    every = torch.arange(levels)
    amplitudes = decode(every, levels, companding)
    assert amplitudes.dtype == torch.float32
    assert -1 <= amplitudes.min().item() < amplitudes.max().item() <= 1
    assert (amplitudes.diff() > 0).all()
    again = encode(amplitudes, levels, companding)
    assert torch.equal(again.long(), every)
    assert again.dtype == (torch.uint8 if levels <= 256 else torch.int32)


def test_mu_law_is_the_formula():
    x = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    y = np.sign(x.numpy()) * np.log(1 + 255 * np.abs(x.numpy())) / math.log(256)
    expected = np.floor((y + 1) / 2 * 255 + 0.5)
    assert np.array_equal(mu_law_encode(x).numpy(), expected)


def test_mu_law_is_finer_for_quiet_sounds():
    amplitudes = mu_law_decode(torch.arange(256))
    steps = amplitudes.diff()
    assert steps[127] < steps[160] < steps[254]
    error = (mu_law_decode(mu_law_encode(torch.tensor([0.001, 0.01, 0.1, 0.9]))) - 0).tolist()
    assert error == pytest.approx([0.001, 0.01, 0.1, 0.9], rel=0.03, abs=1e-4)


def test_silence_is_the_middle_level_and_what_is_too_loud_is_clipped():
    loud = torch.tensor([0.0, -0.0, 1.0, 7.0, -1.0, -7.0])
    assert mu_law_encode(loud).tolist() == [128, 128, 255, 255, 0, 0]
    assert encode(loud, 65536, "linear").tolist() == [32768, 32768, 65535, 65535, 0, 0]


def test_every_sample_of_16_bits_is_a_linear_level():
    samples = torch.arange(-(2**15), 2**15)
    levels = encode(samples / 2**15, 65536, "linear")
    assert torch.equal(levels.long(), samples + 2**15)
    back = (decode(levels, 65536, "linear").double() * 2**15).floor()
    assert torch.equal(back.long(), samples)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mu_law_encode(torch.zeros(2, dtype=torch.int32)), "floating-point amplitudes"),
        (lambda: mu_law_encode(torch.tensor([math.nan])), "finite amplitudes"),
        (lambda: mu_law_encode(torch.zeros(2), 1), "2 to 65536 levels, got levels=1"),
        (lambda: mu_law_decode(torch.zeros(2)), "integer levels, got dtype=torch.float32"),
        (lambda: mu_law_decode(torch.tensor([256])), r"levels in 0 \.\. 255, got 256 \.\. 256"),
        (lambda: mu_law_decode(torch.tensor([-1])), r"levels in 0 \.\. 255"),
        (lambda: encode(torch.zeros(2), 256, "a-law"), "companding in"),
        (lambda: decode(torch.zeros(2).int(), 256, "a-law"), "companding in"),
    ],
)
def test_refuses_what_is_out_of_range(call, message):
    with pytest.raises(InputError, match=message):
        call()
