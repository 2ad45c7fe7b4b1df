"""`genfast compare`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from genfast.cli._data import DataOptions
from genfast.cli._help import option
from genfast.cli._memory import keep_freed_memory
from genfast.cli._options import (
    MODEL_NAMES,
    Channels,
    Data,
    Device,
    FollowLinks,
    MaxBytes,
    Size,
    fit_to_fields,
    parse_settings,
)
from genfast.errors import InputError

# The keys of genfast.evaluation.DEMO, and the models of images: see MODEL_NAMES.
DEFAULT = ("pixelcnn", "autoencoder", "vae", "gan")
COMPARED = tuple(name for name in MODEL_NAMES if name != "wavenet")


def compare(
    data: Data,
    out: Annotated[
        Path,
        option(metavar="DIR", help="Folder for the runs, results.json and report.html."),
    ],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL|RUN",
            help=f"Models to train ({', '.join(COMPARED)}) and folders of finished runs "
            f"(default: {', '.join(DEFAULT)}).",
        ),
    ] = None,
    size: Size = None,
    channels: Channels = None,
    max_bytes: MaxBytes = None,
    follow_links: FollowLinks = False,
    epochs: Annotated[
        int | None,
        option(
            metavar="N",
            help="Passes over the data for every model (default: a number for each model, made "
            "for the digits).",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        option(
            "--set",
            metavar="MODEL.NAME=VALUE",
            help="A setting of one model or of its training, such as pixelcnn.channels=64 or "
            "gan.learning_rate=1e-4; may be repeated (default: settings made for the digits).",
        ),
    ] = None,
    seed: Annotated[
        int,
        option(metavar="N", help="Decides training, samples and classifiers, from 0 (default 0)."),
    ] = 0,
    device: Device = "auto",
    force: Annotated[
        bool,
        option(
            "--force", help="Evaluate again even if nothing changed (default: keep the report)."
        ),
    ] = False,
    progress: Annotated[
        bool, option(help="Show bars and messages on standard error (default yes).")
    ] = True,
) -> None:
    """Train, judge and compare models in one self-contained page.

    What is already trained in DIR is not trained again, and what was interrupted goes on. Open
    DIR/report.html in a browser.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"compare: expected --seed in [0, 2**32), got {seed}")
    from genfast.evaluation import compare as run_comparison

    keep_freed_memory()
    names = list(models or DEFAULT)
    source = DataOptions(data, size, channels, max_bytes, follow_links)
    wanted = _settings(epochs, parse_settings("compare", settings or []))
    run_comparison(
        names,
        (source.open("train"), source.open("test")),
        out,
        settings=wanted,
        seed=seed,
        device=device,
        progress=progress,
        command=shlex.join(["genfast", *sys.argv[1:]]),
        force=force,
    )
    print(out / "report.html")


def _settings(epochs: int | None, given: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the demo's settings with those given put in: training settings, else the model's."""
    from dataclasses import fields

    from genfast.evaluation import DEMO
    from genfast.models import MODELS
    from genfast.training import TrainingConfig

    settings = {
        name: {kind: dict(DEMO.get(name, {}).get(kind, {})) for kind in ("model", "training")}
        for name in MODELS
    }
    if epochs is not None:
        for each in settings.values():
            each["training"]["epochs"] = epochs
    of_training = {field.name for field in fields(TrainingConfig)}
    for path, value in given.items():
        model, _, name = path.partition(".")
        if model not in MODELS or not name:
            rule = f"--set MODEL.NAME=VALUE with a model in {', '.join(MODELS)}"
            raise InputError(f"compare: expected {rule}, got {path!r}")
        config_class = TrainingConfig if name in of_training else MODELS[model][0]
        kind = "training" if name in of_training else "model"
        settings[model][kind] |= fit_to_fields(config_class, {name: value})
    return settings
