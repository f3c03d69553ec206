"""A distributed job as a value: roles, and handles by which they call each other.

A role is a plain class with async methods. It awaits nothing but what its engine gives it (`Here`), so the same class
runs in a process of its own on a cluster and, in simulated time, beside a thousand others in one process. An engine
decides where roles live, how calls travel, and what time is::

    Program    {"coordinator": ..., "shard-0": ..., "replica-0": ..., ...}      names -> how to make them
    engine     makes each role, gives it its Here, awaits its start(), lets calls in, runs its main()
    Role       here.compute(work)  here.sleep(s)  here.start(...)  here.handle("shard-0").call("push", ...)

What an engine may do to a call, and a role must be written for: lose it, deliver it twice, deliver it late (even after
its caller has given up), and let calls of one caller overtake each other. What it does not do: change it, or deliver it
to a later incarnation than the one it was sent to. A role that dies loses everything it held; the engine starts it
again where its plan says so, as a new incarnation.

Tensors travel beside a call's values, at most one each way, and without copies where there is shared memory: the callee
sees the caller's own memory while its method runs. So the caller leaves `send` alone, and does not look at `into`, from
the call until its reply; and a call that ended in a `CallError` may still be under way, so that its tensors are given
up for good (`Here.memory` has new ones) or sent again unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from squall.errors import RunError
from squall.records import Record

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class CallError(RunError):
    """A call that got no answer; whether it was carried out is not known."""


class LateError(CallError):
    """The answer did not come within the call's deadline."""


class LostError(CallError):
    """The role that was called died."""


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes, for an engine that has to say how long it lasts.

    Attributes:
        minibatches: gradients computed, in minibatches of the recipe's size.
        bytes: memory read and written.
    """

    minibatches: float = 0.0
    bytes: int = 0


FREE = Cost()


class Task(Protocol[T_co]):
    """Work of a role that goes on beside what it does; awaiting it gives its value or raises its exception.

    One that fails before anybody awaits it ends the program: an error is never lost. `Here.first_of` awaits nothing.
    """

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""

    def __await__(self) -> Generator[Any, Any, T_co]: ...


class Promise(Protocol):
    """Something that another part of the same role will say."""

    def keep(self) -> None:
        """Says it; whoever awaits it goes on."""

    @property
    def done(self) -> bool:
        """Whether it was said."""

    def __await__(self) -> Generator[Any, Any, None]: ...


class Handle(Protocol):
    """A role that may be anywhere."""

    @property
    def name(self) -> str:
        """Its name in the program."""

    async def call(
        self,
        method: str,
        *values: Any,
        send: torch.Tensor | None = None,
        into: torch.Tensor | None = None,
        within: float | None = None,
    ) -> Any:
        """Calls a method of the role, `method(*values, send, into)`, the last two where they are given.

        Arguments:
            values: plain values: numbers, text, bytes, tuples, frozen dataclasses.
            send: a tensor that the callee reads; from `Here.memory`, or it is copied once more.
            into: a tensor that the callee fills, likewise.
            within: seconds; the engine's own deadline unless given.

        Raises:
            LateError: no answer within the deadline.
            LostError: the role died.
            SquallError: what the method raised.
        """


class Here(Protocol):
    """What a role sees of the engine that runs it."""

    @property
    def name(self) -> str:
        """The role's name in the program."""

    @property
    def incarnation(self) -> int:
        """Rises with each start of the role."""

    def now(self) -> float:
        """Seconds since the program began."""

    def uniform(self) -> float:
        """A random number from [0, 1), of this role's own stream."""

    async def compute(self, work: Callable[[], T], cost: Cost = FREE) -> T:
        """Does work that takes time. A role's works are done one after the other, in the order they were asked for, and
        nothing else of the role is touched by them: calls are answered meanwhile. Work that would end its process, as
        `sys.exit()` does, is a `RunError` where there is a process to end."""

    async def beside(self, work: Callable[[], T], cost: Cost = FREE) -> T:
        """As `compute`, for work that must not delay it: writing a file."""

    async def sleep(self, seconds: float) -> None:
        """Waits."""

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Task[T]:
        """Begins something that goes on beside what follows; it ends with the role."""

    def promise(self) -> Promise:
        """By which one call of the role waits for what another call brings."""

    async def first_of(self, *tasks: Task[Any] | Promise, within: float | None = None) -> None:
        """Waits until one of them is done, or so many seconds; for something it must be.

        Raises nothing of a task's: that does whoever awaits it. One that failed, and that nobody did await, ends the
        program.
        """

    def memory(self, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
        """A vector of zeros that travels without a copy where that is possible."""

    def handle(self, name: str) -> Handle:
        """By which a role is called."""

    def emit(self, record: Record) -> None:
        """Says what happened to whoever started the program; in order."""

    def enlist(self, name: str, plan: Plan) -> None:
        """Adds a role to the program."""

    def dismiss(self, name: str) -> None:
        """Ends a role for good."""


class Role:
    """Base of all roles. Everything in the constructor is data: there is no engine yet, and it may be another process
    that calls it."""

    here: Here

    async def begin(self) -> None:
        """What a role does before any call reaches it: reading what an earlier incarnation left."""

    async def main(self) -> Any:
        """What a role does of its own accord; most only answer."""


@dataclass(frozen=True)
class Plan:
    """How a role is made and kept.

    Attributes:
        make: gives the role; called again for each incarnation, wherever the engine puts it.
        kind: the word for its likes: "replica", "shard".
        restarts: whether it is started again when it dies.
        cpus, gpus: what it takes of its machine.
        beside_driver: whether it must be on the machine of whoever started the program.
        urgent: whether the others need it to begin with; if not, an engine may start it when they have begun.
    """

    make: Callable[[], Role]
    kind: str
    restarts: bool = True
    cpus: float = 1.0
    gpus: float = 0.0
    beside_driver: bool = False
    urgent: bool = True


@dataclass(frozen=True)
class Program:
    """A job: its roles by name, and whose `main` ends it.

    Attributes:
        roles: how each is made.
        chief: the role whose `main` returns the program's result; it also hears what the user asks for, in
            `asked(word, value)`. If it dies, the program fails.
    """

    roles: Mapping[str, Plan]
    chief: str


class Engine(Protocol):
    """Where programs run."""

    def run(
        self,
        program: Program,
        sink: Callable[[Record], None],
        asked: Callable[[], Sequence[tuple[str, Any]]] = tuple,
    ) -> Any:
        """Runs a program to its end; everything of it is gone afterwards.

        Arguments:
            sink: called with what the chief emits.
            asked: looked at now and then: words and values for the chief's `asked`.

        Returns:
            What the chief's `main` returned.

        Raises:
            RunError: the chief died; a role waits for what never comes.
            SquallError: as raised by a role's `begin` or `main`.
        """
