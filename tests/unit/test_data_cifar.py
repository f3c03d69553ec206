"""CIFAR-10's binary files: the real set, and damage to it."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from squall.data import cifar, sources
from squall.errors import InputError

NAMES = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]


@pytest.fixture
def linked(real_data: Path, tmp_path: Path) -> Path:
    """A folder named cifar10 whose files are links to the real ones."""
    folder = tmp_path / "sets" / "cifar10"
    folder.mkdir(parents=True)
    for file in (real_data / "cifar10").glob("*.bin.xz"):
        (folder / file.name).symlink_to(file)
    return folder


def test_real_test_images_are_read_as_published(real_data: Path):
    data = sources.load("cifar10", real_data / "cifar10", "test")
    assert isinstance(data, sources.ImageArrays)
    assert data.images.shape == (10000, 32, 32, 3)
    assert (data.images.dtype, data.labels.dtype) == (np.uint8, np.int64)
    assert data.images.flags.c_contiguous
    assert data.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert np.bincount(data.labels).tolist() == [1000] * 10
    mean = data.images.reshape(-1, 3).mean(axis=0) / 255
    assert mean == pytest.approx([0.49421428, 0.48513139, 0.45040909], abs=5e-9)
    # the first record by hand: planes of red, green, blue
    with lzma.open(real_data / "cifar10" / "test_batch.bin.xz") as stream:
        record = stream.read(3073)
    row, column = 5, 7
    assert data.images[0, row, column].tolist() == [record[1 + plane * 1024 + row * 32 + column] for plane in range(3)]


def test_training_images_come_in_the_order_of_the_files(tmp_path: Path):
    for number, name in enumerate(NAMES):
        records = np.full((10000, 3073), number, dtype=np.uint8)
        records[:, 1] = np.arange(10000) % 251
        opener, suffix = (gzip.open, ".gz") if number == 1 else (open, "")
        with opener(tmp_path / f"{name}{suffix}", "wb") as stream:
            stream.write(records.tobytes())
    images, labels = cifar.read(tmp_path, "train")
    assert labels.tolist() == [number for number in range(5) for _ in range(10000)]
    assert np.array_equal(images[:, 0, 0, 0].reshape(5, 10000), np.tile(np.arange(10000) % 251, (5, 1)))
    assert np.array_equal(images[:, 9, 9, 2], labels)
    cifar.check(tmp_path)


def test_folder_of_the_archive_is_found(real_data: Path, tmp_path: Path):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    (folder / "cifar-10-batches-bin").symlink_to(real_data / "cifar10")
    sources.check("cifar10", folder)


def test_cut_file_is_named_with_the_fetch_that_repairs_it(linked: Path, real_data: Path):
    path = linked / "test_batch.bin.xz"
    path.unlink()
    path.write_bytes((real_data / "cifar10" / path.name).read_bytes()[:2_000_000])
    with pytest.raises(InputError) as checked:
        sources.check("cifar10", linked)
    error = checked.value
    assert error.headline == "cifar10/test_batch.bin.xz is cut short"
    rows = dict(error.rows)
    assert " of 30,730,000 bytes unpacked: " in rows["found"]
    assert rows["found"].endswith(f" of 10,000 images      (in {linked.parent})")
    assert not rows["found"].startswith("0 ")
    assert rows["to do"].startswith(f"squall data fetch cifar10 --data {linked.parent}      170.1 MB")
    with pytest.raises(InputError, match="is cut short"):
        sources.load("cifar10", linked, "test")


def test_cut_at_a_record_is_still_cut_short(linked: Path):
    (linked / "test_batch.bin.xz").unlink()
    (linked / "test_batch.bin").write_bytes(bytes(3073 * 9000))
    with pytest.raises(InputError, match="9,000 of 10,000 images"):
        sources.load("cifar10", linked, "test")


def test_file_of_another_format_is_refused(linked: Path):
    (linked / "test_batch.bin.xz").unlink()
    (linked / "test_batch.bin").write_bytes(bytes(3074 * 10000))  # the binary version of CIFAR-100
    with pytest.raises(InputError, match="is no file of the binary version"):
        sources.check("cifar10", linked)


def test_label_above_nine_is_named(linked: Path):
    (linked / "test_batch.bin.xz").unlink()
    records = np.zeros((10000, 3073), dtype=np.uint8)
    records[1234, 0] = 12
    (linked / "test_batch.bin").write_bytes(records.tobytes())
    with pytest.raises(InputError, match="label 12 at image 1,234, 1 in all; classes are 0 to 9"):
        sources.load("cifar10", linked, "test")


def test_corrupt_file_is_named(linked: Path, real_data: Path):
    path = linked / "test_batch.bin.xz"
    path.unlink()
    packed = bytearray((real_data / "cifar10" / path.name).read_bytes()[:400_000])
    packed[200_000:200_064] = bytes(64)
    path.write_bytes(packed)
    with pytest.raises(InputError, match=r"test_batch\.bin\.xz is (corrupt|cut short)"):
        sources.load("cifar10", linked, "test")


def test_pickled_version_is_never_read(tmp_path: Path):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for name in NAMES:
        (folder / name.removesuffix(".bin")).write_bytes(b"\x80\x02}q\x01.")
    with pytest.raises(InputError, match="python version") as error:
        sources.load("cifar10", folder, "train")
    assert "pickles" in error.value.text()


def test_missing_batches_are_all_named(linked: Path):
    (linked / "data_batch_2.bin.xz").unlink()
    (linked / "test_batch.bin.xz").unlink()
    with pytest.raises(InputError) as error:
        sources.load("cifar10", linked, "train")
    assert dict(error.value.rows)["missing"] == "data_batch_2.bin, test_batch.bin"
