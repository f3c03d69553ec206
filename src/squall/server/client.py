"""A role's side of the shards: fetching all slices, pushing to all of them, as often as it takes.

A call that gets no answer may still be under way. A push is sent again as it is: the shard applies it once. A fetch is
not: the lost one may write into its memory at any later time, so that memory is given up and a new one filled.

To send a slice again adds to what made it late, where that was a link that many share. So a call has the time that its
bytes take on a slow link, and twice as long with each time that it was late; the next call begins with what this one
needed. A role that died is no slow one: its callers hear of that at once, and it changes no deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import torch

from squall.cluster.program import CallError, Here, LateError, Task
from squall.errors import RunError
from squall.server.layout import Slice
from squall.server.messages import Fetch, Fetched, Push, Receipt, Sender

T = TypeVar("T")

PAUSE_S = 0.2
"""Before a call is made again."""

NOT_YET_S = 10.0
"""That a question may stay open before it is answered "not yet"."""

ANSWER_S = 30.0
"""That a call with a tensor has, besides what its bytes take."""

SLOWEST = 10e6
"""Bytes a second of the slowest link, shared by all who are on it, that is no reason to send again."""


class Pace:
    """The deadlines of calls to one shard, which follow how fast it answers.

    Doubled by each answer that is late, and halved by each that took less than a quarter of its time.

    Arguments:
        patience: seconds; no deadline is longer, but for what its bytes may take.
    """

    def __init__(self, patience: float) -> None:
        self._patience, self._doubled = patience, 0

    def within(self, num_bytes: int) -> float:
        """Seconds for a call that carries so many bytes."""
        return min((ANSWER_S + num_bytes / SLOWEST) * 2.0**self._doubled, self.patience(num_bytes))

    def patience(self, num_bytes: int) -> float:
        """Seconds of silence after which such a call is not made again."""
        return self._patience + num_bytes / SLOWEST

    def late(self, num_bytes: int) -> None:
        """A call had no answer within its time."""
        if self.within(num_bytes) < self.patience(num_bytes):
            self._doubled += 1

    def answered(self, num_bytes: int, seconds: float) -> None:
        """A call was answered after so many seconds."""
        if self._doubled and seconds < self.within(num_bytes) / 4:
            self._doubled -= 1


class Client:
    """Talks to the shards for one role.

    Arguments:
        here: the role's engine.
        slices: of the shards, whose roles are called shard-0, shard-1, ...
        dtype: of the vector.
        patience: seconds of silence after which a shard is given up; not of slowness: what a call's bytes take at
            `SLOWEST` is added, and a call that is under way by then still has its time.
        vector: which one is fetched, where shards have several.
    """

    def __init__(
        self, here: Here, slices: Sequence[Slice], dtype: torch.dtype, patience: float, vector: str = ""
    ) -> None:
        self._here, self._slices, self._dtype, self._vector = here, tuple(slices), dtype, vector
        self._shards = [here.handle(shard_name(part.index)) for part in slices]
        self._incoming = [here.memory(part.size, dtype) for part in slices]
        self._paces = [Pace(patience) for _ in slices]
        self._sender = Sender(here.name, here.incarnation)
        self._number = 0

    async def fetch(self) -> list[Fetched]:
        """All slices, into this client's memory; `take` copies them from there."""
        tasks = [self._here.start(self._fetch(index)) for index in range(len(self._slices))]
        return [await task for task in tasks]

    async def push(self, pushes: Sequence[Push], gradients: torch.Tensor, fetching: bool = False) -> list[Receipt]:
        """One push to each shard.

        Arguments:
            pushes: to each shard, by number.
            gradients: the whole vector, from `Here.memory`; left alone until this returns.
            fetching: the answers are fetches too.
        """
        tasks = [self._here.start(self._push(index, push, gradients, fetching)) for index, push in enumerate(pushes)]
        return [await task for task in tasks]

    def take(self, weights: torch.Tensor) -> None:
        """Copies what was fetched last into a vector."""
        for part, incoming in zip(self._slices, self._incoming, strict=True):
            weights[part.start : part.stop].copy_(incoming)

    async def _fetch(self, index: int) -> Fetched:
        async def once(within: float) -> Any:
            return await self._shards[index].call("fetch", self._asked(), into=self._incoming[index], within=within)

        fetched: Fetched = await self._until_answered(index, once, tensors=1, writes=True)
        return fetched

    async def _push(self, index: int, push: Push, gradients: torch.Tensor, fetching: bool) -> Receipt:
        part = self._slices[index]

        async def once(within: float) -> Any:
            return await self._shards[index].call(
                "push",
                push,
                self._asked() if fetching else None,
                send=gradients[part.start : part.stop],
                into=self._incoming[index] if fetching else None,
                within=within,
            )

        receipt: Receipt = await self._until_answered(index, once, tensors=1 + fetching, writes=fetching)
        return receipt

    def _asked(self) -> Fetch:
        self._number += 1
        return Fetch(self._sender, self._number, self._vector)

    async def _until_answered(self, index: int, once: Callable[[float], Awaitable[T]], tensors: int, writes: bool) -> T:
        here, pace = self._here, self._paces[index]
        num_bytes = tensors * self._slices[index].size * self._dtype.itemsize

        async def paced() -> T:
            began = here.now()
            try:
                value = await once(pace.within(num_bytes))
            except LateError:
                pace.late(num_bytes)
                raise
            pace.answered(num_bytes, here.now() - began)
            return value

        def give_up_memory() -> None:
            self._incoming[index] = here.memory(self._slices[index].size, self._dtype)

        again = give_up_memory if writes else None
        return await until_answered(here, self._shards[index].name, paced, pace.patience(num_bytes), again)


async def until_answered(
    here: Here, name: str, once: Callable[[], Awaitable[T]], patience: float, again: Callable[[], None] | None = None
) -> T:
    """Makes a call as often as it takes.

    Arguments:
        name: of the role that is called.
        once: the call.
        patience: seconds after which it is not made again.
        again: done before it is made again.

    Raises:
        RunError: there was no answer.
    """
    began = here.now()
    while True:
        try:
            return await once()
        except CallError as error:
            waited = here.now() - began
            if waited > patience:
                rows = [("last", error.headline), ("rule", "every wait has an end")]
                raise RunError(f"{here.name} gives {name} up after {waited:.0f} s", rows) from error
        if again is not None:
            again()
        await here.sleep(PAUSE_S)


async def so_far(here: Here, task: Task[T]) -> T | None:
    """The answer to a call of what may take long, by the role that does it; None while it is at it."""
    await here.first_of(task, within=NOT_YET_S)
    return await task if task.done else None


async def worked(here: Here, name: str, method: str, *values: Any, patience: float) -> Any:
    """A call of what may take long: its role answers `so_far`, and is asked again."""
    handle = here.handle(name)
    while True:
        found = await until_answered(here, name, lambda: handle.call(method, *values), patience)
        if found is not None:
            return found


def shard_name(index: int) -> str:
    """The role of a shard."""
    return f"shard-{index}"
