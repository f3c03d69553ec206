"""This process's connection to Ray, made and ended so that the process stays its caller's.

`ray.init` is called in a thread that lives as long as the connection::

    caller's thread    waits   ...   the caller's work, by any thread   ...   waits
    thread             ray.init() -- waits --------------------------- ray.shutdown(), ends

In the main thread Ray would take SIGTERM's handler, and Ctrl-C would break it off halfway, in its start or its end,
with processes left that nobody knows. In any other thread the kernel would end Ray's processes when that thread ends,
as Ray asks it to.

Ray's C++ half takes SIGTERM all the same, below Python, which does not notice: the process would abort with a trace. So
the handler that Python knows of is set once more.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from squall.engine.ray import surroundings
from squall.engine.ray.patience import unhurried
from squall.errors import InputError

_STARTS_S = 40.0  # Ray gives up by itself
_STOPS_S = 20.0


@contextmanager
def connection(
    around: AbstractContextManager[object], options: dict[str, Any], within: float | None = None
) -> Iterator[Any]:
    """A context in which this process is Ray's driver; gives Ray.

    Arguments:
        around: what is true while Ray starts.
        options: of `ray.init`.
        within: seconds; None: as long as Ray waits by itself.

    Raises:
        InputError: this process is connected already.
        TimeoutError: it took too long.
        Exception: what Ray raised.
    """
    ray: Any = surroundings.library()
    if ray.is_initialized():
        raise InputError(
            "this process is connected to Ray already",
            [("rule", "a run makes its own connection"), ("to do", "ray.shutdown() before the run")],
        )
    started, over = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def hold() -> None:
        try:
            with around:
                surroundings.reread()
                ray.init(log_to_driver=False, configure_logging=False, **options)
        except BaseException as error:
            failed.append(error)
        finally:
            started.set()
        over.wait()
        ray.shutdown()

    with surroundings.silence():
        thread = threading.Thread(target=hold, name="squall-ray", daemon=True)
        thread.start()
        in_time = True
        try:
            in_time = started.wait(within)
            if not in_time:
                raise TimeoutError
            if failed:
                raise failed[0]
            _take_back(signal.SIGTERM)
            yield ray
        finally:
            over.set()
            if in_time:  # else the thread ends when Ray gives up
                unhurried(lambda: thread.join(_STARTS_S + _STOPS_S))


def _take_back(number: int) -> None:
    """Sets the handler that Python knows of; only a process's main thread can."""
    handler = signal.getsignal(number)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def reason(error: BaseException) -> str:
    """What Ray says is wrong, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if error.__cause__ is not None and (cause := reason(error.__cause__)):
        lines = [*lines[:1], cause]
    return ": ".join(lines[:2])[:300] or type(error).__name__
