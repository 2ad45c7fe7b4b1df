"""The settings of a training run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from genfast.errors import InputError

OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
AMP_DTYPES = ("auto", "bfloat16", "float16")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run; they are written to `run.json` and to every checkpoint.

    Attributes:
        epochs: passes over the data.
        batch_size: images per step. An incomplete last batch of an epoch is left out.
        learning_rate: step size of every part's optimizer.
        optimizer: "adam", "adamw", "sgd" or "rmsprop".
        betas: Adam's decay rates; the first is SGD's momentum, the second RMSprop's decay.
        weight_decay: of the optimizer.
        clip_grad_norm: largest norm of a part's gradient; 0 does not clip.
        ema_decay: decay of the exponential moving average of the weights; 0 keeps none. When kept,
            samples, validation and the returned model use the average.
        amp: automatic mixed precision.
        amp_dtype: "bfloat16", "float16" (with loss scaling), or "auto": bfloat16 on the CPU and on
            GPUs that have it, else float16.
        seed: decides the initial weights, the order of the data and the noise.
        device: "auto" (CUDA if present), "cpu", "cuda" or "cuda:N".
        log_every: steps between rows of the log; a row holds the means since the last one.
        sample_every: steps between sample grids, and one at the end; 0 draws none.
        sample_count: images in a sample grid, or sounds of at most a second each; 0 takes 64 images
            or 8 sounds, whose samples are drawn one after the other.
        checkpoint_every: steps between checkpoints, besides those at the start and the end;
            0 saves only these two.
        keep: checkpoints kept, at least 2.
        progress: show a progress bar and messages.
        tensorboard: also log to `RUN/tensorboard`; needs the extra `genfast[tensorboard]`.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_grad_norm: float = 0.0
    ema_decay: float = 0.0
    amp: bool = False
    amp_dtype: str = "auto"
    seed: int = 0
    device: str = "auto"
    log_every: int = 50
    sample_every: int = 500
    sample_count: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    progress: bool = True
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.betas, list):  # JSON has no tuples
            object.__setattr__(self, "betas", tuple(self.betas))
        for name, low in _INTEGERS.items():
            value = getattr(self, name)
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            rule = f"an integer < 2**63 and >= {low}"
            _require(is_integer and low <= value < 2**63, rule, name, value)
        for name in ("learning_rate", "weight_decay", "clip_grad_norm"):
            value = getattr(self, name)
            _require(_is_number(value) and value >= 0, "a finite number >= 0", name, value)
        _require(self.learning_rate > 0, "a number > 0", "learning_rate", self.learning_rate)
        _require(_is_fraction(self.ema_decay), "a number in [0, 1)", "ema_decay", self.ema_decay)
        is_pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        good = is_pair and all(map(_is_fraction, self.betas))
        _require(good, "two numbers in [0, 1)", "betas", self.betas)
        for name in ("amp", "progress", "tensorboard"):
            value = getattr(self, name)
            _require(isinstance(value, bool), "True or False", name, value)
        _require(self.optimizer in OPTIMIZERS, f"one of {OPTIMIZERS}", "optimizer", self.optimizer)
        _require(self.amp_dtype in AMP_DTYPES, f"one of {AMP_DTYPES}", "amp_dtype", self.amp_dtype)
        _require(isinstance(self.device, str), "a name", "device", self.device)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "TrainingConfig":
        """Make a configuration from named fields; an unknown name is an InputError."""
        valid = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(valid))
        if unknown:
            raise InputError(
                f"TrainingConfig: expected fields among {', '.join(valid)}, "
                f"got {', '.join(unknown)}"
            )
        return cls(**given)


# Fields that do not change what is learned, so that a resumed run may be given other values.
RESUMABLE = frozenset(
    {
        "epochs", "device", "log_every", "sample_every", "sample_count", "checkpoint_every",
        "keep", "progress", "tensorboard",
    }
)  # fmt: skip

_INTEGERS = {
    "epochs": 1,
    "batch_size": 1,
    "seed": 0,
    "log_every": 1,
    "sample_every": 0,
    "sample_count": 0,
    "checkpoint_every": 0,
    "keep": 2,
}


def resolve_device(name: str) -> torch.device:
    """Return the device that a name stands for; "auto" prefers CUDA.

    Raises:
        InputError: if it is no CPU or CUDA device, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f'device: expected "auto", "cpu", "cuda" or "cuda:N", got device={name!r}')
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(
                f"device: expected one of this machine's {count} CUDA devices, got device={name!r}"
            )
    return device


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _require(condition: bool, rule: str, name: str, value: Any) -> None:
    if not condition:
        raise InputError(f"TrainingConfig: expected {rule}, got {name}={value!r}")
