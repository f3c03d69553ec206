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


Left = KeyboardInterrupt | SystemExit
"""No classes of our own: Python gives a program that ends by Ctrl-C the status 130 for exactly a KeyboardInterrupt."""


def words(error: BaseException | None) -> tuple[str, str] | None:
    """What is said of an exception by which a run was left once it was saved, and what to do next; None: of others."""
    return getattr(error, "squall_left", None)


def _left(error: Left, headline: str, advice: str) -> Left:
    vars(error)["squall_left"] = (headline, advice)
    return error


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
    advice = to_go_on(run.path, saved_step, ordered_step)
    if saved_step == ordered_step < run.steps_done:
        advice = f"its evaluation was broken off; from step {saved_step:,}: {advice}"
    if why == "resize":
        return _left(SystemExit(RESIZED), headline, advice)
    return left(number, headline, advice)


def left(number: int, headline: str, advice: str) -> Left:
    """The exception to leave by after a signal; 0: a request."""
    if number == signal.SIGINT:
        return _left(KeyboardInterrupt(f"{headline}; {advice}"), headline, advice)
    return _left(SystemExit(128 + (number or signal.SIGTERM)), headline, advice)


def to_go_on(folder: Path | None, saved_step: int | None, ordered_step: int, update: str = "step") -> str:
    """What comes next after a save was ordered, and perhaps not written.

    Arguments:
        folder: the run's.
        saved_step: of the newest state that is whole.
        ordered_step: of the one that was to be written.
        update: what a step is called.
    """
    advice = how_to_go_on(folder)
    if saved_step is None:
        return "nothing could be saved: the run starts from its beginning again"
    if saved_step != ordered_step:
        return f"that {update} could not be saved; from {update} {saved_step:,}: {advice}"
    return advice


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
