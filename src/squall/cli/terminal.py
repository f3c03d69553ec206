"""Shows a run's records to a person: a header, a row an epoch, a live bar in between, and what it came to.

Rank 0 prints while the other processes wait for it at the next reduction, so printing must cost nothing: the bar is
drawn rarely, and only where the output is a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from rich.console import Console

from squall.cli import iterations, replicas
from squall.cli.bar import Bar
from squall.cli.header import Words, header
from squall.cli.sizes import num_passes
from squall.cli.summary import summary
from squall.cli.wording import Column
from squall.events import Changes, resumed, save_failed, slow
from squall.recipe import Recipe
from squall.records import (
    Ended,
    EpochEnded,
    Evaluating,
    Noted,
    Pushed,
    Record,
    RoleChanged,
    SaveFailed,
    Sink,
    Slow,
    Started,
    Stepped,
)
from squall.stdout import mute


class Screen(Console):
    """A console for a run that is not to end because nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Goes on in silence, where rich would end the process."""
        self.quiet = True
        mute()


class Terminal:
    """A sink that prints.

    Arguments:
        recipe: as resolved.
        about: what header lines call data and network.
        version: of Squall.
        next_line: commands worth typing after the run.
        quiet: only the last block.
        out: where to; standard output by default.
    """

    def __init__(
        self,
        recipe: Recipe,
        about: Words,
        *,
        version: str,
        next_line: str,
        quiet: bool = False,
        out: TextIO | None = None,
    ) -> None:
        self._recipe, self._about, self._version, self._next, self._quiet = recipe, about, version, next_line, quiet
        self._console = Screen(file=out or sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._started: Started | None = None
        self._table: Table | None = None
        self._changes, self._epochs = Changes(), replicas.Epochs()
        self._bar = Bar(self._console) if self._console.is_terminal and not quiet else None

    def __call__(self, record: Record) -> None:
        """Shows one record."""
        news = self._changes(record)
        match record:
            case Started():
                self._started = record
                if not self._quiet:
                    went_on = [resumed(record)] if record.start_step else []
                    self._print(*header(self._recipe, self._about, record, self._version), *went_on, "")
            case Stepped() if self._bar is not None and self._started is not None:
                self._bar.step(record, self._started)
            case Pushed() if self._started is not None:
                self._epochs.add(record, self._started.steps_per_epoch)
                if self._bar is not None:
                    self._bar.push(record, self._started)
            case Evaluating() if self._bar is not None and self._started is not None:
                self._bar.evaluate(record, self._started)
            case RoleChanged() if news and not self._quiet:
                self._print(f"note    {news}")
            case EpochEnded() if not self._quiet:
                if self._table is None:
                    self._table = self._new_table(record)
                    self._print(self._table.head)
                self._print(self._table.row(record))
            case Noted():
                self._print(f"note    {record.text}")
            case SaveFailed():
                self._print(f"note    {save_failed(record)}")
            case Slow():
                self._print(f"note    {slow(record)}")
            case Ended(outcome="finished"):
                self._end(record)
            case Ended(outcome="stopped") if record.advice:
                self.close()
                self._print(*([] if self._quiet else [""]), f"{record.result['error']}", f"next    {record.advice}")

    def close(self) -> None:
        """Takes the bar away, also after an error."""
        if self._bar is not None:
            self._bar.close()

    def _new_table(self, first: EpochEnded) -> Table:
        recipe = self._recipe
        if recipe.strategy == "sandblaster":
            return Table(first, "iteration", iterations.COLUMNS, self._about.unit, iterations.LAST)
        last = self._epochs.columns() if recipe.strategy == "downpour" else (_SHARES,)
        return Table(first, "epoch", [_rate(recipe.lr.rate().peak(recipe.update_size))], self._about.unit, last)

    def _end(self, record: Ended) -> None:
        self.close()
        recipe = self._recipe
        simulated = self._started is not None and self._started.engine == "simulated"
        if recipe.strategy == "sandblaster":
            lines = iterations.summary(record.result, simulated=simulated, next_line=self._next)
        elif recipe.strategy == "downpour":
            lines = replicas.summary(record.result, recipe.epochs, simulated=simulated, next_line=self._next)
        else:
            lines = summary(
                record.result,
                num_epochs=recipe.epochs,
                exact=recipe.compute.reduction == "exact",
                num_passes=num_passes(recipe, self._started.num_samples if self._started else None),
                averaged=recipe.ema is not None,
                next_line=self._next,
            )
        self._print(*([] if self._quiet else [""]), *lines)

    def _print(self, *lines: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        self._console.print("\n".join(lines))


class Table:
    """The columns of a run, chosen by its first epoch: test before validation, accuracy before the rest.

    Arguments:
        word: what epochs are called.
        middle, last: columns before and after that of the speed.
        unit: what samples are called.

    Example:
        epoch   train loss   test accuracy   rate     images/s   data / compute / wait
            1       1.8413         52.50 %   0.0997      9,870        2 / 91 /  7 %
    """

    def __init__(
        self, first: EpochEnded, word: str, middle: Sequence[Column], unit: str, last: Sequence[Column]
    ) -> None:
        measured: list[Column] = []
        for split, name in (("test", "test"), ("val", "validation")):
            values: Mapping[str, float] = getattr(first, split)
            shown = [key for key in values if key != "loss"] or list(values)
            measured += [(title := f"{name} {key}", len(title), _value(split, key)) for key in shown]
        self._columns: list[Column] = [
            (word, 5, lambda epoch: str(epoch.epoch + 1)),
            ("train loss", 10, lambda epoch: f"{epoch.train_loss:.4f}"),
            *measured,
            *middle,
            (f"{unit}/s", 8, lambda epoch: f"{epoch.samples_per_second:,.0f}"),
            *last,
        ]
        self.head = "   ".join(self._cells([title for title, _, _ in self._columns]))

    def row(self, epoch: EpochEnded) -> str:
        """The row of an epoch."""
        return "   ".join(self._cells([cell(epoch) for _, _, cell in self._columns]))

    def _cells(self, texts: Sequence[str]) -> list[str]:
        columns = zip(texts, self._columns, strict=True)
        return [f"{text:>{max(width, len(title))}}" for text, (title, width, _) in columns]


def _rate(peak: float) -> Column:
    """The rate, written as small ones are if the highest is one."""
    if peak < 0.01:
        return (f"{'rate':<8}", 8, lambda epoch: f"{epoch.lr:.2e}")
    return (f"{'rate':<6}", 6, lambda epoch: f"{epoch.lr:.4f}")


def shares_of_three(spent: Mapping[str, float]) -> tuple[float, float, float]:
    """Reading, computing, and everything that is waiting: for sums under way, for slower ranks, for a checkpoint."""
    whole = sum(spent.values()) or 1.0
    data, compute = spent.get("data", 0.0) / whole, spent.get("compute", 0.0) / whole
    return data, compute, 1 - data - compute


def _shares(epoch: EpochEnded) -> str:
    return " / ".join(f"{round(100 * share):>2}" for share in shares_of_three(epoch.spent)) + " %"


_SHARES: Column = ("data / compute / wait", 21, _shares)


def json_lines(out: TextIO | None = None) -> Sink:
    """A sink that prints each record as a line of JSON."""
    stream = out or sys.stdout

    def sink(record: Record) -> None:
        try:
            stream.write(record.to_json() + "\n")
            stream.flush()
        except BrokenPipeError:
            mute()

    return sink


def _value(split: str, key: str) -> Callable[[EpochEnded], str]:
    def cell(epoch: EpochEnded) -> str:
        value = getattr(epoch, split).get(key)
        if value is None:
            return "-"
        return f"{100 * value:.2f} %" if key.endswith("accuracy") else f"{value:.4f}"

    return cell
