"""Whether a report still says what evaluating again would say."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genfast._files import encode_json
from genfast.evaluation.machine import versions
from genfast.evaluation.runs import Entry, describe_data, weights_digest

if TYPE_CHECKING:
    from genfast.data import ImageDataset


def fingerprint(
    entries: list[Entry], train: ImageDataset, test: ImageDataset, seed: int, classifiers: list[str]
) -> str:
    """A hash of all that the results depend on: weights, data, settings, versions, this code."""
    content = {
        "runs": [[entry.name, str(entry.run), weights_digest(entry.run)] for entry in entries],
        "data": [describe_data(train), describe_data(test)],
        "seed": seed,
        "classifiers": classifiers,
        "versions": versions(),
        "code": _code_digest(),
    }
    return hashlib.sha256(encode_json(content)).hexdigest()


def up_to_date(results: Path, report: Path, fingerprint: str) -> dict[str, Any] | None:
    """The results that are there, if they have this fingerprint and their report is there too."""
    try:
        found = json.loads(results.read_bytes())
    except (OSError, ValueError):
        return None
    same = isinstance(found, dict) and found.get("fingerprint") == fingerprint
    return found if same and report.is_file() else None


def _code_digest() -> str:
    digest = hashlib.sha256()
    here = resources.files("genfast.evaluation")
    for place in (here, here / "templates"):
        files = [each for each in place.iterdir() if each.name.endswith((".py", ".j2", ".css"))]
        for each in sorted(files, key=lambda file: file.name):
            digest.update(each.read_bytes())
    return digest.hexdigest()
