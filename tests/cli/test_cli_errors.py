import errno
import os
import subprocess
import sys

import pytest
import typer

from genfast.cli import main
from genfast.cli._run import explain, one_line
from genfast.errors import InputError

# words of a command, and what its one line says; {data} and {vae} are replaced
CASES = {
    "unknown model": (
        "train dcgan --data digits",
        "train: expected MODEL to be one of pixelcnn, gated_pixelcnn, pixelcnn_plus_plus, wavenet, "
        "autoencoder, vae, gan, got 'dcgan'",
    ),
    "no model": ("train", "Missing argument 'MODEL' (see genfast train --help)"),
    "no data": ("train vae", "Missing option '--data' (see genfast train --help)"),
    "unknown command": ("trian", "No such command 'trian'"),
    "unknown option": ("train vae --data digits --epoch 3", "--epochs"),
    "no number": ("train vae --data digits --epochs many", "Invalid value for '--epochs'"),
    "bad number": ("train vae --data {data} --out {new} --epochs 0", ">= 1, got epochs=0"),
    "bad rate": ("train vae --data {data} --out {new} --lr -1", "learning_rate=-1.0"),
    "bad optimizer": ("train vae --data {data} --out {new} --optimizer adm", "optimizer='adm'"),
    "no folder": ("train vae --data {missing}", "nothing there"),
    "no dataset": ("train vae --data {empty}", "expected files of one format"),
    "wrong format": ("train vae --data cifar:{data}", "few.npz"),
    "bad split": ("train vae --data digits --valid digits --valid-split some", "split"),
    "size of no folder": ("train vae --data digits --size 16", "a folder of images with --size"),
    "bad size": ("train vae --data folder:{empty} --size 0", "N or HxW, such as 32 or 32x48"),
    "bad setting": ("train vae --data {data} --out {new} --set width=3", "hidden"),
    "no setting": ("train vae --data {data} --out {new} --set width", "--set NAME=VALUE"),
    "setting twice": ("train vae --data {data} --set a=1 --set a=2", "once, got a twice"),
    "bad value": ("train vae --data {data} --out {new} --set beta=-1", "beta"),
    "run there": ("train vae --data {data} --out {vae}", "--resume to go on with that run"),
    "bad device": ("sample {vae} --device tpu", "device"),
    "no run": ("sample {missing}", "expected the folder of a run"),
    "empty run": ("sample {empty} -o {new}.png", "expected step-* folders"),
    "no temperature": ("sample {vae} --temperature 1", "a model with a temperature, got VAE"),
    "no softmax": ("sample {vae} --top-k 3", "a model with a top_k, got VAE"),
    "bad top-k": ("sample {wavenet} --top-k 0 -n 1", "top_k"),
    "bad top-p": ("sample {wavenet} --top-p 1.5 -n 1", "top_p"),
    "no length": ("sample {vae} --length 9", "a model with a length, got VAE"),
    "no classes": ("sample {vae} --label 1", "a model with classes for --label, got 1"),
    "sounds for images": ("train vae --data {sounds}", "expected images, found WAV files"),
    "images for sounds": ("train wavenet --data {data}", "few.npz: expected a WAV file"),
    "digits for sounds": ("train wavenet --data digits", "a folder of WAV files"),
    "size of sounds": ("train wavenet --data {sounds} --size 8", "no --size and no --channels"),
    "sounds as npz": ("sample {wavenet} --npz {new}.npz", "no --npz with sounds"),
    "no such length": ("sample {wavenet} --length 0", "length >= 1, got length=0"),
    "evaluate sounds": ("evaluate {wavenet}", "a model of images, got WaveNet, a model of sounds"),
    "compare sounds": ("compare wavenet --data {data} --out {new}", "expected a family"),
    "compare a run of sounds": (
        "compare {wavenet} --data {data} --out {new}",
        "expected runs of images",
    ),
    "bad count": ("sample {vae} -n 0", "--count of at least 1, got 0"),
    "bad seed": ("sample {vae} --seed -1", "--seed in [0, 2**63), got -1"),
    "no picture": ("sample {vae} -o grid.jpg", "a name in .png, got 'grid.jpg'"),
    "in a file": ("sample {vae} -o {data}/grid.png", "few.npz"),
    "bad shape": ("evaluate {vae} --data {wide}", "the model's shape and levels"),
    "bad classifier": ("evaluate {vae} --classifier cnn", "among logistic, forest, mlp, knn"),
    "few samples": ("evaluate {vae} --samples 3 --classifier logistic", "20"),
    "compare nothing": ("compare cnn --data {data} --out {new}", "expected a family"),
    "compare setting": ("compare --data digits --out {new} --set vae=1", "MODEL.NAME=VALUE"),
    "info option": ("info --verbose", "No such option: --verbose"),
}


@pytest.fixture(scope="module")
def places(data, sounds, trained, tmp_path_factory):
    import numpy as np

    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    np.savez(folder / "wide.npz", images=np.zeros((40, 8, 9), np.uint8), levels=17)
    named = {name: folder / name for name in ("empty", "missing", "new")}
    runs = {name: trained(name) for name in ("vae", "wavenet")}
    return {"data": data, "sounds": sounds, "wide": folder / "wide.npz", **runs, **named}


@pytest.mark.parametrize("case", CASES)
def test_an_error_is_one_line_and_exit_code_2(genfast, places, case):
    words, expected = CASES[case]
    result = genfast(*(word.format(**places) for word in words.split()))
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("genfast: ")
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    assert expected in result.err


def test_evaluate_wants_data_where_the_run_does_not_name_them(genfast, trained, tmp_path):
    moved = tmp_path / "run"
    moved.mkdir()
    (moved / "checkpoints").symlink_to(trained("vae") / "checkpoints")
    result = genfast("evaluate", moved)
    assert result.code == 2
    assert "expected --data" in result.err


@pytest.mark.parametrize(
    "words", [["--traceback", "sample", "no"], ["sample", "no", "--traceback"]]
)
def test_a_traceback_is_there_for_the_asking(words):
    with pytest.raises(InputError):
        main(words)


def test_the_environment_asks_for_a_traceback_too(monkeypatch):
    monkeypatch.setenv("GENFAST_TRACEBACK", "1")
    with pytest.raises(InputError):
        main(["sample", "no"])


def test_a_fault_of_the_program_is_not_hidden(trained, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a fault")

    monkeypatch.setattr("genfast.images.save_grid", broken)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["sample", str(trained("vae"))])


def test_errors_of_the_system_and_of_memory_are_explained():
    denied = PermissionError(errno.EACCES, "Permission denied", "grid.png")
    assert explain(denied) == "grid.png: Permission denied"
    assert explain(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory.\nDetails")
    expected = "out of memory: CUDA out of memory.; try a smaller --batch-size"
    assert explain(out_of_memory) == expected
    assert explain(ValueError("a fault")) is None


def test_a_message_is_one_line_whatever_is_in_it():
    assert one_line("a\nb\r\n  c") == "a b c"
    assert one_line("x\x1b[2J\u202ey") == "x\\x1b[2J\\u202ey"


def test_as_a_program_too():
    words = [sys.executable, "-m", "genfast.cli", "sample", "nowhere"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "genfast: load: expected the folder of a run, got run='nowhere'\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt, typer.Abort])
def test_ctrl_c_exits_with_130(genfast, monkeypatch, error):
    def interrupted():
        raise error

    monkeypatch.setattr("genfast.info.collect", interrupted)
    assert genfast("info").code == 130


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_is_no_error(unbuffered):
    words = [sys.executable, "-m", "genfast.cli", "--version"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stream:
        done = subprocess.run(
            words, stdout=stream, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert (done.returncode, done.stderr) == (1, "")
