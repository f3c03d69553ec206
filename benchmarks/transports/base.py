"""What all contenders have in common: the work, who is asked for it, and how it is checked.

The work of a call: the caller has a gradient in memory of its choice; the callee, a process of its own, holds the
weights as one flat parameter and applies Adagrad (epsilon 1e-20, torch's fused kernel, one thread) to the gradient;
then the caller has the new weights in its memory, where it can read them. What a replica does next, copying them into
its network's, is left out for all.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import harness
import numpy as np
import torch

from transports.hosts import enter

SPAWN = multiprocessing.get_context("spawn")
DEADLINE_S = 60.0
LOOPBACK = "127.0.0.1"

RATE, EPS = 0.01, 1e-20


@dataclass(frozen=True)
class Where:
    """Where caller and callee are.

    Attributes:
        addresses: of the two.
        space: network namespace of the callee; empty: the caller's.
        ray: host:port of a Ray cluster of both hosts, whose token is in the environment; empty: there is none. The
            second host alone has two processors in it.
    """

    addresses: tuple[str, str] = (LOOPBACK, LOOPBACK)
    space: str = ""
    ray: str = ""


class Shard:
    """The callee's work, the same for all."""

    def __init__(self, num_elements: int) -> None:
        torch.set_num_threads(1)
        self.weights = torch.nn.Parameter(torch.zeros(num_elements))
        self.rule = torch.optim.Adagrad([self.weights], lr=RATE, eps=EPS, fused=True)

    def apply(self, gradient: torch.Tensor) -> torch.Tensor:
        self.weights.grad = gradient
        self.rule.step()
        return self.weights.detach()


def gradient_of(num_elements: int) -> torch.Tensor:
    """What is pushed."""
    return torch.randn(num_elements, generator=torch.Generator().manual_seed(0))


def digest(weights: Any) -> str:
    """By which weights, a tensor or an array, are compared, bit for bit."""
    return hashlib.sha256(np.asarray(weights)).hexdigest()


def expected(num_elements: int, calls: int) -> str:
    """The digest after so many calls."""
    shard, gradient = Shard(num_elements), gradient_of(num_elements)
    for _ in range(calls):
        shard.apply(gradient)
    return digest(shard.weights.detach())


def timed(calls: int, call: Callable[[], object]) -> float:
    """Median seconds of so many calls."""
    seconds = []
    for _ in range(calls):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


class Contender:
    """A caller and a callee.

    Arguments:
        num_elements: of the vector.
        where: they are.
        seat: network namespace of the process that is started; empty: this one's.
    """

    between_hosts = False
    """Whether it works without shared memory."""
    exact = True
    """Whether its Adagrad is torch's fused kernel; another one's first step alone has the same bits."""

    def __init__(self, num_elements: int, where: Where, seat: str = "") -> None:
        self.num_elements, self.where = num_elements, where
        self.pipe, there = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_served, args=(type(self), there, num_elements, where, seat))
        self.process.start()
        there.close()

    @classmethod
    def lacks(cls) -> str:
        """Why it cannot run here; empty: it can."""
        return ""

    def ready(self) -> None:
        """Waits until calls can be made."""
        if (said := self.hear(10 * DEADLINE_S)) != "ready":
            raise harness.FailedError(f"{type(self).__name__}: {said}")

    def hear(self, within: float = DEADLINE_S) -> Any:
        """What the other process says."""
        if not self.pipe.poll(within):
            raise harness.FailedError(f"{type(self).__name__}: no answer within {within:.0f} s")
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise harness.FailedError(f"{type(self).__name__}: its process is gone") from None

    def calls(self, number: int) -> float:
        """Makes so many calls; their median seconds."""
        raise NotImplementedError

    def found(self) -> str:
        """The digest of the weights that the last call brought."""
        raise NotImplementedError

    @classmethod
    def serve(cls, pipe: Connection, num_elements: int, where: Where) -> None:
        """What the process that is started does; over with the EOFError that comes when this one closes the pipe."""
        raise NotImplementedError

    def leave(self) -> None:
        """Lets the other process notice that it is over, beside the end of the pipe."""

    def close(self) -> None:
        self.pipe.close()
        self.leave()
        self.process.join(30)
        self.process.kill()


class Direct(Contender):
    """This process is the caller, and starts the callee."""

    def __init__(self, num_elements: int, where: Where) -> None:
        super().__init__(num_elements, where, where.space)
        self.pushed, self.pulled = gradient_of(num_elements), torch.zeros(num_elements)

    def exchange(self) -> None:
        """One call: `pushed` is applied, `pulled` has the weights."""
        raise NotImplementedError

    def calls(self, number: int) -> float:
        return timed(number, self.exchange)

    def found(self) -> str:
        return digest(self.pulled)


class Driven(Contender):
    """The process that is started is the caller, and starts the callee its own way: a library has one driver."""

    def calls(self, number: int) -> float:
        self.pipe.send(("calls", number))
        return float(self.hear())

    def found(self) -> str:
        self.pipe.send(("found", None))
        return str(self.hear())

    @classmethod
    def callee(cls, num_elements: int, where: Where) -> AbstractContextManager[Callable[[Any], Any]]:
        """Starts the callee; gives a call: NumPy array or tensor of the gradient -> that of the weights."""
        raise NotImplementedError

    takes_arrays = False
    """Whether calls are made with NumPy arrays: the form that the library carries best."""

    @classmethod
    def serve(cls, pipe: Connection, num_elements: int, where: Where) -> None:
        gradient, weights = gradient_of(num_elements), None
        pushed = gradient.numpy() if cls.takes_arrays else gradient
        with cls.callee(num_elements, where) as call:

            def once() -> None:
                nonlocal weights
                weights = call(pushed)

            pipe.send("ready")
            with suppress(EOFError):
                while True:
                    word, number = pipe.recv()
                    if word == "calls":
                        weights = None  # its memory serves the next call
                        pipe.send(timed(number, once))
                    else:
                        pipe.send(digest(weights))


@contextmanager
def started(kinds: dict[str, type[Contender]], num_elements: int, where: Where) -> Iterator[dict[str, Contender]]:
    """All contenders, one after the other made ready."""
    made: dict[str, Contender] = {}
    try:
        for name, kind in kinds.items():
            made[name] = kind(num_elements, where)
        for contender in made.values():
            contender.ready()
        yield made
    finally:
        for contender in made.values():
            contender.close()


def _served(kind: type[Contender], pipe: Connection, num_elements: int, where: Where, seat: str) -> None:
    if seat:
        enter(seat)
    torch.set_num_threads(1)
    try:
        kind.serve(pipe, num_elements, where)
    except (EOFError, ConnectionResetError, BrokenPipeError):
        return
    except Exception as error:
        with suppress(OSError):
            pipe.send(f"{type(error).__name__}: {error}")
        raise
