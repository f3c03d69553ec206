"""The simulated engine: time, order, calls, faults; the same seed gives the same course."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import pytest
import torch

from squall.cluster.fault import Costs, Fault
from squall.cluster.program import CallError, Cost, LateError, LostError, Plan, Program, Role
from squall.engine.simulated import Simulated
from squall.errors import RunError
from squall.records import Noted, Record

EVEN = Costs(minibatch=1.0, spread=0.0, stragglers=0.0, latency=0.001, bandwidth=1e9, server=1e9)


class Counter(Role):
    """Counts calls; keeps what it is sent."""

    def __init__(self) -> None:
        self.calls = 0
        self.seen: list[torch.Tensor] = []

    async def add(self, number: int) -> int:
        self.calls += number
        return self.calls

    async def work(self, seconds: float) -> float:
        await self.here.compute(lambda: None, Cost(minibatches=seconds))
        return self.here.now()

    async def double(self, send: torch.Tensor, into: torch.Tensor) -> str:
        await self.here.compute(lambda: into.copy_(2 * send), Cost(bytes=send.numel() * 8))
        return "done"

    async def refuse(self) -> None:
        raise RunError("no")

    async def born(self) -> int:
        return self.here.incarnation


@dataclass
class Script(Role):
    """A chief whose main is given."""

    body: Any
    heard: list[tuple[str, Any]] = field(default_factory=list)

    async def main(self) -> Any:
        return await self.body(self.here)

    async def asked(self, word: str, value: Any) -> None:
        self.heard.append((word, value))


def run(body: Any, faults: tuple[Fault, ...] = (), seed: int = 0, costs: Costs = EVEN, **others: Any) -> Any:
    engine = Simulated(costs, faults, seed, most_events=100_000)
    roles = {"chief": Plan(partial(Script, body), "chief"), "counter": Plan(Counter, "counter"), **others}
    return engine.run(Program(roles, "chief"), lambda _: None), engine


def test_a_call_takes_the_links_time_and_comes_back() -> None:
    async def body(here: Any) -> tuple[int, float]:
        value = await here.handle("counter").call("add", 3)
        return value, here.now()

    (value, now), _ = run(body)
    assert value == 3
    assert 0.001 < now < 0.004  # twice the latency, give or take half


def test_works_of_one_role_queue_and_calls_are_answered_meanwhile() -> None:
    async def body(here: Any) -> tuple[float, float, float]:
        counter = here.handle("counter")
        first = here.start(counter.call("work", 1.0))
        second = here.start(counter.call("work", 1.0))
        await here.sleep(0.1)
        await counter.call("add", 1)
        between = here.now()
        return await first, await second, between

    (first, second, between), _ = run(body)
    assert {round(first), round(second)} == {1, 2}
    assert between < 0.2


def test_tensors_are_seen_in_place() -> None:
    async def body(here: Any) -> list[float]:
        send, into = here.memory(4, torch.float32), here.memory(4, torch.float32)
        send.fill_(3.0)
        assert await here.handle("counter").call("double", send=send, into=into) == "done"
        return into.tolist()

    assert run(body)[0] == [6.0] * 4


def test_work_may_happen_at_its_beginning_or_at_its_end() -> None:
    """Memory that is written to under a call's feet shows, with one seed or another."""

    async def body(here: Any) -> float:
        send, into = here.memory(1, torch.float32), here.memory(1, torch.float32)
        send.fill_(1.0)
        call = here.start(here.handle("counter").call("double", send=send, into=into))
        await here.sleep(0.002)  # the call is under way, its work of 8 ns is not the point: the next one's is
        await call
        slow = here.start(here.compute(lambda: float(send), Cost(minibatches=1.0)))
        await here.sleep(0.5)
        send.fill_(5.0)
        return await slow

    assert {run(body, seed=seed)[0] for seed in range(8)} == {1.0, 5.0}


def test_an_error_of_the_callee_reaches_the_caller() -> None:
    async def body(here: Any) -> str:
        with pytest.raises(RunError, match="no"):
            await here.handle("counter").call("refuse")
        return "went on"

    assert run(body)[0] == "went on"


def test_a_killed_role_loses_its_calls_and_comes_back_as_another_incarnation() -> None:
    async def body(here: Any) -> tuple[int, int, str]:
        counter = here.handle("counter")
        await counter.call("add", 5)
        with pytest.raises(LostError):
            await counter.call("work", 10.0)
        await here.sleep(3.0)
        return await counter.call("add", 1), await counter.call("born"), "end"

    (value, incarnation, _), _ = run(body, (Fault("kill", "counter", at=1.0, lasts=2.0),))
    assert (value, incarnation) == (1, 1)


def test_a_role_killed_for_good_is_lost_to_every_caller() -> None:
    async def body(here: Any) -> int:
        lost = 0
        for _ in range(3):
            await here.sleep(1.0)
            try:
                await here.handle("counter").call("add", 1)
            except LostError:
                lost += 1
        return lost

    assert run(body, (Fault("kill", "counter", at=1.5, lasts=inf),))[0] == 2


def test_lost_messages_end_in_a_deadline_and_delayed_ones_may_be_carried_out_after_it() -> None:
    async def body(here: Any) -> int:
        counter = here.handle("counter")
        with pytest.raises(LateError, match=r"within 0\.5 s"):
            await counter.call("add", 1, within=0.5)
        await here.sleep(10.0)
        return await counter.call("add", 0)

    assert run(body, (Fault("drop", "counter", at=0.0, lasts=1.0),))[0] == 0
    assert run(body, (Fault("delay", "counter", at=0.0, lasts=1.0, by=2.0),))[0] == 1


def test_repeated_messages_are_carried_out_twice() -> None:
    async def body(here: Any) -> int:
        counter = here.handle("counter")
        await counter.call("add", 1)
        await here.sleep(2.0)
        return await counter.call("add", 0)

    assert run(body, (Fault("duplicate", "counter", at=0.0, lasts=1.0),))[0] == 2


def test_a_slow_role_takes_longer() -> None:
    async def body(here: Any) -> float:
        return await here.handle("counter").call("work", 1.0)

    assert run(body)[0] < 1.1
    assert run(body, (Fault("slow", "counter", at=0.0, lasts=9.0, by=4.0),))[0] > 4.0


def test_a_fault_that_names_no_end_stays() -> None:
    async def body(here: Any) -> tuple[float, int]:
        counter = here.handle("counter")
        seconds = await counter.call("work", 1.0)
        await counter.call("add", 1)
        await here.sleep(1.0)
        return seconds, await counter.call("add", 0)

    assert run(body, (Fault("slow", "counter", at=0.0, by=4.0),))[0] == (pytest.approx(4.0, abs=0.01), 1)
    assert run(body, (Fault("duplicate", "counter", at=0.0),))[0][1] == 2
    assert run(body, (Fault("delay", "counter", at=0.0, by=2.0),))[1].now > 13.0  # six messages
    with pytest.raises(LateError):
        run(body, (Fault("drop", "counter", at=0.0),))


def test_a_session_that_goes_on_sees_no_kill_again_but_the_dead_stay_dead() -> None:
    async def body(here: Any) -> list[int]:
        await here.sleep(15.0)
        found = [await here.handle("counter").call("born")]
        for name in ("gone", "other"):
            try:
                found.append(await here.handle(name).call("born"))
            except LostError:
                found.append(-1)
        return found

    faults = [Fault("kill", "counter", at, 1.0) for at in (5.0, 30.0, 40.0)]
    faults += [Fault("kill", "gone", 45.0, inf), Fault("kill", "chief", 45.0, inf)]
    others = {name: Plan(Counter, "counter") for name in ("gone", "other")}

    def born(*more: Fault) -> list[int]:
        engine = Simulated(EVEN, [*faults, *more], began=50.0, most_events=100_000)
        roles = {"chief": Plan(partial(Script, body), "chief"), "counter": Plan(Counter, "counter"), **others}
        found: list[int] = engine.run(Program(roles, "chief"), lambda _: None)
        return found

    assert born() == [0, -1, 0]
    assert born(Fault("kill", "counter", 50.0, 1.0), Fault("kill", "counter", 55.0, 1.0)) == [2, -1, 0]


def test_first_of_returns_with_the_first_or_with_time() -> None:
    async def body(here: Any) -> tuple[float, float]:
        tasks = [here.start(here.sleep(seconds)) for seconds in (5.0, 2.0)]
        await here.first_of(*tasks)
        first = here.now()
        await here.first_of(tasks[0], within=1.0)
        return first, here.now()

    assert run(body)[0] == (2.0, 3.0)


def test_first_of_awaits_nothing() -> None:
    async def fails() -> None:
        raise RunError("nobody looks")

    async def looks(here: Any) -> None:
        task = here.start(fails())
        await here.first_of(task, within=5.0)
        await here.sleep(1.0)

    async def awaits(here: Any) -> str:
        task = here.start(fails())
        with pytest.raises(RunError, match="nobody looks"):
            await task
        return "went on"

    with pytest.raises(RunError, match="nobody looks"):
        run(looks)
    assert run(awaits)[0] == "went on"


def test_first_of_nothing_is_refused() -> None:
    async def body(here: Any) -> None:
        with pytest.raises(ValueError, match="nothing to wait for"):
            await here.first_of()
        await here.first_of(within=0.0)

    run(body)


def test_a_program_that_waits_for_nothing_is_an_error() -> None:
    class Silent(Role):
        async def hang(self) -> None:
            await self.here.promise()

    async def body(here: Any) -> None:
        await here.handle("silent").call("hang", within=inf)

    with pytest.raises(RunError, match="standstill"):
        run(body, silent=Plan(Silent, "silent"))


def test_the_chiefs_death_and_a_failing_main_end_the_program() -> None:
    async def body(here: Any) -> None:
        await here.sleep(100.0)

    class Failing(Role):
        async def main(self) -> None:
            await self.here.sleep(1.0)
            raise RunError("my data is gone")

    with pytest.raises(RunError, match="the role chief died"):
        run(body, (Fault("kill", "chief", at=1.0),))
    with pytest.raises(RunError, match="my data is gone"):
        run(body, failing=Plan(Failing, "failing"))


def test_roles_join_and_leave() -> None:
    async def body(here: Any) -> list[str]:
        here.enlist("late", Plan(Counter, "counter"))
        found = [str(await here.handle("late").call("add", 2))]
        here.dismiss("late")
        try:
            await here.handle("late").call("add", 2)
        except CallError:
            found.append("left")
        return found

    assert run(body)[0] == ["2", "left"]


def test_what_the_user_asks_for_reaches_the_chief() -> None:
    asks = [[("resize", 3)]]

    async def body(here: Any) -> Any:
        await here.sleep(1.0)
        return None

    chief = Script(body)
    engine = Simulated(EVEN)
    engine.run(
        Program({"chief": Plan(lambda: chief, "chief")}, "chief"), lambda _: None, lambda: asks.pop() if asks else ()
    )
    assert chief.heard == [("resize", 3)]


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_gives_the_same_course_and_another_seed_another(seed: int) -> None:
    async def body(here: Any) -> list[int]:
        counter = here.handle("counter")
        tasks = [here.start(counter.call("add", 1 << i)) for i in range(6)]
        return [await task for task in tasks]

    faults = (Fault("kill", "counter", at=5.0, lasts=1.0),)
    first, again = run(body, faults, seed), run(body, faults, seed)
    assert first[0] == again[0]
    assert first[1].digest == again[1].digest
    assert run(body, faults, seed + 100)[1].digest != first[1].digest


def test_calls_of_one_caller_overtake_each_other() -> None:
    async def body(here: Any) -> bool:
        counter = here.handle("counter")
        tasks = [here.start(counter.call("add", 1)) for _ in range(2)]
        sums = [await task for task in tasks]
        return sums == sorted(sums)

    assert {run(body, seed=seed)[0] for seed in range(20)} == {True, False}


def test_faults_that_come_too_late_are_told() -> None:
    records: list[Record] = []
    faults = [Fault("slow", "counter", 0.0), Fault("kill", "counter", 500.0), Fault("drop", "counter", 600.0)]
    roles = {"counter": Plan(Counter, "counter")}
    Simulated(EVEN, faults).run(Program(roles, "counter"), records.append)
    (note,) = [record.text for record in records if isinstance(record, Noted)]
    assert note.startswith("2 faults were for later than the end of the run")
