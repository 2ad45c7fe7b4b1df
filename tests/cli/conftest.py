"""The command line called in this process, and small data and runs to call it on."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from genfast.cli import main
from genfast.data import digits
from tests.data.build import write
from tests.data.sounds import tone, wav_file

SMALL = {
    "pixelcnn": ("channels=4", "blocks=1", "head_channels=8", "kernel_size=3"),
    "gated_pixelcnn": ("channels=4", "layers=1", "head_channels=8", "kernel_size=3"),
    "pixelcnn_plus_plus": ("filters=3", "resnets=1", "mixtures=2"),
    "wavenet": (
        "length=40",
        "residual_channels=4",
        "gate_channels=4",
        "skip_channels=4",
        "layers=3",
    ),
    "autoencoder": ("hidden=8", "latent_dim=2"),
    "vae": ("hidden=8,8", "latent_dim=2"),
    "gan": ("channels=4", "latent_dim=4"),
}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def call(*words: object) -> Result:
    """Call `genfast` with these words."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def genfast() -> Callable[..., Result]:
    return call


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety of the digits as an npz archive: 60 to train on, 30 to test."""
    path = tmp_path_factory.mktemp("data") / "few.npz"
    images = digits("all").images.numpy()[:90]
    np.savez(path, x_train=images[:60], x_test=images[60:], levels=17)
    return path


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 WAV files of two classes, 30 to 110 samples each."""
    path = tmp_path_factory.mktemp("sounds") / "words"
    for index in range(20):
        content = wav_file(tone(30 + 4 * index, index), rate=8000)
        write(path / ("one" if index % 2 else "two") / f"{index:02d}.wav", content)
    return path


@pytest.fixture(scope="session")
def small() -> Callable[[str], list[str]]:
    """The words that make a model as small as can be."""
    return lambda model: [word for pair in SMALL[model] for word in ("--set", pair)]


@pytest.fixture(scope="session")
def trained(
    data: Path,
    sounds: Path,
    small: Callable[[str], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """A run of a model, trained through the command line the first time it is asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def run(model: str) -> Path:
        if not (folder / model).exists():
            source, batch = (sounds, 5) if model == "wavenet" else (data, 20)
            words = ["--data", source, "--out", folder / model, "--epochs", 2]
            words += ["--batch-size", batch]
            words += ["--no-progress", "--sample-every", 0]
            result = call("train", model, *words, *small(model))
            assert (result.code, result.err) == (0, "")
        return folder / model

    return run
