"""IDX files: the real set, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
import lzma
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from squall.data import idx, sources
from squall.errors import InputError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def images_file(images: np.ndarray) -> bytes:
    return struct.pack(">4i", 2051, *images.shape) + images.tobytes()


def labels_file(labels: list[int]) -> bytes:
    return struct.pack(">2i", 2049, len(labels)) + bytes(labels)


IMAGES = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "sets" / "tiny"
    folder.mkdir(parents=True)
    (folder / TRAIN_IMAGES).write_bytes(images_file(IMAGES))
    (folder / TRAIN_LABELS).write_bytes(labels_file([0, 1, 2, 0, 1, 2]))
    (folder / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(images_file(IMAGES[:3])))
    (folder / f"{TEST_LABELS}.xz").write_bytes(lzma.compress(labels_file([2, 1, 0])))
    return folder


def test_real_fashion_mnist_is_read_as_published(real_data: Path):
    train = sources.load("idx", real_data / "fashion-mnist", "train")
    assert isinstance(train, sources.ImageArrays)
    assert train.images.shape == (60000, 28, 28, 1)
    assert train.images.dtype == np.uint8
    assert train.images.flags.c_contiguous
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert train.images.mean() / 255 == pytest.approx(0.28604060, abs=5e-9)
    assert train.classes[9] == "Ankle boot"
    assert train.name == "fashion-mnist"
    test = sources.load("idx", real_data / "fashion-mnist", "test")
    assert np.bincount(test.labels).tolist() == [1000] * 10


def test_real_fashion_mnist_passes_the_cheap_check(real_data: Path):
    sources.check("idx", real_data / "fashion-mnist")


def test_plain_gz_and_xz_are_read_alike(small: Path):
    train_images, train_labels, classes = idx.read(small, "train")
    test_images, test_labels, same_classes = idx.read(small, "test")
    assert np.array_equal(train_images[..., 0], IMAGES)
    assert train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert np.array_equal(test_images[..., 0], IMAGES[:3])
    assert test_labels.tolist() == [2, 1, 0]
    assert classes == same_classes == ("0", "1", "2")
    idx.check(small)


def broken(folder: Path, split: str = "train") -> InputError:
    """Reading and the cheap check agree that the set is broken; the error of reading."""
    with pytest.raises(InputError) as checked:
        sources.check("idx", folder)
    with pytest.raises(InputError) as read:
        sources.load("idx", folder, split)  # type: ignore[arg-type]
    assert checked.value.headline == read.value.headline
    return read.value


def test_cut_gz_names_the_file_what_is_there_and_the_fetch(real_data: Path, tmp_path: Path):
    folder = tmp_path / "sets" / "fashion-mnist"
    folder.mkdir(parents=True)
    for file in (real_data / "fashion-mnist").glob("*.gz"):
        (folder / file.name).symlink_to(file)
    cut = folder / f"{TEST_IMAGES}.gz"
    whole = cut.read_bytes()
    cut.unlink()
    cut.write_bytes(whole[: len(whole) // 2])
    error = broken(folder, "test")
    assert error.headline == "fashion-mnist/t10k-images-idx3-ubyte.gz is cut short"
    rows = dict(error.rows)
    match = re.fullmatch(
        r"([\d,]+) of 7,840,016 bytes unpacked: ([\d,]+) of 10,000 images      \(in (.*)\)", rows["found"]
    )
    assert match
    num_bytes, num_images = (int(text.replace(",", "")) for text in match.groups()[:2])
    assert num_images == (num_bytes - 16) // 784
    assert 4000 < num_images < 6000
    assert match[3] == str(folder.parent)
    assert rows["to do"] == f"squall data fetch fashion-mnist --data {folder.parent}      30.9 MB, sha256 checked"
    assert error.exit_status == 2


def test_cut_plain_file(small: Path):
    path = small / TRAIN_IMAGES
    path.write_bytes(path.read_bytes()[:-21])
    error = broken(small)
    assert error.headline == "tiny/train-images-idx3-ubyte is cut short"
    assert "115 of 136 bytes: 4 of 6 images" in error.text()
    assert "put a whole copy of train-images-idx3-ubyte into" in error.text()


def test_file_shorter_than_a_header(small: Path):
    (small / TRAIN_LABELS).write_bytes(b"\0\0")
    assert "is cut short" in broken(small).headline


def test_gz_with_a_flipped_bit_is_corrupt(small: Path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 20, 20), dtype=np.uint8)
    packed = bytearray(gzip.compress(images_file(noise)))
    packed[len(packed) // 2] ^= 16
    (small / TRAIN_IMAGES).unlink()
    (small / f"{TRAIN_IMAGES}.gz").write_bytes(packed)
    (small / TRAIN_LABELS).write_bytes(labels_file([0] * 200))
    with pytest.raises(InputError, match="is corrupt"):
        idx.read(small, "train")


def test_something_else_under_the_name_of_a_gz(small: Path):
    (small / TRAIN_IMAGES).unlink()
    (small / f"{TRAIN_IMAGES}.gz").write_bytes(b"<html>not found</html>")
    assert broken(small).headline == "tiny/train-images-idx3-ubyte.gz is corrupt"


def test_labels_under_the_name_of_images(small: Path):
    (small / TRAIN_IMAGES).write_bytes((small / TRAIN_LABELS).read_bytes())
    error = broken(small)
    assert error.headline == "tiny/train-images-idx3-ubyte holds labels, not images"
    assert "magic number 2049, images have 2051" in error.text()


def test_another_format_under_the_name(small: Path):
    (small / TRAIN_IMAGES).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    assert "is no IDX file of images" in broken(small).headline


@pytest.mark.parametrize("shape", [(-6, 4, 5), (6, 0, 5), (2**31 - 1, 2**31 - 1, 2**31 - 1)])
def test_header_with_senseless_numbers_is_refused_without_taking_memory(small: Path, shape: tuple[int, int, int]):
    (small / TRAIN_IMAGES).write_bytes(struct.pack(">4i", 2051, *shape) + bytes(120))
    tracemalloc.start()
    try:
        assert "has a broken header" in broken(small).headline
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_more_bytes_than_the_header_says(small: Path):
    path = small / TRAIN_LABELS
    path.write_bytes(path.read_bytes() + b"\1")
    assert "is longer than its header says" in broken(small).headline


def test_labels_of_another_set_are_noticed(small: Path):
    (small / TRAIN_LABELS).write_bytes(labels_file([0, 1, 2, 0]))
    with pytest.raises(InputError, match="does not belong to its images") as error:
        idx.read(small, "train")
    assert "4 labels for 6 images in train-images-idx3-ubyte" in error.value.text()


def test_label_that_is_no_class_of_training_is_named(small: Path):
    (small / f"{TEST_LABELS}.xz").write_bytes(lzma.compress(labels_file([2, 3, 0])))
    with pytest.raises(InputError, match="holds labels that are no class") as error:
        idx.read(small, "test")
    assert "label 3 at image 1, 1 in all; classes are 0 to 2" in error.value.text()


def test_known_set_has_ten_classes_whatever_its_labels_say(small: Path):
    known = small.rename(small.parent / "mnist")
    (known / TRAIN_LABELS).write_bytes(labels_file([0, 1, 2, 10, 1, 2]))
    with pytest.raises(InputError, match="label 10 at image 3"):
        idx.read(known, "train")


def test_missing_files_are_all_named(small: Path):
    (small / TRAIN_LABELS).unlink()
    (small / f"{TEST_LABELS}.xz").unlink()
    error = broken(small)
    rows = dict(error.rows)
    assert rows["missing"] == "train-labels-idx1-ubyte.gz, t10k-labels-idx1-ubyte.gz"
    assert "t10k-images-idx3-ubyte.gz, train-images-idx3-ubyte" in rows["found"]


def test_missing_folder_says_what_to_fetch(tmp_path: Path):
    error = broken(tmp_path / "mnist")
    assert error.headline == f"there is no folder {tmp_path / 'mnist'}"
    assert f"squall data fetch mnist --data {tmp_path}" in error.text()


def test_file_that_cannot_be_read(small: Path):
    (small / TRAIN_LABELS).unlink()
    (small / TRAIN_LABELS).symlink_to("/proc/self/mem")  # a file whose first read fails, for root too
    assert broken(small).headline == f"{small / TRAIN_LABELS} cannot be read"
