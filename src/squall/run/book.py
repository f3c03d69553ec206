"""The run's book-keeping: what each step and epoch came to, records to whoever listens, the numbers of the result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from squall.records import EpochEnded, Logged, Record, RecordFile, Sink, Stepped
from squall.run import tensorboard
from squall.run.result import median_of_last
from squall.run.stepper import Clock
from squall.run.sums import StepSums
from squall.run.tensorboard import TensorBoard


def ratio(total: float, count: float) -> float:
    """A mean from its sum; nan over no elements."""
    return total / count if count else float("nan")


class Book:
    """Averages over the epoch at hand, and the list of epochs that ended.

    Arguments:
        sinks: called with every record (rank 0 only has any).

    Attributes:
        clock: where the stepper keeps the time spent on data and waiting.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)
        self._files: list[RecordFile | TensorBoard] = []
        self.clock = Clock()
        self.started = time.perf_counter()
        self.epochs: list[EpochEnded] = []
        self.logged: dict[str, float] = {}
        self._val: dict[str, float] = {}
        self._test: dict[str, float] = {}
        self._totals: dict[str, list[float]] = {}
        self._stepped = 0.0

    def write_to(self, records: Path, events: Path) -> None:
        """From now on also appends every record to a file, and to TensorBoard's events where that is installed."""
        self._files = [RecordFile(records), *([TensorBoard(events)] if tensorboard.installed() else [])]
        self._sinks += self._files

    @property
    def seconds(self) -> float:
        """Since the run's start."""
        return time.perf_counter() - self.started

    def emit(self, record: Record) -> None:
        """Hands a record to every sink."""
        for sink in self._sinks:
            sink(record)

    def note_update(self) -> float:
        """An update was applied: the stretch of training time ends here (evaluation does not count).

        Returns:
            Seconds since the run's start.
        """
        self._stepped = time.perf_counter()
        return self._stepped - self.started

    def note_values(
        self, step: int, val: Mapping[str, float], test: Mapping[str, float], values: Mapping[str, float]
    ) -> None:
        """Values that the loop logged; `val` and `test` join the epoch's record."""
        self._val.update(val)
        self._test.update(test)
        if values:
            self.logged.update(values)
            self.emit(Logged(step, len(self.epochs), dict(values)))

    def note_step(self, index: int, epoch: int, lr: float | None, seconds: float, sums: StepSums) -> None:
        """One update's loss and metrics; `seconds` is when it was applied."""
        for name, (total, count) in {"loss": (sums.loss, sums.count), **sums.metrics}.items():
            pair = self._totals.setdefault(name, [0.0, 0.0])
            pair[0] += total
            pair[1] += count
        metrics = {name: ratio(total, count) for name, (total, count) in sums.metrics.items()}
        rate = float("nan") if lr is None else lr
        self.emit(Stepped(index, epoch, int(sums.samples), ratio(sums.loss, sums.count), rate, seconds, metrics))

    def end_epoch(self, epoch: int, step: int, lr: float | None) -> EpochEnded:
        """Closes the epoch's averages and records them."""
        elapsed = max(self._stepped - self.clock.start, 1e-9)
        train = {name: ratio(total, count) for name, (total, count) in self._totals.items()}
        record = EpochEnded(
            epoch=epoch,
            step=step,
            train_loss=train["loss"],
            lr=float("nan") if lr is None else lr,
            samples_per_second=self.clock.samples / elapsed,
            spent={
                "data": self.clock.data,
                "compute": elapsed - self.clock.data - self.clock.wait,
                "communication": 0.0,
                "wait": self.clock.wait,
                "save": 0.0,
            },
            seconds=self.seconds,
            train=train,
            val=dict(self._val),
            test=dict(self._test),
        )
        self.epochs.append(record)
        self._val.clear()
        self._test.clear()
        self._totals.clear()
        self.emit(record)
        return record

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

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            self._sinks.remove(file)
            file.close()
        self._files = []
