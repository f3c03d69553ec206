"""What a stage is asked, and what it answers: values that travel as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

ENDED = "ended.json"
"""Where in its folder a job's runner writes how it ended."""


class Frame(TypedDict):
    """One line of a stack."""

    path: str
    line: int
    function: str
    text: str


class Failure(TypedDict):
    """An exception that left a rank's main function; frames outermost first, without the stage's own."""

    type: str
    message: str
    frames: list[Frame]
    traceback: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One launch.

    Attributes:
        main: ``"package.module:function"``, called in each rank as ``function(rank=r, processes=P, folder=Path(...),
            **options)``. Its module is imported in the rank, unless the stage has it already.
        options: JSON values.
        processes: number of ranks.
        folder: exists, and is empty; ``rank-0.out``, ``rank-0.err``, ... go there.
        limit_s: seconds for the whole job.
        grace_s: seconds that the other ranks have after the first has failed.
        environment: variables of all ranks; they win over the owner's and torchrun's. None takes one away.
        without_owner: ``"package.module:function"``, called as ``function(folder)`` once the ranks have ended, by the
            stage: if the owner is gone, and so cannot do what it would have done then.
    """

    main: str
    options: Mapping[str, Any] = field(default_factory=dict)
    processes: int
    folder: Path
    limit_s: float
    grace_s: float = 5.0
    environment: Mapping[str, str | None] = field(default_factory=dict)
    without_owner: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "folder": str(self.folder.absolute())}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Job:
        """The inverse of `plain`."""
        return cls(**{**values, "folder": Path(values["folder"])})


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How one rank ended.

    Attributes:
        rank: its number.
        status: exit status; None if a signal killed it.
        signal: number of the signal that killed it.
        ended_by_us: it still ran when the limit or the grace was over.
        error: the exception that left its main function.
        stack: where its main thread was when a signal ended it, ours or that of a crash, innermost last; empty where
            the script had taken the means to find out.
        last_lines: of its standard error, at most 20.
    """

    rank: int
    status: int | None
    signal: int | None
    ended_by_us: bool
    error: Failure | None
    stack: list[Frame]
    last_lines: list[str]

    @property
    def failed(self) -> bool:
        """Whether it came to harm by itself."""
        return self.error is not None or (not self.ended_by_us and self.status != 0)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended.

    Attributes:
        ranks: one for each rank, in order.
        seconds: until the last rank had ended.
        out_of_time: ranks still ran at the limit.
        first_failed: the first rank that came to harm by itself.
        left_behind: (process, command line) of what a rank had started and not ended; it was killed.
    """

    ranks: tuple[RankEnd, ...]
    seconds: float
    out_of_time: bool
    first_failed: int | None
    left_behind: tuple[tuple[int, str], ...]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Ended:
        """The inverse of `plain`."""
        ranks = tuple(RankEnd(**rank) for rank in values["ranks"])
        left = tuple((int(pid), str(command)) for pid, command in values["left_behind"])
        return cls(**{**values, "ranks": ranks, "left_behind": left})
