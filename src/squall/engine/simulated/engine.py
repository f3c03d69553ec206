"""The simulated engine: all roles of a program in one process, on a virtual clock, with faults by script.

Gradients are real, time is not. What the engine may do to calls (`squall.cluster.program`) it does here on purpose and
by seed: messages overtake each other, scripted faults lose, delay and repeat them, kill roles and slow them down. Where
a piece of work may happen at any moment between its beginning and its end, a seeded coin says which of the two it is:
roles that touch each other's memory at the wrong time give other numbers, and the same seed shows it again::

    caller   call ------.                     .--> value            out of time: LateError; a death: LostError
    link                 latency, bytes      /
    callee                '-> method: compute'                      held back until the role has begun
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from math import inf, isinf
from typing import Any

from squall.cluster.fault import Costs, Fault
from squall.cluster.program import Cost, LateError, LostError, Plan, Program
from squall.engine.simulated.clock import Clock, Future, Task
from squall.engine.simulated.life import Call, Life, Message, copied, num_bytes_of
from squall.engine.simulated.network import Network
from squall.errors import RunError, SquallError
from squall.records import Noted, Record

DEADLINE_S = 30.0
"""Of a call that names none."""

RESTART_S = 5.0
"""Until a role that died is there again: a process that starts and loads torch."""

NOTICED_S = 1.0
"""Until the caller of a role that died hears of it."""

_LOOK_EVERY = 256  # events: how often what the user asks for is looked at


class Simulated:
    """Runs programs in simulated time.

    Arguments:
        costs: what work and messages take.
        faults: what goes wrong, and when.
        seed: of everything that happens by chance.
        began: seconds of the run at the start, of a program that goes on.
        stragglers: kinds of roles that may be slow for good.
        most_events: after which a program is given up, so that a test that never ends says so.

    Attributes:
        digest: hash of all that happened and when: equal for equal seeds.
        now: virtual seconds.
    """

    def __init__(
        self,
        costs: Costs | None = None,
        faults: Iterable[Fault] = (),
        seed: int = 0,
        *,
        began: float = 0.0,
        stragglers: tuple[str, ...] = ("replica",),
        most_events: float = inf,
    ) -> None:
        self._faults, self._seed, self._stragglers = tuple(faults), seed, stragglers
        self._most_events = most_events
        self._clock = Clock(seed, began)
        self._network = Network(costs or Costs(), seed)
        self._coin = random.Random(seed)
        self._hash = hashlib.blake2b(digest_size=16)
        self._lives: dict[str, Life] = {}
        self._started: dict[str, int] = {}
        self._sink: Callable[[Record], None] = lambda _: None
        self._error: BaseException | None = None

    @property
    def digest(self) -> str:
        """32 hex digits."""
        return self._hash.hexdigest()

    @property
    def now(self) -> float:
        """Of the run."""
        return self._clock.now

    def run(
        self,
        program: Program,
        sink: Callable[[Record], None],
        asked: Callable[[], Sequence[tuple[str, Any]]] = tuple,
    ) -> Any:
        """Runs a program to its end; see `squall.cluster.program.Engine`."""
        self._sink, self._chief = sink, program.chief
        for name, plan in program.roles.items():
            self._begin(name, plan)
        for fault in self._faults:
            if fault.kind == "kill":
                self._schedule(fault)
        end, look = self._lives[program.chief].end, 0
        try:
            while not end.done and self._error is None:
                if self._clock.events >= look:
                    look = self._clock.events + _LOOK_EVERY
                    for word, value in asked():
                        self._ask(word, value)
                if self._clock.events >= self._most_events or not self._clock.advance():
                    raise self._stalled()
            if self._error is not None:
                raise self._error
            if ahead := sum(fault.at > self.now for fault in self._faults):
                many = "one fault was" if ahead == 1 else f"{ahead} faults were"
                self._sink(Noted(f"{many} for later than the end of the run, at {self.now:.1f} s, and did not happen"))
            return end.value
        finally:
            for life in self._lives.values():
                life.finish()

    # -- lives ------------------------------------------------------------------------------------------------

    def note(self, *what: Any) -> None:
        """Adds to the digest of what happened."""
        self._hash.update(repr((self._clock.now, *what)).encode())

    def _begin(self, name: str, plan: Plan) -> None:
        incarnation = self._started[name] = self._started.get(name, -1) + 1
        self.note("begins", name, incarnation)
        slowness = self._network.slowness(name) if plan.kind in self._stragglers else 1.0
        life = self._lives[name] = Life(self, name, plan, incarnation, slowness)
        life.start(self._lived(life))

    async def _lived(self, life: Life) -> None:
        await life.role.begin()
        life.open()
        value = await life.role.main()
        if life.name == self._chief:
            life.end.resolve(value)

    def _schedule(self, fault: Fault) -> None:
        """A kill that is to come; of those before this session only what they left is seen: who died for good."""
        if fault.at >= self.now:
            self._clock.at(fault.at, partial(self._struck, fault))
        elif fault.lasts == inf and fault.role != self._chief:
            self._struck(fault)

    def _struck(self, fault: Fault) -> None:
        life = self._lives.get(fault.role)
        if life is not None and life.alive:
            self.kill(fault.role, RESTART_S if fault.lasts is None else fault.lasts)

    def kill(self, name: str, restart: float = RESTART_S) -> None:
        """A role's process dies; it is there again after so many seconds, if its plan says so."""
        life = self._lives[name]
        self.note("dies", name)
        life.finish()
        for call in life.inbound:
            self._lost(call, life.name)
        if name == self._chief:
            self._error = RunError(f"the role {name} died", [("rule", "the program ends with it")])
        elif life.plan.restarts and not isinf(restart):
            self._clock.after(restart, lambda: self._again(life))

    def _again(self, life: Life) -> None:
        if self._lives.get(life.name) is life:
            self._begin(life.name, life.plan)

    def failed(self, life: Life, error: BaseException) -> None:
        """Work that nobody waits for raised: the program ends with it."""
        if life.alive and self._error is None:
            self._error = error

    def enlist(self, name: str, plan: Plan) -> None:
        """A role joins."""
        if name not in self._lives:
            self._begin(name, plan)

    def dismiss(self, name: str) -> None:
        """A role leaves for good."""
        life = self._lives.pop(name, None)
        if life is not None:
            self.note("leaves", name)
            life.finish()
            for call in life.inbound:
                self._lost(call, name)

    def _ask(self, word: str, value: Any) -> None:
        life = self._lives[self._chief]
        life.admit(lambda: life.start(life.role.asked(word, value)))  # type: ignore[attr-defined]

    def emit(self, record: Record) -> None:
        """Hands a record over."""
        self._sink(record)

    def _stalled(self) -> RunError:
        waiting = ", ".join(name for name, life in self._lives.items() if life.alive)
        return RunError(
            f"the program came to a standstill after {self._clock.events} events, at {self.now:.3f} s",
            [("found", f"alive: {waiting}"), ("rule", "some role must always have something to do or to wait for")],
        )

    # -- calls ------------------------------------------------------------------------------------------------

    def call(self, caller: Life, name: str, message: Message, within: float | None) -> Future:
        """Sends a call on its way; the future is that of its reply."""
        there = self._lives.get(name)
        call = Call(caller, name, there, message, Future())
        patience = DEADLINE_S if within is None else within
        late = LateError(f"{name} did not answer {message.method} within {patience:g} s")
        if not isinf(patience):
            self._clock.expire(patience, call.reply, late)
        self.note("calls", caller.name, name, message.method)
        num_bytes = num_bytes_of(message.send)
        self._carry(caller.name, name, num_bytes, lambda: self._deliver(call))
        return call.reply

    def _carry(self, sender: str, receiver: str, num_bytes: int, arrive: Callable[[], None]) -> None:
        """One message, with what goes wrong on its way."""
        on = [f for f in self._faults if f.role in (sender, receiver) and f.is_on(self.now)]
        if any(fault.kind == "drop" for fault in on):
            self.note("drops", sender, receiver)
            return
        late = sum(fault.by for fault in on if fault.kind == "delay")
        for _ in range(1 + any(fault.kind == "duplicate" for fault in on)):
            self._clock.at(late + self._network.arrival(self.now, sender, receiver, num_bytes), arrive)

    def _deliver(self, call: Call) -> None:
        life = self._lives.get(call.name)
        if life is None or not life.alive or life is not call.callee:
            self._lost(call, call.name)
            return
        life.inbound.append(call)
        life.admit(lambda: life.start(self._answered(life, call)))

    async def _answered(self, life: Life, call: Call) -> None:
        message = call.message
        self.note("serves", life.name, message.method)
        tensors = {"send": message.send, "into": message.into}
        named = {key: tensor for key, tensor in tensors.items() if tensor is not None}
        value: Any = None
        error: BaseException | None = None
        try:
            value = await getattr(life.role, message.method)(*copied(message.values), **named)
        except SquallError as raised:
            error = raised
        life.inbound.remove(call)
        value = copied(value)
        self._carry(life.name, call.caller.name, num_bytes_of(message.into), lambda: call.reply.resolve(value, error))

    def _lost(self, call: Call, name: str) -> None:
        error = LostError(f"{name} died before it answered {call.message.method}")
        self._clock.after(NOTICED_S, lambda: call.reply.resolve(error=error))

    # -- work and time ----------------------------------------------------------------------------------------

    def seconds(self, life: Life, cost: Cost) -> float:
        """How long work takes on the machine of a role, now."""
        slow = life.slowness
        for fault in self._faults:
            if fault.kind == "slow" and fault.role == life.name and fault.is_on(self.now):
                slow *= fault.by
        return self._network.seconds(cost) * slow

    def early(self) -> bool:
        """A coin: whether work is done at its beginning or at its end."""
        return self._coin.random() < 0.5

    def wake(self, seconds: float) -> Future:
        """A future that is settled after so many seconds."""
        future = Future()
        self._clock.after(seconds, future.resolve)
        return future

    def task(self, coroutine: Coroutine[Any, Any, Any], failed: Callable[[Task], None]) -> Task:
        """A coroutine that begins now."""
        return Task(self._clock, coroutine, failed)

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Something that happens so many seconds from now."""
        self._clock.after(seconds, event)

    def coin(self, name: str, incarnation: int) -> random.Random:
        """The stream of random numbers of one life."""
        return random.Random(f"{self._seed} {name} {incarnation}")
