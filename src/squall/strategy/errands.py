"""A replica's side of the coordinator: it reports what it has settled, asks for more, and counts how long it waits."""

from __future__ import annotations

from typing import Any

from squall.cluster.program import Here, Task
from squall.server.client import until_answered
from squall.server.messages import Ask, Lease, Sender, Settled


class Errands:
    """What one replica is sent on.

    Arguments:
        here: its engine.
        coordinator: the role that it asks.
        patience: seconds of silence after which that one is given up.

    Attributes:
        settled: to be reported with the next question.
        stalled: seconds that its computing stood still.
    """

    def __init__(self, here: Here, coordinator: str, patience: float) -> None:
        self._here, self._coordinator, self._patience = here, here.handle(coordinator), patience
        self._sender, self._asked = Sender(here.name, here.incarnation), 0
        self.settled: list[Settled] = []
        self.stalled = 0.0

    async def ask(self, wanted: int, patient: bool) -> Lease:
        """Reports and asks, until there is an answer; the same question, so that nothing is handed out twice."""
        self._asked += 1
        settled, self.settled = tuple(self.settled), []
        ask = Ask(self._sender, self._asked, settled, wanted, patient)
        coordinator = self._coordinator
        lease: Lease = await until_answered(
            self._here, coordinator.name, lambda: coordinator.call("lease", ask), self._patience
        )
        return lease

    async def next(self, wanted: int) -> Lease:
        """The next unit; none when the run is over, or this replica is to leave."""
        while True:
            lease = await self.ask(wanted, patient=True)
            if lease.unit is not None or lease.over:
                return lease

    async def wait_for(self, task: Task[Any] | None) -> Any:
        """Awaits a task and counts the time as stalled."""
        if task is None:
            return None
        began = self._here.now()
        value = await task
        self.stalled += self._here.now() - began
        return value
