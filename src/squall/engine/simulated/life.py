"""One incarnation of a role in simulated time: its line of work, its tasks, and what it sees as its engine."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from squall.cluster.program import FREE, Cost, Plan, Promise, Role
from squall.cluster.program import Task as Started
from squall.engine.simulated.clock import Future, Task
from squall.errors import RunError
from squall.records import Record

if TYPE_CHECKING:
    from squall.engine.simulated.engine import Simulated


@dataclass(frozen=True)
class Message:
    """What a call carries."""

    method: str
    values: tuple[Any, ...]
    send: torch.Tensor | None
    into: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Call:
    """A call under way."""

    caller: Life
    name: str
    callee: Life | None
    message: Message
    reply: Future


class Lane:
    """Work that is done piece after piece."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._waiting: deque[tuple[Callable[[], Any], Cost, Future]] = deque()
        self._busy = False

    def add(self, work: Callable[[], Any], cost: Cost) -> Future:
        """Queues a piece of work."""
        future = Future()
        self._waiting.append((work, cost, future))
        self._next()
        return future

    def _next(self) -> None:
        if self._busy or not self._waiting:
            return
        work, cost, future = self._waiting.popleft()
        self._busy = True
        engine = self._life.engine
        early = engine.early()
        found = tried(work) if early else None

        def end() -> None:
            if not self._life.alive:
                return
            value, error = found if found is not None else tried(work)
            self._busy = False
            future.resolve(value, error)
            self._next()

        engine.after(engine.seconds(self._life, cost), end)


class Life:
    """One incarnation of a role, as its engine knows it."""

    def __init__(self, engine: Simulated, name: str, plan: Plan, incarnation: int, slowness: float) -> None:
        self.engine, self.name, self.plan, self.incarnation, self.slowness = engine, name, plan, incarnation, slowness
        self.alive = True
        self.inbound: list[Call] = []
        self.end = Future()
        self.role: Role = plan.make()
        self.role.here = _Here(self)
        self.random = engine.coin(name, incarnation)
        self._tasks: list[Task] = []
        self.lane, self.aside = Lane(self), Lane(self)
        self._held: list[Callable[[], Any]] | None = []

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        """Something that goes on until it ends, or the life does."""
        task = self.engine.task(coroutine, lambda task: self.engine.failed(self, task.error or RunError("failed")))
        self._tasks = [other for other in self._tasks if not other.done]
        self._tasks.append(task)
        return task

    def admit(self, serve: Callable[[], Any]) -> None:
        """Serves a call, once the role has begun."""
        if self._held is None:
            serve()
        else:
            self._held.append(serve)

    def open(self) -> None:
        """The role has begun: calls come in."""
        held, self._held = self._held or [], None
        for serve in held:
            serve()

    def finish(self) -> None:
        """Nothing of it runs any more."""
        self.alive = False
        for task in self._tasks:
            task.end()
        self._tasks = []


class _Here:
    """What the role sees as its engine (`Here`)."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self.name, self.incarnation = life.name, life.incarnation

    def now(self) -> float:
        return self._life.engine.now

    def uniform(self) -> float:
        return self._life.random.random()

    async def compute(self, work: Callable[[], Any], cost: Cost = FREE) -> Any:
        return await self._life.lane.add(work, cost)

    async def beside(self, work: Callable[[], Any], cost: Cost = FREE) -> Any:
        return await self._life.aside.add(work, cost)

    async def sleep(self, seconds: float) -> None:
        await self._life.engine.wake(seconds)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        return self._life.start(coroutine)

    def promise(self) -> Future:
        return Future()

    async def first_of(self, *tasks: Started[Any] | Promise, within: float | None = None) -> None:
        if not tasks and within is None:
            raise ValueError("first_of() has nothing to wait for: give it a task, a promise or a time")
        any_of = Future()
        for task in tasks:
            cast(Future, task).then(any_of.resolve)
        if within is not None:
            self._life.engine.after(within, any_of.resolve)
        await any_of

    def memory(self, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(num_elements, dtype=dtype)

    def handle(self, name: str) -> _Handle:
        return _Handle(self._life, name)

    def emit(self, record: Record) -> None:
        self._life.engine.emit(record)

    def enlist(self, name: str, plan: Plan) -> None:
        self._life.engine.enlist(name, plan)

    def dismiss(self, name: str) -> None:
        self._life.engine.dismiss(name)


@dataclass(frozen=True)
class _Handle:
    caller: Life
    name: str

    async def call(
        self,
        method: str,
        *values: Any,
        send: torch.Tensor | None = None,
        into: torch.Tensor | None = None,
        within: float | None = None,
    ) -> Any:
        message = Message(method, copied(values), send, into)
        return await self.caller.engine.call(self.caller, self.name, message, within)


def tried(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What work gives: a value, or an error."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def copied(value: Any) -> Any:
    """As another process would get it."""
    return value if value is None or isinstance(value, int | float | str) else pickle.loads(pickle.dumps(value))


def num_bytes_of(tensor: torch.Tensor | None) -> int:
    """Bytes that a message carries for a tensor."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
