"""The pictures of a comparison: samples, reconstructions, walks through latents, loss curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from genfast.evaluation.metrics import device_of, seeded
from genfast.evaluation.pictures import columns_for, data_uri, grid_png, rows_png, shown_in_grid
from genfast.evaluation.plots import Series, loss_png
from genfast.evaluation.report import DARK, LIGHT, Picture
from genfast.nn import evaluating

STEPS = 10
LINES = 5


def sample_grid(images: Tensor, levels: int, alt: str) -> Picture:
    """The first images, side by side."""
    width = images.shape[-1]
    shown = images[: shown_in_grid(width)]
    return Picture(data_uri(grid_png(shown, levels, columns_for(width))), alt)


def reconstructions(model: nn.Module, name: str, images: Tensor, levels: int) -> Picture | None:
    """Images over what the model makes of their codes; None if it has no `reconstruct`."""
    if not hasattr(model, "reconstruct"):
        return None
    named: Any = model
    shown = images[: 2 * columns_for(images.shape[-1])]
    with evaluating(model), seeded(0, device_of(model)):
        rebuilt = named.reconstruct(shown.to(device_of(model))).cpu()
    alt = f"{len(shown)} test images and, below each, its reconstruction by {name}"
    return Picture(data_uri(rows_png([shown, rebuilt], levels)), alt)


def interpolations(
    model: nn.Module, name: str, images: Tensor, levels: int, seed: int
) -> Picture | None:
    """Walks through the latent space, one per row; None if the model has no `interpolate`.

    A model with an encoder walks between the codes of test images, in the data's order; any other
    between latents of its own drawing.
    """
    if not hasattr(model, "interpolate"):
        return None
    named: Any = model
    device = device_of(model)
    with evaluating(model), seeded(seed, device) as generator:
        if hasattr(model, "encode"):
            ends = images[: 2 * LINES].to(device)
            half = len(ends) // 2
            walks = named.interpolate(ends[:half], ends[half : 2 * half], steps=STEPS)
        else:
            walks = named.interpolate(LINES, steps=STEPS, generator=generator)
    alt = f"{len(walks)} walks of {STEPS} steps through the latent space of {name}"
    return Picture(data_uri(rows_png(list(walks.cpu()), levels)), alt)


def loss_curves(
    rows: Sequence[Mapping[str, Any]], name: str, colour: int, y_label: str
) -> Picture | None:
    """Losses of a run's log for a light and a dark page; None if the log has none."""
    curves = curves_of(rows)
    if not curves:
        return None
    light, dark = (data_uri(loss_png(curves, theme, colour, y_label)) for theme in (LIGHT, DARK))
    ends = ", ".join(f"{key} ends at {values[-1]:.3g}" for key, (_, values) in curves.items())
    return Picture(light, f"Loss curves of {name}: {ends}", dark)


def curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """The series of a log whose name is "loss" or ends so, named by what stands before it."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for key, value in row.items():
            part, _, last = key.rpartition("/")
            if last == "loss" and isinstance(value, int | float):
                named = {"": "training images", "valid": "test images"}.get(part, part)
                steps, values = found.setdefault(named, ([], []))
                steps.append(float(row["step"]))
                values.append(float(value))
    # The training curve first, in the model's own colour, however the log began.
    return dict(sorted(found.items(), key=lambda item: item[0] == "test images"))


def loss_unit(result: Mapping[str, Any]) -> str:
    """What a model's loss is measured in, as far as its kind tells."""
    if len(result["properties"]["networks"]) > 1:
        return "loss of each player"
    if result["likelihood"] is not None:
        return "nats per image"
    return "squared error per image" if result["reconstruction"] else "loss"
