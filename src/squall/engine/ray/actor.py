"""A role in a process of its own: the actor that Ray places, starts and restarts, and what the role sees as its engine.

Three kinds of threads. The event loop's answers calls and never works. One thread computes, work after work. Others
wait for the disk and for tensors from other machines. Between two works of torch a control call then waits for
milliseconds, where it would wait for a whole gradient if roles computed in the loop::

    driver    awake() -->  whenever there is a process
              live() ------------------------------------> what the chief's main returned; the error of any role
              opened() --> once begin is over
    callers   hello()  --> where the role is          serve(call) --> its method, once begin is over --> value, or error
    chief     news(after) --> records that it emitted, roles that it enlists and dismisses

A role that is killed is made again by Ray, in the same actor: its pending `live` fails, and the driver asks again.
Nobody but `live` makes the role: whatever is wrong with that is said once, there.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from squall.cluster.program import FREE, Cost, Plan, Promise, Role, Task
from squall.engine.ray import memory
from squall.engine.ray.alike import check, versions
from squall.engine.ray.calls import Callers, Calls, Message, Peers, packed, unpacked
from squall.engine.ray.output import heading, write_to
from squall.engine.ray.sealed import Sealed
from squall.errors import RunError, SquallError
from squall.records import Record

_SMALL_BYTES = 64 << 10
"""Work that is done before another thread would have begun it."""
_TRANSFERS = 64
"""Threads that wait for tensors from other machines, at most."""

_RAISED = (Exception, SystemExit, KeyboardInterrupt)
"""What a role may raise: the last two would end the event loop, and nobody would be told. Cancelling is none of it."""


@dataclass(frozen=True)
class Boot:
    """What every host is told.

    Attributes:
        namespace: of the run's names in Ray.
        began: seconds of the run at which this session began; `time.time()` then.
        epoch: `time.time()` at the session's beginning.
        logs: folder for what roles write to their standard output and error; None: nowhere.
        encrypted: tensors go through Ray, whose connections are.
        threads: of torch, for each piece of work.
        paths: where the driver finds modules.
        versions: of the driver's software.
        folder: the driver's working folder: relative paths mean the same here, where there is one of that name.
    """

    namespace: str
    began: float
    epoch: float
    logs: str | None
    encrypted: bool
    threads: int = 1
    paths: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions)
    folder: str = "."


@dataclass(frozen=True)
class Enlisted:
    """News of the chief: a role joins (or, without a plan, leaves)."""

    name: str
    plan: Plan | None


class Host:
    """One role's process; a Ray actor with an event loop."""

    def __init__(self, name: str, boot: Boot) -> None:
        self.log = Path(boot.logs) / f"{name}.log" if boot.logs is not None else None
        if self.log is not None:
            with suppress(OSError):  # a full disk
                write_to(self.log)
        with suppress(OSError):
            os.chdir(boot.folder)
        sys.path.extend(path for path in boot.paths if path not in sys.path)
        self.name, self._boot = name, boot
        self.incarnation = 0
        self._transfers = ThreadPoolExecutor(_TRANSFERS, "tensors")
        self._news: list[Record | Enlisted] = []
        self._forgotten = 0
        self._made, self._opened, self._failing, self._written = (asyncio.Event() for _ in range(4))
        self._error: BaseException | None = None
        self._life: asyncio.Future[Any] | None = None

    # what Ray calls

    async def awake(self) -> None:
        """Says that there is a process again."""

    async def live(self, make: Sealed, incarnation: int, chief: bool) -> Any:
        """Makes the role, begins it, lets calls in and does what it does of its own accord.

        Arguments:
            make: how it is made.
            chief: the call is over when the role's `main` is; for others only when something fails, or the process
                ends, which the driver hears of by this call alone.
            incarnation: of the role; one that lives already, since only the connection was lost, stays what it is.
        """
        if self._life is None:
            self.incarnation = incarnation
            self._life = asyncio.ensure_future(self._lived(make))
        failing = asyncio.ensure_future(self._failing.wait())
        await asyncio.wait([self._life, failing], return_when=asyncio.FIRST_COMPLETED)
        if self._error is None and not chief and not isinstance(self._life.result(), Calls.Raised):
            await failing
        failing.cancel()
        if self._error is not None:
            self._life.cancel()
            return self.portable(self._error)
        return self._life.result()

    async def _lived(self, make: Sealed) -> Any:
        try:
            self._peers = Peers(self.name, self._boot.namespace, self._boot.encrypted, self._transfers)
            where = f"{socket.gethostname()} ({self._peers.address})"
            sys.stdout.write(f"{heading(self.name)}{self.incarnation}: process {os.getpid()} on {where}\n")
            check(self.name, self._boot.versions, self._peers.address)
            self._callers = Callers(self._transfers)
            self._role: Role = make()
            self._role.here = _Here(self, self._peers, self._boot)
            self._made.set()
            await self._role.begin()
            self._opened.set()
            return await self._role.main()
        except _RAISED as error:
            return self.portable(error)

    async def opened(self) -> None:
        """Waits until the role has begun."""
        await self._opened.wait()

    async def hello(self) -> tuple[str, str, int]:
        """Where this process is: its memory's node, its address; and which incarnation it is."""
        await self._made.wait()
        return memory.node(), self._peers.address, self.incarnation

    async def pair(self, caller: str, words: Any) -> Any:
        """Opens this end of a pair with a caller on another machine."""
        await self._made.wait()
        return await self._callers.accept(caller, words, self._peers.address)

    async def serve(self, call: bytes | Message) -> Any:
        """Answers a call: a value, or the error that the method raised."""
        await self._opened.wait()
        message: Message = unpacked(call)
        if message.incarnation != self.incarnation:
            return Calls.ANOTHER
        try:
            async with self._callers.tensors(message) as tensors:
                value = await getattr(self._role, message.method)(*message.values, **tensors)
                return (value, tensors["into"].numpy()) if isinstance(message.into, np.ndarray) else packed(value)
        except SquallError as error:
            return self.portable(error)
        except _RAISED as error:
            self.fail(error)
            return self.portable(error)

    async def ask(self, word: str, value: Any) -> None:
        """Hands over what the user asks for."""
        await self._opened.wait()
        try:
            await cast(Any, self._role).asked(word, value)
        except _RAISED as error:
            self.fail(error)

    async def news(self, after: int, within: float) -> list[Record | Enlisted]:
        """What the chief has said since news number `after`, which whoever asks has heard; waits for some."""
        if (heard := after - self._forgotten) > 0:
            del self._news[:heard]
            self._forgotten = after
        if not self._news:
            self._written.clear()
            try:
                await asyncio.wait_for(self._written.wait(), within)
            except TimeoutError:
                return []
        return list(self._news)

    def portable(self, error: BaseException) -> Calls.Raised:
        """An error as it can be sent: others' exceptions may not survive the journey."""
        if isinstance(error, SquallError):
            return Calls.Raised(error)
        traceback.print_exception(error)  # into the role's log
        rows = [("log", str(self.log))] if self.log is not None else []
        return Calls.Raised(RunError(f"{self.name} failed: {type(error).__name__}: {error}", rows))

    # what its role's engine calls

    def say(self, news: Record | Enlisted) -> None:
        """Keeps news until the driver asks."""
        self._news.append(news)
        self._written.set()

    def fail(self, error: BaseException) -> None:
        """Work that nobody waits for raised: the program ends with it."""
        self._error = self._error or error
        self._failing.set()


class _Here:
    """What the role sees as its engine (`Here`)."""

    def __init__(self, host: Host, peers: Peers, boot: Boot) -> None:
        self.name, self.incarnation = host.name, host.incarnation
        self._host, self._peers, self._boot = host, peers, boot
        self._loop = asyncio.get_running_loop()
        self._compute = ThreadPoolExecutor(1, "compute", lambda: torch.set_num_threads(boot.threads))
        self._computing, self._counting = 0, threading.Lock()
        self._beside = ThreadPoolExecutor(1, "beside")
        self._random = random.Random(host.incarnation)
        self._tasks: set[asyncio.Task[Any]] = set()

    def now(self) -> float:
        return self._boot.began + time.time() - self._boot.epoch

    def uniform(self) -> float:
        return self._random.random()

    async def compute(self, work: Callable[[], Any], cost: Cost = FREE) -> Any:
        if not self._computing and not cost.minibatches and 0 < cost.bytes <= _SMALL_BYTES:
            return self._done(work)  # in its turn: nothing waits before it
        with self._counting:
            self._computing += 1
        future = self._compute.submit(self._done, work)
        future.add_done_callback(self._computed)
        return await asyncio.wrap_future(future)

    def _computed(self, future: Future[Any]) -> None:
        with self._counting:  # in the thread that computes, also when whoever waited for it has gone
            self._computing -= 1

    async def beside(self, work: Callable[[], Any], cost: Cost = FREE) -> Any:
        return await self._loop.run_in_executor(self._beside, self._done, work)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Task[Any]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)  # the loop itself holds it weakly
        task.add_done_callback(self._tasks.discard)
        return _Started(task, self._host)

    def promise(self) -> Promise:
        return _Promise(self._loop.create_future())

    async def first_of(self, *tasks: Task[Any] | Promise, within: float | None = None) -> None:
        waits = [cast(_Started | _Promise, task).future for task in tasks]
        if waits:
            await asyncio.wait(waits, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        elif within is not None:
            await asyncio.sleep(within)
        else:
            raise ValueError("first_of() has nothing to wait for: give it a task, a promise or a time")

    def memory(self, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
        return memory.window(num_elements, dtype)

    def handle(self, name: str) -> Any:
        return self._peers.handle(name)

    def emit(self, record: Record) -> None:
        self._host.say(record)

    def enlist(self, name: str, plan: Plan) -> None:
        self._host.say(Enlisted(name, plan))

    def dismiss(self, name: str) -> None:
        self._host.say(Enlisted(name, None))

    def _done(self, work: Callable[[], Any]) -> Any:
        """What work gives; `sys.exit()` in it is an error: as what it is, it would end the event loop."""
        try:
            return work()
        except (SystemExit, KeyboardInterrupt) as error:
            raise self._host.portable(error).error from error


class _Started:
    """A task of a role; knows whether somebody waits for it."""

    def __init__(self, task: asyncio.Task[Any], host: Host) -> None:
        self.future = task
        self._awaited = False
        self._host = host
        task.add_done_callback(self._ended)

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return self.future.done()

    def __await__(self) -> Generator[Any, Any, Any]:
        self._awaited = True
        return self.future.__await__()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._awaited:
            self._host.fail(error)


class _Promise:
    """A promise of a role."""

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future

    @property
    def done(self) -> bool:
        """Whether it was said."""
        return self.future.done()

    def keep(self) -> None:
        """Says it."""
        if not self.future.done():
            self.future.set_result(None)

    def __await__(self) -> Generator[Any, Any, None]:
        return self.future.__await__()
