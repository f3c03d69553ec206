"""What is told of each iteration: measured at its point while the next one is under way, in their order, each once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from squall.cluster.program import Here, Task
from squall.records import EpochEnded
from squall.server.client import until_answered, worked

Values = Mapping[str, float]


class Iterations:
    """The records of a run's iterations.

    Arguments:
        here: the coordinator's engine.
        evaluator: its role's name; None where there is nothing to measure.
        patience: seconds of silence after which it is given up.
    """

    def __init__(self, here: Here, evaluator: str | None, patience: float) -> None:
        self._here, self._evaluator, self._patience = here, evaluator, patience
        self._telling: Task[None] | None = None
        self._asked = self._told = 0
        self.untold: dict[str, Any] | None = None

    async def copied(self, iteration: int, counters: tuple[int, ...]) -> None:
        """Lets the evaluator take a copy of the point; one iteration is measured at a time.

        Whatever is done to the point afterwards, the copy is what it was.
        """
        await self.over()
        if self._evaluator is None or iteration <= self._told:
            return
        self._asked += 1
        await worked(self._here, self._evaluator, "copied", self._asked, counters, patience=self._patience)

    def tell(self, values: dict[str, Any]) -> None:
        """Begins to measure the copy; then the iteration's record is emitted. One that was told is not told again.

        Arguments:
            values: of `EpochEnded`, but for what is measured.
        """
        if values["epoch"] < self._told:
            return
        self._told, self.untold = values["epoch"] + 1, values
        self._telling = self._here.start(self._measured(values, self._asked))

    async def over(self) -> None:
        """Waits until all are told."""
        if self._telling is not None:
            await self._telling

    async def prepare(self) -> None:
        """Waits until somebody is there who measures."""
        if (name := self._evaluator) is not None:
            handle = self._here.handle(name)
            await until_answered(self._here, name, lambda: handle.call("ready"), self._patience)

    async def _measured(self, values: dict[str, Any], number: int) -> None:
        val: Values = {}
        test: Values = {}
        if self._evaluator is not None:
            val, test = await worked(self._here, self._evaluator, "measure", number, patience=self._patience)
        spent = self._here.now() - values["seconds"]
        self._here.emit(EpochEnded(**values, evaluation=spent, val=val, test=test))
        self.untold = None
