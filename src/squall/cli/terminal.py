"""Shows a run's records to a person: a header, a row an epoch, a live bar in between, and what it came to.

Rank 0 prints while the other processes wait for it at the next reduction, so printing must cost nothing: the bar is
drawn rarely, and only where the output is a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from rich.console import Console

from squall.cli import replicas
from squall.cli.bar import Bar
from squall.cli.header import Words, header
from squall.cli.sizes import num_passes
from squall.cli.summary import summary
from squall.events import Changes, resumed, save_failed, slow
from squall.recipe import Recipe
from squall.records import (
    Ended,
    EpochEnded,
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
        last = self._epochs.columns() if recipe.strategy == "downpour" else (_SHARES,)
        return Table(first, recipe.lr.rate().peak(recipe.update_size), self._about.unit, last)

    def _end(self, record: Ended) -> None:
        self.close()
        recipe = self._recipe
        if recipe.strategy == "downpour":
            simulated = self._started is not None and self._started.engine == "simulated"
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
        peak: the highest rate, which tells how rates are written.
        unit: what samples are called.
        last: columns that end it: title, width, cell.

    Example:
        epoch   train loss   test accuracy   rate     images/s   data / compute / wait
            1       1.8413         52.50 %   0.0997      9,870        2 / 91 /  7 %
    """

    def __init__(
        self, first: EpochEnded, peak: float, unit: str, last: Sequence[replicas.Column] | None = None
    ) -> None:
        self._small, self._last = peak < 0.01, (_SHARES,) if last is None else tuple(last)
        self._columns: list[tuple[str, Callable[[EpochEnded], str]]] = []
        for split, name in (("test", "test"), ("val", "validation")):
            values: Mapping[str, float] = getattr(first, split)
            shown = [key for key in values if key != "loss"] or list(values)
            self._columns += [(f"{name} {key}", _value(split, key)) for key in shown]
        width = 8 if self._small else 6
        titles = [f"{'epoch':>5}", f"{'train loss':>10}", *(title for title, _ in self._columns), f"{'rate':<{width}}"]
        self._widths = [len(title) for title in titles] + [
            max(8, len(unit) + 2),
            *(width for _, width, _ in self._last),
        ]
        self.head = "   ".join([*titles, f"{unit + '/s':>8}", *(title for title, _, _ in self._last)])

    def row(self, epoch: EpochEnded) -> str:
        """The row of an epoch."""
        cells = [
            str(epoch.epoch + 1),
            f"{epoch.train_loss:.4f}",
            *(cell(epoch) for _, cell in self._columns),
            f"{epoch.lr:.2e}" if self._small else f"{epoch.lr:.4f}",
            f"{epoch.samples_per_second:,.0f}",
            *(cell(epoch) for _, _, cell in self._last),
        ]
        return "   ".join(f"{cell:>{width}}" for cell, width in zip(cells, self._widths, strict=True))


def shares_of_three(spent: Mapping[str, float]) -> tuple[float, float, float]:
    """Reading, computing, and everything that is waiting: for sums under way, for slower ranks, for a checkpoint."""
    whole = sum(spent.values()) or 1.0
    data, compute = spent.get("data", 0.0) / whole, spent.get("compute", 0.0) / whole
    return data, compute, 1 - data - compute


def _shares(epoch: EpochEnded) -> str:
    return " / ".join(f"{round(100 * share):>2}" for share in shares_of_three(epoch.spent)) + " %"


_SHARES: replicas.Column = ("data / compute / wait", 21, _shares)


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
