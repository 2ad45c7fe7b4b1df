"""`genfast sample`."""

import inspect
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from genfast.cli._help import option
from genfast.cli._options import Device, Run
from genfast.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from genfast.models import GenerativeModel


def sample(
    run: Run,
    count: Annotated[
        int, option("--count", "-n", metavar="N", help="Images or sounds to draw (default 64).")
    ] = 64,
    output: Annotated[
        Path | None,
        option(
            "--output",
            "-o",
            metavar="PNG|DIR",
            help="Grid of the images, or folder for the WAV files of sounds (default "
            "RUN/sample.png or RUN/sample, or none with --npz).",
        ),
    ] = None,
    npz: Annotated[
        Path | None,
        option(
            metavar="NPZ",
            help="Also save the images as integer grey levels: arrays images [N, C, H, W] and "
            "levels; --data takes such a file; not for sounds (default: none).",
        ),
    ] = None,
    seed: Annotated[
        int,
        option(metavar="N", help="Decides the noise: the same images each time (default 0)."),
    ] = 0,
    temperature: Annotated[
        float | None,
        option(
            metavar="T",
            help="Autoregressive models: divide the logits by T; below 1 is safer, above 1 more "
            "varied (default 1).",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        option(
            metavar="N",
            help="Models with a softmax: draw among the N most probable levels (default: all).",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        option(
            metavar="P",
            help="Models with a softmax: draw among the most probable levels that together reach "
            "this probability (default: all).",
        ),
    ] = None,
    label: Annotated[
        int | None,
        option(
            metavar="N",
            help="Models with classes: draw this class only (default: the classes in turn).",
        ),
    ] = None,
    length: Annotated[
        int | None,
        option(
            metavar="N",
            help="wavenet: samples of each sound (default: as many as it was trained on).",
        ),
    ] = None,
    columns: Annotated[
        int | None,
        option(metavar="N", help="Images in a row of the grid (default: about square)."),
    ] = None,
    batch_size: Annotated[
        int,
        option(
            metavar="N",
            help="Images or sounds drawn at a time, which bounds the memory; it does not decide "
            "which ones (default 256).",
        ),
    ] = 256,
    device: Device = "auto",
    progress: Annotated[bool, option(help="Show a bar on standard error (default yes).")] = True,
) -> None:
    """Draw images or sounds from a trained model, as a picture, an array or WAV files."""
    for name, value in (("--count", count), ("--batch-size", batch_size), ("--columns", columns)):
        if value is not None and value < 1:
            raise InputError(f"sample: expected {name} of at least 1, got {value}")
    if not 0 <= seed < 2**63:
        raise InputError(f"sample: expected --seed in [0, 2**63), got {seed}")
    from genfast.training import load

    model = load(run, device=device)
    of_sounds = model.domain == "sounds"
    if output is None and npz is None:
        output = run / ("sample" if of_sounds else "sample.png")
    _check_output(output, npz, of_sounds)
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "length": length}
    options = _options(model, given)
    labels = _labels(model, count, label)
    start = time.perf_counter()
    drawn = _draw(model, count, batch_size, seed, labels, progress=progress, **options)
    seconds = time.perf_counter() - start
    written = []
    if output is not None:
        written.append(_save(output, drawn, model, columns))
    if npz is not None:
        written.append(_save_npz(npz, drawn, model.config.levels))
    what = "sounds" if of_sounds else "images"
    print(f"{count} {what} in {seconds:.2f} s: {', '.join(map(str, written))}")


def _check_output(output: Path | None, npz: Path | None, of_sounds: bool) -> None:
    """Refuse what cannot be written, while nothing has been computed yet; sampling may be long."""
    from genfast._files import make_folder

    if of_sounds:
        if npz is not None:
            raise InputError(f"sample: expected no --npz with sounds, got {str(npz)!r}")
        if output is not None:
            make_folder(output)
        return
    if output is not None and output.suffix.lower() != ".png":
        raise InputError(f"sample: expected --output with a name in .png, got {str(output)!r}")
    for path in (output, npz):
        if path is not None:
            make_folder(path.parent)
            if path.is_dir():
                raise InputError(f"sample: expected the name of a file, got the folder {path}")


def _options(model: "GenerativeModel", given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given; refuse those that this model's `sample` does not have."""
    wanted = {name: value for name, value in given.items() if value is not None}
    known = inspect.signature(model.sample).parameters
    for name in wanted:
        if name not in known:
            kind = type(model).__name__
            raise InputError(f"sample: expected a model with a {name}, got {kind}")
    return wanted


def _labels(model: "GenerativeModel", count: int, label: int | None) -> "Tensor | None":
    """Return the class of each image or sound: the one asked for, or the classes in turn."""
    import torch

    classes = getattr(model.config, "classes", 0)
    if label is None:
        return torch.arange(count) % classes if classes else None
    if not 0 <= label < classes:
        rule = f"--label in 0 .. {classes - 1}" if classes else "a model with classes for --label"
        raise InputError(f"sample: expected {rule}, got {label}")
    return torch.full((count,), label)


def _draw(
    model: "GenerativeModel",
    count: int,
    batch_size: int,
    seed: int,
    labels: "Tensor | None",
    **options: Any,
) -> "Tensor":
    """Draw images [count, C, H, W], or sounds, the same on every device; return them on the CPU."""
    import torch

    drawn = []
    for start in range(0, count, batch_size):
        n = min(batch_size, count - start)
        # The same noise for every batch, each of which goes on where the last one ended.
        options |= {"generator": torch.Generator().manual_seed(seed), "first": start}
        if labels is not None:
            options["labels"] = labels[start : start + n]
        drawn.append(model.sample(n, **options).cpu())
    return torch.cat(drawn)


def _save(output: Path, drawn: "Tensor", model: "GenerativeModel", columns: int | None) -> Path:
    from genfast.images import save_grid
    from genfast.sounds import save_sounds

    config: Any = model.config
    if model.domain == "images":
        return save_grid(drawn, output, config.levels, columns)
    save_sounds(drawn, output, config.sample_rate, config.levels, config.companding)
    return output


def _save_npz(path: Path, images: "Tensor", levels: int) -> Path:
    import numpy as np

    from genfast._files import write_atomic

    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.numpy(), levels=np.int64(levels))
    write_atomic(path, buffer.getvalue())
    return path
