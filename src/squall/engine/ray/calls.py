"""Calls between roles: values through Ray, tensors by the shortest way.

Where caller and callee share a machine, a tensor's place in shared memory travels and the callee works in it. Between
machines a pair of its own carries the bytes while the call's values go through Ray; the callee works in memory of its
own, of which it keeps one piece for each caller and size. Where the cluster's connections are encrypted, tensors go
through Ray as well: Gloo's cannot be.

A call and its answer cross Ray as bytes that are pickled here, which Ray passes on as they are. Both are this run's, no
more trusted than anything else that Ray carries between its roles.

A caller asks a role where it is before it calls it, and again after a call was lost: an actor that Ray made again may
be on another machine. The call names the incarnation that answered; a later one refuses it.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from squall.cluster.program import CallError, LateError, LostError
from squall.engine.ray import memory, pairs
from squall.errors import RunError, SquallError

DEADLINE_S = 30.0
"""Of a call that names none."""

_OPEN_S = 10.0


class Calls:
    """Words of the protocol."""

    ANOTHER = "another incarnation"

    @dataclass(frozen=True)
    class Raised:
        """An error in place of a value."""

        error: SquallError


@dataclass(frozen=True)
class Remote:
    """A tensor that a pair carries: how many elements, of which type, as which transfer."""

    num_elements: int
    dtype: torch.dtype
    number: int


Tensor = memory.Place | Remote | np.ndarray[Any, Any] | None


@dataclass(frozen=True)
class Message:
    """A call on its way.

    Attributes:
        caller, incarnation: who calls; which incarnation of the callee is meant.
        method, values: what is called.
        send, into: where its tensors are.
        within: seconds that it has.
    """

    caller: str
    incarnation: int
    method: str
    values: tuple[Any, ...]
    send: Tensor
    into: Tensor
    within: float


def packed(value: Any) -> Any:
    """A call, or its answer, as Ray is given it: bytes, unless a part of it is an array or something only Ray's pickle
    knows, like a class of the user's script."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError):
        return value


def unpacked(value: Any) -> Any:
    """What was packed."""
    return pickle.loads(value) if isinstance(value, bytes) else value


class Peers:
    """The roles that one role calls.

    Arguments:
        name: of the caller.
        namespace: of the run in Ray.
        encrypted: tensors go through Ray.
        threads: for transfers.
    """

    def __init__(self, name: str, namespace: str, encrypted: bool, threads: ThreadPoolExecutor) -> None:
        import ray

        self.name, self.namespace, self.encrypted, self.threads = name, namespace, encrypted, threads
        self.ray = ray
        self.address = str(cast(Any, ray.util).get_node_ip_address())
        self.numbers = itertools.count()
        self._handles: dict[str, Peer] = {}

    def handle(self, name: str) -> Peer:
        """By which a role is called."""
        if name not in self._handles:
            self._handles[name] = Peer(self, name)
        return self._handles[name]


class Peer:
    """One role that is called."""

    def __init__(self, peers: Peers, name: str) -> None:
        self.name, self._peers = name, peers
        self._actor: Any = None
        self._there: tuple[str, str, int] | None = None
        self._pair: pairs.Pair | None = None
        self._meeting = asyncio.Lock()

    async def call(
        self,
        method: str,
        *values: Any,
        send: torch.Tensor | None = None,
        into: torch.Tensor | None = None,
        within: float | None = None,
    ) -> Any:
        """As of `squall.cluster.program.Handle`."""
        deadline = DEADLINE_S if within is None else within
        try:
            async with asyncio.timeout(deadline):
                answer = await self._called(method, values, send, into, deadline)
        except TimeoutError:
            self._forget()
            raise LateError(f"{self.name} did not answer {method} within {deadline:g} s") from None
        except CallError:
            self._forget()
            raise
        if isinstance(answer, Calls.Raised):
            raise answer.error
        return answer

    async def _called(
        self, method: str, values: tuple[Any, ...], send: torch.Tensor | None, into: torch.Tensor | None, within: float
    ) -> Any:
        node, incarnation = await self._found()
        message = Message(self._peers.name, incarnation, method, values, None, None, within)
        if send is None and into is None:
            return await self._serve(message)
        if node == memory.node():
            return await self._near(message, send, into)
        if self._peers.encrypted:
            return await self._through_ray(message, send, into)
        return await self._far(await self._connected(), message, send, into)

    async def _serve(self, message: Message) -> Any:
        arrays = isinstance(message.send, np.ndarray) or isinstance(message.into, np.ndarray)  # Ray shares their memory
        return unpacked(await self._sent(self._actor.serve.remote(message if arrays else packed(message))))

    async def _near(self, message: Message, send: torch.Tensor | None, into: torch.Tensor | None) -> Any:
        """Tensors' places travel; what lies in no shared memory is copied into some, and back."""
        out, back = _shared(send, filled=True), _shared(into, filled=False)
        there, here = (None if tensor is None else memory.describe(tensor) for tensor in (out, back))
        answer = await self._serve(replace(message, send=there, into=here))
        if into is not None and back is not None and back is not into and not isinstance(answer, Calls.Raised):
            into.copy_(back.view_as(into))
        return answer

    async def _through_ray(self, message: Message, send: torch.Tensor | None, into: torch.Tensor | None) -> Any:
        out, back = (None if tensor is None else tensor.numpy() for tensor in (send, into))
        answer = await self._serve(replace(message, send=out, into=back))
        if into is None or isinstance(answer, Calls.Raised):
            return answer
        value, array = answer
        into.copy_(torch.from_numpy(np.array(array)))
        return value

    async def _far(
        self, pair: pairs.Pair, message: Message, send: torch.Tensor | None, into: torch.Tensor | None
    ) -> Any:
        """Values and tensors on their ways at the same time."""
        out, back = (
            None if tensor is None else Remote(tensor.numel(), tensor.dtype, next(self._peers.numbers))
            for tensor in (send, into)
        )
        message, within = replace(message, send=out, into=back), message.within
        loop, threads = asyncio.get_running_loop(), self._peers.threads
        moves: list[Awaitable[Any]] = []
        if send is not None and out is not None:
            moves.append(loop.run_in_executor(threads, pair.send, send, out.number, within))
        if into is not None and back is not None:
            moves.append(loop.run_in_executor(threads, pair.receive, into, back.number, within))
        answer = asyncio.ensure_future(self._serve(message))
        try:
            return (await asyncio.gather(answer, *moves))[0]
        except BaseException:
            answer.cancel()
            pair.close()  # what still waits on it ends now
            raise

    async def _found(self) -> tuple[str, int]:
        """Where the role is, and which incarnation of it."""
        if self._actor is None:
            try:
                self._actor = self._peers.ray.get_actor(self.name, namespace=self._peers.namespace)
            except ValueError as error:
                raise LostError(f"there is no role {self.name}") from error
        if self._there is None:
            self._there = await self._sent(self._actor.hello.remote())
        return self._there[0], self._there[2]

    async def _connected(self) -> pairs.Pair:
        async with self._meeting:
            if self._pair is None or self._pair.closed:
                loop = asyncio.get_running_loop()
                opening = pairs.offer(self._peers.address, self.name, _OPEN_S)
                try:
                    words = await loop.run_in_executor(self._peers.threads, lambda: opening.words)
                    answer = await self._sent(self._actor.pair.remote(self._peers.name, words))
                    self._pair = await loop.run_in_executor(self._peers.threads, opening.join, answer)
                except BaseException:
                    await loop.run_in_executor(self._peers.threads, opening.give_up)
                    raise
            return self._pair

    async def _sent(self, reference: Any) -> Any:
        """Awaits an answer of Ray's."""
        errors = self._peers.ray.exceptions
        try:
            answer = await reference
        except (errors.RayActorError, errors.TaskCancelledError) as error:
            raise LostError(f"{self.name} died") from error
        except errors.RayTaskError as error:  # not the method's: those come as values
            raise RunError(f"{self.name} failed", [("found", str(error.cause or error))]) from error
        if isinstance(answer, str) and answer == Calls.ANOTHER:
            raise LostError(f"{self.name} died, and is there again")
        return answer

    def _forget(self) -> None:
        """After a call was lost the role may be elsewhere, and what its pair carried is not known."""
        self._there = self._actor = None
        pair, self._pair = self._pair, None
        if pair is not None:
            pair.close()


class Callers:
    """The roles that call one role: where their tensors are found.

    Arguments:
        threads: for transfers.
    """

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._pairs: dict[str, pairs.Pair] = {}
        self._spare: dict[tuple[str, int, torch.dtype], list[torch.Tensor]] = {}

    async def accept(self, caller: str, words: Any, address: str) -> Any:
        """Opens this end of a pair; the other joins when it has the answer."""
        old = self._pairs.pop(caller, None)
        if old is not None:
            old.close()
        loop = asyncio.get_running_loop()
        opening = pairs.accept(words, address, caller, _OPEN_S)
        answer = await loop.run_in_executor(self._threads, lambda: opening.words)

        def join() -> None:
            with suppress(CallError):
                self._pairs[caller] = opening.join()

        loop.run_in_executor(self._threads, join)
        return answer

    @asynccontextmanager
    async def tensors(self, message: Message) -> AsyncIterator[dict[str, torch.Tensor]]:
        """The tensors of a call, as its method sees them.

        Raises:
            CallError: they did not come, or the caller is gone.
        """
        found: dict[str, torch.Tensor] = {}
        loop = asyncio.get_running_loop()
        for name, at in (("send", message.send), ("into", message.into)):
            if isinstance(at, memory.Place):
                found[name] = _attached(at)
            elif isinstance(at, np.ndarray):
                found[name] = torch.from_numpy(np.array(at))
            elif isinstance(at, Remote):
                found[name] = self._borrow(message.caller, at)
        if isinstance(message.send, Remote):
            pair = await self._pair(message)
            await loop.run_in_executor(self._threads, pair.receive, found["send"], message.send.number, message.within)
        try:
            yield found
        finally:
            if isinstance(message.into, Remote):
                with suppress(CallError):
                    pair = await self._pair(message)
                    number = message.into.number
                    await loop.run_in_executor(self._threads, pair.send, found["into"], number, message.within)
            for name, at in (("send", message.send), ("into", message.into)):
                if isinstance(at, Remote):
                    self._spare.setdefault((message.caller, at.num_elements, at.dtype), []).append(found[name])

    async def _pair(self, message: Message) -> pairs.Pair:
        for _ in range(1000):
            pair = self._pairs.get(message.caller)
            if pair is not None and not pair.closed:
                return pair
            await asyncio.sleep(0.01)
        raise LostError(f"{message.caller} opened no pair")

    def _borrow(self, caller: str, at: Remote) -> torch.Tensor:
        spare = self._spare.setdefault((caller, at.num_elements, at.dtype), [])
        return spare.pop() if spare else torch.empty(at.num_elements, dtype=at.dtype)


def _shared(tensor: torch.Tensor | None, *, filled: bool) -> torch.Tensor | None:
    """A tensor, or one like it, that another process can reach."""
    if tensor is None or memory.describe(tensor) is not None:
        return tensor
    shared = memory.window(tensor.numel(), tensor.dtype)
    return shared.copy_(tensor.reshape(-1)) if filled else shared


def _attached(place: memory.Place) -> torch.Tensor:
    try:
        return memory.attach(place)
    except memory.GoneError as error:
        raise LostError("the caller is gone") from error
