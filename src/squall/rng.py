"""Random numbers as pure functions of what they are for.

A stateful generator gives numbers that depend on who asked before; with several processes that means on the number
of processes. Squall derives every number from a tuple of integers that names its purpose instead: (stream, seed,
epoch, sample). The hash is SplitMix64's finaliser (Steele, Lea, Flood 2014: "Fast splittable pseudorandom number
generators"), chained over the tuple. It is defined here, bit for bit, so that no library's version can change a
run's order.

Layers and users' data sets know only the global generators of Python, NumPy and torch: these are seeded from the
same tuples right before each sample is read and each pass is computed (`seed_sample`, `seed_pass`).
"""

from __future__ import annotations

import random
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB


class Stream(IntEnum):
    """What a random number is for. Values are part of the arithmetic: never renumber."""

    INIT = 1  # weights before the first step
    ORDER = 2  # the permutation of an epoch
    SAMPLE = 3  # whatever the user's data set draws while it reads one sample
    PASS = 4  # dropout and the like within one pass
    CROP_ROW = 5
    CROP_COLUMN = 6
    FLIP = 7
    RESIZED_CROP = 8
    SPLIT = 9  # which training samples are held out for validation
    CUTOUT_ROW = 10
    CUTOUT_COLUMN = 11
    EVALUATION = 12  # samples and passes of an evaluation


def _scramble(value: int) -> int:
    value = ((value ^ (value >> 30)) * _M1) & _MASK
    value = ((value ^ (value >> 27)) * _M2) & _MASK
    return value ^ (value >> 31)


def mix(*keys: int) -> int:
    """Hashes a tuple of integers to 64 bits; any change of any key gives an unrelated number.

    Example:
        >>> mix(Stream.PASS, 0, 1, 2, 3) != mix(Stream.PASS, 0, 1, 3, 2)
        True
    """
    state = 0
    for key in keys:
        state = _scramble((state + _GOLDEN + (key & _MASK)) & _MASK)
    return state


def mix_array(key: int | npt.NDArray[np.uint64], ids: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """`mix` continued by one more key, for a whole array of them: element i is `mix(*keys, ids[i])`.

    Arguments:
        key: what `mix` (or `mix_array`) gave for the keys so far, 64 bits; an array goes elementwise with `ids`.
        ids: the last keys, any shape.

    Returns:
        Unsigned 64-bit hashes, the shape of `ids`.
    """
    with np.errstate(over="ignore"):
        value = ids.astype(np.uint64) + np.uint64(_GOLDEN) + np.asarray(key, dtype=np.uint64)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(_M1)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(_M2)
        out: npt.NDArray[np.uint64] = value ^ (value >> np.uint64(31))
    return out


def uniform(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Turns 64-bit hashes into floats in [0, 1): the upper 53 bits."""
    out: npt.NDArray[np.float64] = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return out


def below(hashes: npt.NDArray[np.uint64], bound: int) -> npt.NDArray[np.int64]:
    """Turns 64-bit hashes into integers 0 .. bound - 1 (multiply-shift on the upper 32 bits; bound below 2**31)."""
    out: npt.NDArray[np.int64] = (((hashes >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)
    return out


def permutation(seed: int, epoch: int, num_samples: int) -> npt.NDArray[np.int64]:
    """The order of one epoch: a permutation of range(num_samples), a pure function of (seed, epoch).

    Sorting by a hash gives the same order on every machine and with every library version.
    """
    hashes = mix_array(mix(Stream.ORDER, seed, epoch), np.arange(num_samples, dtype=np.uint64))
    order: npt.NDArray[np.int64] = np.argsort(hashes, kind="stable").astype(np.int64)
    return order


def seed_sample(seed: int, epoch: int, index: int) -> None:
    """Seeds the global generators of Python, NumPy and torch before one sample is read."""
    import torch

    value = mix(Stream.SAMPLE, seed, epoch, index)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.default_generator.manual_seed(value >> 1)


def seed_pass(device: torch.device, seed: int, epoch: int, step: int, index: int) -> None:
    """Seeds the device's default generator before one pass, so that dropout does not depend on who computes it.

    `torch.default_generator.manual_seed` takes about 1 us where `torch.manual_seed` takes about 100.
    """
    import torch

    value = mix(Stream.PASS, seed, epoch, step, index) >> 1
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
    torch.default_generator.manual_seed(value)
