"""What a check says: one line of the table, and where it fails the whole story.

A check looks at one training as it was observed with several numbers of processes and gives one finding: `FAIL` where
the training does not compute what its recipe means, `note` where it is right but depends on the number of processes,
`ok`, or `--` where there was nothing to look at (and why).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["ok", "note", "FAIL", "--"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "note", "FAIL", "--")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A line of the user's code: the path as the command line gave it, the line's number from 1, and its text."""

    path: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One line of a change: `mark` is " " for a line that stays, "-" for one that goes, "+" for one that comes."""

    mark: Literal[" ", "-", "+"]
    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name: "epoch order".
        outcome: "ok", "note", "FAIL" or "--".
        says: the line of the table, without the name: numbers, not adjectives.
        place: the line of the user's code that it is about.
        expected, found, effect: the story of a FAIL, one sentence each; `effect` is how much it matters in practice.
        change: what to do, a sentence; `edits`: the same as lines of the user's file, where they are known.
        known: where it is described: papers, and threads as repository#number.
    """

    check: str
    outcome: Outcome
    says: str
    place: Place | None = None
    expected: str = ""
    found: str = ""
    effect: str = ""
    change: str = ""
    edits: tuple[Edit, ...] = ()
    known: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why a training could not be observed to its end: it is not the business of any check.

    Attributes:
        what: "crashed", "hung", "never stepped", "started its own processes", "ended early", "no model".
        says: one sentence.
        place: the line where it happened.
        processes: with how many processes.
        rows: details, as the rows of an error message: ("rank 1", "ZeroDivisionError: ...").
        fatal: whether nothing could be checked at all.
    """

    what: str
    says: str
    place: Place | None = None
    processes: int = 0
    rows: tuple[tuple[str, str], ...] = ()
    fatal: bool = True


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All findings about one training.

    Attributes:
        script: as it was given: a path, or a recipe's name.
        arguments: what the script was given.
        framework: "DistributedDataParallel, gloo", "Accelerate", "FSDP2", "Lightning", "Squall", ...
        processes: the numbers of processes it ran with.
        epochs, steps: observed epochs, and updates in each of them.
        seconds: how long it all took.
        reference: what it was compared with, one sentence.
        findings: one for each check, in the order of the table.
        troubles: what kept the training from being observed whole.
    """

    script: str
    arguments: tuple[str, ...] = ()
    framework: str = ""
    processes: tuple[int, ...] = ()
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0
    reference: str = ""
    findings: tuple[Finding, ...] = ()
    troubles: tuple[Trouble, ...] = field(default=())

    @property
    def fails(self) -> Sequence[Finding]:
        """The findings that say FAIL, in the order of the table."""
        return [finding for finding in self.findings if finding.outcome == "FAIL"]

    @property
    def ok(self) -> bool:
        """Whether no check failed and the training could be observed."""
        return not self.fails and not any(trouble.fatal for trouble in self.troubles)
