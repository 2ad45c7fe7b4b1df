"""Checkpoints: folders that are complete and undamaged, or are not used.

    RUN/checkpoints/step-00000042/
        model.safetensors      the weights to sample with
        training.safetensors   what else training needs to go on
        manifest.json          format, step, state, and the size and SHA-256 of the two others

A checkpoint is written under another name, every file and the folder are fsynced, the folder gets
its name, and the folder above is fsynced: a power cut leaves the old checkpoints, or the old and
the new. Nothing is ever pickled.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from genfast._files import encode_json, make_folder, sync_folder, write_synced
from genfast._version import __version__
from genfast.errors import CheckpointError

FORMAT = "genfast-checkpoint"
VERSION = 1
WEIGHTS, TRAINING, MANIFEST = "model.safetensors", "training.safetensors", "manifest.json"
_LARGEST_MANIFEST = 16 * 2**20
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte has been verified.

    Attributes:
        path: its folder.
        step: training steps taken when it was written.
        state: what `save` was given as `state`.
    """

    path: Path
    step: int
    state: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Read the weights to sample with."""
        return _read_tensors(self.path / WEIGHTS)

    def training(self) -> dict[str, Tensor]:
        """Read what else training needs to go on."""
        return _read_tensors(self.path / TRAINING)


def save(
    run: Path,
    step: int,
    weights: Mapping[str, Tensor],
    training: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
) -> Path:
    """Write a checkpoint, then delete all but the newest `keep` of them.

    Args:
        run: the run's folder.
        step: training steps taken so far; it names the checkpoint.
        weights: the weights to sample with.
        training: further tensors that training needs to go on.
        state: what else it needs, as JSON content.
        keep: checkpoints to leave, at least 2.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: if it cannot be written, naming the path and the bytes needed. The earlier
            checkpoints stay as they were.
    """
    folder = make_folder(run / "checkpoints")
    for left in folder.glob(".step-*"):  # of a process that was killed while saving
        shutil.rmtree(left, ignore_errors=True)
    final = folder / f"step-{step:08d}"
    aside = folder / f".{final.name}.tmp"
    needed = sum(t.nbytes for tensors in (weights, training) for t in tensors.values())
    try:
        aside.mkdir()
        files = {}
        for name, tensors in ((WEIGHTS, weights), (TRAINING, training)):
            files[name] = _write(aside / name, _serialise(tensors))
        write_synced(aside / MANIFEST, _encode_manifest(step, files, state))
        sync_folder(aside)
        if final.exists():
            _discard(final)
        aside.rename(final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        kept = list_checkpoints(run)
        raise CheckpointError(
            f"checkpoint: cannot write {final}: {error.strerror or error}; about {needed} bytes "
            f"needed, {_free(folder)} free; kept: {kept[0].name if kept else 'none'}"
        ) from error
    for old in list_checkpoints(run)[max(keep, 2) :]:
        with contextlib.suppress(OSError):  # tried again after the next save
            _discard(old)
    return final


def list_checkpoints(run: Path) -> list[Path]:
    """List the checkpoint folders of a run, newest first, without looking into them."""
    folder = run / "checkpoints"
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def load_latest(run: Path) -> Checkpoint:
    """Return the newest undamaged checkpoint of a run; warn about each damaged one passed over.

    Raises:
        CheckpointError: if there is none, or none is good; or if the newest was written by
            something else or a newer genfast, since an older one would silently lose work.
    """
    found = list_checkpoints(run)
    if not found:
        raise CheckpointError(f"checkpoint: expected step-* folders in {run / 'checkpoints'}")
    problems = []
    for path in found:
        try:
            checkpoint = read(path)
        except DamagedError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem}; {path.name} is used instead", stacklevel=2)
        return checkpoint
    raise CheckpointError(f"checkpoint: no undamaged checkpoint in {run}: {'; '.join(problems)}")


class DamagedError(CheckpointError):
    """A checkpoint of ours is not as it was written."""


def read(path: Path) -> Checkpoint:
    """Verify every byte of a checkpoint.

    Raises:
        DamagedError: if a file is missing, truncated or changed.
        CheckpointError: if the format is foreign, or newer than this genfast reads.
    """
    manifest = _read_manifest(path / MANIFEST)
    for name in (WEIGHTS, TRAINING):
        expected = manifest["files"][name]
        try:
            with (path / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != expected["bytes"]:
                    _damaged(path / name, f"{expected['bytes']} bytes", size)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DamagedError(f"{path / name}: cannot be read: {error.strerror}") from error
        if digest != expected["sha256"]:
            _damaged(path / name, f"SHA-256 {expected['sha256']}", digest)
    return Checkpoint(path, manifest["step"], manifest["state"])


def set_damaged_aside(run: Path, used: Checkpoint) -> None:
    """Rename the checkpoints newer than the one in use, so that they no longer count as kept."""
    for path in list_checkpoints(run):
        if path == used.path:
            return
        target = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)


def _encode_manifest(step: int, files: Mapping[str, Any], state: Mapping[str, Any]) -> bytes:
    content = {
        "format": FORMAT,
        "version": VERSION,
        "genfast": __version__,
        "step": step,
        "files": files,
        "state": state,
    }
    digest = hashlib.sha256(encode_json(content)).hexdigest()
    return encode_json({**content, "sha256": digest})


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest; what it says can be relied on afterwards."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_MANIFEST + 1)
        content = json.loads(raw) if len(raw) <= _LARGEST_MANIFEST else None
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: expected JSON, found {len(raw)} bytes of no JSON") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: expected a JSON object of at most {_LARGEST_MANIFEST} bytes")
    digest = content.pop("sha256", None)
    # The bytes must be exactly those that save writes, so that no change at all goes unnoticed.
    body = _reencode(content)
    if raw != _reencode({**content, "sha256": hashlib.sha256(body).hexdigest()}):
        _damaged(path, f"an intact manifest (SHA-256 {digest})", "another content")
    found = (content.get("format"), content.get("version"))
    if found != (FORMAT, VERSION):
        raise CheckpointError(
            f"{path}: expected format {FORMAT} version {VERSION}, found {found[0]} version "
            f"{found[1]}; this is genfast {__version__}"
        )
    if not _is_manifest(content):
        _damaged(path, "step, state, files", sorted(content))
    return content


def _is_manifest(content: dict[str, Any]) -> bool:
    files, state, step = (content.get(name) for name in ("files", "state", "step"))
    if not (isinstance(files, dict) and isinstance(state, dict) and isinstance(step, int)):
        return False
    return all(
        isinstance(entry := files.get(name), dict) and {"bytes", "sha256"} <= set(entry)
        for name in (WEIGHTS, TRAINING)
    )


def _reencode(content: Any) -> bytes:
    try:
        return encode_json(content)
    except (ValueError, RecursionError):
        return b""


def _serialise(tensors: Mapping[str, Tensor]) -> bytes:
    # Each tensor gets its own memory: safetensors refuses tied weights otherwise.
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return safetensors.torch.save(copies)


def _write(path: Path, data: bytes) -> dict[str, Any]:
    write_synced(path, data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        # Cloned, since what is mapped would change with the file and may lie at odd addresses.
        return {name: t.clone() for name, t in safetensors.torch.load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path}: cannot be read: {error}") from error


def _discard(path: Path) -> None:
    """Delete a checkpoint; killed half-way, it no longer looks like one."""
    hidden = path.with_name(f".{path.name}.old")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _free(folder: Path) -> str:
    try:
        return str(shutil.disk_usage(folder).free)
    except OSError:
        return "an unknown number"


def _damaged(path: Path, expected: str, found: Any) -> None:
    raise DamagedError(f"{path}: damaged: expected {expected}, found {found}")
