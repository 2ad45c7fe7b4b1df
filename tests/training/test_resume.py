"""Resuming: the same run, bit for bit, as if it had never stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from genfast.errors import CheckpointError
from genfast.models import create
from genfast.training import fit, load, read_log, read_run
from genfast.training.checkpoint import MANIFEST, TRAINING, WEIGHTS, list_checkpoints
from tests.training.fakes import (
    LEVELS,
    SHAPE,
    Fake,
    FakeConfig,
    comparable,
    fingerprint,
    images,
    make,
)
from tests.training.trainee import FAMILIES

OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 9,
    "ema_decay": 0.9,
    "checkpoint_every": 1,
    "keep": 100,
    "log_every": 3,
    "sample_every": 5,
    "sample_count": 2,
    "clip_grad_norm": 1.0,
    "progress": False,
}


def run_fit(run: Path, model: Any, data: Any = None, **fields: Any) -> Any:
    data = images(41) if data is None else data
    return fit(model, data, run=run, resume=True, valid=images(5, seed=1), **{**OPTIONS, **fields})


def back_to(run: Path, step: int, target: Path) -> Path:
    """Copy a run as a kill after this step's checkpoint might have left it."""
    shutil.copytree(run, target)
    for path in list_checkpoints(target):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    (target / "summary.json").unlink()
    return target


class Interrupted(Fake):
    """Is stopped in its second step."""

    __qualname__ = Fake.__qualname__  # the same model, as a checkpoint sees it
    calls = 0

    def loss(self, x: torch.Tensor, part: str = "model") -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return super().loss(x, part)


@pytest.mark.parametrize("name", ["fake", "two_parts"])
def test_from_every_step_the_end_is_the_same(tmp_path: Path, name: str) -> None:
    whole = tmp_path / "whole"
    run_fit(whole, make(name))
    expected = fingerprint(whole)
    for step in range(13):
        resumed = back_to(whole, step, tmp_path / f"from{step}")
        torch.manual_seed(step)  # what comes before must not matter
        model = run_fit(resumed, make(name))
        assert fingerprint(resumed) == expected, step
        for file in (WEIGHTS, TRAINING):
            ours, theirs = (list_checkpoints(run)[0] / file for run in (resumed, whole))
            assert ours.read_bytes() == theirs.read_bytes()
        assert comparable(read_log(resumed)) == comparable(read_log(whole))
        assert len((resumed / "log.csv").read_text().splitlines()) == 1 + len(read_log(whole))
        loaded = load(resumed, model=make(name)).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())
        summaries = [json.loads((run / "summary.json").read_text()) for run in (resumed, whole)]
        assert summaries[0]["losses"] == summaries[1]["losses"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step", [2, 7])
def test_families_resume_from_the_middle_of_an_epoch(
    tmp_path: Path, family: str, step: int
) -> None:
    options = {"model_options": FAMILIES[family]}
    run_fit(tmp_path / "whole", family, **options)
    resumed = back_to(tmp_path / "whole", step, tmp_path / "resumed")
    run_fit(resumed, family)
    assert fingerprint(resumed) == fingerprint(tmp_path / "whole")
    assert comparable(read_log(resumed)) == comparable(read_log(tmp_path / "whole"))


@pytest.mark.parametrize("fields", [
    {"optimizer": "sgd"}, {"optimizer": "rmsprop"}, {"optimizer": "adamw", "weight_decay": 0.1},
    {"ema_decay": 0.0}, {"amp": True}, {"amp": True, "amp_dtype": "float16"},
])  # fmt: skip
def test_with_every_kind_of_state(tmp_path: Path, fields: dict[str, Any]) -> None:
    run_fit(tmp_path / "whole", make("two_parts"), **fields)
    resumed = back_to(tmp_path / "whole", 6, tmp_path / "resumed")
    run_fit(resumed, make("two_parts"), **fields)
    assert fingerprint(resumed) == fingerprint(tmp_path / "whole")


def test_a_dataloader_with_its_own_shuffling_and_noise(tmp_path: Path) -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> torch.Tensor:
            image = super().__getitem__(index)[0]
            return (image + 0.1 * torch.rand(image.shape)).clamp(0, 1)

    def loader() -> DataLoader[Any]:
        return DataLoader(Noisy(images(41).images / (LEVELS - 1)), batch_size=9, shuffle=True)

    run_fit(tmp_path / "whole", make("fake"), loader())
    resumed = back_to(tmp_path / "whole", 8, tmp_path / "resumed")
    run_fit(resumed, make("fake"), loader())
    assert fingerprint(resumed) == fingerprint(tmp_path / "whole")


def test_a_finished_run_is_left_alone_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_fit(tmp_path, make("fake"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    again = run_fit(tmp_path, make("fake"), progress=True)
    assert "12 steps are done, nothing is left to do" in capsys.readouterr().err
    del before[tmp_path / "run.json"]  # tells that progress was asked for
    assert before.items() <= {p: p.stat().st_mtime_ns for p in before}.items()
    for key, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert not again.training


def test_summary_missing_after_a_kill_is_written(tmp_path: Path) -> None:
    run_fit(tmp_path, make("fake"))
    before = (tmp_path / "summary.json").read_bytes()
    (tmp_path / "summary.json").unlink()
    run_fit(tmp_path, make("fake"))
    assert (tmp_path / "summary.json").read_bytes() == before


def test_more_epochs_go_on_as_if_asked_for_at_once(tmp_path: Path) -> None:
    run_fit(tmp_path / "whole", make("fake"), epochs=5)
    run_fit(tmp_path / "more", make("fake"), epochs=3)
    with pytest.raises(KeyboardInterrupt):
        run_fit(tmp_path / "more", Interrupted(), epochs=5)
    assert not (tmp_path / "more" / "summary.json").exists()
    run_fit(tmp_path / "more", make("fake"), epochs=5)
    newest = [
        [(list_checkpoints(tmp_path / name)[0] / file).read_bytes() for file in (WEIGHTS, TRAINING)]
        for name in ("whole", "more")
    ]
    assert newest[0] == newest[1]
    assert read_run(tmp_path / "more")["training"]["epochs"] == 5
    assert json.loads((tmp_path / "more" / "summary.json").read_text())["epochs"] == 5


def test_nothing_to_resume_starts_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_fit(tmp_path / "new", make("fake"), progress=True)
    assert "no checkpoint to resume from, training starts at step 0" in capsys.readouterr().err


def test_settings_not_given_are_those_of_the_run(tmp_path: Path) -> None:
    model = create("pixelcnn", image_shape=SHAPE, levels=LEVELS, **FAMILIES["pixelcnn"])
    fit(model, images(41), run=tmp_path, epochs=1, batch_size=7, learning_rate=0.01, progress=False)
    resumed = fit("pixelcnn", images(41), run=tmp_path, resume=True, epochs=2)
    assert resumed.config == model.config
    settings = read_run(tmp_path)["training"]
    assert (settings["batch_size"], settings["learning_rate"], settings["epochs"]) == (7, 0.01, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.1}, r"same settings.*learning_rate=0\.1 \(before: 0\.001\)"),
        ({"batch_size": 3, "seed": 1}, "batch_size=3.*; seed=1"),
        ({"model": Fake(FakeConfig(width=9))}, r"same model.*config\.width=9 \(before: 8\)"),
        ({"model": "vae"}, r"same model.*name='vae' \(before: 'Fake'\)"),
        ({"data": images(41, levels=256)}, r"same data.*levels=256 \(before: 5\)"),
        ({"data": images(40)}, r"same data.*count=40 \(before: 41\)"),
        ({"data": images(41, seed=1)}, "same data.*sha256="),
    ],
)
def test_refuses_to_go_on_with_something_else(tmp_path, changed, message) -> None:
    run_fit(tmp_path, make("fake"))
    before = fingerprint(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        run_fit(tmp_path, **{"model": make("fake"), **changed})
    assert fingerprint(tmp_path) == before


def test_damaged_newest_falls_back_and_reaches_the_same_end(tmp_path: Path) -> None:
    run_fit(tmp_path / "whole", make("fake"))
    resumed = back_to(tmp_path / "whole", 7, tmp_path / "resumed")
    (list_checkpoints(resumed)[0] / TRAINING).write_bytes(b"\0" * 100)
    with pytest.warns(UserWarning, match=r"step-00000007.*; step-00000006 is used instead"):
        run_fit(resumed, make("fake"), keep=2)
    assert (resumed / "checkpoints" / "damaged-step-00000007").is_dir()
    whole, end = (list_checkpoints(tmp_path / name)[0] for name in ("whole", "resumed"))
    assert (end / TRAINING).read_bytes() == (whole / TRAINING).read_bytes()


def test_all_damaged_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    run_fit(tmp_path, make("fake"), keep=2)
    for path in list_checkpoints(tmp_path):
        (path / MANIFEST).write_bytes(b"{")
    with pytest.raises(CheckpointError, match="no undamaged checkpoint"):
        run_fit(tmp_path, make("fake"))
    assert len(list_checkpoints(tmp_path)) == 2


def test_damaged_run_file_is_written_anew(tmp_path: Path) -> None:
    run_fit(tmp_path, make("fake"))
    expected = read_run(tmp_path)
    (tmp_path / "run.json").write_bytes(b"{")
    run_fit(tmp_path, make("fake"))
    assert read_run(tmp_path) == expected
