"""The handwritten digits inside the package: real images for a first run without any download.

1,797 images of 8 x 8 by E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, doi 10.24432/C50P49, CC BY 4.0
(attribution and changes: `files/digits.txt`). Published pixels are 0 .. 16; here they are stretched to 0 .. 255.

The split is fixed and belongs to Squall: sort the images by (class, hash of their number) and take every fifth, from
the first on, as a test image. That gives 360 test and 1,437 training images, and each class's share of the test images
is a fifth to within one image. The writers of the two parts are the same 13 people, so the test accuracy speaks of new
digits of known hands.
"""

from __future__ import annotations

from importlib import resources
from typing import Literal

import numpy as np
import numpy.typing as npt

from squall.rng import Stream, mix, mix_array

CLASSES = tuple("0123456789")

_SPLIT_KEY = 1998  # the year of publication; part of the split, never change


def read(split: Literal["train", "test"]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Reads one part of the digits.

    Returns:
        Images, uint8 of shape (N, 8, 8, 1), 255 = ink, and labels 0 .. 9, int64 of shape (N,); N is 1,437 or 360.
    """
    file = resources.files("squall.data") / "files" / "digits.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        published, labels = stored["images"], stored["labels"].astype(np.int64)
    images = ((published.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)
    held_out = held_out_rows(labels)
    chosen = held_out if split == "test" else np.setdiff1d(np.arange(len(labels)), held_out)
    # (N, 8, 8) -> (N, 8, 8, 1)
    return np.ascontiguousarray(images[chosen, :, :, None]), labels[chosen]


def held_out_rows(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers of the test images, rising: every fifth in the order of (class, hash of the number)."""
    hashes = mix_array(mix(Stream.SPLIT, _SPLIT_KEY), np.arange(len(labels)))
    by_class = np.lexsort((hashes, labels))
    rows: npt.NDArray[np.int64] = np.sort(by_class[::5]).astype(np.int64)
    return rows
