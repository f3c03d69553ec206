"""`squall data check`: every file read, counted, decoded, compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from squall.data.fetch import check
from squall.errors import InputError


def test_digits_are_whole_and_no_two_are_equal():
    audit = check("digits")
    assert audit.ok
    assert sum(audit.per_class["train"]) == 1437
    assert audit.repeated == {"train": [], "test": []}
    assert audit.shared == []
    assert audit.text().splitlines()[0] == "digits: 1,437 train + 360 test images, 10 classes"
    assert audit.text().endswith("ok")


def test_real_fashion_mnist_has_the_published_sums(real_data: Path):
    seen: list[tuple[str, int, int]] = []
    audit = check("fashion-mnist", real_data / "fashion-mnist", progress=lambda *news: seen.append(news))
    assert audit.ok
    assert audit.sums_checked == 4
    assert audit.per_class == {"train": (6000,) * 10, "test": (1000,) * 10}
    assert seen[-1] == ("test", 10_000, 10_000)


def test_whole_file_with_another_sum_is_a_fault(real_data: Path, tmp_path: Path):
    folder = tmp_path / "fashion-mnist"
    shutil.copytree(real_data / "fashion-mnist", folder)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[4:8] = b"\1\2\3\4"  # gzip's time stamp: unpacks as before
    path.write_bytes(content)
    audit = check("idx", folder)
    assert not audit.ok
    ((name, reason),) = audit.faults
    assert name == path.name
    assert "published 67da17c7" in reason
    assert "FAULT" in audit.text()


def test_photographs_that_do_not_decode_or_occur_twice_are_named(real_data: Path, tmp_path: Path):
    root = tmp_path / "mine"
    for place, numbers in (("train", (1, 2, 3, 4)), ("val", (61, 62))):
        for name in ("laptop", "watch"):
            (root / place / name).mkdir(parents=True)
            for number in numbers:
                source = real_data / "caltech101-subset" / place / name / f"image_{number:04}.jpg"
                (root / place / name / source.name).write_bytes(source.read_bytes())
    train, val = root / "train", root / "val"
    (train / "watch" / "image_0004.jpg").write_bytes((train / "laptop" / "image_0002.jpg").read_bytes())
    (val / "watch" / "image_0062.jpg").write_bytes((train / "laptop" / "image_0003.jpg").read_bytes())
    cut = val / "laptop" / "image_0061.jpg"
    cut.write_bytes(cut.read_bytes()[:-3000])
    audit = check("imagefolder", root)
    assert audit.repeated == {"train": [(1, 7)], "test": []}
    assert audit.shared == [(2, 3)]
    assert [name for name, _ in audit.faults] == ["val/laptop/image_0061.jpg"]
    assert "1 images (7 = 1) equal an earlier one" in audit.text()
    assert not audit.ok


def test_set_that_cannot_be_read_is_the_readers_error(tmp_path: Path):
    with pytest.raises(InputError, match="there is no folder"):
        check("mnist", tmp_path / "mnist")
    with pytest.raises(InputError, match="no data set named cifar100") as error:
        check("cifar100", tmp_path)
    assert "cifar10" in dict(error.value.rows)["near"]
