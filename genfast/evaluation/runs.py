"""The runs behind a comparison: found finished, resumed, or trained."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from genfast._files import encode_json, make_folder, write_atomic
from genfast._version import __version__
from genfast.errors import InputError
from genfast.models import MODELS

if TYPE_CHECKING:
    from genfast.data import ImageDataset

Fit = Callable[..., nn.Module]
Load = Callable[..., nn.Module]

REQUEST = "compare.json"
"""What `compare` asked of a run, beside the run's own files: how it knows its own runs again."""


@dataclass(frozen=True)
class Entry:
    """One run to compare.

    Attributes:
        name: What the caller called it.
        run: Its folder.
        request: What to train there; None for a run that somebody else made.
    """

    name: str
    run: Path
    request: Mapping[str, Any] | None


def find_entries(
    names_or_runs: list[str | Path],
    out: Path,
    settings: Mapping[str, Mapping[str, Any]],
    train: ImageDataset,
    overrides: Mapping[str, Any],
) -> list[Entry]:
    """Tell names of families, to be trained under `out`, from folders of runs.

    Raises:
        InputError: An entry is neither, comes twice, or there is none.
    """
    if not names_or_runs:
        raise InputError("compare: expected at least one family or run, got none")
    families = [name for name, (_, model) in MODELS.items() if model.domain == "images"]
    entries = []
    for given in names_or_runs:
        name = str(given)
        if name in families:
            asked = settings.get(name, {})
            request = {
                "model": name,
                "options": dict(asked.get("model", {})),
                "training": {**asked.get("training", {}), **overrides},
                "data": describe_data(train),
                "genfast": __version__,
            }
            entries.append(Entry(name, out / name, json.loads(encode_json(request))))
        elif (Path(given) / "run.json").is_file():
            if _is_of_sounds(Path(given)):
                raise InputError(f"compare: expected runs of images, got {name!r}, a run of sounds")
            entries.append(Entry(Path(given).resolve().name, Path(given), None))
        else:
            known = ", ".join(families)
            raise InputError(f"compare: expected a family ({known}) or a run, got {name!r}")
    folders = [entry.run.resolve() for entry in entries]
    twice = [entry for index, entry in enumerate(entries) if folders[index] in folders[:index]]
    if twice:
        raise InputError(f"compare: expected each run once, got {twice[0].name!r} twice")
    return entries


def ensure_trained(
    entry: Entry, train: ImageDataset, valid: ImageDataset, fit: Fit, *, progress: bool
) -> bool:
    """Train an entry's run unless it is finished; resume it if it was interrupted.

    A run that `compare` made itself with other settings is replaced; one that it did not make is
    never touched.

    Returns:
        Whether there was anything to train.

    Raises:
        InputError: The folder holds a run that `compare` did not make, or an unfinished one.
    """
    finished = (entry.run / "summary.json").is_file()
    if entry.request is None:
        if not finished:
            raise InputError(
                f"compare: expected a finished run, got {str(entry.run)!r}; "
                "finish it with genfast train --resume"
            )
        return False
    marker = entry.run / REQUEST
    if _read(marker) == entry.request:
        if finished:
            return False
    elif marker.exists():
        shutil.rmtree(entry.run)
    elif entry.run.exists() and any(entry.run.iterdir()):
        raise InputError(
            f"compare: expected {str(entry.run)!r} to be free or a run of compare, "
            "got other content; choose another out folder"
        )
    make_folder(entry.run)
    write_atomic(marker, encode_json(entry.request))
    fit(
        entry.request["model"],
        train,
        run=entry.run,
        valid=valid,
        resume=True,
        model_options=entry.request["options"],
        progress=progress,
        **entry.request["training"],
    )
    return True


def describe_data(data: ImageDataset) -> dict[str, Any]:
    """A dataset's name, size and content, for telling whether it is the same."""
    return {
        "name": data.name,
        "count": len(data),
        "shape": list(data.image_shape),
        "levels": data.levels,
        "sha256": hashlib.sha256(data.images.numpy().tobytes()).hexdigest(),
    }


def training_record(run: Path) -> dict[str, Any]:
    """Settings, steps, seconds and last losses of a run, as far as its files tell."""
    summary, described = _read(run / "summary.json") or {}, _read(run / "run.json") or {}
    return {
        "settings": described.get("training", {}),
        "steps": summary.get("steps"),
        "seconds": summary.get("seconds"),
        "losses": summary.get("losses", {}),
    }


def weights_digest(run: Path) -> str:
    """A hash that changes when a run's newest checkpoint does."""
    manifests = sorted((run / "checkpoints").glob("step-*/manifest.json"))
    content = manifests[-1].read_bytes() if manifests else b""
    return hashlib.sha256(content).hexdigest()


def _is_of_sounds(run: Path) -> bool:
    described = (_read(run / "run.json") or {}).get("model", {})
    name = described.get("name") if isinstance(described, dict) else None
    return isinstance(name, str) and name in MODELS and MODELS[name][1].domain == "sounds"


def _read(path: Path) -> Any:
    """A JSON file's content; None if there is none or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
