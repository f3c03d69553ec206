"""A run's folder as numbers to draw; whatever is missing, torn or strange in it is left out, never an error.

Records are read as they stand in the files, not through their classes: a page of last year's run must open too.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from squall.records import SPENT
from squall.report import folder as disk
from squall.report.pushes import Pushes
from squall.report.series import median
from squall.report.tail import Tail
from squall.report.values import mapping, number, whole

SPLITS = {"train": "training", "val": "validation", "test": "test"}


class Steps:
    """The updates of a run as columns: a hundred thousand of them are a few megabytes.

    An asynchronous run has a row a push; its index is that of the last minibatch settled by then, so that `index + 1`
    counts minibatches, as an epoch's steps do.
    """

    def __init__(self) -> None:
        self.index = array("q")
        self.samples, self.loss, self.lr, self.seconds = (array("d") for _ in range(4))
        self.spent = {name: array("d") for name in SPENT}

    def __len__(self) -> int:
        return len(self.index)

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a step; one that comes again, or after its successors, takes their place."""
        index = whole(record.get("step"), -1)
        if index < 0:
            return
        while self.index and self.index[-1] >= index:
            for column in self._columns():
                column.pop()
        spent = mapping(record.get("spent"))
        values = (record.get("samples"), record.get("loss"), record.get("lr"), record.get("seconds"))
        self.index.append(index)
        for column, value in zip((self.samples, self.loss, self.lr, self.seconds), values, strict=True):
            column.append(number(value))
        for name, column in self.spent.items():
            column.append(number(spent.get(name)))

    def _columns(self) -> list[array[Any]]:
        return [self.index, self.samples, self.loss, self.lr, self.seconds, *self.spent.values()]


@dataclass
class RunData:
    """What the files of a run say.

    Attributes:
        folder: of the run.
        label: a short name, different from those of the other runs on the page.
        started, launch, result, recipe: the first record, run.json, result.json, recipe.toml; empty where missing.
        recipe_text: recipe.toml as it stands.
        steps, epochs, logs, notes, events: the records; `events` are those of sessions.jsonl.
        pushes, changes: of an asynchronous run: its pushes, and what became of its roles.
        tally: of an asynchronous run: the counts of its newest checkpoint.
        signs: (seconds, replica) of a minimisation: a checkpoint counts work of a replica that the one before did not.
        ended: the last record of a run that ended.
        held: a process holds the folder's lock: it works on the run now.
        submitted: it waits for its turn on a cluster, and has no records.
        torn, damaged: the records end in a line that is not whole; whole lines that could not be read.
    """

    folder: Path
    label: str
    started: Mapping[str, Any] = field(default_factory=dict)
    launch: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    steps: Steps = field(default_factory=Steps)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pushes: Pushes = field(default_factory=Pushes)
    changes: list[dict[str, Any]] = field(default_factory=list)
    tally: Mapping[str, Any] = field(default_factory=dict)
    signs: list[tuple[float, str]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: Mapping[str, Any] = field(default_factory=dict)
    held: bool = False
    submitted: bool = False
    torn: bool = False
    damaged: int = 0

    @property
    def name(self) -> str:
        """The recipe's or the task's name."""
        return str(self.started.get("name") or self.result.get("name") or self.folder.name)

    @property
    def asynchronous(self) -> bool:
        """It was trained by replicas and shards."""
        return self.started.get("strategy") == "downpour" or len(self.pushes) > 0 or self.minimises

    @property
    def minimises(self) -> bool:
        """It minimised over the whole training set: epoch records tell of iterations, their steps of evaluations."""
        return self.started.get("strategy") == "sandblaster"

    @property
    def simulated(self) -> bool:
        """Its seconds are those of a virtual clock."""
        return self.started.get("engine") == "simulated"

    @property
    def second(self) -> str:
        """What its clock counts: "second" or "simulated second"."""
        return "simulated second" if self.simulated else "second"

    @property
    def worker(self) -> tuple[str, str]:
        """Whoever computes, one and many: "process" or "replica"."""
        return ("replica", "replicas") if self.asynchronous else ("process", "processes")

    @property
    def update(self) -> tuple[str, str]:
        """What its steps are called, one and many: "step", "minibatch" or "iteration"."""
        if self.minimises:
            return "iteration", "iterations"
        return ("minibatch", "minibatches") if self.asynchronous else ("step", "steps")

    @property
    def period(self) -> tuple[str, str]:
        """What an epoch record tells of, one and many: "epoch" or "iteration"."""
        return self.update if self.minimises else ("epoch", "epochs")

    @property
    def piece(self) -> tuple[str, str]:
        """What its replicas compute one by one, one and many: "minibatch" or "portion"."""
        return ("portion", "portions") if self.minimises else ("minibatch", "minibatches")

    @property
    def state(self) -> str:
        """running, submitted, killed, or the outcome: finished, stopped, diverged, failed; as `squall runs` has it."""
        last = [event for event in self.events if event.get("kind") in ("session", "session_ended")][-1:]
        return disk.state(
            running=self.held,
            outcomes=[found.get("outcome") for found in (self.result, *last, self.ended)],
            submitted=self.submitted,
        )

    @property
    def steps_done(self) -> int:
        """Updates that were applied, as far as the records go."""
        if self.minimises:
            return whole(self.epochs[-1].get("epoch")) + 1 if self.epochs else whole(self.result.get("iterations"))
        return self.steps.index[-1] + 1 if self.steps else whole(self.result.get("steps"))

    @property
    def evaluations(self) -> int:
        """Evaluations of the batch that led to where a minimisation is; each is one pass over the training set."""
        return self.passes[-1] if self.epochs else 0

    @property
    def passes(self) -> list[int]:
        """At each epoch record, passes over the training set: epochs, or evaluations of a minimisation."""
        key = "step" if self.minimises else "epoch"
        return [whole(epoch.get(key), -1) + 1 for epoch in self.epochs]

    @property
    def per_epoch(self) -> int:
        """Steps an epoch; 0 where unknown."""
        return max(whole(self.started.get("steps_per_epoch")), 0)

    @property
    def processes(self) -> tuple[int, ...]:
        """Numbers of processes that worked on the run, in the order of its sessions, without repetitions in a row."""
        numbers = [whole(event.get("processes"), 1) for event in self.events if event.get("kind") == "session"]
        numbers = numbers or [whole(self.result.get("processes") or self.started.get("processes"), 1)]
        numbers = [max(number_, 1) for number_ in numbers]
        return tuple(now for now, before in zip(numbers, [None, *numbers], strict=False) if now != before)

    @property
    def speed(self) -> float:
        """Samples a second: the median of all epochs but the first, as in result.json; else of the steps."""
        found = number(self.result.get("samples_per_second"))
        if math.isfinite(found):
            return found
        speeds = [number(epoch.get("samples_per_second")) for epoch in self.epochs]
        if not speeds and len(self.steps) > 1 and self.steps.seconds[-1] > self.steps.seconds[0]:
            return sum(self.steps.samples[1:]) / (self.steps.seconds[-1] - self.steps.seconds[0])
        return median(speeds[1:] or speeds)

    @property
    def seconds(self) -> float:
        """How long the run has taken."""
        for value in (self.result.get("seconds"), self.ended.get("seconds")):
            if math.isfinite(number(value)):
                return number(value)
        ends = [number(epoch.get("seconds")) for epoch in self.epochs[-1:]] + list(self.steps.seconds[-1:])
        return max((end for end in ends if math.isfinite(end)), default=math.nan)

    def rates(self) -> tuple[list[float], list[float]]:
        """Numbers of updates and the rate of the last of them: after each step; of pushes, at the ends of epochs.

        A minimisation has no rate.
        """
        if self.minimises:
            return [], []
        if not self.asynchronous:
            return [index + 1.0 for index in self.steps.index], list(self.steps.lr)
        known = [(whole(epoch.get("step")) + 1.0, number(epoch.get("lr"))) for epoch in self.epochs]
        return [at for at, _ in known], [rate for _, rate in known]

    def of_epochs(self, split: str, metric: str) -> tuple[list[int], list[float]]:
        """Epochs (from 1) at whose end a metric was measured on a split, and its values."""
        found = [(whole(epoch.get("epoch")) + 1, mapping(epoch.get(split)).get(metric)) for epoch in self.epochs]
        return [at for at, value in found if value is not None], [number(v) for _, v in found if v is not None]

    def over_passes(self, split: str, metric: str) -> tuple[list[int], list[float]]:
        """As `of_epochs`, over passes over the training set."""
        found = [(at, mapping(of.get(split)).get(metric)) for at, of in zip(self.passes, self.epochs, strict=True)]
        return [at for at, value in found if value is not None], [number(v) for _, v in found if v is not None]

    def measured(self, split: str, metric: str) -> float:
        """A metric as result.json has it, else of the last epoch that measured it; nan where there is none."""
        found = number(self.result.get(f"{split}_{metric}"))
        values = self.of_epochs(split, metric)[1]
        return found if math.isfinite(found) else values[-1] if values else math.nan

    def at(self, steps: float) -> float:
        """Where a number of updates lies on the axis: in epochs, or the steps themselves where epochs are unknown."""
        return steps / self.per_epoch if self.per_epoch else float(steps)


class Reader:
    """Reads a run's folder, and again as it grows.

    Arguments:
        folder: of the run.
        label: its short name; by default the folder's.
    """

    def __init__(self, folder: Path, label: str = "") -> None:
        self.folder = folder
        self._label = label or folder.resolve().name
        self._records, self._sessions = Tail(folder / disk.RECORDS), Tail(folder / disk.SESSIONS)
        self._run = RunData(folder, self._label)

    def read(self) -> RunData:
        """The run as it is now: what was read before, and what has come since."""
        anew, records = self._records.look()
        if anew:
            old = self._run
            self._run = RunData(self.folder, self._label, events=old.events, tally=old.tally, signs=old.signs)
        run = self._run
        for record in records:
            self._take(record)
        anew, events = self._sessions.look()
        if anew:
            run.events, run.tally, run.signs = [], {}, []
        run.events += events
        for event in events:
            self._count(number(event.get("at")), mapping(event.pop("tally", None)))
        run.torn, run.damaged = self._records.torn, self._records.damaged + self._sessions.damaged
        run.held = disk.held(self.folder)
        run.submitted = (self.folder / disk.JOB).is_file() and not (self.folder / disk.RECORDS).exists()
        began = [event for event in run.events if event.get("kind") == "session"]
        run.result = disk.result_of(self.folder, began[-1] if began else {})
        run.launch = disk.read_json(self.folder / disk.STARTED)
        if not run.recipe_text:
            run.recipe_text, run.recipe = disk.read_toml(self.folder / disk.RECIPE)
        return run

    def _count(self, at: float, tally: Mapping[str, Any]) -> None:
        """Takes a checkpoint's counts; of a long run all of them would be the most of its files."""
        if not tally:
            return
        before = mapping(self._run.tally.get("replicas"))
        for name, own in mapping(tally.get("replicas")).items():
            if whole(mapping(own).get("units")) > whole(mapping(before.get(name)).get("units")):
                self._run.signs.append((at, str(name)))
        self._run.tally = tally

    def _take(self, record: Mapping[str, Any]) -> None:
        run, kind = self._run, record.get("kind")
        if kind == "step":
            run.steps.add(record)
            run.ended = {}
        elif kind == "push":
            run.pushes.add(record)
            run.steps.add({**record, "step": whole(record.get("settled")) - 1})
            run.ended = {}
        elif kind == "role":
            run.changes.append(dict(record))
        elif kind == "epoch":
            while run.epochs and whole(run.epochs[-1].get("epoch")) >= whole(record.get("epoch")):
                run.epochs.pop()  # one that comes again, or after its successors, takes their place
            run.epochs.append(dict(record))
            run.ended = {}
        elif kind == "started":
            run.started = run.started or record
            run.ended = {}
        elif kind == "log":
            run.logs.append(dict(record))
        elif kind == "note":
            run.notes.append(str(record.get("text", "")))
        elif kind == "ended":
            run.ended = record
