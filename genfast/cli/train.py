"""`genfast train`."""

import json
import re
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from genfast.cli import _training_options as of_training
from genfast.cli._data import DataOptions, write_note
from genfast.cli._help import option
from genfast.cli._memory import keep_freed_memory
from genfast.cli._options import (
    DATA_GROUP,
    MODEL_NAMES,
    Channels,
    FollowLinks,
    MaxBytes,
    Size,
    TrainingData,
    check_model,
    fit_to_fields,
    list_settings,
    parse_settings,
)
from genfast.errors import InputError


def train(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"One of {', '.join(MODEL_NAMES)}.")
    ],
    data: TrainingData,
    valid: Annotated[
        str | None,
        option(
            metavar="SPEC",
            group=DATA_GROUP,
            help="Images or sounds to measure the loss on after each epoch, not for gan; may be "
            "the SPEC of --data (default: none).",
        ),
    ] = None,
    valid_split: Annotated[
        str,
        option(
            metavar="NAME",
            group=DATA_GROUP,
            help="What of --valid to take: 'test', 'valid', 'train' or 'all' (default test; data "
            "without one have a fixed tenth held out as test).",
        ),
    ] = "test",
    size: Size = None,
    channels: Channels = None,
    max_bytes: MaxBytes = None,
    follow_links: FollowLinks = False,
    settings: Annotated[
        list[str] | None,
        option(
            "--set",
            metavar="NAME=VALUE",
            group="Model",
            help="A setting of the model, such as channels=64 or hidden=512,256; may be repeated "
            "(default: see --list-settings). Image shape and grey levels, or the sample rate, come "
            "from the data.",
        ),
    ] = None,
    list_settings: Annotated[
        bool,
        option(
            "--list-settings",
            callback=list_settings,
            is_eager=True,
            group="Model",
            help="List every model's settings for --set with their defaults, and stop.",
        ),
    ] = False,
    epochs: of_training.Epochs = None,
    batch_size: of_training.BatchSize = None,
    learning_rate: of_training.LearningRate = None,
    optimizer: of_training.Optimizer = None,
    betas: of_training.Betas = None,
    weight_decay: of_training.WeightDecay = None,
    clip_grad_norm: of_training.ClipGradNorm = None,
    ema_decay: of_training.EmaDecay = None,
    amp: of_training.Amp = None,
    amp_dtype: of_training.AmpDtype = None,
    seed: of_training.Seed = None,
    device: of_training.Device = None,
    out: Annotated[
        Path | None,
        option(
            metavar="RUN",
            group=of_training.RUN,
            help="Folder for checkpoints, log and samples (default runs/MODEL-DATA).",
        ),
    ] = None,
    resume: Annotated[
        bool,
        option(
            "--resume",
            group=of_training.RUN,
            help="Go on from the newest checkpoint in RUN, or start if there is none; options not "
            "given are those of the run (default: refuse a folder that holds a run).",
        ),
    ] = False,
    checkpoint_every: of_training.CheckpointEvery = None,
    keep: of_training.Keep = None,
    log_every: of_training.LogEvery = None,
    sample_every: of_training.SampleEvery = None,
    sample_count: of_training.SampleCount = None,
    progress: of_training.Progress = None,
    tensorboard: of_training.TensorBoard = None,
) -> None:
    """Train a model; write checkpoints, log and samples to a folder.

    Ctrl-C finishes the step, saves and stops; the same command with --resume goes on from there,
    and on the CPU it ends with the same weights, bit for bit, as without the break.
    """
    check_model("train", model)
    from genfast.models import MODELS
    from genfast.training import TrainingConfig, fit

    keep_freed_memory()
    options = {field.name: context.params[field.name] for field in fields(TrainingConfig)}
    given = {name: value for name, value in options.items() if value is not None}
    wanted = fit_to_fields(MODELS[model][0], parse_settings("train", settings or []))
    run = out or Path("runs") / f"{model}-{_name_of(data)}"
    if (run / "run.json").exists() and not resume:
        rule = "--out without a run in it, or --resume to go on with that run"
        raise InputError(f"train: expected {rule}, got {str(run)!r}")
    source = DataOptions(data, size, channels, max_bytes, follow_links)
    of_sounds = MODELS[model][1].domain == "sounds"
    held_out = None if valid is None else replace(source, spec=valid)
    if of_sounds:
        train_data: Any = source.open_sounds("train")
        valid_data: Any = None if held_out is None else held_out.open_sounds(valid_split)
    else:
        train_data = source.open("train")
        valid_data = None if held_out is None else held_out.open(valid_split)
    try:
        fit(
            model,
            train_data,
            run=run,
            valid=valid_data,
            resume=resume,
            model_options=wanted,
            **given,
        )
    except (KeyboardInterrupt, SystemExit):  # after SIGINT and SIGTERM
        if run.is_dir():
            write_note(run, model, source)
            print(f"genfast: stopped; --resume goes on with the run in {run}", file=sys.stderr)
        raise
    write_note(run, model, source)
    _report(run, of_sounds)


def _name_of(spec: str) -> str:
    """Name data after the last part of their path: "idx:/data/mnist/" -> "mnist"."""
    path = Path(re.sub(r"^[a-z0-9]+:", "", spec)).expanduser().resolve()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", path.name.partition(".")[0]) or "data"


def _report(run: Path, of_sounds: bool) -> None:
    """Say where the run is, what it took and what it reached."""
    summary = json.loads((run / "summary.json").read_bytes())
    losses = ", ".join(f"{name} {value:.4g}" for name, value in summary["losses"].items())
    print(f"{run}: {summary['steps']} steps in {summary['seconds']:.1f} s; {losses}")
    wanted = "-n 8 -o sounds" if of_sounds else "-n 64 -o grid.png"
    print(f"next: genfast sample {shlex.quote(str(run))} {wanted}")
