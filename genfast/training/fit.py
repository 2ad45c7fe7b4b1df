"""`fit`: from a model and data to a trained model, and to a folder that it can be resumed from."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from genfast.errors import CheckpointError, InputError
from genfast.models import MODELS, GenerativeModel, create, create_config
from genfast.training import checkpoint, rng
from genfast.training.config import RESUMABLE, TrainingConfig, resolve_device
from genfast.training.loader import Batches, SoundBatches
from genfast.training.loop import Loop
from genfast.training.progress import say
from genfast.training.run import RUN, check_same, describe_model, locked, write_run
from genfast.training.trainer import Trainer


def fit(
    model: str | GenerativeModel,
    data: Any,
    *,
    run: str | Path | None = None,
    valid: Any = None,
    resume: bool = False,
    model_options: Mapping[str, Any] | None = None,
    **fields: Any,
) -> GenerativeModel:
    """Train a model.

    With a folder `run`, training writes there checkpoints, `log.csv` and `log.jsonl`, grids of
    samples, `run.json` and, when finished, `summary.json`. Ctrl-C and SIGTERM finish the step, save
    and stop with KeyboardInterrupt or SystemExit(143); a second one stops at once.

    Args:
        model: a name in `genfast.models.MODELS`, with image shape and grey levels, or the sample
            rate, from the data; or an instance, which is trained in place.
        data: images to train on: a name or path for `genfast.data.open_data`, an ImageDataset,
            images, a torch Dataset or a DataLoader. For a model of sounds a path for
            `genfast.data.open_sounds` or a SoundDataset.
        run: folder to write to; None writes nothing.
        valid: images to measure the loss on after each epoch, in the same forms (a name or path
            means its test split); unused for models of several parts, such as GANs.
        resume: go on from the newest good checkpoint in `run`; start if there is none. Settings
            that are not given are those of the run. On the CPU the result equals, bit for bit, that
            of a run that was never stopped.
        model_options: settings of the model's config, when `model` is a name.
        **fields: settings of the training, see `TrainingConfig`.

    Returns:
        The model in eval mode, with the averaged weights if `ema_decay` is set.

    Raises:
        InputError: if an argument is wrong, or `run` holds a run and `resume` is not set.
        DataError: if the data are no images.
        CheckpointError: if there is no good checkpoint to resume from, it belongs to another model,
            other data or other settings, or a checkpoint cannot be written.
        NumericsError: if a loss or gradient stops being finite.

    The caller's random states are the same afterwards; `seed` decides everything.
    """
    progress = TrainingConfig.of(fields).progress
    if run is None:
        if resume:
            raise InputError("fit: expected run to be a folder to resume from, got run=None")
        return _fit(model, data, None, valid, None, model_options, fields)
    with locked(Path(run)) as folder:
        found = _find(folder, resume, progress)
        return _fit(model, data, folder, valid, found, model_options, fields)


def _fit(
    model: str | GenerativeModel,
    data: Any,
    run: Path | None,
    valid: Any,
    found: checkpoint.Checkpoint | None,
    model_options: Mapping[str, Any] | None,
    fields: Mapping[str, Any],
) -> GenerativeModel:
    config = _settings(found, fields)
    device = resolve_device(config.device)
    with rng.private(config.seed):
        given = _given(model, model_options, found)
        batches = _open(model, given, data, config)
        held_out = None
        if valid is not None:
            held_out = _open(model, {**given, **batches.decided}, valid, config, "test")
        described = batches.describe()
        if found is not None:
            check_same("data", found.state.get("data"), described, found.path)
        if isinstance(model, str):
            model = create(model, **{**batches.decided, **given})
        _check_data("data", model, batches)
        if held_out is not None:
            _check_data("valid", model, held_out)
        identity = {"model": describe_model(model), "training": asdict(config), "data": described}
        loop = Loop(Trainer(model, config, device), batches, held_out, config, run, identity)
        if found is not None:
            check_same("model", found.state.get("model"), identity["model"], found.path)
            loop.restore(found)
        if run is not None:
            spec = str(data) if isinstance(data, str | Path) else None
            write_run(run, {**identity, "data": {**described, "spec": spec}})
        loop.train(identity["model"]["name"])
    return model


def _find(run: Path, resume: bool, progress: bool) -> checkpoint.Checkpoint | None:
    """Return the checkpoint to go on from, if there is one; refuse a folder that is in use."""
    if not resume:
        if (run / RUN).exists() or checkpoint.list_checkpoints(run):
            raise InputError(
                f"fit: expected a folder without a run, got run={str(run)!r}; "
                "resume=True goes on with it"
            )
        return None
    if not checkpoint.list_checkpoints(run):
        say(f"{run}: no checkpoint to resume from, training starts at step 0", progress)
        return None
    found = checkpoint.load_latest(run)
    checkpoint.set_damaged_aside(run, found)
    return found


def _settings(found: checkpoint.Checkpoint | None, fields: Mapping[str, Any]) -> TrainingConfig:
    """Return the settings: those given, then those of the run, then the defaults."""
    given = TrainingConfig.of(fields)
    if found is None:
        return given
    try:
        saved = TrainingConfig.of(found.state["training"])
    except (InputError, KeyError, TypeError) as error:
        raise CheckpointError(f"{found.path}: settings of another genfast: {error}") from error
    config = replace(saved, **fields)
    before, now = asdict(saved), asdict(config)
    fixed = sorted(set(before) - RESUMABLE)
    check_same(
        "settings",
        {name: before[name] for name in fixed},
        {name: now[name] for name in fixed},
        found.path,
    )
    return config


def _given(
    model: str | GenerativeModel,
    options: Mapping[str, Any] | None,
    found: checkpoint.Checkpoint | None,
) -> dict[str, Any]:
    """Return what is known of the model's config before the data are; check the arguments.

    For a named model these are the settings given and those of the run.
    """
    if isinstance(model, str):
        saved = found.state.get("model") if found is not None else None
        is_same = isinstance(saved, dict) and saved.get("name") == model
        return {**(saved.get("config", {}) if is_same and saved else {}), **(options or {})}
    if options:
        raise InputError("fit: expected model_options only with the name of a model, got both")
    missing = [name for name in ("loss", "parts", "parameters_of") if not hasattr(model, name)]
    if missing or not isinstance(model, nn.Module):
        lacks = ", ".join(missing) or "torch.nn.Module"
        raise InputError(f"fit: expected a generative model, got {type(model)} without {lacks}")
    return {"levels": getattr(getattr(model, "config", None), "levels", None)}


def _open(
    model: str | GenerativeModel,
    given: Mapping[str, Any],
    data: Any,
    config: TrainingConfig,
    split: str = "train",
) -> Batches | SoundBatches:
    """Open what the model is to be trained on, in the form its settings ask for."""
    known = MODELS[model][1] if isinstance(model, str) and model in MODELS else type(model)
    if getattr(known, "domain", "images") == "sounds":
        settings = create_config(model, **given) if isinstance(model, str) else model.config
        return SoundBatches(data, config.batch_size, config.seed, settings, split)
    levels = given.get("levels")
    # Anything else is the config's to refuse.
    levels = levels if isinstance(levels, int) else None
    return Batches(data, config.batch_size, config.seed, levels, split)


def _check_data(what: str, model: GenerativeModel, batches: Batches | SoundBatches) -> None:
    """Refuse data of another shape, range or sample rate than the model's."""
    for name, got in batches.decided.items():
        expected = getattr(getattr(model, "config", None), name, None)
        if expected is not None and expected != got:
            raise InputError(f"fit: expected {what} with {name}={expected}, got {name}={got}")
