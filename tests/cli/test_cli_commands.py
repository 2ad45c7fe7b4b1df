import gzip
import json
import struct

import numpy as np
import pytest
from PIL import Image

from genfast.data import npz as read_npz

MODELS = ["pixelcnn", "gated_pixelcnn", "pixelcnn_plus_plus", "autoencoder", "vae", "gan"]


@pytest.mark.parametrize("model", MODELS)
def test_train_then_sample_then_evaluate(genfast, trained, tmp_path, model):
    run = trained(model)
    assert (run / "summary.json").is_file()

    grid = tmp_path / "new" / "grid.png"
    result = genfast("sample", run, "-n", 6, "-o", grid, "--columns", 3, "--no-progress")
    assert (result.code, result.err) == (0, "")
    assert "6 images" in result.out
    assert str(grid) in result.out
    with Image.open(grid) as image:
        assert image.width > image.height

    words = ["--samples", 20, "--classifier", "logistic", "--batch-size", 20]
    result = genfast("evaluate", run, *words)
    assert (result.code, result.err) == (0, "")
    assert "two-sample accuracy, logistic" in result.out
    assert ("bits per dimension" in result.out) == ("pixelcnn" in model or model == "vae")
    assert ("reconstruction error" in result.out) == (model in ("autoencoder", "vae"))
    figures = json.loads((run / "evaluation.json").read_bytes())
    assert figures["data"] == {"name": "few", "split": "test", "count": 30, "levels": 17}
    assert list(figures["two_sample"]) == ["logistic"]


def test_training_options_reach_the_run(genfast, data, small, tmp_path):
    words = ["--lr", 0.01, "--optimizer", "sgd", "--betas", 0.5, 0.9, "--weight-decay", 0.1]
    words += ["--clip-grad-norm", 2, "--ema-decay", 0.9, "--amp", "--amp-dtype", "bfloat16"]
    words += ["--seed", 7, "--device", "cpu", "--log-every", 1, "--sample-every", 0, "--keep", 3]
    words += ["--sample-count", 4, "--checkpoint-every", 2, "--no-tensorboard", "--no-progress"]
    words += ["--epochs", 1, "--batch-size", 20, "--valid", data, "--out", tmp_path]
    result = genfast("train", "vae", "--data", data, *words, *small("vae"))
    assert (result.code, result.err) == (0, "")
    content = json.loads((tmp_path / "run.json").read_bytes())
    assert content["training"] == {
        "epochs": 1,
        "batch_size": 20,
        "learning_rate": 0.01,
        "optimizer": "sgd",
        "betas": [0.5, 0.9],
        "weight_decay": 0.1,
        "clip_grad_norm": 2.0,
        "ema_decay": 0.9,
        "amp": True,
        "amp_dtype": "bfloat16",
        "seed": 7,
        "device": "cpu",
        "log_every": 1,
        "sample_every": 0,
        "sample_count": 4,
        "checkpoint_every": 2,
        "keep": 3,
        "progress": False,
        "tensorboard": False,
    }
    assert content["model"]["config"]["hidden"] == [8, 8]
    assert content["model"]["config"]["image_shape"] == [1, 8, 8]
    assert "valid/loss" in (tmp_path / "log.csv").read_text()


def weights(run):
    newest = max((run / "checkpoints").glob("step-*"))
    return (newest / "model.safetensors").read_bytes()


def test_resume_goes_on_to_the_same_weights(genfast, data, small, tmp_path):
    def train(run, epochs, *words):
        words = [*words, "--epochs", epochs, "--batch-size", 20, "--no-progress"]
        words += ["--sample-every", 0, "--out", run, "--data", data]
        assert genfast("train", "vae", *words, *small("vae")).code == 0

    train(tmp_path / "whole", 3, "--seed", 3)
    train(tmp_path / "parts", 1, "--seed", 3)
    train(tmp_path / "parts", 3, "--resume")  # the seed is the run's, not the default
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_the_run_is_named_after_model_and_data(genfast, data, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--epochs", 1, "--no-progress", "--sample-every", 0, *small("autoencoder")]
    result = genfast("train", "autoencoder", "--data", f"npz:{data}", *words)
    assert result.code == 0
    assert (tmp_path / "runs" / "autoencoder-few" / "summary.json").is_file()
    assert result.out.startswith("runs/autoencoder-few: 1 steps in ")


def test_progress_is_shown_on_standard_error_only(genfast, data, small, tmp_path):
    words = ["--epochs", 1, "--sample-every", 0, "--out", tmp_path, *small("autoencoder")]
    result = genfast("train", "autoencoder", "--data", data, *words)
    assert "autoencoder 1/1" in result.err
    assert len(result.out.splitlines()) == 2


def write_idx(path, array):
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


def test_train_on_a_folder_like_mnist(genfast, small, tmp_path):
    noise = np.random.default_rng(0)
    for split, count in (("train", 50), ("t10k", 20)):
        images = noise.integers(0, 256, (count, 6, 5), dtype=np.uint8)
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", images[:, 0, 0] % 10)
    words = ["--epochs", 1, "--no-progress", "--out", tmp_path / "run", "--sample-count", 4]
    result = genfast("train", "pixelcnn", "--data", tmp_path, *words, *small("pixelcnn"))
    assert (result.code, result.err) == (0, "")
    config = json.loads((tmp_path / "run" / "run.json").read_bytes())["model"]["config"]
    assert (config["image_shape"], config["levels"]) == ([1, 6, 5], 256)
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 1


def test_train_on_cifar_batches(genfast, tmp_path):
    noise = np.random.default_rng(0)
    for name in ("data_batch_1.bin", "test_batch.bin"):
        records = noise.integers(0, 256, (8, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (tmp_path / name).write_bytes(records.tobytes())
    words = ["--epochs", 1, "--no-progress", "--sample-every", 0, "--out", tmp_path / "run"]
    small = ["--set", "channels=3", "--set", "head_channels=3", "--set", "blocks=1"]
    result = genfast("train", "pixelcnn", "--data", tmp_path, *words, *small)
    assert (result.code, result.err) == (0, "")
    config = json.loads((tmp_path / "run" / "run.json").read_bytes())["model"]["config"]
    assert config["image_shape"] == [3, 32, 32]


def test_train_on_a_folder_of_pictures_then_evaluate_without_naming_it(genfast, small, tmp_path):
    noise = np.random.default_rng(0)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(210):
        size = (9, 8) if index % 2 else (16, 16)
        pixels = noise.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{index:03d}.png")
    words = ["--size", "6x5", "--channels", 1, "--epochs", 1, "--no-progress", "--sample-every", 0]
    run = tmp_path / "run"
    result = genfast("train", "vae", "--data", pictures, *words, "--out", run, *small("vae"))
    assert (result.code, result.err) == (0, "")
    result = genfast("evaluate", run, "--classifier", "logistic")
    assert (result.code, result.err) == (0, "")
    figures = json.loads((run / "evaluation.json").read_bytes())
    assert figures["config"]["image_shape"] == [1, 6, 5]
    assert figures["data"]["count"] == 21


def test_samples_can_be_trained_on(genfast, trained, tmp_path):
    path = tmp_path / "samples.npz"
    result = genfast("sample", trained("gan"), "-n", 25, "--npz", path, "--no-progress")
    assert (result.code, result.err) == (0, "")
    samples = read_npz(path, "all")
    assert (len(samples), samples.image_shape, samples.levels) == (25, (1, 8, 8), 17)
    assert not (trained("gan") / "sample.png").exists()


def test_the_seed_decides_the_samples(genfast, trained, tmp_path):
    def draw(name, *words):
        path = tmp_path / f"{name}.npz"
        assert genfast("sample", trained("gan"), "-n", 5, "--npz", path, *words).code == 0
        return read_npz(path, "all").images.tolist()

    assert draw("a") == draw("b")
    assert draw("a") != draw("c", "--seed", 1)


@pytest.mark.parametrize("model", MODELS)
def test_the_batch_size_does_not_decide_the_samples(model, genfast, trained, tmp_path):
    def draw(size):
        path = tmp_path / f"{size}.npz"
        words = ["-n", 5, "--npz", path, "--seed", 3, "--batch-size", size, "--no-progress"]
        assert genfast("sample", trained(model), *words).code == 0
        return read_npz(path, "all").images.tolist()

    whole = draw(5)
    assert whole[0] != whole[4]
    assert [draw(size) for size in (1, 2, 3)] == [whole] * 3


def test_temperature_sharpens(genfast, trained, tmp_path):
    def draw(temperature):
        path = tmp_path / f"{temperature}.npz"
        words = ["-n", 8, "--npz", path, "--no-progress", "--temperature", temperature]
        assert genfast("sample", trained("pixelcnn"), *words).code == 0
        return read_npz(path, "all").images

    cold, hot = draw(0.01), draw(100.0)
    assert len(cold.unique()) < len(hot.unique())


def test_only_the_most_probable_levels_are_drawn(genfast, trained, tmp_path):
    def draw(*words):
        path = tmp_path / "drawn.npz"
        words = ["-n", 3, "--npz", path, "--no-progress", *words]
        assert genfast("sample", trained("pixelcnn"), *words).code == 0
        return read_npz(path, "all").images.tolist()

    likeliest = draw("--top-k", 1)
    assert draw("--top-k", 1, "--seed", 5) == draw("--top-p", 1e-9) == likeliest
    assert draw() != likeliest


def test_evaluate_prints_json_alone_on_demand(genfast, trained, data):
    words = ["--samples", 20, "--classifier", "logistic", "--json", "-", "--split", "train"]
    result = genfast("evaluate", trained("gan"), "--data", data, *words)
    assert (result.code, result.err) == (0, "")
    figures = json.loads(result.out)
    assert figures["data"]["count"] == 60
    assert figures["likelihood"] is None


def test_compare_trains_what_is_missing_and_reports(genfast, trained, data, small, tmp_path):
    settings = [w if w == "--set" else f"autoencoder.{w}" for w in small("autoencoder")]
    words = ["--epochs", 1, "--set", "autoencoder.batch_size=30", *settings, "--no-progress"]
    words += ["autoencoder", trained("vae"), "--data", data, "--out", tmp_path]
    result = genfast("compare", *words)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{tmp_path / 'report.html'}\n"
    assert "<html" in (tmp_path / "report.html").read_text()
    results = json.loads((tmp_path / "results.json").read_bytes())
    assert set(results["models"]) == {"Autoencoder", "VAE"}
    content = json.loads((tmp_path / "autoencoder" / "run.json").read_bytes())
    assert content["training"]["batch_size"] == 30
    assert content["model"]["config"]["hidden"] == [8]
    assert not (tmp_path / "gan").exists()
