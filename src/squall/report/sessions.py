"""Who worked on a run: its sessions, put together from the events that tell of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from squall.report.read import RunData
from squall.report.values import number, whole


@dataclass(frozen=True)
class Save:
    """A checkpoint, or one that could not be written (`error`)."""

    session: int
    step: int
    blocked: float
    seconds: float
    num_bytes: float
    error: str = ""


@dataclass
class SessionData:
    """A stretch of work on a run by one set of processes.

    Attributes:
        number: 1 for the first.
        began, ended: seconds since 1970; nan where nobody noted it.
        first_step, last_step: updates that were done when it began and ended, as far as one knows.
        outcome: as of `squall.records.Ended`, or running, or killed: it ended without a word.
    """

    number: int
    began: float
    host: str
    pid: int
    processes: int
    first_step: int
    last_step: int
    version: str = ""
    ended: float = math.nan
    outcome: str = "killed"
    why: str = ""
    saves: list[Save] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it worked."""
        return self.ended - self.began


def sessions(run: RunData) -> list[SessionData]:
    """The sessions of a run in their order."""
    found: list[SessionData] = []
    for event in run.events:
        kind = event.get("kind")
        if kind == "session":
            found.append(_began(len(found) + 1, event))
        elif found:
            _add(found[-1], kind, event)
    if found and found[-1].outcome == "killed":
        last = found[-1]
        last.last_step = max(last.last_step, run.steps_done)
        if run.held:
            last.outcome = "running"
        elif run.ended:  # from before sessions were recorded to their end
            last.outcome = run.state
    return found


def slow_ranks(run: RunData) -> list[tuple[int, int, float]]:
    """(epoch from 1, rank, ratio to the median) of the ranks that were found slow."""
    found = [event for event in run.events if event.get("kind") == "slow"]
    return [(whole(e.get("epoch")) + 1, whole(e.get("rank")), number(e.get("ratio"))) for e in found]


def _began(number_: int, event: Mapping[str, Any]) -> SessionData:
    step = whole(event.get("start_step"))
    return SessionData(
        number=number_,
        began=number(event.get("time")),
        host=str(event.get("host", "")),
        pid=whole(event.get("pid")),
        processes=whole(event.get("processes"), 1),
        first_step=step,
        last_step=step,
        version=str(event.get("version", "")),
    )


def _add(session: SessionData, kind: Any, event: Mapping[str, Any]) -> None:
    step = whole(event.get("step"))
    if kind in ("saved", "save_failed"):
        error = str(event.get("error") or "unknown") if kind == "save_failed" else ""
        blocked, seconds, size = (number(event.get(key)) for key in ("blocked", "seconds", "num_bytes"))
        session.saves.append(Save(session.number, step, blocked, seconds, size, error))
        session.last_step = max(session.last_step, step)
    elif kind == "session_ended":
        session.ended = number(event.get("time"))
        session.last_step = max(session.last_step, step)
        session.outcome = str(event.get("outcome") or "stopped")
        session.why = str(event.get("why") or "")
