"""The run's book-keeping: what each step and epoch came to, records to whoever listens, the numbers of the result."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from squall.records import (
    OF_SESSION,
    SPENT,
    EpochEnded,
    Logged,
    Record,
    RecordFile,
    Sink,
    Slow,
    Stepped,
    finite,
)
from squall.run.pace import samples_by_rank, slowest
from squall.run.result import median_of_last
from squall.run.steps import Step

_SLOW = 1.3  # times the median of all ranks
_DIGITS = 6  # microseconds


def ratio(total: float, count: float) -> float:
    """A mean from its sum; nan over no elements."""
    return total / count if count else float("nan")


class Book:
    """Averages over the epoch at hand, and the list of epochs that ended.

    Arguments:
        sinks: called with every record (rank 0 only has any).
        rank: of this process.
        size: processes of the job.
    """

    def __init__(self, sinks: Sequence[Sink], rank: int = 0, size: int = 1) -> None:
        self._sinks = list(sinks)
        self._rank, self._size = rank, size
        self._training: RecordFile | None = None
        self._sessions: RecordFile | None = None
        self._trackers: list[Any] = []
        self.started = time.perf_counter()
        self.epochs: list[EpochEnded] = []
        self._plain_epochs: list[Any] = []  # the same, as a checkpoint has them
        self.logged: dict[str, float] = {}
        self._val: dict[str, float] = {}
        self._test: dict[str, float] = {}
        self._totals: dict[str, list[float]] = {}
        self._stepped = 0.0
        self._saving = 0.0
        self._carried: dict[str, Any] = {}
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Begins a stretch of training time."""
        carried, self._carried = self._carried, {}
        self._start = time.perf_counter() - float(carried.get("elapsed", 0.0))
        self._samples: int = carried.get("samples", 0)
        self._spent = carried.get("spent", dict.fromkeys(SPENT, 0.0))
        self._busy = [0.0] * self._size
        self._own = [0] * self._size

    def write_to(self, records: Path, sessions: Path, length: int | None = None) -> None:
        """From now on appends every record to a file: those of the training, and those of its processes.

        Arguments:
            length: bytes of `records` that stay, where a run goes on.
        """
        self._training, self._sessions = RecordFile(records, length), RecordFile(sessions)

    def track(self, trackers: Sequence[Any]) -> None:
        """From now on hands every record to trackers too, which are closed with the run."""
        self._trackers = list(trackers)

    @property
    def seconds(self) -> float:
        """Since the run's start, sessions that went before included."""
        return time.perf_counter() - self.started

    @property
    def length(self) -> int:
        """Bytes of the training's records so far."""
        return self._training.length if self._training is not None else 0

    def flush(self) -> None:
        """Writes what a full disk did not take.

        Raises:
            OSError: it still does not.
        """
        for file in (self._training, self._sessions):
            if file is not None:
                file.flush()

    def emit(self, record: Record) -> None:
        """Hands a record to every sink."""
        file = self._sessions if isinstance(record, OF_SESSION) else self._training
        if file is not None:
            file(record)
        self.show(record)

    def show(self, record: Record) -> None:
        """Hands a record to every sink but the files."""
        for sink in (*self._sinks, *self._trackers):
            sink(record)

    def note_update(self, step: Step) -> None:
        """An update was applied: the step's training time ends here (evaluation does not count)."""
        self._stepped = time.perf_counter()
        step.seconds = self._stepped - self.started
        step.seconds_whole = self._stepped - step.clock.opened

    def note_saving(self, seconds: float) -> None:
        """Training stood still for a checkpoint; the next step's record says so."""
        self._saving += seconds

    def note_values(
        self, step: int, val: Mapping[str, float], test: Mapping[str, float], values: Mapping[str, float]
    ) -> None:
        """Values that the loop logged; `val` and `test` join the epoch's record."""
        self._val.update(val)
        self._test.update(test)
        if values:
            self.logged.update(values)
            self.emit(Logged(step, len(self.epochs), dict(values)))

    def note_step(self, step: Step) -> None:
        """One update's loss and metrics, and where its time went."""
        sums = step.sums
        assert sums is not None
        for name, (total, count) in {"loss": (sums.loss, sums.count), **sums.metrics}.items():
            pair = self._totals.setdefault(name, [0.0, 0.0])
            pair[0] += total
            pair[1] += count
        spent = {**step.spent(self._rank), "save": self._saving}
        self._saving = 0.0
        self._count_time(step, spent)
        metrics = {name: ratio(total, count) for name, (total, count) in sums.metrics.items()}
        rate = float("nan") if step.lr is None else step.lr
        loss = ratio(sums.loss, sums.count)
        rounded = {name: round(seconds, _DIGITS) for name, seconds in spent.items()}
        self.emit(Stepped(step.index, step.epoch, int(sums.samples), loss, rate, step.seconds, metrics, rounded))

    def end_epoch(self, epoch: int, step: int, lr: float | None) -> EpochEnded:
        """Closes the epoch's averages and records them."""
        now = time.perf_counter()
        stepped, elapsed = self._stepped or now, self._elapsed()
        spent = dict(self._spent)
        spent["compute"] += max(elapsed - sum(spent.values()), 0.0)  # between steps: the loop itself
        pace = tuple(ratio(busy, own) for busy, own in zip(self._busy, self._own, strict=True))
        train = {name: ratio(total, count) for name, (total, count) in self._totals.items()}
        record = EpochEnded(
            epoch=epoch,
            step=step,
            train_loss=train["loss"],
            lr=float("nan") if lr is None else lr,
            samples_per_second=self._samples / elapsed,
            spent={name: round(seconds, _DIGITS) for name, seconds in spent.items()},
            seconds=self.seconds,
            evaluation=round(now - stepped, _DIGITS),
            pace=tuple(round(seconds, 9) for seconds in pace),
            train=train,
            val=dict(self._val),
            test=dict(self._test),
        )
        self._val.clear()
        self._test.clear()
        self._totals.clear()
        self.note_epoch(record)
        rank, times = slowest(pace)
        if times > _SLOW:
            self.emit(Slow(epoch, rank, times))
        return record

    def note_epoch(self, record: EpochEnded) -> None:
        """Takes an epoch's record into the list and hands it on."""
        self.epochs.append(record)
        self._plain_epochs.append(finite(vars(record)))
        self.emit(record)

    def headline(self) -> dict[str, Any]:
        """The result's numbers about accuracy, loss and speed."""
        last = self.epochs[-1] if self.epochs else None
        numbers: dict[str, Any] = {}
        for split in ("test", "val"):
            accuracies = [
                getattr(epoch, split)["accuracy"] for epoch in self.epochs if "accuracy" in getattr(epoch, split)
            ]
            if accuracies:
                numbers[f"{split}_accuracy"] = accuracies[-1]
                numbers[f"{split}_error_median_last5"] = median_of_last([1 - accuracy for accuracy in accuracies])
            for name, value in (getattr(last, split) if last else {}).items():
                numbers.setdefault(f"{split}_{name}", value)
        speeds = [epoch.samples_per_second for epoch in self.epochs[1:] or self.epochs]
        return {
            **numbers,
            "train_loss": last.train_loss if last else None,
            "samples_per_second": statistics.median(speeds) if speeds else None,
            "seconds": self.seconds,
            **({"logged": dict(self.logged)} if self.logged else {}),
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain values."""
        state: dict[str, Any] = finite(
            {
                "totals": self._totals,
                "val": self._val,
                "test": self._test,
                "logged": self.logged,
                "seconds": self.seconds,
                "epoch": {"elapsed": self._elapsed(), "samples": self._samples, "spent": self._spent},
            }
        )
        return state | {"epochs": list(self._plain_epochs)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        numbers = _numbers(state)
        self._totals, self.logged = numbers["totals"], numbers["logged"]
        self._val, self._test = numbers["val"], numbers["test"]
        self.epochs, self._plain_epochs = [EpochEnded(**epoch) for epoch in numbers["epochs"]], list(state["epochs"])
        self.started = time.perf_counter() - numbers["seconds"]
        self._carried = numbers["epoch"]

    def close_files(self) -> None:
        """Closes the files; what comes now, only sinks and trackers hear."""
        for file in (self._training, self._sessions):
            if file is not None:
                file.close()
        self._training = self._sessions = None

    def close(self) -> None:
        """Closes the files and the trackers."""
        self.close_files()
        trackers, self._trackers = self._trackers, []
        for tracker in trackers:
            tracker.close()

    def _elapsed(self) -> float:
        """Seconds of the epoch's training so far, in all sessions."""
        return max((self._stepped or time.perf_counter()) - self._start, 1e-9)

    def _count_time(self, step: Step, spent: Mapping[str, float]) -> None:
        for name, seconds in spent.items():
            self._spent[name] += seconds
        assert step.sums is not None
        self._samples += step.num_samples
        for rank, own in enumerate(samples_by_rank(step.plan, self._size)):
            self._busy[rank] += step.sums.busy[rank]
            self._own[rank] += own


def _numbers(value: Any) -> Any:
    """Numbers that strict JSON has no form for, read back from the words that stand for them."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return math.nan if value == "nan" else float(value)
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return value
