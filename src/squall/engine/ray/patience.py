"""Waiting that a second Ctrl-C does not break off: what is being ended would stay, half ended."""

from __future__ import annotations

from collections.abc import Callable


def unhurried(wait: Callable[[], object]) -> None:
    """Waits for what has an end of its own, and raises only then what a signal's handler has raised meanwhile."""
    hurry: BaseException | None = None
    while True:
        try:
            wait()
            break
        except (KeyboardInterrupt, SystemExit) as error:
            hurry = error
    if hurry is not None:
        raise hurry
