"""The observer never ends a training: where a hook fails, that is noted, and the script goes on as if it were alone.

A hook has parts of ours and, between them, what the script asked for. Only ours are guarded; an exception of the
script's own passes as it is::

    @watching(None)                           a method that only observes, of an object with a `recorder`
    def _given(self, batch): ...

    with Guard(recorder, "batch"): ...        some lines of ours

What a hook could not see is an event, one for each hook: ``{"event": "blind", "hook", "error", "where", "times"}``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from squall.verify.observe.recorder import Recorder, where

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")

_LONG = 300  # characters of an error that are kept


def note_blind(recorder: Recorder, hook: str, error: Exception) -> None:
    """Notes that a hook has failed: an event the first time, a count from then on."""
    event = recorder.blind.get(hook)
    if event is None:
        says = f"{type(error).__name__}: {error}"[:_LONG]
        event = recorder.blind[hook] = recorder.note("blind", hook=hook, error=says, where=where(), times=0)
    event["times"] += 1


def watching(returning: D) -> Callable[[Callable[Concatenate[Any, P], R]], Callable[Concatenate[Any, P], R | D]]:
    """Makes a method that only observes harmless: where it fails, that is noted, and it returns what is given here.

    Nothing of the script's may be called in it: its exceptions would be taken for ours.

    Example:
        >>> class Hooks:
        ...     def __init__(self, recorder): self.recorder = recorder
        ...     @watching(None)
        ...     def after_step(self, optimizer): ...
    """

    def decorate(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R | D]:
        @functools.wraps(method)
        def guarded(one: Any, /, *args: P.args, **named: P.kwargs) -> R | D:
            try:
                return method(one, *args, **named)
            except Exception as error:
                note_blind(one.recorder, method.__qualname__, error)
                return returning

        return guarded

    return decorate


class Guard:
    """Around some lines of ours: what fails in them is noted, and the lines after them are run."""

    def __init__(self, recorder: Recorder, hook: str) -> None:
        self.recorder, self.hook = recorder, hook

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        note_blind(self.recorder, self.hook, error)
        return True
