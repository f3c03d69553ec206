"""What a strategy of roles prepares of a recipe, for the driver to run: one protocol, one class a strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from squall.cluster.program import Program
from squall.records import Started
from squall.server.gradients import Gradients
from squall.server.layout import Slice
from squall.server.shard import Snapshot, Snapshots
from squall.strategy.summary import Summary
from squall.training.roles import Built, Origin, make_gradients, make_measure


class Prepared(Protocol):
    """A training of roles, prepared.

    Attributes:
        slices: of the shards.
        unit: what its progress is counted in: "minibatch", "iteration".
    """

    slices: tuple[Slice, ...]
    unit: str

    def first_snapshots(self) -> list[Snapshot]:
        """The shards' state at the beginning."""

    def program(self, snapshots: Snapshots, number: int, carried: Mapping[str, Any] | None) -> Program:
        """The roles.

        Arguments:
            snapshots: where the shards keep their state.
            number: of the newest set that is whole.
            carried: what earlier sessions counted.
        """

    def started(self, name: str, folder: Path | None, prints: Mapping[str, Any], engine: str) -> Started:
        """The first record."""

    def weights(self, found: Sequence[Snapshot], summary: Summary) -> tuple[torch.Tensor, list[int]]:
        """The whole vector and the integer buffers, of the shards' last snapshots."""


class Lent:
    """What roles compute with: built in their own processes, or one for all in this one.

    Arguments:
        built: the driver's.
        origin: from which role processes build theirs.
        shared: all roles live in this process, and borrow one network.
    """

    def __init__(self, built: Built, origin: Origin, *, shared: bool) -> None:
        self._built, self._origin, self._shared = built, origin, shared

    def gradients(self) -> Callable[[], Gradients]:
        """Gives a replica's."""
        if not self._shared:
            return partial(make_gradients, self._origin, "a replica")
        shared = self._built.gradients()
        return lambda: shared

    def measure(self) -> Callable[[], Any]:
        """Gives the evaluator's."""
        if not self._shared:
            return partial(make_measure, self._origin)
        other = Built(self._origin, "the evaluator").measure()
        return lambda: other
