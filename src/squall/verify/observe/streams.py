"""Which random numbers a sample was made of, told by the states of the generators before and after it was read.

Two samples that began with the same state of the same generators, and drew from them, got the same random numbers. So
it is enough to note, for each sample, a hash of the states that it moved: no data set has to be understood. The
generators are Python's, NumPy's and torch's global ones and those that the data set holds. A sample that makes its own
generator, or seeds a global one, is known by the seed that it gave.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor

_DEPTH = 3  # data set -> transform -> parts of it
_GLOBAL = 3  # generators that everybody shares: Python's, NumPy's, torch's
_HASHED = 1 << 16  # bytes of each array of a sample


_RANDOM, _RANDOM_STATE = random.Random, numpy.random.RandomState  # before they are watched


def _crc(data: bytes | memoryview, start: int = 0) -> int:
    return zlib.crc32(data, start)


def _state(generator: Any) -> bytes:
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    if isinstance(generator, _RANDOM):
        return repr(generator.getstate()).encode()
    if isinstance(generator, _RANDOM_STATE):
        return repr(_plain(generator.get_state())).encode()
    return repr(_plain(generator.bit_generator.state)).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, numpy.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return tuple(_plain(one) for one in value) if isinstance(value, tuple | list) else value


_KINDS = (torch.Generator, _RANDOM, numpy.random.Generator, _RANDOM_STATE)


def held_by(thing: Any, depth: int = _DEPTH) -> list[Any]:
    """The generators that an object holds, itself or in what it is made of."""
    found: list[Any] = []
    inside = list(getattr(thing, "__dict__", {}).values())
    for value in inside:
        if isinstance(value, _KINDS):
            found.append(value)
        elif depth and isinstance(value, list | tuple) and len(value) < 50:
            found += [one for one in value if isinstance(one, _KINDS)]
            for one in value:
                found += held_by(one, depth - 1) if hasattr(one, "__dict__") else []
        elif depth and _may_hold(value):
            found += held_by(value, depth - 1)
    return list({id(one): one for one in found}.values())


def _may_hold(thing: Any) -> bool:
    """Whether it is worth looking into an object: a transform, a part of a data set; no network, no tensor."""
    if not hasattr(thing, "__dict__") or isinstance(thing, type | torch.nn.Module | Tensor):
        return False
    return callable(thing) or type(thing).__module__.partition(".")[0] not in ("torch", "numpy", "builtins")


class Seeds:
    """The seeds that were given while one sample was read."""

    def __init__(self) -> None:
        self.open = False
        self.given: list[str] = []
        self.current: Reading | None = None
        self._installed = False

    def install(self) -> None:
        """Watches the calls that make or seed a generator; they do what they did."""
        if self._installed:
            return
        self._installed = True
        for owner, name in (
            *((numpy.random, "default_rng"), (numpy.random, "RandomState"), (numpy.random, "seed")),
            *((random, "seed"), (torch, "manual_seed")),
        ):
            setattr(owner, name, self._watched(getattr(owner, name), name))
        own = random.Random

        class Random(own):  # type: ignore[misc, valid-type]
            def __init__(this, x: Any = None) -> None:  # noqa: N805
                self._note("Random", (x,))
                super().__init__(x)

        random.Random = Random  # type: ignore[misc]

    def _watched(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        if isinstance(call, type):

            class Watched(call):  # type: ignore[misc, valid-type]
                def __init__(this, *args: Any, **named: Any) -> None:  # noqa: N805
                    self._note(name, (*args, *named.values()))
                    super().__init__(*args, **named)

            Watched.__name__ = Watched.__qualname__ = call.__name__
            return Watched

        @functools.wraps(call)
        def watched(*args: Any, **named: Any) -> Any:
            self._note(name, (*args, *named.values()))
            return call(*args, **named)

        return watched

    def _note(self, name: str, given: tuple[Any, ...]) -> None:
        if self.open and given and given[0] is not None:
            self.given.append(f"{name}{given!r}")


SEEDS = Seeds()


class Reading:
    """What one sample drew; `drawn` and `made` are hashes, 0 for nothing."""

    def __init__(self, held: list[Any]) -> None:
        self.drawn = 0
        self.made = 0
        self._held = held
        self.restart()

    def restart(self) -> None:
        """What was seeded until now was not the sample's doing."""
        SEEDS.given = []
        self._before = _states(self._held)

    def close(self) -> None:
        """The sample has been read."""
        states = list(zip(self._before, _states(self._held), strict=True))
        if SEEDS.given:  # then the global generators are where the sample put them
            self.made = _crc("|".join(SEEDS.given).encode()) or 1
            states = states[_GLOBAL:]
        moved = [one for one, other in states if one != other]
        if moved:
            self.drawn = _crc(repr(moved).encode()) or 1


@contextmanager
def reading(held: list[Any]) -> Iterator[Reading]:
    """Around the reading of one sample, which may draw from the global generators and those that are held."""
    SEEDS.open = True
    SEEDS.current = result = Reading(held)
    try:
        yield result
    finally:
        SEEDS.open, SEEDS.current = False, None
        result.close()


def _states(held: list[Any]) -> list[int]:
    """Hashes of the states of Python's, NumPy's and torch's generators, and of those of the data set."""
    return [
        _crc(repr(random.getstate()).encode()),
        _crc(_state(numpy.random.mtrand._rand)),
        _crc(torch.get_rng_state().numpy().tobytes()),
        *(_crc(_state(one)) for one in held),
    ]


def torch_state() -> int:
    """A hash of the state of torch's generator."""
    return _crc(torch.get_rng_state().numpy().tobytes())


def content(sample: Any, start: int = 0) -> int:
    """A hash of what a sample holds."""
    if isinstance(sample, Tensor):
        if sample.device.type != "cpu" or sample.dtype == torch.bfloat16:
            return start
        return _crc(sample.detach().contiguous().numpy().tobytes()[:_HASHED], start)
    if isinstance(sample, numpy.ndarray):
        return _crc(sample.tobytes()[:_HASHED], start)
    if isinstance(sample, dict):
        for key in sorted(sample, key=str):
            start = content(sample[key], start)
        return start
    if isinstance(sample, list | tuple):
        for one in sample:
            start = content(one, start)
        return start
    if isinstance(sample, int | float | str | bytes):
        return _crc(repr(sample).encode(), start)
    if hasattr(sample, "tobytes"):  # a picture
        return _crc(sample.tobytes()[:_HASHED], start)
    return start


def is_stored(sample: Any, index: int, dataset: Any) -> int:
    """Whether a sample's first part is what the data set has stored: 1, 0, or -1 where nothing is stored."""
    first = sample[0] if isinstance(sample, list | tuple) and sample else sample
    if not isinstance(first, Tensor | numpy.ndarray):
        return -1
    value = first.numpy() if isinstance(first, Tensor) and first.device.type == "cpu" else first
    size = _length(dataset)
    found = -1
    for stored in list(getattr(dataset, "__dict__", {}).values()):
        is_array = isinstance(stored, Tensor | numpy.ndarray) and stored.ndim == value.ndim + 1
        if is_array and len(stored) == size and stored.shape[1:] == value.shape:
            row = stored[index]
            row = row.numpy() if isinstance(row, Tensor) else row
            found = max(found, int(numpy.array_equal(row, value)))
    return found


def _length(thing: Any) -> int:
    try:
        return len(thing)
    except TypeError:
        return -1
