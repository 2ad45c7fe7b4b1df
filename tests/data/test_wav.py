import io
import os
import re
import struct

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genfast.data import SoundDataset, open_data, open_sounds, wav
from genfast.data.wav import decode
from genfast.errors import DataError, InputError
from tests.data.build import image_bytes, pixels, write
from tests.data.sounds import FLOAT, chunk, tone, wav_file

EXAMPLES = os.environ.get("GENFAST_FUZZ_EXAMPLES")


def only(path):
    """The samples of a file that is a whole dataset."""
    data = wav(path, "all")
    assert len(data) == 1
    return data[0][0]


def test_16_bits_are_read_as_they_are(tmp_path):
    samples = np.array([-32768, -1, 0, 1, 32767], np.int16)
    path = write(tmp_path / "a.wav", wav_file(samples, rate=11025))
    data = wav(path, "all")
    assert data.samples.tolist() == samples.tolist()
    assert (data.sample_rate, data.name, data.labels) == (11025, "a", None)


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(
    ("bits", "tag"), [(8, 1), (16, 1), (24, 1), (32, 1), (32, FLOAT), (64, FLOAT)]
)
def test_other_depths_become_16_bits(tmp_path, bits, tag, extensible):
    wanted = np.array([-32768, -12800, -256, 0, 256, 12800, 32512])
    values = wanted / 2**15 if tag == FLOAT else wanted * 2.0 ** (bits - 16)
    content = wav_file(values, bits=bits, tag=tag, extensible=extensible)
    assert only(write(tmp_path / "a.wav", content)).tolist() == wanted.tolist()


def test_24_bits_are_rounded_to_the_nearest(tmp_path):
    content = wav_file(np.array([256 * 7 + 100, 256 * 7 + 200, 2**23 - 1]), bits=24)
    assert only(write(tmp_path / "a.wav", content)).tolist() == [7, 8, 32767]


def test_channels_become_their_mean(tmp_path):
    frames = np.array([[100, 300], [-500, 500], [32767, 32767]], np.int16)
    assert only(write(tmp_path / "a.wav", wav_file(frames))).tolist() == [200, 0, 32767]


def test_floats_that_are_too_loud_are_clipped(tmp_path):
    content = wav_file(np.array([1.5, -7.0, 0.5]), bits=32, tag=FLOAT)
    assert only(write(tmp_path / "a.wav", content)).tolist() == [32767, -32768, 16384]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_floats_must_be_finite(tmp_path, bad):
    path = write(tmp_path / "a.wav", wav_file(np.array([0.5, bad]), bits=32, tag=FLOAT))
    with pytest.raises(DataError, match=r"a\.wav: expected finite samples, found -?(nan|inf)"):
        wav(path, "all")


def test_what_soundfile_writes_is_read(tmp_path):
    samples = tone(333)
    for subtype in ("PCM_16", "PCM_24", "FLOAT", "DOUBLE"):
        soundfile.write(tmp_path / "a.wav", samples / 2**15, 22050, subtype=subtype)
        assert only(tmp_path / "a.wav").tolist() == samples.tolist(), subtype


def test_other_chunks_are_passed_over(tmp_path):
    extra = chunk(b"LIST", b"odd")
    content = wav_file(tone(), before=extra, after=extra + chunk(b"data", b"\1\2"))
    assert only(write(tmp_path / "a.wav", content)).tolist() == tone().tolist()
    assert only(write(tmp_path / "a.wav", content + b"junk")).tolist() == tone().tolist()


def folder_of(root, names, rate=8000):
    for index, name in enumerate(names):
        write(root / name, wav_file(tone(50 + index, index), rate))
    return root


def test_files_come_in_the_order_of_their_names_and_others_are_left_alone(tmp_path):
    folder_of(tmp_path, ["b.wav", "a.WAV", "c.wave"])
    write(tmp_path / "notes.txt", b"x")
    write(tmp_path / ".hidden.wav", b"x")
    data = wav(tmp_path, "all")
    assert data.offsets.diff().tolist() == [51, 50, 52]
    assert data.name == tmp_path.name


def test_subfolders_are_classes(tmp_path):
    folder_of(tmp_path, ["two/a.wav", "one/b.wav", "two/c.wav"])
    data = wav(tmp_path, "all")
    assert data.labels.tolist() == [0, 1, 1]
    assert data.offsets.diff().tolist() == [51, 50, 52]


def test_splits_are_folders_or_a_fixed_tenth(tmp_path):
    folder_of(tmp_path / "split", ["train/x/a.wav", "train/y/b.wav", "test/y/c.wav"])
    assert wav(tmp_path / "split", "train").labels.tolist() == [0, 1]
    assert wav(tmp_path / "split", "test").labels.tolist() == [1]
    assert sorted(wav(tmp_path / "split", "all").labels.tolist()) == [0, 1, 1]
    folder_of(tmp_path / "flat", [f"{index:02d}.wav" for index in range(20)])
    train, test = (wav(tmp_path / "flat", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 2)
    lengths = torch.cat((train.offsets.diff(), test.offsets.diff())).sort().values
    assert lengths.tolist() == list(range(50, 70))
    with pytest.raises(DataError, match="a validation split"):
        wav(tmp_path / "flat", "valid")
    with pytest.raises(DataError, match="at least 2 sounds to hold out"):
        wav(tmp_path / "flat" / "00.wav", "train")
    with pytest.raises(InputError, match="split to be one of"):
        wav(tmp_path / "flat", "some")


def test_one_sample_rate_for_all(tmp_path):
    folder_of(tmp_path, ["a.wav", "b.wav"])
    write(tmp_path / "c.wav", wav_file(tone(), 16000))
    expected = r"c\.wav: expected 8000 Hz like a\.wav \(nothing is resampled\), found 16000 Hz"
    with pytest.raises(DataError, match=expected):
        wav(tmp_path, "all")
    folder_of(tmp_path / "s", ["train/a.wav", "test/a.wav"])
    write(tmp_path / "s" / "test" / "a.wav", wav_file(tone(), 16000))
    with pytest.raises(DataError, match="every split at 8000 Hz, found 16000 Hz"):
        wav(tmp_path / "s", "all")


def test_memory_is_capped_before_it_is_taken(tmp_path):
    folder_of(tmp_path, [f"{index}.wav" for index in range(9)])
    assert len(wav(tmp_path, "all", max_bytes=1000)) == 9
    with pytest.raises(DataError, match="9 sounds of at most max_bytes=850"):
        wav(tmp_path, "all", max_bytes=850)
    with pytest.raises(DataError, match="a WAV file of at most max_bytes=100"):
        wav(tmp_path, "all", max_bytes=100)
    path = write(tmp_path / "wide" / "a.wav", wav_file(np.zeros((90, 2), np.int16)))
    with pytest.raises(DataError, match="a decoded sound of 90 frames of at most max_bytes=1000"):
        wav(path, "all", max_bytes=1000)


def broken(**changes):
    return wav_file(tone(), **changes)


def with_bytes(place, data):
    content = bytearray(broken())
    content[place : place + len(data)] = data
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "RIFF"),
        (b"hello", "first bytes 0x68656c6c6f"),
        (image_bytes(pixels(4, 4), "png"), "RIFF"),
        (b"RIFX" + broken()[4:], "RIFF"),
        (with_bytes(8, b"AVI "), "RIFF"),
        (with_bytes(4, b"\xff\xff\xff\xff"), "4294967303 bytes, as its header says"),
        (with_bytes(40, struct.pack("<I", 10_000)), "10000 bytes of chunk b'data'"),
        (with_bytes(12, b"FMT "), "a chunk called fmt"),
        (with_bytes(36, b"DATA"), "a chunk called data"),
        (with_bytes(16, struct.pack("<I", 14)), "expected"),
        (wav_file(np.zeros(0)), "at least one whole frame of 2 bytes, found 0 bytes"),
        (broken(tag=6), "format 6 of 16 bits"),
        (broken(tag=2), "format 2 of 16 bits"),
        (broken(bits=12, frame=2), "format 1 of 16 bits|format 1 of 12 bits"),
        (broken(channels=0), "1 to 64 channels and a sample rate"),
        (broken(channels=65, frame=130), "1 to 64 channels"),
        (wav_file(tone(), rate=0), "1 to 64 channels and a sample rate in Hz, found 1 and 0"),
        (broken(frame=3), "frames of 2 bytes, found 3"),
        (broken(channels=3, frame=6), "whole frame of 6 bytes, found 200 bytes"),
    ],
)
def test_hostile_files_are_refused_by_name(tmp_path, content, message):
    path = write(tmp_path / "bad.wav", content)
    with pytest.raises(DataError, match=message) as caught:
        wav(path, "all")
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def test_every_prefix_is_refused(tmp_path):
    for content in (
        wav_file(tone(40), after=chunk(b"LIST", b"abc")),
        wav_file(tone(40).reshape(-1, 2), extensible=True),
    ):
        path = write(tmp_path / "a.wav", content)
        only(path)
        for size in range(len(content) - 1):
            path.write_bytes(content[:size])
            with pytest.raises(DataError, match=re.escape(str(path))):
                wav(path, "all")


@pytest.mark.parametrize("format_", ["FLAC", "AIFF", "OGG"])
def test_other_formats_named_wav_are_refused(tmp_path, format_):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), 8000, format=format_)
    with pytest.raises(DataError, match="a WAV file"):
        wav(write(tmp_path / "a.wav", buffer.getvalue()), "all")


def test_compressed_wav_files_are_refused(tmp_path):
    for subtype in ("ULAW", "IMA_ADPCM"):
        soundfile.write(tmp_path / "a.wav", tone(), 8000, subtype=subtype)
        with pytest.raises(DataError, match="PCM of 8, 16, 24 or 32 bits"):
            wav(tmp_path / "a.wav", "all")


def test_links_out_of_the_folder_need_trust(tmp_path):
    folder_of(tmp_path / "real", ["a.wav", "b.wav"])
    (tmp_path / "set").mkdir()
    for name in ("a.wav", "b.wav"):
        os.symlink(tmp_path / "real" / name, tmp_path / "set" / name)
    with pytest.raises(DataError, match="follow_links=True"):
        wav(tmp_path / "set", "all")
    assert len(wav(tmp_path / "set", "all", follow_links=True)) == 2


def test_pipes_and_folders_named_wav_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(DataError, match="expected a file, found a pipe"):
        wav(tmp_path, "all")
    (tmp_path / "sub" / "b.wav").mkdir(parents=True)
    with pytest.raises(DataError, match="expected"):
        wav(tmp_path / "sub", "all")


def test_images_and_sounds_have_different_doors(tmp_path):
    folder_of(tmp_path, ["a.wav", "b.wav"])
    with pytest.raises(DataError, match="expected images, found WAV files, which are sounds"):
        open_data(tmp_path)
    with pytest.raises(DataError, match="expected images, found sounds"):
        open_data(f"wav:{tmp_path}")
    assert len(open_sounds(f"wav:{tmp_path}", "all")) == 2
    assert len(open_sounds(tmp_path, "all")) == 2
    with pytest.raises(DataError, match="a folder of WAV files, found the name of images"):
        open_sounds("digits")
    with pytest.raises(DataError, match="nothing there"):
        open_sounds(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"sound files \(\.wav \.wave\), found none"):
        open_sounds(tmp_path / "empty")


@settings(
    max_examples=int(EXAMPLES or 150),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.integers(0, 120), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4
    ),
    st.booleans(),
)
def test_edited_files_load_or_are_refused(tmp_path, edits, extensible):
    content = bytearray(wav_file(tone(30), extensible=extensible))
    for place, data in edits:
        content[place : place + len(data)] = data
    path = write(tmp_path / "a.wav", bytes(content))
    try:
        samples, header = decode(path, 2**18)
    except DataError:
        return
    assert samples.dtype == np.int16
    assert len(samples) == header.frames >= 1
    assert isinstance(wav(path, "all"), SoundDataset)
