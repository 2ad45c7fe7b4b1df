"""The folder of a run: what it trains, that only one process does, and how to load its model."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from genfast._files import encode_json, make_folder, write_atomic
from genfast._version import __version__
from genfast.errors import CheckpointError, InputError
from genfast.models import MODELS, GenerativeModel, create
from genfast.training import checkpoint
from genfast.training.config import resolve_device

try:
    import fcntl
except ImportError:  # Windows has none, and goes without the lock
    fcntl = None  # type: ignore[assignment]

RUN, SUMMARY = "run.json", "summary.json"
VERSION = 1


def load(
    run: str | Path, *, model: GenerativeModel | None = None, device: str = "cpu"
) -> GenerativeModel:
    """Load the newest undamaged weights of a run, to sample or evaluate with.

    Args:
        run: a run's folder, or the folder of one of its checkpoints.
        model: where to put the weights; needed only for models that genfast does not know.
        device: "cpu", "cuda", "cuda:N" or "auto".

    Returns:
        The model in eval mode, with the averaged weights if the run kept an average.

    Raises:
        InputError: if there is no such folder.
        CheckpointError: if it holds no good checkpoint, or one of another model.
    """
    run, target = Path(run), resolve_device(device)
    if not run.is_dir():
        raise InputError(f"load: expected the folder of a run, got run={str(run)!r}")
    is_checkpoint = (run / checkpoint.MANIFEST).exists()
    found = checkpoint.read(run) if is_checkpoint else checkpoint.load_latest(run)
    if model is None:
        model = _rebuild(found)
    else:
        check_same("model", found.state.get("model"), describe_model(model), found.path)
    _load_weights(model, found.weights(), found.path)
    return model.to(target).eval()


def read_run(run: str | Path) -> dict[str, Any]:
    """Read a run's `run.json`: its model, training settings and data.

    Raises:
        InputError: if there is none.
        CheckpointError: if it is damaged, or written by something else or a newer genfast.
    """
    path = Path(run) / RUN
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"read_run: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, found something else") from error
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if found != ("genfast-run", VERSION):
        raise CheckpointError(f"{path}: expected genfast-run version {VERSION}, found {found}")
    return dict(content)


def write_run(run: Path, content: Mapping[str, Any]) -> None:
    """Write `run.json`, unless it says this already."""
    path = run / RUN
    head = {"format": "genfast-run", "version": VERSION, "genfast": __version__}
    data = encode_json({**head, **content})
    if not path.exists() or path.read_bytes() != data:
        write_file(path, data)


def write_file(path: Path, data: bytes) -> None:
    """Replace a file of a run atomically; CheckpointError if it cannot be written."""
    try:
        write_atomic(path, data)
    except OSError as error:
        needed = f"{len(data)} bytes needed"
        raise CheckpointError(f"cannot write {path}: {error.strerror}, {needed}") from error


def describe_model(model: GenerativeModel) -> dict[str, Any]:
    """Return a model's name and config as JSON content."""
    config = getattr(model, "config", None)
    fields = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else {}  # type: ignore[arg-type]
    names = {model_class: name for name, (_, model_class) in MODELS.items()}
    name = names.get(type(model), type(model).__qualname__)
    described: dict[str, Any] = json.loads(json.dumps({"name": name, "config": fields}))
    return described


def _load_weights(model: GenerativeModel, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load a checkpoint's weights into a model; CheckpointError if they do not fit."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: weights of another model: {error}") from error


def _rebuild(found: checkpoint.Checkpoint) -> GenerativeModel:
    """Make the model that a checkpoint describes, with fresh weights."""
    saved = found.state.get("model")
    name = saved.get("name") if isinstance(saved, dict) else None
    if name not in MODELS:
        raise CheckpointError(
            f"{found.path}: expected a model among {', '.join(MODELS)}, found {name!r}; "
            "pass an instance of it as model="
        )
    try:
        return create(name, **found.state["model"]["config"])
    except (InputError, KeyError, TypeError) as error:
        raise CheckpointError(f"{found.path}: no model of this genfast: {error}") from error


def check_same(what: str, saved: Any, given: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with something else; the message lists what differs."""
    saved = saved if isinstance(saved, dict) else {}
    pairs = [(name, saved.get(name), given.get(name)) for name in sorted({*saved, *given})]
    nested = {name: (a, b) for name, a, b in pairs if a != b}
    if what == "model" and "name" in nested:  # the settings of two models do not compare
        nested = {"name": nested["name"]}
    if nested:
        differing = "; ".join(_difference(name, a, b) for name, (a, b) in nested.items())
        raise CheckpointError(f"{path}: expected the same {what} as before, got {differing}")


def _difference(name: str, saved: Any, given: Any) -> str:
    if isinstance(saved, dict) and isinstance(given, dict):
        keys = [key for key in sorted({*saved, *given}) if saved.get(key) != given.get(key)]
        return "; ".join(
            _difference(f"{name}.{key}", saved.get(key), given.get(key)) for key in keys
        )
    return f"{name}={given!r} (before: {saved!r})"


@contextmanager
def locked(run: Path) -> Iterator[Path]:
    """Hold a run's folder for this process; the system lets go of it however the process ends.

    Raises:
        InputError: if another process trains in it, or it cannot be made.
    """
    is_new = not run.exists()
    path = make_folder(run) / ".lock"
    with path.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"fit: another process is training in run={str(run)!r}") from error
        try:
            yield run
        finally:
            if is_new and list(run.iterdir()) == [path]:  # refused before anything was written
                shutil.rmtree(run, ignore_errors=True)
