"""The settings of a run."""

import re
from dataclasses import asdict

import pytest
import torch

from genfast.errors import InputError
from genfast.training import TrainingConfig
from genfast.training.config import RESUMABLE, resolve_device


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("epochs", 1.5), ("epochs", True), ("epochs", "3"),
        ("batch_size", 0), ("batch_size", None),
        ("learning_rate", 0), ("learning_rate", -1e-3), ("learning_rate", float("nan")),
        ("learning_rate", "1e-3"),
        ("optimizer", "lion"), ("optimizer", None),
        ("betas", (0.9,)), ("betas", (0.9, 1.0)), ("betas", 0.9), ("betas", (0.9, "x")),
        ("weight_decay", -1), ("clip_grad_norm", -1), ("clip_grad_norm", float("inf")),
        ("ema_decay", 1.0), ("ema_decay", -0.1), ("ema_decay", True),
        ("amp", 1), ("amp_dtype", "float32"), ("progress", "no"), ("tensorboard", None),
        ("seed", -1), ("seed", 2**63), ("seed", 0.0),
        ("device", 0), ("log_every", 0), ("sample_every", -1), ("sample_count", -1),
        ("checkpoint_every", -1), ("keep", 1),
    ],
)  # fmt: skip
def test_refuses_a_bad_value_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=re.escape(f"got {name}={value!r}")):
        TrainingConfig.of({name: value})


def test_unknown_field_lists_the_valid_ones() -> None:
    with pytest.raises(InputError, match=r"among epochs, batch_size, .* got lr, wd"):
        TrainingConfig.of({"wd": 1, "lr": 1})


def test_survives_json() -> None:
    config = TrainingConfig(betas=(0.5, 0.9))
    assert TrainingConfig.of({**asdict(config), "betas": [0.5, 0.9]}) == config


def test_resumable_fields_exist() -> None:
    assert set(asdict(TrainingConfig())) >= RESUMABLE


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "meta", "cuda:99", ""])
def test_refuses_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match=f"device='{name}'"):
        resolve_device(name)


def test_auto_prefers_cuda() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected
