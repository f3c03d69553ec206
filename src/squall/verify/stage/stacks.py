"""Where a process was: from an exception, or from what `faulthandler` writes when a signal comes.

`faulthandler` writes from within the signal handler, so it answers even where the main thread waits in C code, as one
that waits for other ranks does. The frames of the stage itself, which called the user's code, are left out.
"""

from __future__ import annotations

import linecache
import re
import traceback
from pathlib import Path

from squall.verify.stage.job import Failure, Frame

_HEADER = "most recent call first"
_LINE = re.compile(r'  File "(?P<path>.*)", line (?P<line>\d+) in (?P<function>.*)')
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")


def failure(error: BaseException) -> Failure:
    """An exception that left the function which the caller has called; the caller's own frame is left out."""
    frames = error.__traceback__.tb_next if error.__traceback__ else None
    told = traceback.TracebackException(type(error), error, frames)
    said = list(told.format_exception_only())
    where = [
        Frame(path=each.filename, line=each.lineno or 0, function=each.name, text=each.line or "")
        for each in told.stack
    ]
    if isinstance(error, SyntaxError) and error.filename:
        text = (error.text or "").strip()
        where.append(Frame(path=error.filename, line=error.lineno or 0, function="<module>", text=text))
    kind = type(error)
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return Failure(
        type=f"{module}{kind.__qualname__}",
        message=_message(error, said),
        frames=where,
        traceback="".join(told.format()),
    )


def _message(error: BaseException, said: list[str]) -> str:
    try:
        return str(error)
    except Exception:  # the user's own __str__
        return "".join(said).strip()


def last_stack(path: Path, own: str) -> list[Frame]:
    """The last stack in a file that `faulthandler` has written, innermost last.

    Arguments:
        own: path of the code that called the user's: its frames, and those outside of it, are left out.
    """
    frames: list[Frame] = []
    for line in path.read_text(errors="replace").splitlines():
        if _HEADER in line:
            frames = []
        elif match := _LINE.fullmatch(line):
            file = _ESCAPE.sub(lambda code: chr(int(code[1] or code[2] or code[3], 16)), match["path"])
            number = int(match["line"])
            text = linecache.getline(file, number).strip()
            frames.append(Frame(path=file, line=number, function=match["function"], text=text))
    inner = next((count for count, frame in enumerate(frames) if frame["path"] == own), len(frames))
    return frames[inner - 1 :: -1] if inner else []
