"""Train what is missing, evaluate every run, and write one page that compares them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from genfast._files import make_folder, write_atomic
from genfast.errors import InputError
from genfast.evaluation import draw
from genfast.evaluation.demo import DEMO
from genfast.evaluation.evaluate import CLASSIFIER_NAMES, MAX_IMAGES, control, evaluate, generate
from genfast.evaluation.freshness import fingerprint, up_to_date
from genfast.evaluation.machine import machine, versions
from genfast.evaluation.metrics import device_of, shuffled
from genfast.evaluation.pictures import shown_in_grid
from genfast.evaluation.report import Art, render
from genfast.evaluation.runs import (
    Entry,
    Fit,
    Load,
    describe_data,
    ensure_trained,
    find_entries,
    training_record,
)

if TYPE_CHECKING:
    from genfast.data import ImageDataset

FORMAT = 1
RESULTS, REPORT = "results.json", "report.html"
FOLDS = 5
SAMPLING_BATCH = 64


def compare(
    names_or_runs: Sequence[str | Path],
    data: str | Path | tuple[ImageDataset, ImageDataset],
    out: str | Path,
    *,
    settings: Mapping[str, Mapping[str, Any]] = DEMO,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    command: str | None = None,
    classifiers: Sequence[str] = CLASSIFIER_NAMES,
    force: bool = False,
    fit: Fit | None = None,
    load: Load | None = None,
) -> dict[str, Any]:
    """Compare generative models on one dataset.

    1. Train each family named into `out/<name>`, unless a finished run with the same settings and
       data is there; go on where an interrupted one stopped.
    2. Evaluate each run on the test split: see `evaluate`. The control is the training split in the
       place of samples.
    3. Write `out/results.json` and `out/report.html`, each atomically. If every run, the data and
       this code are those of the files already there, nothing is done.

    Args:
        names_or_runs: Names of families in `genfast.models.MODELS`, or folders of finished runs.
        data: What `genfast.data.open_data` takes, or a pair of training and test images.
        out: Folder for runs, results and report; made if it is missing.
        settings: Family to `{"model": {...}, "training": {...}}`, see `DEMO`.
        seed: Of the training, the samples, and the classifiers.
        device: To train and sample on: "auto", "cpu", "cuda", "cuda:N".
        progress: Show progress bars and messages on standard error.
        command: The command that led here, quoted in the report.
        classifiers: For the two-sample tests; the chart shows the first one's.
        force: Evaluate and write again even if nothing changed.
        fit: Trains one model, `genfast.fit` unless given.
        load: Loads one run, `genfast.load` unless given.

    Returns:
        The content of `results.json`.

    Raises:
        InputError: An entry is no family and no run, a run is unfinished, the folder under `out` is
            in use for something else, or the runs do not fit the data.
        DataError: The data cannot be read.
    """
    fit, load = fit or _fit(), load or _load()
    train, test = _open(data)
    folder = make_folder(Path(out))
    overrides = {"seed": seed, "device": device}
    entries = find_entries(list(names_or_runs), folder, settings, train, overrides)
    for entry in entries:
        if not ensure_trained(entry, train, test, fit, progress=progress):
            _say(f"{entry.name}: already trained, {entry.run}", progress)
    print_of = fingerprint(entries, train, test, seed, list(classifiers))
    before = None if force else up_to_date(folder / RESULTS, folder / REPORT, print_of)
    if before is not None:
        _say(f"nothing changed, {folder / REPORT} is up to date", progress)
        return before

    started = time.perf_counter()
    art = Art(
        draw.sample_grid(test.images, test.levels, f"Images from the test set of {test.name}")
    )
    models: dict[str, Any] = {}
    where = torch.device("cpu")
    for index, entry in enumerate(entries):
        _say(f"{entry.name}: sampling and judging", progress)
        model = load(entry.run, device=device)
        where = device_of(model)
        label = _label(model, entry, models)
        models[label] = _examine(model, label, index, entry, test, classifiers, seed, art)
    results: dict[str, Any] = {
        "format": FORMAT,
        "title": _title(len(models), test.name),
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": 0.0,
        "command": command,
        "fingerprint": print_of,
        "versions": versions(),
        "machine": machine(where),
        "data": _describe(train, test),
        "evaluation": {
            "seed": seed,
            "folds": FOLDS,
            "classifiers": list(classifiers),
            "sampling_batch": SAMPLING_BATCH,
            "shown": shown_in_grid(test.image_shape[2]),
        },
        "control": control(train, test, classifiers, folds=FOLDS, seed=seed),
        "models": models,
    }
    results["seconds"] = time.perf_counter() - started
    # The results last: their fingerprint vouches for the report too.
    content = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    results = json.loads(content)
    write_atomic(folder / REPORT, render(results, art).encode("utf-8"))
    write_atomic(folder / RESULTS, content.encode("utf-8"))
    _say(f"wrote {folder / REPORT}", progress)
    return results


def _examine(
    model: nn.Module,
    label: str,
    index: int,
    entry: Entry,
    test: ImageDataset,
    classifiers: Sequence[str],
    seed: int,
    art: Art,
) -> dict[str, Any]:
    """Evaluate one model and add its pictures to `art`."""
    from genfast.training.log import read_log

    levels = test.levels
    # At least as many as a grid shows, however few test images there are.
    wanted = max(min(len(test), MAX_IMAGES), shown_in_grid(test.image_shape[2]))
    samples = generate(model, wanted, seed=seed)
    result = evaluate(
        model,
        test,
        generated=samples,
        classifiers=classifiers,
        folds=FOLDS,
        seed=seed,
        sampling_batch=SAMPLING_BATCH,
    )
    result |= {"run": str(entry.run), "training": training_record(entry.run)}
    art.samples[label] = draw.sample_grid(samples, levels, f"Samples from {label}")
    shown = shuffled(test.images, seed)
    rows = read_log(entry.run) if (entry.run / "log.jsonl").is_file() else []
    pictures = (
        (art.reconstructions, draw.reconstructions(model, label, shown, levels)),
        (art.interpolations, draw.interpolations(model, label, shown, levels, seed)),
        (art.curves, draw.loss_curves(rows, label, index, draw.loss_unit(result))),
    )
    for shelf, picture in pictures:
        if picture is not None:
            shelf[label] = picture
    return result


def _open(
    data: str | Path | tuple[ImageDataset, ImageDataset],
) -> tuple[ImageDataset, ImageDataset]:
    from genfast.data import as_images, open_data

    if isinstance(data, str | Path):
        train, test = open_data(data, "train"), open_data(data, "test")
    else:
        train, test = (as_images(each) for each in data)
    if train.image_shape != test.image_shape or train.levels != test.levels:
        raise InputError(
            "compare: expected training and test images of one shape and number of levels, got "
            f"train={train.image_shape}, {train.levels} and test={test.image_shape}, {test.levels}"
        )
    return train, test


def _describe(train: ImageDataset, test: ImageDataset) -> dict[str, Any]:
    return {
        "name": test.name or "images",
        "train": len(train),
        "test": len(test),
        "shape": list(test.image_shape),
        "levels": test.levels,
        "train_sha256": describe_data(train)["sha256"],
        "test_sha256": describe_data(test)["sha256"],
    }


def _label(model: nn.Module, entry: Entry, taken: Mapping[str, Any]) -> str:
    """The family's name as its paper writes it; with the run's where there are two of a family."""
    family = type(model).__name__
    if family not in taken:
        return family
    label = f"{family} {entry.name}"
    return label if label not in taken else f"{label} {len(taken)}"


def _title(models: int, data: str) -> str:
    numbers = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    number = numbers[models - 1] if models <= len(numbers) else str(models)
    plural = "model" if models == 1 else "models"
    return f"{number} generative {plural} of {data or 'images'}"


def _say(message: str, show: bool) -> None:
    if show:
        print(message, file=sys.stderr)


def _fit() -> Fit:
    from genfast.training import fit

    return fit


def _load() -> Load:
    from genfast.training import load

    return load
