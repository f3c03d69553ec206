"""What happened, as typed events: one JSON object a line.

The run writes them, the terminal prints them, a report draws them. A record says only facts that were measured;
whoever shows it decides how. Times are seconds since the run's start. There are two files: `records.jsonl` tells of
the training, and a run that was killed and resumed has the same as one that was not, but for times;
`sessions.jsonl` tells of the processes that did it, when they came and left, saved, or were slow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

_to_json = json.JSONEncoder(allow_nan=False).encode


@dataclass(frozen=True)
class Record:
    """Base of all events; `kind` names the event in the file."""

    kind: ClassVar[str] = "record"

    def to_json(self) -> str:
        """One line of strict JSON; numbers that are not finite become strings ("nan", "inf")."""
        fields = {"kind": self.kind, **vars(self)}
        try:
            return _to_json(fields)  # every step's way: five times as fast as looking at each number first
        except (TypeError, ValueError):
            return _to_json(finite(fields))


@dataclass(frozen=True)
class Started(Record):
    """A run begins: where it runs and what arithmetic it uses; `engine` "simulated": all times are virtual."""

    kind: ClassVar[str] = "started"
    name: str
    folder: str
    processes: int
    seed: int
    fingerprint: Mapping[str, Any]
    num_steps: int
    steps_per_epoch: int
    epochs: int
    global_batch_size: int
    worker_batch_size: int
    num_samples: int
    num_parameters: int
    start_step: int = 0
    strategy: str = "sync"
    replicas: int = 0
    shards: int = 0
    engine: str = ""


@dataclass(frozen=True)
class Stepped(Record):
    """One update was applied."""

    kind: ClassVar[str] = "step"
    step: int
    epoch: int
    samples: int
    loss: float
    lr: float
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pushed(Record):
    """A replica's push was answered by all shards (asynchronous training).

    Attributes:
        seconds: since the run's start.
        replica: its name.
        minibatch, minibatches: the first whose gradient is in it, and how many.
        loss: mean over its samples.
        staleness: on each shard, pushes applied between the fetch and the push; -1: not known, the shard was restarted
            in between, or had dealt with these minibatches before.
        dropped: shards that dropped it as too stale.
        took: seconds of the replica, from the hand-over of the push before to that of this one.
        stalled: of these, that its computing stood still for fetches, pushes and minibatches.
        alive: replicas that took part at that time.
        settled: minibatches of the run that all shards have answered for, these included.
    """

    kind: ClassVar[str] = "push"
    seconds: float
    replica: str
    minibatch: int
    minibatches: int
    samples: int
    loss: float
    staleness: Sequence[int]
    dropped: int
    took: float
    stalled: float
    alive: int
    settled: int


@dataclass(frozen=True)
class Evaluating(Record):
    """How far an evaluation of the batch is (batch optimisation); for who looks on, it stands in no file.

    Attributes:
        seconds: since the run's start.
        evaluation: its number, from 1.
        portions: that are settled, `of` how many.
        alive: replicas that are heard.
        loss: at the last point that was accepted; None before the first.
    """

    kind: ClassVar[str] = "evaluating"
    seconds: float
    evaluation: int
    portions: int
    of: int
    alive: int
    loss: float | None = None


@dataclass(frozen=True)
class RoleChanged(Record):
    """A role came, came back after a death, or left.

    Attributes:
        change: joined, restarted, silent, left.
        lost: minibatches that a restarted shard no longer holds.
    """

    kind: ClassVar[str] = "role"
    seconds: float
    role: str
    change: str
    lost: int = 0


@dataclass(frozen=True)
class Resized(Record):
    """A run was asked for another number of replicas, and has begun to have it; `seconds` since the run's start."""

    kind: ClassVar[str] = "resized"
    seconds: float
    replicas: int
    before: int


@dataclass(frozen=True)
class EpochEnded(Record):
    """An epoch ended: training averages, evaluation, speed and where the time went.

    Attributes:
        spent: where rank 0's training time of the epoch went, seconds by name (`SPENT`).
        evaluation: seconds between the epoch's last update and this record.
        pace: by rank, the seconds that it computed for a sample of its own: how slow each rank is.
    """

    kind: ClassVar[str] = "epoch"
    epoch: int
    step: int
    train_loss: float
    lr: float
    samples_per_second: float
    spent: Mapping[str, float]
    seconds: float
    evaluation: float = 0.0
    pace: Sequence[float] = ()
    train: Mapping[str, float] = field(default_factory=dict)
    val: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Logged(Record):
    """Values that the user logged."""

    kind: ClassVar[str] = "log"
    step: int
    epoch: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Noted(Record):
    """Something a reader should know (a skipped image, a default that was chosen)."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class SessionBegan(Record):
    """Processes began, or began again, to work on a run. Times of day are seconds since 1970.

    Attributes:
        start_step: the first step that they compute; 0 or that of the checkpoint they go on from.
        launched: whether a launcher of Squall's watches over them, which can start them again in another number.
    """

    kind: ClassVar[str] = "session"
    time: float
    host: str
    pid: int
    processes: int
    start_step: int
    fingerprint: Mapping[str, Any]
    version: str
    launched: bool = True


@dataclass(frozen=True)
class SaveBegan(Record):
    """Shards begin to save a set of snapshots; what its counts tell of was said before this (asynchronous training).

    Attributes:
        number: of the set.
    """

    kind: ClassVar[str] = "save_began"
    number: int


@dataclass(frozen=True)
class Saved(Record):
    """A checkpoint is whole on disk.

    Attributes:
        step: updates that it holds.
        blocked: seconds that training stood still for it.
        seconds: that writing it took, beside training.
        num_bytes: on disk.
        number: of the set of snapshots (asynchronous training).
        at: seconds since the run's start, of such a set.
        tally: what came of the pushes until then.
    """

    kind: ClassVar[str] = "saved"
    step: int
    blocked: float
    seconds: float
    num_bytes: int
    number: int = 0
    at: float = 0.0
    tally: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SaveFailed(Record):
    """A checkpoint could not be written; training goes on. `kept` is the step of the newest whole one, or None."""

    kind: ClassVar[str] = "save_failed"
    step: int
    error: str
    kept: int | None


@dataclass(frozen=True)
class Slow(Record):
    """A rank computes slower than the others: `ratio` times the median of all ranks over an epoch."""

    kind: ClassVar[str] = "slow"
    epoch: int
    rank: int
    ratio: float


@dataclass(frozen=True)
class SessionEnded(Record):
    """The processes left the run: `outcome` as of `Ended`; `why` says what ended a session that did not finish."""

    kind: ClassVar[str] = "session_ended"
    time: float
    step: int
    outcome: str
    why: str = ""


@dataclass(frozen=True)
class Ended(Record):
    """A run ended; `outcome` is one of finished, diverged, stopped, failed; `advice` says what to do next."""

    kind: ClassVar[str] = "ended"
    outcome: str
    advice: str
    seconds: float
    result: Mapping[str, Any] = field(default_factory=dict)


Sink = Callable[[Record], None]

SPENT = ("data", "compute", "communication", "wait", "save")
"""Where a step's time goes: reading; computing; sums under way; waiting for slower ranks; copying a checkpoint."""

OF_SESSION: tuple[type[Record], ...] = (SessionBegan, Saved, SaveFailed, Slow, Resized, SessionEnded)
"""What happened to the processes, not to the training: two runs of one recipe have equal records but for these."""


class RecordFile:
    """A sink that appends records to a file, each line at once, so that a reader can follow it.

    What a full disk does not take is kept, and written when there is room again: a run goes on meanwhile.

    Arguments:
        path: of the file.
        length: bytes of it that stay; what follows is cut off. All of it by default.
    """

    def __init__(self, path: Path, length: int | None = None) -> None:
        self._file: BinaryIO = path.open("ab", buffering=0)
        if length is not None:
            self._file.truncate(length)
        self._waiting = b""
        self.length = self._file.seek(0, 2)

    def __call__(self, record: Record) -> None:
        """Writes one record."""
        line = record.to_json().encode() + b"\n"
        self.length += len(line)
        self._waiting += line
        with suppress(OSError):
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting.

        Raises:
            OSError: the disk does not take it.
        """
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Closes the file."""
        with suppress(OSError):
            self.flush()
        with suppress(OSError):
            self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file as dictionaries; a torn last line is left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise
    return records


def finite(value: Any) -> Any:
    """The value as strict JSON has it: numbers that are not finite become strings, keys become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def dotted(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested tables as one.

    Example:
        >>> dotted({"seed": 1, "lr": {"base": 0.1}})
        {'seed': 1, 'lr.base': 0.1}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= dotted(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found
