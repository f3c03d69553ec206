"""Which places in the data set below all subsets are meant: by a sampler's keys, by its list, by a `Subset`.

Most keys are places; some say how to read one too (its size, its augmentation), and some are names.
"""

from __future__ import annotations

import operator
import zlib
from contextlib import suppress
from typing import Any

import numpy
from torch.utils.data import Subset

_DEPTH = 4  # a sampler of batches, of shares, of samples

Array = numpy.ndarray[Any, Any]


def _first(key: Any) -> Any:
    return key[0] if isinstance(key, tuple) and key else key


def _is_index(key: Any) -> bool:
    """Whether a key can be a place."""
    try:
        operator.index(key)
    except (TypeError, RuntimeError):
        return False
    return True


def place_of(key: Any, dataset: Any) -> int | None:
    """The place in the data set below all subsets that a key means; None of a key that is no place.

    Of a tuple the first is the place: others say how to read it (its size, its augmentation).
    """
    key = _first(key)
    while _is_index(key):
        place = operator.index(key)
        if not isinstance(dataset, Subset):
            return place
        key, dataset = _first(dataset.indices[place]), dataset.dataset
    return None


def number_of(key: Any, dataset: Any) -> int:
    """The place that a key means; of a key that is no place some number."""
    place = place_of(key, dataset)
    return hashed(key) if place is None else place


def hashed(key: Any) -> int:
    """A number for a key that is no place: equal keys, equal numbers."""
    return zlib.crc32(repr(_first(key)).encode())


def held_by(dataset: Any) -> Array | None:
    """The places in the data set below all subsets that a loader of this one can give; None for all, or keys."""
    return _places(dataset.indices, dataset.dataset) if isinstance(dataset, Subset) else None


def _within(sampler: Any) -> Any:
    """The sampler that another one is made of; None for one that stands alone."""
    for name in ("sampler", "batch_sampler"):
        if hasattr(sampler, name):
            return getattr(sampler, name)
    return getattr(getattr(sampler, "dataset", None), "_sampler", None)  # Lightning's around one of the user's


def listed_by(sampler: Any, dataset: Any) -> Array | None:
    """The places in the data set below all subsets that a sampler draws from, where it lists them: `indices`."""
    for _ in range(_DEPTH):
        indices = getattr(sampler, "__dict__", {}).get("indices")
        if indices is not None:
            with suppress(ValueError, TypeError, IndexError, RuntimeError):  # it is some other list
                return _places(indices, dataset)
            return None
        sampler = _within(sampler)
    return None


def _places(indices: Any, dataset: Any) -> Array | None:
    """What a list of places in a data set means below all subsets; None where it lists something else."""
    found = numpy.asarray(indices)
    while True:
        if not found.size:
            return numpy.zeros(0, dtype=numpy.int64)
        if found.ndim != 1 or not numpy.issubdtype(found.dtype, numpy.integer):
            return None
        if not isinstance(dataset, Subset):
            return numpy.unique(found).astype(numpy.int64)
        found, dataset = numpy.asarray(dataset.indices)[found], dataset.dataset
