"""The line below a run's rows while it trains: how far it is, the loss now, and of replicas how they get on.

It is drawn at most twice a second, from the training's own thread: a drawing thread would contend for its core.
"""

from __future__ import annotations

import time
from collections import deque

from rich.console import Console
from rich.live import Live
from rich.text import Text

from squall.cli.iterations import progress
from squall.records import Evaluating, Pushed, Started, Stepped

_REDRAW_S = 0.5
_WIDTH = 30
_RECENT = 100  # pushes whose number a second and staleness are shown


class Bar:
    """The epoch at hand: how far it is and what the loss is now."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._rest = "━" if console.color_system and not console.no_color else " "
        self._drawn = 0.0
        self._shown = False
        self._first: tuple[int, float] | None = None
        self._recent: deque[Pushed] = deque(maxlen=_RECENT)

    def step(self, record: Stepped, started: Started) -> None:
        """Draws the bar after a step, if it was not drawn just now."""
        if not self._is_due():
            return
        words = f" step {record.step + 1:,} of {started.num_steps:,}   loss {record.loss:.4f}"
        self._draw(
            record.step + 1, record.epoch, started, f"{words}   {self._left(record.step, record.seconds, started)}"
        )

    def push(self, record: Pushed, started: Started) -> None:
        """Draws the bar after a push, likewise."""
        self._recent.append(record)
        if not self._is_due():
            return
        epoch = min((record.settled - record.minibatches) // max(started.steps_per_epoch, 1), started.epochs - 1)
        second = "simulated s" if started.engine == "simulated" else "s"
        words = [
            f" {record.settled:,} of {started.num_steps:,}",
            f"loss {sum(p.loss * p.samples for p in self._recent) / max(sum(p.samples for p in self._recent), 1):.4f}",
            f"{record.alive} replica{'' if record.alive == 1 else 's'}",
            f"{self._pace():,.3g} pushes/{second}",
            f"staleness {self._staleness()}",
            self._left(record.settled - 1, time.monotonic(), started),  # of this clock: the run's may be a virtual one
        ]
        self._draw(record.settled, epoch, started, "   ".join(words))

    def evaluate(self, record: Evaluating, started: Started) -> None:
        """Draws how far an evaluation of the batch is, likewise."""
        if self._is_due():
            full = record.portions * _WIDTH // max(record.of, 1)
            head = f"portions {record.portions:>{len(str(record.of))}} of {record.of} "
            self._show(head, full, f" {progress(record, started)}")

    def clear(self) -> None:
        """Takes it away for a line to be printed; the next step draws it anew."""
        if self._shown:
            self._live.stop()
            self._shown = False

    close = clear

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._drawn < _REDRAW_S:
            return False
        self._drawn = now
        return True

    def _draw(self, done: int, epoch: int, started: Started, words: str) -> None:
        """The bar: `done` steps of the run, in an epoch counted from 0."""
        per_epoch = max(started.steps_per_epoch, 1)
        full = min(max(done - epoch * per_epoch, 0), per_epoch) * _WIDTH // per_epoch
        self._show(f"epoch {epoch + 1:>{len(str(started.epochs))}} of {started.epochs} ", full, words)

    def _show(self, head: str, full: int, words: str) -> None:
        """Draws the line: so much of the bar is full."""
        if not self._shown:
            self._live.start()
            self._shown = True
        bar = Text.assemble(
            head,
            ("━" * full, "bar.complete"),
            (self._rest * (_WIDTH - full), "bar.back"),
            words,
            no_wrap=True,
            overflow="ellipsis",
        )
        self._live.update(bar, refresh=True)

    def _left(self, step: int, now: float, started: Started) -> str:
        """From this session's own speed: another number of processes may have begun the run."""
        if self._first is None:
            self._first = step, now
            return ""
        first, began = self._first
        pace = (now - began) / max(step - first, 1)
        seconds = round(pace * (started.num_steps - step - 1))
        return f"{seconds // 60}:{seconds % 60:02} left"

    def _pace(self) -> float:
        """Pushes a second of the run's clock, of late."""
        seconds = self._recent[-1].seconds - self._recent[0].seconds
        return (len(self._recent) - 1) / seconds if seconds > 0 else 0.0

    def _staleness(self) -> str:
        """The mean of late."""
        known = [value for push in self._recent for value in push.staleness if value >= 0]
        return f"{sum(known) / len(known):.1f}" if known else "-"
