"""Measures of one set of images or one model: sharpness, reconstruction, likelihood baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genfast.errors import InputError

LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its standard error, 0 where there is only one image."""

    value: float
    standard_error: float

    @staticmethod
    def of(values: Tensor) -> Estimate:
        """Mean and standard error of `[N]` values."""
        values = values.double()
        error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else 0.0
        return Estimate(float(values.mean()), error)

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit."""
        return Estimate(self.value * factor, self.standard_error * abs(factor))


def sharpness(images: Tensor, levels: int) -> float:
    """Mean variance of the Laplacian, the usual measure of blur.

    1. Scale the grey levels to [0, 1]; average the colours.
    2. Convolve with the Laplace filter [[0,1,0],[1,-4,1],[0,1,0]], no padding.
    3. Take the variance within each image, then the mean over the images.

    Constant images score 0 and blurring lowers the score. Noise raises it, so compare with the
    data's own score: below it is blurred, above it is grainy.

    Args:
        images: `[N, C, H, W]` grey levels 0 to `levels - 1`; H and W at least 3.
        levels: Number of grey levels.

    Raises:
        InputError: Not `[N, C, H, W]`, smaller than 3x3, empty, not finite, or `levels` below 2.

    Source: Tolstikhin et al., "Wasserstein Auto-Encoders" (ICLR 2018), section 4.
    """
    if levels < 2:
        raise InputError(f"sharpness: expected levels >= 2, got levels={levels}")
    if images.dim() != 4 or images.numel() == 0 or min(images.shape[-2:]) < 3:
        raise InputError(
            "sharpness: expected images [N, C, H, W] with N, C >= 1 and H, W >= 3, "
            f"got images={tuple(images.shape)}"
        )
    grey = images.double().mean(1, keepdim=True) / (levels - 1)
    if not bool(torch.isfinite(grey).all()):
        raise InputError("sharpness: expected finite images, got a value that is not")
    kernel = torch.tensor(LAPLACE, dtype=grey.dtype, device=grey.device).view(1, 1, 3, 3)
    edges = nn.functional.conv2d(grey, kernel).flatten(1)
    return float(edges.var(1, unbiased=False).mean())


@dataclass(frozen=True)
class ReconstructionError:
    """How far reconstructions are from the images.

    Attributes:
        mse: Mean squared error per dimension, grey levels scaled to [0, 1].
        mse_standard_error: Standard error of `mse` over the images.
        rmse_levels: Root of `mse`, in grey levels.
    """

    mse: float
    mse_standard_error: float
    rmse_levels: float


def squared_error(images: Tensor, others: Tensor, levels: int) -> ReconstructionError:
    """Squared error between two batches of grey levels; one may broadcast to the other."""
    difference = (images.double() - others.double()) / (levels - 1)
    estimate = Estimate.of(difference.square().flatten(1).mean(1))
    rmse = math.sqrt(estimate.value) * (levels - 1)
    return ReconstructionError(estimate.value, estimate.standard_error, rmse)


def reconstruction_error(
    model: nn.Module, images: Tensor, *, batch_size: int = 256
) -> ReconstructionError:
    """Squared error between images and `model.reconstruct(images)`.

    Args:
        model: Has `reconstruct(x)` in and out of grey levels, and `config.levels`.
        images: `[N, C, H, W]` grey levels.
        batch_size: Images per call of the model.

    Raises:
        InputError: The model does not reconstruct, or `images` is empty or not `[N, C, H, W]`.
    """
    method = getattr(model, "reconstruct", None)
    if method is None:
        raise InputError(
            "reconstruction_error: expected a model with reconstruct(x), "
            f"got {type(model).__name__}"
        )
    if images.dim() != 4 or images.numel() == 0:
        raise InputError(
            "reconstruction_error: expected images [N, C, H, W] with N >= 1, "
            f"got images={tuple(images.shape)}"
        )
    outputs = per_batch(model, method, images, batch_size)
    return squared_error(images, outputs.cpu(), levels_of(model))


def histogram_bits_per_dim(train: Tensor, test: Tensor, levels: int) -> float:
    """Bits per dimension of `test` under independent pixels: the baseline a model has to beat.

    Each pixel's histogram of grey levels is counted on `train` with one added to every count.
    """
    counts = torch.ones(train[0].numel(), levels, dtype=torch.float64)
    for batch in torch.split(train, 1024):
        columns = batch.flatten(1).t().long()
        counts.scatter_add_(1, columns, torch.ones(columns.shape, dtype=torch.float64))
    log_p = counts.log() - counts.sum(1, keepdim=True).log()
    taken = log_p.gather(1, test.flatten(1).long().t())
    return float(-taken.mean() / math.log(2.0))


def per_batch(
    model: nn.Module,
    method: Callable[..., Tensor],
    images: Tensor,
    batch_size: int,
    labels: Tensor | None = None,
) -> Tensor:
    """`method` over batches of `images` on the model's device, without gradients, concatenated.

    Where there are labels, `method` gets each batch's too.
    """
    device = device_of(model)
    batches = list(torch.split(images, batch_size))
    more: list[dict[str, Tensor]] = [{} for _ in batches]
    if labels is not None:
        more = [{"labels": each.to(device)} for each in torch.split(labels, batch_size)]
    with torch.no_grad():
        results = [
            method(batch.to(device), **named).cpu()
            for batch, named in zip(batches, more, strict=True)
        ]
    return torch.cat(results)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU if there is none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def levels_of(model: nn.Module) -> int:
    """The number of grey levels the model was built for."""
    config: Any = model.config
    return int(config.levels)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Seed the global generator for the body, restore it after; yields a generator on `device`."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield torch.Generator(device=device).manual_seed(seed)


def shuffled(images: Tensor, seed: int) -> Tensor:
    """The images in a random order that only the seed and their number decide."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order]
