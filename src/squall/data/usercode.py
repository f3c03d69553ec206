"""Shows an exception in the user's own code as that: the user's lines, without the machinery around them.

A traceback out of a loader process is some sixty lines, of which one or two belong to the person who reads it. The
frames in installed packages, the standard library and Squall are dropped from the message; the whole text is kept
beside it, in `UserCodeError.traceback`, for the log.
"""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

from squall.errors import Row, UserCodeError

_SQUALL = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple(sorted({sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}))
_LONGEST = 600


def user_code_error(error: BaseException, at: str, *, alone: str = "") -> UserCodeError:
    """Describes an exception by the user's frames, outermost first.

    Arguments:
        error: as caught.
        at: where it happened, in a word: ``train[20417]``.
        alone: a command that repeats it, or nothing.

    Returns:
        A `UserCodeError` that can be pickled, its `traceback` holding the whole traceback as text.
    """
    kind = type(error).__name__
    rows: list[Row] = [
        (f"{_shown(frame.filename)}:{frame.lineno} in {frame.name}", frame.line or "") for frame in _own_frames(error)
    ]
    rows.append((kind, _clipped(str(error))))
    if alone:
        rows.append(("try alone", alone))
    out = UserCodeError(f"your code raised {kind} at {at}", rows)
    out.traceback = "".join(traceback.format_exception(error))
    return out


def alone_command(data: object, index: int) -> str:
    """A command that reads one sample by itself, if `data` (or the task that holds it) is a module's global variable.

    Example: ``python -c "import photos; photos.task.train[20417]"``. Empty where no name leads to the object.
    """
    for module_name in dict.fromkeys((type(data).__module__, "__main__")):
        module = sys.modules.get(module_name)
        path = _path_to(data, dict(vars(module))) if module else ""
        if module and path:
            if module_name == "__main__":
                module_name = Path(getattr(module, "__file__", None) or "").stem
                if not module_name.isidentifier():
                    continue
            return f'python -c "import {module_name}; {module_name}.{path}[{index}]"'
    return ""


def _path_to(data: object, names: dict[str, object]) -> str:
    for name, value in names.items():
        if value is data:
            return name
        for part in ("train", "val", "test"):
            if getattr(value, "__dict__", {}).get(part) is data:
                return f"{name}.{part}"
    return ""


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _inside(f.filename, (_SQUALL,))]
    own = [f for f in frames if not f.filename.startswith("<frozen") and not _inside(f.filename, _LIBRARIES)]
    # a library's data set that fails by itself: its own last frame says most
    return own or frames[-1:]


def _inside(filename: str, folders: tuple[str, ...]) -> bool:
    return any(filename.startswith(f"{folder}/") for folder in folders)


def _shown(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text):,} characters)"
