"""Schedules of the rate: which rates each scheduler set, how often it was asked to, and how it would go on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau, SequentialLR

from squall.verify.observe.blind import Guard, watching
from squall.verify.observe.horizons import fresh, horizon
from squall.verify.observe.recorder import Recorder, where

_BEYOND = 100  # steps of a schedule that are looked at beyond twice what was needed


class Schedules:
    """Watches the schedulers of one rank.

    Arguments:
        number: an optimiser's number.
    """

    def __init__(self, recorder: Recorder, number: Callable[[Any], int]) -> None:
        self.recorder, self.number = recorder, number
        self._known: list[Any] = []
        self._fresh: list[Any] = []
        self._inside = 0  # calls that are running of a schedule's methods

    def install(self) -> None:
        """From now on each scheduler is noted when it is made and when it is stepped."""
        for kind in (LRScheduler, SequentialLR, ChainedScheduler, ReduceLROnPlateau):
            if "__init__" in vars(kind):
                setattr(kind, "__init__", self._made(vars(kind)["__init__"]))  # noqa: B010

    def _made(self, create: Any) -> Any:
        @functools.wraps(create)
        def init(one: Any, *args: Any, **named: Any) -> None:
            for kind in type(one).__mro__:  # its own steps, whatever class it has; not on the object: it may be saved
                step = vars(kind).get("step")
                if step is not None and not hasattr(step, "watched"):
                    kind.step = self._stepping(step)  # type: ignore[attr-defined]
            self._inside += 1
            try:
                create(one, *args, **named)
            finally:
                self._inside -= 1
            if self.recorder.here and not self._inside:
                with Guard(self.recorder, "schedule"):
                    self._index(one)

        return init

    def _index(self, scheduler: Any) -> int:
        """A schedule's number; a new one is noted."""
        for number, known in enumerate(self._known):
            if known is scheduler:
                return number
        self._known.append(scheduler)
        self._fresh.append(fresh(scheduler))
        number = len(self._known) - 1
        self.recorder.note(
            "schedule",
            schedule=number,
            what="made",
            kind=type(scheduler).__name__,
            optimizer=self.number(getattr(scheduler, "optimizer", None)),
            where=where(),
        )
        return number

    def _stepping(self, step: Any) -> Any:
        @functools.wraps(step)
        def watched(one: Any, *args: Any, **named: Any) -> Any:
            inner = self._inside > 0  # part of another schedule, its first value, or the class below
            self._inside += 1
            try:
                return step(one, *args, **named)
            finally:
                self._inside -= 1
                if not inner and self.recorder.here:
                    self._stepped(one)

        watched.watched = True  # type: ignore[attr-defined]
        return watched

    @watching(None)
    def _stepped(self, scheduler: Any) -> None:
        rates = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
        self.recorder.note("schedule", schedule=self._index(scheduler), what="step", rates=rates, where=where())

    def note_horizons(self, updates: int) -> None:
        """How each schedule would go on: noted at the end, when it is known how often it was asked.

        Arguments:
            updates: that were made in all.
        """
        steps = [0] * len(self._known)
        for event in self.recorder.events("schedule"):
            steps[event["schedule"]] += event["what"] == "step"
        self._inside += 1
        try:
            for number, one in enumerate(self._fresh):
                most = 2 * max(updates, steps[number], len(self.recorder.events("batch"))) + _BEYOND
                self.recorder.note("horizon", schedule=number, **horizon(one, most))
        finally:
            self._inside -= 1
