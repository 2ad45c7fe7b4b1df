import numpy as np
import pytest

from genfast.data import cifar
from genfast.errors import DataError, InputError
from tests.data.build import cifar_bytes, write


def records(data, size):
    return np.frombuffer(data, np.uint8).reshape(-1, size)


def test_ten_classes_in_their_batches(tmp_path):
    # 10 comes after 2, so the order is by number; 1,100 records span two reads.
    parts = {n: cifar_bytes(count, seed=n) for n, count in ((10, 3), (2, 1100), (1, 2))}
    for number, data in parts.items():
        write(tmp_path / f"data_batch_{number}.bin", data)
    write(tmp_path / "test_batch.bin", cifar_bytes(4))
    write(tmp_path / "batches.meta.txt", b"cat")
    rows = records(parts[1] + parts[2] + parts[10], 3073)
    data = cifar(tmp_path)
    assert data.image_shape == (3, 32, 32)
    assert np.array_equal(data.images.numpy().reshape(1105, -1), rows[:, 1:])
    assert np.array_equal(data.labels.numpy(), rows[:, 0])
    assert (data.name, data.levels) == ("cifar10", 256)
    assert len(cifar(tmp_path, "test")) == 4
    assert len(cifar(tmp_path, "all")) == 1109


def test_a_hundred_classes_give_the_fine_label(tmp_path):
    data = cifar_bytes(30, 100)
    write(tmp_path / "train.bin", data)
    write(tmp_path / "test.bin", cifar_bytes(4, 100))
    rows = records(data, 3074)
    found = cifar(tmp_path)
    assert np.array_equal(found.images.numpy().reshape(30, -1), rows[:, 2:])
    assert np.array_equal(found.labels.numpy(), rows[:, 1])
    assert found.name == "cifar100"


def test_one_file_by_its_name_by_its_length_or_as_told(tmp_path):
    file = write(tmp_path / "data_batch_1.bin", cifar_bytes(20))
    assert len(cifar(file, "train")) == 18
    assert len(cifar(file, "all")) == 20
    write(tmp_path / "test_batch.bin", cifar_bytes(5))
    assert [len(cifar(file, split)) for split in ("train", "test", "all")] == [20, 5, 20]
    assert len(cifar(write(tmp_path / "mine", cifar_bytes(3, 100)), "all")) == 3
    both = write(tmp_path / "both", b"\0" * (3073 * 3074))
    with pytest.raises(DataError, match="classes= decides"):
        cifar(both, "all")
    assert len(cifar(both, "all", classes=100)) == 3073


@pytest.mark.parametrize(
    ("classes", "column", "value", "message"),
    [
        (10, 0, 10, r"record 3, byte 9219: expected a label in 0 .. 9, found 10"),
        (100, 0, 20, r"record 3, byte 9222: expected a label in 0 .. 19, found 20"),
        (100, 1, 100, r"record 3, byte 9223: expected a label in 0 .. 99, found 100"),
    ],
)
def test_labels_out_of_range(tmp_path, classes, column, value, message):
    rows = records(cifar_bytes(5, classes), 3073 + (classes == 100)).copy()
    rows[3, column] = value
    file = write(tmp_path / "x.bin", rows.tobytes())
    with pytest.raises(DataError, match=message):
        cifar(file, "all", classes=classes)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 3 * 3073 - 1])
def test_length_that_is_no_multiple(tmp_path, size):
    file = write(tmp_path / "test_batch.bin", b"\0" * size)
    with pytest.raises(DataError, match=rf"multiple of 3073 bytes \(CIFAR-10\), found {size}"):
        cifar(file, "all")


def test_an_empty_file_of_any_name(tmp_path):
    with pytest.raises(DataError, match="found 0 bytes"):
        cifar(write(tmp_path / "mine", b""), "all")


def test_the_cap_counts_all_files_before_reading(tmp_path):
    for number in (1, 2):
        write(tmp_path / f"data_batch_{number}.bin", cifar_bytes(3))
    assert len(cifar(tmp_path, "all", max_bytes=6 * 3072)) == 6
    with pytest.raises(DataError, match="max_bytes=18431"):
        cifar(tmp_path, "all", max_bytes=6 * 3072 - 1)


def test_folders_that_are_not_the_binary_version(tmp_path):
    with pytest.raises(DataError, match="found none"):
        cifar(tmp_path)
    write(tmp_path / "data_batch_1", b"\x80\x02}q\x01.")
    with pytest.raises(DataError, match="pickle"):
        cifar(tmp_path)


def test_both_variants_in_one_folder(tmp_path):
    write(tmp_path / "test_batch.bin", cifar_bytes(3))
    write(tmp_path / "test.bin", cifar_bytes(4, 100))
    with pytest.raises(DataError, match="found both"):
        cifar(tmp_path, "all")
    assert len(cifar(tmp_path, "all", classes=100)) == 4


def test_impossible_arguments():
    with pytest.raises(InputError, match="classes=20"):
        cifar("x", classes=20)
    with pytest.raises(InputError, match="split='dev'"):
        cifar("x", "dev")
