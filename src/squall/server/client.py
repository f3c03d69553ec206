"""A role's side of the shards: fetching all slices, pushing to all of them, as often as it takes.

A call that gets no answer may still be under way. A push is sent again as it is: the shard applies it once. A fetch is
not: the lost one may write into its memory at any later time, so that memory is given up and a new one filled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import torch

from squall.cluster.program import CallError, Here
from squall.errors import RunError
from squall.server.layout import Slice
from squall.server.messages import Fetch, Fetched, Push, Receipt, Sender

T = TypeVar("T")

PAUSE_S = 0.2
"""Before a call is made again."""


class Client:
    """Talks to the shards for one role.

    Arguments:
        here: the role's engine.
        slices: of the shards, whose roles are called shard-0, shard-1, ...
        dtype: of the vector.
        patience: seconds of silence after which a shard is given up.
    """

    def __init__(self, here: Here, slices: Sequence[Slice], dtype: torch.dtype, patience: float) -> None:
        self._here, self._slices, self._dtype, self._patience = here, tuple(slices), dtype, patience
        self._shards = [here.handle(shard_name(part.index)) for part in slices]
        self._incoming = [here.memory(part.size, dtype) for part in slices]
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
        async def once() -> Any:
            return await self._shards[index].call("fetch", self._asked(), into=self._incoming[index])

        fetched: Fetched = await self._until_answered(index, once, writes=True)
        return fetched

    async def _push(self, index: int, push: Push, gradients: torch.Tensor, fetching: bool) -> Receipt:
        part = self._slices[index]

        async def once() -> Any:
            return await self._shards[index].call(
                "push",
                push,
                self._asked() if fetching else None,
                send=gradients[part.start : part.stop],
                into=self._incoming[index] if fetching else None,
            )

        receipt: Receipt = await self._until_answered(index, once, writes=fetching)
        return receipt

    def _asked(self) -> Fetch:
        self._number += 1
        return Fetch(self._sender, self._number)

    async def _until_answered(self, index: int, once: Callable[[], Awaitable[Any]], writes: bool) -> Any:
        def give_up_memory() -> None:
            self._incoming[index] = self._here.memory(self._slices[index].size, self._dtype)

        again = give_up_memory if writes else None
        return await until_answered(self._here, self._shards[index].name, once, self._patience, again)


async def until_answered(
    here: Here, name: str, once: Callable[[], Awaitable[T]], patience: float, again: Callable[[], None] | None = None
) -> T:
    """Makes a call as often as it takes.

    Arguments:
        name: of the role that is called.
        once: the call.
        patience: seconds after which it is given up.
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


def shard_name(index: int) -> str:
    """The role of a shard."""
    return f"shard-{index}"
