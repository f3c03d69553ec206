"""The coordinator's side of the shards: orders to all of them at once, and whether one has lost what it held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from squall.cluster.program import Here
from squall.optim.algebra import Command, Matrix
from squall.server.client import shard_name, until_answered, worked
from squall.server.vectors import Answer, Close, Copy, Order, Restore
from squall.strategy.sandblaster.batch import added


class SetBackError(Exception):
    """A shard has lost what it held: all have to go back to a snapshot."""


class Shards:
    """All shards of vectors.

    Arguments:
        here: the coordinator's engine.
        number: of the shards.
        patience: seconds of silence after which one is given up.

    Attributes:
        incarnations: of the shards, as they were last set back.
    """

    def __init__(self, here: Here, number: int, patience: float) -> None:
        self._here, self._number, self._patience = here, number, patience
        self._orders = 0
        self.incarnations: list[int] = []

    async def order(
        self,
        *,
        close: Close | None = None,
        commands: Sequence[Command] = (),
        accept: bool = False,
        begin: int | None = None,
    ) -> list[Answer]:
        """An order to each; as of `Order`. None at all is a look whether they are all there.

        Raises:
            SetBackError: one of them is not what it was.
        """
        self._orders += 1
        rest = close, tuple(commands), accept, begin
        answers = await self._all("order", [(Order(self._orders, known, *rest),) for known in self.incarnations])
        if any(answer.incarnation != known for answer, known in zip(answers, self.incarnations, strict=True)):
            raise SetBackError
        return answers

    async def restore(self, to: Restore) -> list[int]:
        """Sets all back to a snapshot; returns those that had been restarted."""
        self._orders += 1
        answers = await self._all("order", [(Order(self._orders, None, restore=to),)] * self._number)
        before, self.incarnations = self.incarnations, [answer.incarnation for answer in answers]
        pairs = enumerate(zip(before, self.incarnations, strict=False))
        return [shard for shard, (old, new) in pairs if old != new]

    async def copy(self, copy: Copy) -> float:
        """All take a copy; the most seconds that one stood still for it.

        Raises:
            SetBackError: one of them is not what it was.
        """
        stood = await self._all("copy", [(known, copy) for known in self.incarnations])
        if None in stood:
            raise SetBackError
        return float(max(stood))

    async def saved(self, number: int) -> int:
        """Waits until all have saved a copy; returns its bytes.

        Raises:
            RunError: one of them could not, or has lost it.
        """
        found = 0
        for shard in range(self._number):
            found += await worked(self._here, shard_name(shard), "saved", number, patience=self._patience)
        return found

    async def _all(self, method: str, values: Sequence[tuple[Any, ...]]) -> list[Any]:
        async def one(index: int) -> Any:
            handle = self._here.handle(shard_name(index))
            return await until_answered(
                self._here, handle.name, lambda: handle.call(method, *values[index]), self._patience
            )

        tasks = [self._here.start(one(index)) for index in range(self._number)]
        return [await task for task in tasks]


def summed(answers: Sequence[Answer]) -> list[Matrix]:
    """The matrices of all slices, added up cell by cell in the shards' order."""
    return [_added(slices) for slices in zip(*(answer.matrices for answer in answers), strict=True)]


def _added(slices: Sequence[Matrix]) -> Matrix:
    return tuple(tuple(added(cells) for cells in zip(*rows, strict=True)) for rows in zip(*slices, strict=True))
