"""WaveNet through the command line: train, stop, resume, sample; and labels."""

import json
import signal
import subprocess
import sys

import pytest
import torch

from genfast.data import npz as read_npz
from genfast.data import wav
from tests.cli.test_cli_signals import last_row, wait_for_a_step


def test_train_then_sample_wav_files(genfast, trained, tmp_path):
    run = trained("wavenet")
    content = json.loads((run / "run.json").read_bytes())
    assert content["model"]["config"]["sample_rate"] == 8000
    assert content["model"]["config"]["length"] == 40
    words = ["-n", 3, "-o", tmp_path / "new" / "out", "--no-progress"]
    result = genfast("sample", run, *words)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("3 sounds in ")
    drawn = wav(tmp_path / "new" / "out", "all")
    assert (len(drawn), drawn.sample_rate) == (3, 8000)
    assert drawn.offsets.diff().tolist() == [40, 40, 40]
    result = genfast("sample", run, "-n", 2, "--no-progress", "--length", 55, "--temperature", 0.5)
    assert result.code == 0
    assert wav(run / "sample", "all").offsets.diff().tolist() == [55, 55]


def test_the_seed_decides_the_sounds(genfast, trained, tmp_path):
    def draw(name, *words):
        words = ["-n", 3, "-o", tmp_path / name, "--no-progress", *words]
        assert genfast("sample", trained("wavenet"), *words).code == 0
        return wav(tmp_path / name, "all").samples

    assert torch.equal(draw("a"), draw("b"))
    assert not torch.equal(draw("a"), draw("c", "--seed", 1))
    assert torch.equal(draw("a"), draw("d", "--batch-size", 2))


def test_training_says_what_to_do_next(genfast, sounds, small, tmp_path):
    words = ["--data", f"wav:{sounds}", "--out", tmp_path, "--epochs", 1, "--batch-size", 8]
    words += ["--valid", sounds, "--sample-count", 2, "--log-every", 1]
    result = genfast("train", "wavenet", *words, *small("wavenet"))
    assert result.code == 0
    assert "-o sounds" in result.out
    assert "sounds/s" in result.err
    assert "valid/loss" in (tmp_path / "log.csv").read_text()
    (folder,) = (tmp_path / "samples").iterdir()
    assert len(wav(folder, "all")) == 2


@pytest.mark.filterwarnings("default")
def test_a_length_that_no_sound_has_is_one_line_of_warning(genfast, sounds, small, tmp_path):
    words = ["--data", f"wav:{sounds}", "--out", tmp_path, "--epochs", 1, "--no-progress"]
    settings = [word.replace("length=40", "length=500") for word in small("wavenet")]
    result = genfast("train", "wavenet", *words, "--sample-every", 0, *settings)
    assert result.code == 0
    (line,) = result.err.splitlines()
    assert line.startswith("genfast: warning: ")
    assert "silence" in line
    assert "length=500" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_goes_on_to_the_same_weights(sounds, small, tmp_path, number):
    """Two processes, the first of which is stopped, against one that is not."""

    def words(run, *more):
        start = [sys.executable, "-m", "genfast.cli", "train", "wavenet", "--data", sounds]
        fixed = ["--out", run, "--sample-every", 0, "--log-every", 1, "--no-progress"]
        return [str(word) for word in [*start, *fixed, *small("wavenet"), *more]]

    run, whole = tmp_path / "stopped", tmp_path / "whole"
    command = words(run, "--epochs", 100_000, "--batch-size", 4)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_a_step(run, process)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert err == f"genfast: stopped; --resume goes on with the run in {run}\n"
    epochs = last_row(run)["epoch"] + 2
    for target, more in ((run, ["--resume"]), (whole, ["--batch-size", 4])):
        done = subprocess.run(words(target, "--epochs", epochs, *more), capture_output=True)
        assert done.returncode == 0, done.stderr
    newest = [max((each / "checkpoints").glob("step-*")) for each in (run, whole)]
    assert newest[0].name == newest[1].name
    files = [(each / "model.safetensors").read_bytes() for each in newest]
    assert files[0] == files[1]


def test_classes_come_from_the_folders(genfast, sounds, small, tmp_path):
    words = ["--data", sounds, "--out", tmp_path / "run", "--epochs", 1, "--no-progress"]
    words += ["--set", "classes=2", "--sample-every", 0]
    assert genfast("train", "wavenet", *words, *small("wavenet")).code == 0
    words = ["-n", 2, "-o", tmp_path / "one", "--label", 1, "--no-progress"]
    assert genfast("sample", tmp_path / "run", *words).code == 0
    result = genfast("sample", tmp_path / "run", "--label", 2)
    assert (result.code, result.err) == (2, "genfast: sample: expected --label in 0 .. 1, got 2\n")


def test_labels_of_images_decide_what_is_drawn(genfast, small, tmp_path):
    words = ["--data", "digits", "--out", tmp_path / "run", "--epochs", 1, "--no-progress"]
    words += ["--set", "classes=10", "--sample-every", 0, "--batch-size", 500]
    assert genfast("train", "gated_pixelcnn", *words, *small("gated_pixelcnn")).code == 0

    def draw(name, *words):
        words = ["-n", 12, "--npz", tmp_path / name, "--no-progress", *words]
        assert genfast("sample", tmp_path / "run", *words).code == 0
        return read_npz(tmp_path / name, "all").images

    in_turn, ones = draw("a.npz"), draw("b.npz", "--label", 1)
    assert torch.equal(in_turn[[1, 11]], ones[[1, 11]])
    assert not torch.equal(in_turn, ones)
    assert torch.equal(in_turn, draw("c.npz", "--batch-size", 5))
    result = genfast("evaluate", tmp_path / "run", "--samples", 20, "--classifier", "logistic")
    assert (result.code, result.err) == (0, "")
    assert "bits per dimension" in result.out
