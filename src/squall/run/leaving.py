"""How a run ends that was asked to: an exception that passes through the user's loop, and says how to go on.

Ctrl-C stays a KeyboardInterrupt, as any Python program ends by it; everything else leaves by SystemExit, so that a
scheduler sees a status: 128 + the signal's number, or `requests.RESIZED`.
"""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from squall.run.folder import STARTED
from squall.run.requests import RESIZED

if TYPE_CHECKING:
    from squall.run.run import Run


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the state was saved."""

    def __init__(self, headline: str, advice: str) -> None:
        super().__init__(headline)
        self.headline, self.advice = headline, advice


class Preempted(SystemExit):
    """A signal or a request, after the state was saved."""

    def __init__(self, status: int, headline: str, advice: str) -> None:
        super().__init__(status)
        self.headline, self.advice = headline, advice


Left = Interrupted | Preempted


def left_by(why: str, number: int, run: Run, saved_step: int | None, ordered_step: int) -> Left:
    """The exception to leave by.

    Arguments:
        why: "stop" or "resize".
        number: of the signal that a rank got; 0: a request in the run's folder.
        saved_step: of the newest checkpoint that is whole.
        ordered_step: of the one that was to be written; a step earlier where an evaluation was broken off.
    """
    by = "for another number of processes" if why == "resize" else "on request"
    if why == "stop" and number:
        by = f"by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}"
    headline = f"stopped {by} after step {run.steps_done:,}"
    advice = how_to_go_on(run.path)
    if saved_step is None:
        advice = "nothing could be saved: the run starts from its beginning again"
    elif saved_step != ordered_step:
        advice = f"that step could not be saved; from step {saved_step:,}: {advice}"
    elif saved_step < run.steps_done:
        advice = f"its evaluation was broken off; from step {saved_step:,}: {advice}"
    if why == "resize":
        return Preempted(RESIZED, headline, advice)
    if number == signal.SIGINT:
        return Interrupted(headline, advice)
    return Preempted(128 + (number or signal.SIGTERM), headline, advice)


def how_to_go_on(folder: Path | None) -> str:
    """What to type to resume the run of a folder."""
    if folder is None:
        return ""
    try:
        started = json.loads((folder / STARTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"squall resume {folder}"
    if "target" in started:
        return f"squall resume {folder}"
    return f"run it again: {shlex.join(started.get('argv', []))}"
