import ast
import os
from pathlib import Path

import numpy as np
import pytest

import genfast.data
from genfast.data import digits, open_data
from genfast.errors import DataError, GenfastError, InputError
from tests.data.build import (
    cifar_bytes,
    gz,
    idx_bytes,
    image_bytes,
    mnist_folder,
    npz_bytes,
    pixels,
    write,
)


def make(kind, root):
    """One dataset of 5 to 26 images per format; returns what to open."""
    if kind == "idx folder":
        mnist_folder(root)
        return root
    if kind == "npz folder":
        write(root / "train.npz", npz_bytes(images=pixels(6, 4, 3)))
        write(root / "test.npz", npz_bytes(images=pixels(6, 4, 3)))
        return root
    if kind == "cifar folder":
        write(root / "test_batch.bin", cifar_bytes())
        return root
    if kind == "images":
        for index in range(5):
            write(root / f"{index}.png", image_bytes(pixels(4, 3), "png"))
        return root
    if kind == "split and class folders":
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                write(root / split / name / "1.jpg", image_bytes(pixels(8, 8), "jpg"))
        return root
    data = {
        "idx file": idx_bytes(pixels(5, 4, 3)),
        "idx gzip": gz(idx_bytes(pixels(5, 4, 3))),
        "npz file": npz_bytes(images=pixels(5, 4, 3)),
        "cifar.bin": cifar_bytes(),
    }[kind]
    return write(root / kind, data)


KINDS = {
    "idx folder": "idx",
    "idx file": "idx",
    "idx gzip": "idx",
    "npz folder": "npz",
    "npz file": "npz",
    "cifar folder": "cifar",
    "cifar.bin": "cifar10",
    "images": "folder",
    "split and class folders": "folder",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_found_out_or_told(tmp_path, kind):
    path = make(kind, tmp_path / "a dataset")
    data = open_data(str(path), "all")
    assert len(data) >= 4
    told = open_data(f"{KINDS[kind]}:{path}", "all")
    assert np.array_equal(data.images.numpy(), told.images.numpy())
    assert len(open_data(path, "train")) + len(open_data(path, "test")) == len(data)


def test_digits_by_name(tmp_path, monkeypatch):
    assert np.array_equal(open_data("digits", "test").images, digits("test").images)
    monkeypatch.chdir(tmp_path)
    make("images", Path("digits"))
    assert len(open_data("digits", "test")) == 297
    assert len(open_data("folder:digits", "all")) == 5


def test_a_colon_in_a_path_is_no_format(tmp_path):
    file = make("idx file", tmp_path / "odd:name")
    assert len(open_data(str(file), "all")) == 5
    with pytest.raises(DataError, match="nothing there"):
        open_data("C:\\data\\mnist")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make("idx file", tmp_path)
    assert len(open_data("idx:~/idx file", "all")) == 5


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "found none"),
        ({"notes.txt": b"x"}, "found none"),
        (
            {"train.npz": npz_bytes(a=0), "test_batch.bin": cifar_bytes()},
            'cifar and npz; .*"cifar:',
        ),
    ],
)
def test_a_folder_of_no_or_of_two_formats(tmp_path, files, message):
    for name, data in files.items():
        write(tmp_path / name, data)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x04\x95", b"\x93NUMPY\1\0"])
def test_a_file_of_unknown_format(tmp_path, data):
    with pytest.raises(DataError, match=f"first bytes 0x{data[:4].hex()}"):
        open_data(write(tmp_path / "x", data))


def test_caps_reach_every_reader(tmp_path):
    for kind in KINDS:
        path = make(kind, tmp_path / kind.replace(" ", ""))
        with pytest.raises(DataError, match="max_bytes=40 "):
            open_data(path, "all", max_bytes=40)


@pytest.mark.parametrize("form", ["", "idx:", "cifar:", "npz:", "folder:"])
@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "",
        ".",
        "../../../../../../../../etc/passwd",
        "/dev/zero",
        "/dev/null",
        "a\0b",
        "x" * 5000,
        "x/" * 3000,
        "\udcff\udcfe",
        "http://example.com/train-images-idx3-ubyte.gz",
        "a\nb",
    ],
)
def test_hostile_names_are_one_line_errors(tmp_path, monkeypatch, form, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        open_data(form + name)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700
    message.encode()  # no lone surrogate that a terminal would choke on


def test_unknown_split_is_refused():
    for spec in ("digits", "nowhere"):
        with pytest.raises(InputError, match="split='dev'"):
            open_data(spec, "dev")


def odd_files(root):
    os.mkfifo(root / "pipe")
    os.symlink("/dev/zero", root / "zero")
    os.symlink(root / "loop", root / "loop")
    os.symlink("/etc/hostname", root / "out")
    return ["pipe", "zero", "loop", "out"]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("train-images-idx3-ubyte", "idx"),
        ("data_batch_1.bin", "cifar"),
        ("train.npz", "npz"),
        ("a.png", "folder"),
    ],
)
def test_odd_files_inside_a_folder(tmp_path, name, form):
    for index, odd in enumerate(odd_files(tmp_path)):
        root = tmp_path / f"set{index}"
        root.mkdir()
        os.rename(tmp_path / odd, root / name)
        for spec in (str(root), f"{form}:{root}"):
            with pytest.raises(GenfastError, match="expected"):
                open_data(spec, "all")


@pytest.mark.parametrize("kind", ["idx folder", "npz folder", "cifar folder", "images"])
def test_links_out_of_a_folder_need_trust(tmp_path, kind):
    make(kind, tmp_path / "real")
    (tmp_path / "set").mkdir()
    for file in (tmp_path / "real").iterdir():
        os.symlink(file, tmp_path / "set" / file.name)
    with pytest.raises(DataError, match="follow_links=True"):
        open_data(tmp_path / "set", "all")
    assert len(open_data(tmp_path / "set", "all", follow_links=True)) >= 5
    # A link that the user names is the user's own choice.
    os.symlink(tmp_path / "real", tmp_path / "link")
    assert len(open_data(tmp_path / "link", "all")) >= 5


def test_the_room_imports_nothing_that_unpickles_downloads_or_extracts():
    allowed = {"collections", "contextlib", "functools", "gzip", "io", "itertools", "math", "os"}
    allowed |= {"pathlib", "random", "re", "stat", "struct", "typing", "warnings", "zipfile"}
    allowed |= {"numpy", "torch", "PIL", "sklearn", "soundfile", "genfast"}
    for file in Path(genfast.data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, file
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in {"np.load", "numpy.load", "torch.load"}, file
                assert node.attr not in {"extract", "extractall", "fromfile", "literal_eval"}, file
