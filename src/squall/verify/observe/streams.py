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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor

_DEPTH = 3  # data set -> transform -> parts of it
_PUTS = {("random", "seed"): 0, ("numpy.random", "seed"): 1, ("torch", "manual_seed"): 2}
"""Calls that put one of the generators that everybody shares somewhere, and its place in `_states`."""

_RANDOM_STATE = numpy.random.RandomState  # before it is watched


def _state(generator: Any) -> bytes:
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    if isinstance(generator, random.Random):
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


_KINDS = (torch.Generator, random.Random, numpy.random.Generator, _RANDOM_STATE)


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
        self.put: set[int] = set()  # the global generators that were seeded
        self.current: Reading | None = None
        self._installed = False

    def opens(self, held: Sequence[Any]) -> Reading:
        """A sample is going to be read, which may draw from the global generators and those that are held."""
        self.current = Reading(held)
        self.open = True
        return self.current

    def install(self) -> None:
        """Watches the calls that make or seed a generator; they do what they did."""
        if self._installed:
            return
        self._installed = True
        for owner, name in (
            *((numpy.random, "default_rng"), (numpy.random, "RandomState"), (numpy.random, "seed")),
            *((random, "seed"), (torch, "manual_seed")),
        ):
            setattr(owner, name, self._watched(owner, name))
        create = random.Random.__init__

        @functools.wraps(create)
        def init(one: Any, x: Any = None) -> None:
            self._note("Random", (x,))
            create(one, x)

        setattr(random.Random, "__init__", init)  # noqa: B010

    def _watched(self, owner: Any, name: str) -> Callable[..., Any]:
        call = getattr(owner, name)
        watched = (
            self._watched_class(call, name) if isinstance(call, type) else self._watched_function(call, name, owner)
        )
        watched.__module__, watched.__qualname__ = owner.__name__, name  # where pickle finds it
        return watched

    def _watched_function(self, call: Callable[..., Any], name: str, owner: Any) -> Callable[..., Any]:
        @functools.wraps(call)
        def watched(*args: Any, **named: Any) -> Any:
            self._note(name, (*args, *named.values()), owner.__name__)
            return call(*args, **named)

        return watched

    def _watched_class(self, kind: type, name: str) -> type:
        """A class of which everything is an instance that is one of the class that it stands for."""

        create: Any = vars(kind)["__init__"]

        class Kind(type):
            def __instancecheck__(cls, one: Any) -> bool:
                return isinstance(one, kind) if cls is watched else super().__instancecheck__(one)

            def __subclasscheck__(cls, other: Any) -> bool:
                return issubclass(other, kind) if cls is watched else super().__subclasscheck__(other)

        def init(one: Any, *args: Any, **named: Any) -> None:
            self._note(name, (*args, *named.values()))
            create(one, *args, **named)

        watched = Kind(kind.__name__, (kind,), {"__init__": init, "__doc__": kind.__doc__})
        return watched

    def _note(self, name: str, given: tuple[Any, ...], owner: str = "") -> None:
        if self.open and given and given[0] is not None:
            self.given.append(f"{name}{_said(given)}")
            self.put |= {_PUTS[owner, name]} if (owner, name) in _PUTS else set()


def _said(given: tuple[Any, ...]) -> str:
    try:
        return repr(given)
    except Exception:  # of a class of the user's; the call that it is given to says more
        return "(...)"


SEEDS = Seeds()


class Reading:
    """What one sample drew.

    Attributes:
        drawn: for each generator that it drew from a hash of the state in which that was, x 8, + its place among
            Python's, NumPy's, torch's and those of the data set (the last places are one).
        made: a hash of the seeds that it gave, 0 for none.
    """

    def __init__(self, held: Sequence[Any]) -> None:
        self.drawn: tuple[int, ...] = ()
        self.made = 0
        self._held = held
        self.restart()

    def restart(self) -> None:
        """What was seeded until now was not the sample's doing."""
        SEEDS.given, SEEDS.put = [], set()
        self._before = _states(self._held)

    def close(self) -> None:
        """The sample has been read."""
        SEEDS.open, SEEDS.current = False, None
        if SEEDS.given:
            self.made = zlib.crc32("|".join(SEEDS.given).encode()) or 1
        states = enumerate(zip(self._before, _states(self._held), strict=True))
        self.drawn = tuple(
            8 * (before or 1) + min(place, 7)
            for place, (before, after) in states
            if before != after and place not in SEEDS.put  # one that the sample has seeded is where it put it
        )

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Hashes for the rows of a trace: one of `drawn` in each, 0 for none, and `made` in the first."""
        return [(one, 0 if place else self.made) for place, one in enumerate(self.drawn or (0,))]


@contextmanager
def reading(held: Sequence[Any]) -> Iterator[Reading]:
    """Around the reading of one sample."""
    result = SEEDS.opens(held)
    try:
        yield result
    finally:
        result.close()


def _states(held: Sequence[Any]) -> list[int]:
    """Hashes of the states of Python's, NumPy's and torch's generators, and of those of the data set."""
    return [
        zlib.crc32(repr(random.getstate()).encode()),
        zlib.crc32(_state(numpy.random.mtrand._rand)),
        zlib.crc32(torch.get_rng_state().numpy().tobytes()),
        *(zlib.crc32(_state(one)) for one in held),
    ]


def torch_state() -> int:
    """A hash of the state of torch's generator."""
    return zlib.crc32(torch.get_rng_state().numpy().tobytes())
