"""The digits inside the package: what was published, and the fixed split."""

from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np

from squall.data import digits, sources
from squall.rng import Stream, mix


def test_stored_pixels_and_labels_are_the_published_ones():
    file = resources.files("squall.data") / "files" / "digits.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        images, labels = stored["images"], stored["labels"]
    assert images.shape == (1797, 8, 8)
    assert images.dtype == labels.dtype == np.uint8
    # published in the repository's own description: pixels 0 .. 16; these counts of the test part
    assert images.max() == 16
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert labels[:10].tolist() == list(range(10))
    assert images[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_attribution_lies_beside_the_data():
    text = (resources.files("squall.data") / "files" / "digits.txt").read_text()
    for word in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0", "changed"):
        assert word in text


def test_split_parts_every_image_once_and_every_class_by_a_fifth():
    train, test = sources.load("digits", None, "train"), sources.load("digits", None, "test")
    assert isinstance(train, sources.ImageArrays)
    assert isinstance(test, sources.ImageArrays)
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape == (1437, 8, 8, 1)
    assert train.images.flags.c_contiguous
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int64)
    assert train.images.min() == 0
    assert train.images.max() == 255
    whole = np.bincount(train.labels) + np.bincount(test.labels)
    assert whole.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.abs(np.bincount(test.labels) - whole / 5).max() < 1
    seen = {image.tobytes() for image in train.images} | {image.tobytes() for image in test.images}
    assert len(seen) == 1797  # no two digits are equal, so none stands in both parts


def test_split_equals_its_rule_written_plainly():
    labels = np.array([1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0])
    order = sorted(range(len(labels)), key=lambda number: (labels[number], mix(Stream.SPLIT, 1998, number)))
    assert digits.held_out_rows(labels).tolist() == sorted(order[::5])


def test_split_never_changes():
    test = sources.load("digits", None, "test")
    assert isinstance(test, sources.ImageArrays)
    assert hashlib.sha256(test.images.tobytes() + test.labels.tobytes()).hexdigest()[:16] == "5ce9238de6952f35"
