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
        int, option("--count", "-n", metavar="N", help="Images to draw (default 64).")
    ] = 64,
    output: Annotated[
        Path | None,
        option(
            "--output",
            "-o",
            metavar="PNG",
            help="Grid of the images (default RUN/sample.png, or none with --npz).",
        ),
    ] = None,
    npz: Annotated[
        Path | None,
        option(
            metavar="NPZ",
            help="Also save the images as integer grey levels: arrays images [N, C, H, W] and "
            "levels; --data takes such a file (default: none).",
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
            help="pixelcnn only: divide the logits by T; below 1 is safer, above 1 more varied "
            "(default 1).",
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
            help="Images drawn at a time, which bounds the memory; another number gives other "
            "images (default 256).",
        ),
    ] = 256,
    device: Device = "auto",
    progress: Annotated[bool, option(help="Show a bar on standard error (default yes).")] = True,
) -> None:
    """Draw images from a trained model, as a picture or an array."""
    for name, value in (("--count", count), ("--batch-size", batch_size), ("--columns", columns)):
        if value is not None and value < 1:
            raise InputError(f"sample: expected {name} of at least 1, got {value}")
    if not 0 <= seed < 2**63:
        raise InputError(f"sample: expected --seed in [0, 2**63), got {seed}")
    if output is None and npz is None:
        output = run / "sample.png"
    # Before sampling, which may take long.
    if output is not None and output.suffix.lower() != ".png":
        raise InputError(f"sample: expected --output with a name in .png, got {str(output)!r}")

    from genfast.images import save_grid
    from genfast.training import load

    model = load(run, device=device)
    options: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    if options and "temperature" not in inspect.signature(model.sample).parameters:
        raise InputError(f"sample: expected a model with a temperature, got {type(model).__name__}")
    for path in (output, npz):
        if path is not None:
            _check_writable(path)
    start = time.perf_counter()
    images = _draw(model, count, batch_size, seed, progress=progress, **options)
    seconds = time.perf_counter() - start
    written = []
    if output is not None:
        written.append(save_grid(images, output, model.config.levels, columns))
    if npz is not None:
        written.append(_save_npz(npz, images, model.config.levels))
    print(f"{count} images in {seconds:.2f} s: {', '.join(map(str, written))}")


def _draw(
    model: "GenerativeModel", count: int, batch_size: int, seed: int, **options: Any
) -> "Tensor":
    """Draw images [count, C, H, W], the same on every device, and return them on the CPU."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    return torch.cat([model.sample(n, generator=generator, **options).cpu() for n in sizes])


def _check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, while nothing has been computed yet."""
    from genfast._files import make_folder

    make_folder(path.parent)
    if path.is_dir():
        raise InputError(f"sample: expected the name of a file, got the folder {path}")


def _save_npz(path: Path, images: "Tensor", levels: int) -> Path:
    import numpy as np

    from genfast._files import write_atomic

    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.numpy(), levels=np.int64(levels))
    write_atomic(path, buffer.getvalue())
    return path
