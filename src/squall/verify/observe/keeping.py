"""Keeps the user's files: before a rank writes over one, moves it or removes it, a copy is put aside.

A script under observation saves as it always does, into the place where the real training saves: cut epochs would leave
their weights over the real ones, and the next trial would find the last one's checkpoints and go on from them. Python
tells before something is opened, renamed, linked, made or removed (audit hooks, PEP 578); writers in C++ and Rust are
asked at their door. What was there is noted (`journal`), and after the trial the owner puts all back
(`squall.verify.restoring`). What cannot be put aside is not touched: the script's call ends with `NotKeptError`.

    in the working folder      what was there comes back, what is new goes
    anywhere else              what was there comes back, what is new stays and is told
    hidden, temporary places   what was there comes back, what is new stays
    caches, modules compiled   left alone, and so are the trial's own folders
"""

from __future__ import annotations

import functools
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from squall.verify.observe.journal import Journal, New, is_in

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = frozenset(
    ("open", "os.truncate", "os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir"),
)
_CACHES = ("XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


class Keeper:
    """Puts files aside before they are changed.

    Arguments:
        folder: the job's.
        own: other folders of the trial.
    """

    def __init__(self, folder: Path, own: Sequence[Path]) -> None:
        self._here = os.path.realpath(Path.cwd())
        self._journal = Journal(folder, self._here)
        self._busy = threading.local()
        home = Path.home()
        caches = self._elsewhere(home / ".cache", *(os.environ[name] for name in _CACHES if os.environ.get(name)))
        ours = [os.path.realpath(place) for place in (folder, *own)]
        self._alone = (*ours, "/proc", "/sys", *caches)
        self._temporary = self._elsewhere(tempfile.gettempdir(), "/dev")
        hidden = f"{os.path.realpath(home)}{os.sep}."
        self._hidden = () if self._here.startswith(hidden) else (hidden,)

    def _elsewhere(self, *places: str | Path) -> tuple[str, ...]:
        """Those of the places in which the script does not run: else what it writes there is its work."""
        return tuple(real for real in map(os.path.realpath, places) if not is_in(self._here, real))

    def install(self) -> None:
        """From now on, for as long as the process lives."""
        sys.addaudithook(self._hook)
        self._ask_at_doors()

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or getattr(self._busy, "on", False):
            return
        self._busy.on = True
        try:
            self._heard(event, *arguments)
        finally:
            self._busy.on = False

    def _heard(self, event: str, path: Any, *more: Any) -> None:
        match event:
            case "open":
                _, flags = more
                if isinstance(flags, int) and flags & _WRITES:
                    self.keep(_place(path, follow=True))
            case "os.truncate":
                self.keep(_place(path, follow=True))
            case "os.rename":
                target, at, at_target = more
                self._rename(_place(path, at), _place(target, at_target))
            case "os.link":
                target, at, at_target = more
                self.keep(_place(path, at, follow=True))  # who writes to its other name writes to this one
                self.keep(_place(target, at_target))
            case "os.symlink":
                target, at = more
                self.keep(_place(target, at))
            case "os.remove" | "os.mkdir":
                self.keep(_place(path, more[-1]))
            case "os.rmdir":
                self.keep(_place(path, more[-1]), folder=True)

    def keep(self, place: str | None, *, folder: bool = False) -> None:
        """Notes what a place holds before it is changed; see `Journal.keep`."""
        if place is not None and not self._is_left_alone(place):
            self._journal.keep(place, new=self._new(place), folder=folder)

    def _rename(self, source: str | None, target: str | None) -> None:
        if source is None or target is None:
            return
        try:
            is_folder = stat.S_ISDIR(os.lstat(source).st_mode)
        except OSError:  # nothing will be renamed
            return
        if not is_folder:
            self.keep(source)
            self.keep(target)
        elif not (self._is_left_alone(source) and self._is_left_alone(target)):
            self._journal.move(source, target, new=self._new(target))

    def _is_left_alone(self, place: str) -> bool:
        return any(is_in(place, folder) for folder in self._alone) or f"{os.sep}__pycache__{os.sep}" in place

    def _new(self, place: str) -> New:
        if place.startswith(self._hidden) or any(is_in(place, folder) for folder in self._temporary):
            return "unsaid"
        return "goes" if is_in(place, self._here) else "stays"

    def _ask_at_doors(self) -> None:
        """Writers that Python does not hear of, where their callers look them up at each call, whatever these are
        called by: torch's zip files, its scripts, safetensors."""
        import safetensors.numpy
        import safetensors.torch
        import torch

        class PyTorchFileWriter(torch._C.PyTorchFileWriter):
            __init__ = self._asked(torch._C.PyTorchFileWriter.__init__, 1)

        torch._C.PyTorchFileWriter = PyTorchFileWriter  # type: ignore[misc]
        for name in ("ScriptModule", "RecursiveScriptModule", "ScriptFunction"):
            script: Any = getattr(torch.jit, name)
            script.save = self._asked(script.save, 1)
        for module in (safetensors.torch, safetensors.numpy):
            module.serialize_file = self._asked(module.serialize_file, 1)  # type: ignore[attr-defined]

    def _asked(self, call: Any, position: int) -> Any:
        @functools.wraps(call)
        def asked(*args: Any, **named: Any) -> Any:
            given = args[position] if len(args) > position else named.get("f", named.get("filename"))
            if isinstance(given, str | os.PathLike):
                self.keep(_place(given, follow=True))
            return call(*args, **named)

        return asked


def _place(path: Any, at: int = -1, *, follow: bool = False) -> str | None:
    """Where a path leads: absolute, without links but for its last part; None for a descriptor, or no path at all.

    Arguments:
        at: the descriptor of the folder that it is relative to; negative: the working folder.
        follow: the last part too, as who writes to a link does; who renames or removes it does not.
    """
    if isinstance(path, int) or path is None:
        return None
    try:
        name = os.fsdecode(path)
        if "\0" in name:
            return None
        if at >= 0:
            name = os.path.join(os.readlink(f"/proc/self/fd/{at}"), name)  # noqa: PTH118, PTH115
        above, last = os.path.split(name.rstrip(os.sep))
        if follow or last in ("", ".", ".."):
            return os.path.realpath(name)
        return os.path.join(os.path.realpath(above), last)  # noqa: PTH118
    except (OSError, ValueError, TypeError):  # the script's own call says what is wrong
        return None
