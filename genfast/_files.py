"""Files that hold either their old or their new content, whatever happens in between."""

import json
import os
from pathlib import Path
from typing import Any

from genfast.errors import InputError


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until its content is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename is durable only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content: write beside it, fsync, rename over it, fsync the folder."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        write_synced(aside, data)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(path: Path) -> Path:
    """Make a folder and its parents, each durably; one that exists is fine.

    Raises:
        InputError: if it cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
        if not path.is_dir():
            raise InputError(f"folder: expected a folder or a free name, got the file {path}")
    except OSError as error:
        raise InputError(f"folder: cannot make {path}: {error.strerror}") from error
    return path


def encode_json(content: Any) -> bytes:
    """Serialise so that equal content gives equal bytes; NaN and infinities are refused."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
