"""The log of a run: the same rows as `log.csv`, `log.jsonl` and, on demand, for TensorBoard."""

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

from genfast.errors import CheckpointError, InputError
from genfast.training.run import write_file

CSV, JSONL = "log.csv", "log.jsonl"
_FIRST_COLUMNS = ("step", "epoch", "seconds")

Row = dict[str, Any]


def read_log(run: str | Path) -> list[Row]:
    """Read the rows of a run's log, oldest first.

    A row has step, epoch (counted from 1), seconds of training so far, and either the means over
    the steps since the last row ("loss", "kl", ...; "generator/loss", ... for models of several
    parts) or the means over the validation data ("valid/loss", ...).

    Raises:
        InputError: if the run has no log.
    """
    path = Path(run) / JSONL
    try:
        return _rows(path)
    except OSError as error:
        raise InputError(f"read_log: cannot read {path}: {error.strerror}") from error


class RunLog:
    """Writes the log. Rows after `step` are dropped first, since a resumed run writes them again.

    Raises:
        InputError: if TensorBoard is asked for and not installed.
    """

    def __init__(self, run: Path, step: int = 0, tensorboard: bool = False) -> None:
        self._run = run
        self._board = _tensorboard(run / "tensorboard", step) if tensorboard else None
        path = run / JSONL
        rows = [row for row in _rows(path) if row["step"] <= step] if path.exists() else []
        self._columns = _columns(rows)
        write_file(path, b"".join(_json_line(row) for row in rows))
        self._rewrite_csv(rows)
        self._jsonl = path.open("ab", buffering=0)
        self._csv = (run / CSV).open("ab", buffering=0)

    def write(self, row: Row) -> None:
        """Append a row; it survives the end of this process from here on."""
        _append(self._jsonl, _json_line(row))
        if set(row) <= set(self._columns):
            _append(self._csv, _csv_line(row, self._columns))
        else:  # the first row of its kind widens the table
            rows = _rows(self._run / JSONL)
            self._columns = _columns(rows)
            self._csv.close()
            self._rewrite_csv(rows)
            self._csv = (self._run / CSV).open("ab", buffering=0)
        if self._board is not None:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self._board.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        """Wait until the rows are on the disk: a checkpoint must not be newer than its log."""
        for file in (self._jsonl, self._csv):
            os.fsync(file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Close the files."""
        self._jsonl.close()
        self._csv.close()
        if self._board is not None:
            self._board.close()

    def _rewrite_csv(self, rows: list[Row]) -> None:
        header = _csv_line({name: name for name in self._columns}, self._columns)
        lines = [_csv_line(row, self._columns) for row in rows]
        write_file(self._run / CSV, b"".join([header, *lines]))


def _append(file: io.FileIO, line: bytes) -> None:
    try:
        written = file.write(line)
    except OSError as error:
        raise CheckpointError(f"cannot write {file.name}: {error.strerror}") from error
    if written != len(line):
        raise CheckpointError(f"cannot write {file.name}: no room for {len(line)} bytes")


def _rows(path: Path) -> list[Row]:
    """Read what is whole: a kill may leave half a line at the end."""
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _columns(rows: list[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*_FIRST_COLUMNS, *(name for row in rows for name in row)]))


def _json_line(row: Row) -> bytes:
    finite = {name: value if _is_finite(value) else None for name, value in row.items()}
    return (json.dumps(finite, allow_nan=False) + "\n").encode()


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _csv_line(row: Row, columns: tuple[str, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([row.get(name, "") for name in columns])
    return text.getvalue().encode()


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "tensorboard: expected TensorBoard to be installed, got tensorboard=True; "
            "pip install tensorboard, or pip install genfast[tensorboard]"
        ) from error
    # What was logged after the step resumed from is hidden by its second writing.
    return SummaryWriter(str(folder), purge_step=step + 1)
