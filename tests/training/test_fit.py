"""`fit` and `load`: what they write, refuse and promise."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from genfast.errors import CheckpointError, DataError, InputError, NumericsError
from genfast.models import PixelCNN
from genfast.training import fit, load, read_log, read_run
from genfast.training.checkpoint import TRAINING, list_checkpoints
from genfast.training.run import locked
from tests.training.fakes import LEVELS, SHAPE, Fake, TwoPartFake, fingerprint, images, make

SMALL = {"epochs": 2, "batch_size": 10, "log_every": 3, "progress": False, "sample_count": 4}
TINY_PIXELCNN = {"channels": 4, "blocks": 1, "head_channels": 4, "kernel_size": 3}


def train(run: Path | None, model: Any = None, data: Any = None, **fields: Any) -> Any:
    model = make("fake") if model is None else model
    data = images() if data is None else data
    return fit(model, data, run=run, **{**SMALL, **fields})


def same_weights(a: Any, b: Any) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_writes_what_it_says(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    model = train(run, checkpoint_every=3, sample_every=4, keep=3)
    assert not model.training
    names = [path.name for path in list_checkpoints(run)]
    assert names == ["step-00000008", "step-00000006", "step-00000003"]
    assert sorted(os.listdir(run / "samples")) == ["step-00000004.png", "step-00000008.png"]
    with Image.open(run / "samples" / "step-00000008.png") as picture:
        assert picture.size == (66, 66)
    rows = read_log(run)
    assert [(row["step"], row["epoch"]) for row in rows] == [(3, 1), (6, 2), (8, 2)]
    assert all({"loss", "worst", "seconds", "images_per_second"} <= set(row) for row in rows)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["epochs"]) == (8, 2)
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())
    assert summary["losses"]["loss"] == rows[-1]["loss"]
    content = read_run(run)
    assert content["model"] == {
        "name": "Fake",
        "config": {"image_shape": [1, 4, 4], "levels": LEVELS, "width": 8},
    }
    assert content["training"]["batch_size"] == 10
    assert content["data"]["levels"] == LEVELS
    assert content["data"]["count"] == 40
    assert not [name for name in os.listdir(run) if name.endswith(".tmp")]


def test_rows_are_means_over_the_steps_between(tmp_path: Path) -> None:
    train(tmp_path / "each", log_every=1)
    train(tmp_path / "means", log_every=3)
    losses = [row["loss"] for row in read_log(tmp_path / "each")]
    means = [row["loss"] for row in read_log(tmp_path / "means")]
    assert means == pytest.approx([sum(losses[a:b]) / (b - a) for a, b in ((0, 3), (3, 6), (6, 8))])


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_load_gives_the_returned_model(tmp_path: Path, ema_decay: float) -> None:
    model = train(tmp_path, ema_decay=ema_decay)
    loaded = load(tmp_path, model=Fake())
    assert not loaded.training
    assert same_weights(loaded, model)
    step = list_checkpoints(tmp_path)[0]
    assert same_weights(load(step, model=Fake()), model)


def test_named_model_takes_its_shape_from_the_data_and_loads_by_itself(tmp_path: Path) -> None:
    model = train(tmp_path, "pixelcnn", model_options=TINY_PIXELCNN)
    assert isinstance(model, PixelCNN)
    assert model.config.image_shape == SHAPE
    assert model.config.levels == LEVELS
    loaded = load(str(tmp_path))
    assert loaded.config == model.config
    assert same_weights(loaded, model)
    assert loaded.sample(3).shape == (3, *SHAPE)


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    options = {"model": "pixelcnn", "model_options": TINY_PIXELCNN}
    first = train(None, **options)
    torch.manual_seed(99)
    random.seed(99)
    assert same_weights(first, train(None, **options))
    assert not same_weights(first, train(None, **options, seed=1))


def test_files_samples_and_validation_do_not_change_the_result(tmp_path: Path) -> None:
    plain = train(None)
    busy = train(tmp_path, sample_every=1, checkpoint_every=1, log_every=1, valid=images(7, seed=5))
    assert same_weights(plain, busy)


def test_random_states_of_the_caller_stay(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()

    model = make("fake")
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = draw()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    train(tmp_path, model)
    assert draw() == expected


def test_validation_is_logged_each_epoch_with_the_same_noise(tmp_path: Path) -> None:
    class Counting(Fake):
        seen = 0

        def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
            if not self.training:
                assert not torch.is_grad_enabled()
                Counting.seen += len(x)
            return super().loss(x, part)

    model = Counting()
    model.layers[2].momentum = 0.0  # its statistics, like the weights, hardly change
    train(tmp_path, model, valid=images(23), learning_rate=1e-9, epochs=3)
    rows = [row for row in read_log(tmp_path) if "valid/loss" in row]
    assert [(row["step"], row["epoch"]) for row in rows] == [(4, 1), (8, 2), (12, 3)]
    assert Counting.seen == 3 * 23
    assert rows[1]["valid/loss"] == pytest.approx(rows[2]["valid/loss"], rel=1e-5)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["losses"]["valid/loss"] == rows[-1]["valid/loss"]


def test_samples_and_validation_use_the_averaged_weights(tmp_path: Path) -> None:
    class Watched(Fake):
        used: dict[str, Tensor] = {}  # noqa: RUF012

        def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
            if not self.training:
                Watched.used["validation"] = self.layers[1].weight.detach().clone()
            return super().loss(x, part)

        def sample(self, n: int, **options: Any) -> Tensor:
            Watched.used["samples"] = self.layers[1].weight.detach().clone()
            return super().sample(n, **options)

    model = train(tmp_path, Watched(), valid=images(5), ema_decay=0.9, learning_rate=0.1)
    assert model.used["samples"].equal(model.layers[1].weight)
    assert model.used["validation"].equal(model.layers[1].weight)


def test_models_of_several_parts_log_each(tmp_path: Path) -> None:
    train(tmp_path, TwoPartFake(), valid=images(5), log_every=1)
    first, second = read_log(tmp_path)[:2]
    assert {"discriminator/loss"} == {name for name in first if "loss" in name}
    assert {"discriminator/loss", "generator/loss"} == {name for name in second if "loss" in name}


def test_incomplete_batch_is_left_out_and_small_data_is_one_batch() -> None:
    class Sizes(Fake):
        seen: list[int] = []  # noqa: RUF012

        def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
            Sizes.seen.append(len(x))
            return super().loss(x, part)

    train(None, Sizes(), images(41), epochs=1, batch_size=20)
    train(None, Sizes(), images(7), epochs=1, batch_size=20)
    assert Sizes.seen == [20, 20, 7]


@pytest.mark.parametrize("kind", ["tensor", "floats", "dataset", "loader", "iterable"])
def test_accepts_all_forms_of_data(kind: str) -> None:
    pixels = images().images
    floats = pixels.float() / (LEVELS - 1)

    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            return iter(floats)

    forms = {
        "tensor": pixels,
        "floats": floats,
        "dataset": TensorDataset(floats, torch.zeros(40)),
        "loader": DataLoader(TensorDataset(floats, torch.zeros(40)), batch_size=8, shuffle=True),
        "iterable": DataLoader(Stream(), batch_size=8),
    }
    model = train(None, Fake(), forms[kind])
    assert all(p.isfinite().all() for p in model.parameters())


def test_data_by_name() -> None:
    options = {"channels": 2, "blocks": 1, "head_channels": 2, "kernel_size": 3}
    model = fit("pixelcnn", "digits", model_options=options, epochs=1, progress=False)
    assert model.config.levels == 17


def test_progress_bar_shows_loss_and_speed(capsys: pytest.CaptureFixture[str]) -> None:
    train(None, TwoPartFake(), progress=True)
    shown = capsys.readouterr().err
    assert "TwoPartFake 2/2: 100%" in shown
    assert "8/8" in shown
    assert "discriminator/loss=" in shown
    assert "images/s=" in shown
    train(None, progress=False)
    assert capsys.readouterr() == ("", "")


def test_not_finite_loss_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    class Bad(Fake):
        def loss(self, x: Tensor, part: str = "model") -> dict[str, Tensor]:
            losses = super().loss(x, part)
            self.calls = getattr(self, "calls", 0) + 1
            return {"loss": losses["loss"] * (float("nan") if self.calls == 6 else 1.0)}

    with pytest.raises(NumericsError, match=r"step 6 in part 'model'.*checkpoint: .*-00000004$"):
        train(tmp_path, Bad(), checkpoint_every=2)
    before = fingerprint(tmp_path)
    loaded = load(tmp_path, model=Bad())
    assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())
    assert not (tmp_path / "summary.json").exists()
    assert fingerprint(tmp_path) == before


def test_log_is_on_the_disk_before_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync = os.fsync

    def traced(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", traced)
    train(tmp_path, sample_every=0)
    last = [events.index(name) for name in ("log.jsonl", "log.csv", "manifest.json")]
    assert last == sorted(last)


def test_failing_save_ends_training_and_keeps_the_previous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genfast.training import checkpoint

    write = checkpoint.write_synced

    def full(path: Path, data: bytes) -> None:
        if path.name == TRAINING and "step-00000004" in str(path):
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_synced", full)
    with pytest.raises(CheckpointError, match=r"step-00000004: No space left .* bytes needed"):
        train(tmp_path, checkpoint_every=2)
    monkeypatch.undo()
    resumed = train(tmp_path, checkpoint_every=2, resume=True)
    assert same_weights(resumed, train(None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 1}, "got lr"),
        ({"epochs": 0}, "epochs=0"),
        ({"model": "pixelrnn"}, "pixelcnn"),
        ({"model": "pixelcnn", "model_options": {"width": 3}}, "width"),
        (
            {"model": "vae", "data": images().images, "model_options": {"levels": "x"}},
            "levels='x'",
        ),
        ({"model_options": {"width": 3}}, "model_options only with the name"),
        ({"model": torch.nn.Linear(2, 2)}, "without loss, parts, parameters_of"),
        ({"data": images(10, levels=256)}, "data with levels=5, got levels=256"),
        ({"data": torch.zeros(5, 1, 8, 8, dtype=torch.uint8)}, "image_shape"),
        ({"data": images(0)}, "at least one image"),
        ({"valid": images(10, levels=7)}, "valid"),
        ({"device": "cuda:77"}, "device='cuda:77'"),
    ],
)
def test_refuses_a_bad_argument_and_leaves_no_folder(tmp_path, arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        train(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_refuses_a_missing_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        train(tmp_path / "run", "vae", str(tmp_path / "nowhere"))


def test_resume_needs_a_folder() -> None:
    with pytest.raises(InputError, match="run=None"):
        train(None, resume=True)


def test_refuses_to_overwrite_a_run(tmp_path: Path) -> None:
    train(tmp_path)
    before = fingerprint(tmp_path)
    with pytest.raises(InputError, match=r"without a run.*resume=True"):
        train(tmp_path)
    assert fingerprint(tmp_path) == before


def test_only_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError, match="another process"):
        train(tmp_path)
    train(tmp_path)


def test_stream_that_ends_for_good_is_an_error() -> None:
    class Once(IterableDataset[Tensor]):
        def __init__(self) -> None:
            # Batches for finding the shape, and for one epoch.
            self.left = [iter(images().images), iter(images().images)]

        def __iter__(self) -> Any:
            return self.left.pop() if self.left else iter(())

    with pytest.raises(DataError, match="epoch 2, got none"):
        train(None, Fake(), DataLoader(Once(), batch_size=8))


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_load_refuses_what_is_no_run(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "file":
        path.write_text("")
    if what == "empty":
        path.mkdir()
    error = CheckpointError if what == "empty" else InputError
    with pytest.raises(error, match=what):
        load(path)


def test_load_refuses_another_model(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(CheckpointError, match=r"found 'Fake'; pass an instance"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=r"name='TwoPartFake' \(before: 'Fake'\)"):
        load(tmp_path, model=TwoPartFake())


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": "genfast-run", "version": 2}'])
def test_read_run_refuses_what_it_does_not_know(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.json"):
        read_run(tmp_path)
