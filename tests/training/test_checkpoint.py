"""Checkpoints on disk: whole, or not used."""

import errno
import json
import os
import random
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genfast.errors import CheckpointError
from genfast.training import checkpoint
from genfast.training.checkpoint import (
    MANIFEST,
    TRAINING,
    WEIGHTS,
    list_checkpoints,
    load_latest,
    read,
    save,
    set_damaged_aside,
)

FILES = (WEIGHTS, TRAINING, MANIFEST)


def save_step(run: Path, step: int, **options: Any) -> Path:
    tensors = {"x": torch.full((5,), float(step)), "n": torch.tensor(step)}
    return save(run, step, tensors, {"y": torch.arange(3)}, {"step": step, "lr": 1e-5}, **options)


def check_whole(run: Path) -> int:
    """Check that the newest good checkpoint is all of one step; return the step."""
    found = load_latest(run)
    assert found.state["step"] == found.step
    assert torch.equal(found.weights()["x"], torch.full((5,), float(found.step)))
    assert torch.equal(found.training()["y"], torch.arange(3))
    return found.step


def test_gives_back_every_dtype_bit_for_bit(tmp_path: Path) -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32)
    tensors = {str(dtype): torch.randn(3, 5).to(dtype) for dtype in dtypes}
    tensors |= {
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "bool": torch.tensor([True, False]),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "strided": torch.arange(12).view(3, 4).T,
    }
    state = {"float": 0.1 + 0.2, "list": [1, None, "ä"], "nested": {"big": 2**62}}
    found = read(save(tmp_path, 7, tensors, {}, state))
    assert (found.step, found.state) == (7, state)
    for name, loaded in found.weights().items():
        expected = tensors[name].contiguous()
        assert loaded.dtype == expected.dtype
        assert loaded.shape == expected.shape
        assert loaded.flatten().view(torch.uint8).equal(expected.flatten().view(torch.uint8))


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    shared = torch.randn(4)
    found = read(save(tmp_path, 0, {"a": shared, "b": shared, "part": shared[1:]}, {}, {}))
    assert torch.equal(found.weights()["part"], shared[1:])


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4, 100_000_000):
        save_step(tmp_path, step, keep=3)
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-100000000", "step-00000030", "step-00000004"]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == sorted(names)


def test_same_step_is_replaced(tmp_path: Path) -> None:
    save_step(tmp_path, 3)
    save(tmp_path, 3, {"x": torch.zeros(1)}, {}, {"again": True})
    assert load_latest(tmp_path).state == {"again": True}


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_detected(tmp_path: Path, name: str) -> None:
    path = save_step(tmp_path, 1)
    whole = (path / name).read_bytes()
    for length in range(len(whole)):
        (path / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=name):
            read(path)
    (path / name).write_bytes(whole + b"\n")
    with pytest.raises(CheckpointError, match=name):
        read(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read(path)


@pytest.mark.parametrize("name", FILES)
def test_bit_flips_are_detected(tmp_path: Path, name: str) -> None:
    path = save_step(tmp_path, 1)
    whole = (path / name).read_bytes()
    bits = range(8 * len(whole))
    for bit in random.Random(0).sample(bits, min(1500, len(bits))):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(flipped)
        with pytest.raises(CheckpointError, match=name):
            read(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_is_detected(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = save_step(tmp_path_factory.mktemp("run"), 1)
    name = data.draw(st.sampled_from(FILES))
    whole = (path / name).read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, 40))
    changed = whole[:at] + data.draw(st.binary(max_size=40)) + whole[at + length :]
    (path / name).write_bytes(changed)
    if changed == whole:
        read(path)
    else:
        with pytest.raises(CheckpointError, match=name):
            read(path)


def test_damaged_newest_is_reported_and_the_one_before_is_used(tmp_path: Path) -> None:
    save_step(tmp_path, 1)
    damaged = save_step(tmp_path, 2)
    (damaged / TRAINING).write_bytes(b"")
    pattern = r"step-00000002.*expected \d+ bytes, found 0; step-00000001 is used"
    with pytest.warns(UserWarning, match=pattern):
        assert check_whole(tmp_path) == 1
    with pytest.warns(UserWarning, match="step-00000002"):
        set_damaged_aside(tmp_path, load_latest(tmp_path))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert (damaged.parent / "damaged-step-00000002").is_dir()


def test_none_good_and_none_at_all_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected step-\\* folders"):
        load_latest(tmp_path)
    for step in (1, 2):
        (save_step(tmp_path, step) / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"no undamaged checkpoint.*step-00000002.*00000001"):
        load_latest(tmp_path)


@pytest.mark.parametrize(
    ("change", "found"), [({"format": "other"}, "other version 1"), ({"version": 2}, "version 2")]
)
def test_foreign_format_is_refused_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], found: str
) -> None:
    save_step(tmp_path, 1)
    for name, value in change.items():
        monkeypatch.setattr(checkpoint, name.upper(), value)
    save_step(tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=f"expected format genfast-checkpoint.*{found}"):
        load_latest(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b"{}", b"3", b'"x"', b"[" * 100_000, b"1" * 10_000, b"\xff\xfe",
        b'{"a": NaN}', b'{"a": 1, "a": 2}', b'{"format": "genfast-checkpoint", "version": 1}',
        json.dumps({"format": "genfast-checkpoint", "version": 1, "files": 3}).encode(),
    ],
)  # fmt: skip
def test_hostile_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    path = save_step(tmp_path, 1)
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=MANIFEST):
        read(path)


def test_manifest_with_its_own_digest_but_no_files_is_refused(tmp_path: Path) -> None:
    path = save_step(tmp_path, 1)
    for files in ({}, [], {WEIGHTS: 1, TRAINING: 2}, {"../../x": {"bytes": 1, "sha256": ""}}):
        (path / MANIFEST).write_bytes(checkpoint._encode_manifest(1, files, {}))  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=MANIFEST):
            read(path)


class Crash(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("lost", [False, True], ids=["before", "after"])
def test_a_crash_at_any_call_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Stop at the n-th system call that changes the disk, for every n; then save again."""
    calls = {"fsync": os, "rename": os, "mkdir": os, "rmdir": os, "unlink": os}
    if not lost:
        calls["open"] = Path
    countdown = 0

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal countdown
            countdown -= 1
            if countdown == 0 and not lost:
                raise Crash
            result = real(*args, **kwargs)
            if countdown == 0:
                raise Crash
            return result

        return call

    seen = set()
    for n in range(1, 200):
        run = tmp_path / f"run{n}"
        for step in (1, 2):
            save_step(run, step)
        countdown = n
        with monkeypatch.context() as patch:
            for name, owner in calls.items():
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                save_step(run, 3)
                complete = True
            except Crash:
                complete = False
        seen.add(check_whole(run))
        save_step(run, 4)
        assert check_whole(run) == 4
        assert len(os.listdir(run / "checkpoints")) == 2
        if complete:
            break
    assert complete
    assert n > 12
    assert seen == {2, 3}


def test_content_is_on_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def traced_fsync(descriptor: int) -> None:
        events.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def traced_rename(source: Any, target: Any, **_: Any) -> None:
        events.append(f"rename {Path(source).name} {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "rename", traced_rename)
    save_step(tmp_path, 1)
    aside = ".step-00000001.tmp"
    assert events == [
        f"fsync {tmp_path.name}",  # the new name "checkpoints"
        *(f"fsync {name}" for name in FILES),
        f"fsync {aside}",
        f"rename {aside} step-00000001",
        "fsync checkpoints",
    ]


def test_too_large_a_file_keeps_the_old_and_names_path_and_bytes(tmp_path: Path) -> None:
    save_step(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path, 2, {"x": torch.zeros(10)}, {"y": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert str(tmp_path / "checkpoints" / "step-00000002") in message
    assert "400040 bytes needed" in message
    assert "kept: step-00000001" in message
    assert check_whole(tmp_path) == 1
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000001"]


@pytest.mark.parametrize("name", FILES)
def test_full_disk_at_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    save_step(tmp_path, 1)
    write = checkpoint.write_synced

    def full(path: Path, data: bytes) -> None:
        if path.name == name:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_synced", full)
    with pytest.raises(CheckpointError, match=r"step-00000002: No space left .* bytes needed"):
        save_step(tmp_path, 2)
    assert check_whole(tmp_path) == 1
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000001"]


def test_an_old_one_that_cannot_be_deleted_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_step(tmp_path, 1)
    save_step(tmp_path, 2)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    save_step(tmp_path, 3)
    assert check_whole(tmp_path) == 3


def test_training_never_pickles() -> None:
    package = Path(checkpoint.__file__).parent
    for path in [*package.glob("*.py"), package.parent / "_files.py"]:
        text = path.read_text().replace("safetensors.torch", "safetensors")
        for banned in ("import pickle", "torch.load", "torch.save", "allow_pickle", "marshal"):
            assert banned not in text, (path.name, banned)
