"""Shows a run's records to a person: a header, a row an epoch, a live bar in between, and what it came to.

Rank 0 prints while the other processes wait for it at the next reduction, so printing must cost nothing: the bar is
drawn at most twice a second, from the training's own thread (a drawing thread would contend for its core), and
only where the output is a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from squall.cli.header import Words, header
from squall.cli.sizes import num_passes
from squall.cli.summary import summary
from squall.events import resumed, save_failed, slow
from squall.recipe import Recipe
from squall.records import Ended, EpochEnded, Noted, Record, SaveFailed, Sink, Slow, Started, Stepped
from squall.stdout import mute

_REDRAW_S = 0.5
_WIDTH = 30  # of the bar


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
        self._bar = Bar(self._console) if self._console.is_terminal and not quiet else None

    def __call__(self, record: Record) -> None:
        """Shows one record."""
        match record:
            case Started():
                self._started = record
                if not self._quiet:
                    went_on = [resumed(record)] if record.start_step else []
                    self._print(*header(self._recipe, self._about, record, self._version), *went_on, "")
            case Stepped() if self._bar is not None and self._started is not None:
                self._bar.step(record, self._started)
            case EpochEnded() if not self._quiet:
                if self._table is None:
                    self._table = Table(record, self._recipe.lr.rate().peak(self._recipe.update_size), self._about.unit)
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

    def _end(self, record: Ended) -> None:
        self.close()
        recipe = self._recipe
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

    Example:
        epoch   train loss   test accuracy   rate     images/s   data / compute / wait
            1       1.8413         52.50 %   0.0997      9,870        2 / 91 /  7 %
    """

    def __init__(self, first: EpochEnded, peak: float, unit: str) -> None:
        self._small = peak < 0.01
        self._columns: list[tuple[str, Callable[[EpochEnded], str]]] = []
        for split, name in (("test", "test"), ("val", "validation")):
            values: Mapping[str, float] = getattr(first, split)
            shown = [key for key in values if key != "loss"] or list(values)
            self._columns += [(f"{name} {key}", _value(split, key)) for key in shown]
        width = 8 if self._small else 6
        titles = [f"{'epoch':>5}", f"{'train loss':>10}", *(title for title, _ in self._columns), f"{'rate':<{width}}"]
        self._widths = [len(title) for title in titles] + [max(8, len(unit) + 2), 21]
        self.head = "   ".join([*titles, f"{unit + '/s':>8}", "data / compute / wait"])

    def row(self, epoch: EpochEnded) -> str:
        """The row of an epoch."""
        shares = (round(100 * share) for share in shares_of_three(epoch.spent))
        cells = [
            str(epoch.epoch + 1),
            f"{epoch.train_loss:.4f}",
            *(cell(epoch) for _, cell in self._columns),
            f"{epoch.lr:.2e}" if self._small else f"{epoch.lr:.4f}",
            f"{epoch.samples_per_second:,.0f}",
            " / ".join(f"{share:>2}" for share in shares) + " %",
        ]
        return "   ".join(f"{cell:>{width}}" for cell, width in zip(cells, self._widths, strict=True))


class Bar:
    """The epoch at hand: how far it is and what the loss is now."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._rest = "━" if console.color_system and not console.no_color else " "
        self._drawn = 0.0
        self._shown = False
        self._first: Stepped | None = None

    def step(self, record: Stepped, started: Started) -> None:
        """Draws the bar, if it was not drawn just now."""
        now = time.monotonic()
        if now - self._drawn < _REDRAW_S:
            return
        self._drawn = now
        if not self._shown:
            self._live.start()
            self._shown = True
        per_epoch = max(started.steps_per_epoch, 1)
        done = min(max(record.step + 1 - record.epoch * per_epoch, 0), per_epoch) * _WIDTH // per_epoch
        bar = Text.assemble(
            f"epoch {record.epoch + 1:>{len(str(started.epochs))}} of {started.epochs} ",
            ("━" * done, "bar.complete"),
            (self._rest * (_WIDTH - done), "bar.back"),
            f" step {record.step + 1:,} of {started.num_steps:,}",
            f"   loss {record.loss:.4f}   {self._left(record, started)}",
            no_wrap=True,
            overflow="ellipsis",
        )
        self._live.update(bar, refresh=True)

    def clear(self) -> None:
        """Takes it away for a line to be printed; the next step draws it anew."""
        if self._shown:
            self._live.stop()
            self._shown = False

    close = clear

    def _left(self, record: Stepped, started: Started) -> str:
        """From this session's own speed: another number of processes may have begun the run."""
        if self._first is None:
            self._first = record
            return ""
        pace = (record.seconds - self._first.seconds) / max(record.step - self._first.step, 1)
        seconds = round(pace * (started.num_steps - record.step - 1))
        return f"{seconds // 60}:{seconds % 60:02} left"


def shares_of_three(spent: Mapping[str, float]) -> tuple[float, float, float]:
    """Reading, computing, and everything that is waiting: for sums under way, for slower ranks, for a checkpoint."""
    whole = sum(spent.values()) or 1.0
    data, compute = spent.get("data", 0.0) / whole, spent.get("compute", 0.0) / whole
    return data, compute, 1 - data - compute


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
