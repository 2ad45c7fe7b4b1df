"""The log of a run."""

import csv
import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from genfast.errors import CheckpointError, InputError
from genfast.training import read_log
from genfast.training.log import CSV, JSONL, RunLog, _append


def row(step: int, **losses: float) -> dict[str, Any]:
    return {"step": step, "epoch": 1, "seconds": step / 10, **losses}


def read_csv(run: Path) -> list[dict[str, str]]:
    with (run / CSV).open(newline="") as file:
        return list(csv.DictReader(file))


def write(run: Path, *rows: dict[str, Any], step: int = 0, **options: Any) -> None:
    log = RunLog(run, step, **options)
    for each in rows:
        log.write(each)
    log.sync()
    log.close()


def test_both_files_say_the_same(tmp_path: Path) -> None:
    rows = [row(5, loss=0.1 + 0.2), row(10, loss=1e-9)]
    write(tmp_path, *rows)
    assert read_log(tmp_path) == rows
    table = read_csv(tmp_path)
    assert [float(line["loss"]) for line in table] == [0.1 + 0.2, 1e-9]
    assert [int(line["step"]) for line in table] == [5, 10]


def test_a_new_column_widens_the_table(tmp_path: Path) -> None:
    write(tmp_path, row(5, loss=1.0), row(5, **{"valid/loss": 2.0}), row(6, loss=3.0))
    table = read_csv(tmp_path)
    assert [(line["loss"], line["valid/loss"]) for line in table] == [
        ("1.0", ""),
        ("", "2.0"),
        ("3.0", ""),
    ]


def test_rows_are_there_before_the_log_is_closed(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write(row(1, loss=1.0))
    assert len(read_log(tmp_path)) == len(read_csv(tmp_path)) == 1
    log.close()


def test_resuming_drops_later_rows_and_keeps_the_others(tmp_path: Path) -> None:
    write(tmp_path, *(row(step, loss=float(step)) for step in (2, 4, 6)))
    write(tmp_path, row(6, loss=-6.0), step=5)
    assert [(each["step"], each["loss"]) for each in read_log(tmp_path)] == [
        (2, 2.0),
        (4, 4.0),
        (6, -6.0),
    ]
    assert [line["loss"] for line in read_csv(tmp_path)] == ["2.0", "4.0", "-6.0"]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_line_is_dropped(tmp_path: Path, cut: int) -> None:
    write(tmp_path, row(2, loss=2.0), row(4, loss=4.0))
    for name in (JSONL, CSV):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-cut])
    write(tmp_path, row(6, loss=6.0), step=4)
    steps = [each["step"] for each in read_log(tmp_path)]
    assert steps == [int(line["step"]) for line in read_csv(tmp_path)]
    assert steps == ([2, 4, 6] if cut == 1 else [2, 6] if cut < 57 else [6])


def test_a_damaged_table_is_made_anew(tmp_path: Path) -> None:
    write(tmp_path, row(2, loss=2.0))
    (tmp_path / CSV).write_bytes(b"\xff\x00,,,\n")
    whole = (tmp_path / JSONL).read_bytes()
    (tmp_path / JSONL).write_bytes(whole + b'\xff\n[1]\n{"step": "x"}\nnull\n')
    write(tmp_path, row(4, loss=4.0), step=2)
    assert [line["step"] for line in read_csv(tmp_path)] == ["2", "4"]


def test_not_finite_is_null_in_json(tmp_path: Path) -> None:
    write(tmp_path, row(1, loss=float("inf")))
    line = (tmp_path / JSONL).read_text()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None


def test_full_disk_names_the_file() -> None:
    with (
        open("/dev/full", "wb", buffering=0) as file,
        pytest.raises(CheckpointError, match="cannot write /dev/full: No space left"),
    ):
        _append(file, b"line\n")


def test_disk_that_fills_up_in_a_line_names_the_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / JSONL).open("wb", buffering=0) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3, limits[1]))
        try:
            with pytest.raises(CheckpointError, match=r"log\.jsonl: no room for 5 bytes"):
                _append(file, b"line\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_log_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"log\.jsonl: No such file"):
        read_log(tmp_path)


def test_tensorboard_missing_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"pip install tensorboard.*genfast\[tensorboard\]"):
        RunLog(tmp_path, tensorboard=True)


def test_tensorboard_gets_the_losses_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, *(row(step, loss=float(step)) for step in (2, 4, 6)), tensorboard=True)
    write(tmp_path, row(6, loss=-6.0), step=5, tensorboard=True)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (2, 2.0),
        (4, 4.0),
        (6, -6.0),
    ]
