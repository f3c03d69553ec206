"""Trackers by name: MLflow, Weights & Biases; TensorBoard writes its events wherever it is installed.

One run, one writer: rank 0 alone makes trackers. A resumed run goes on as the same run of its tracker, whose name for
it is kept in the run's folder::

    trackers.json   {"mlflow": "7f30...", "wandb": "a1b2c3d4"}      no address and no key
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from squall.errors import InputError, MissingExtraError, nearest
from squall.records import dotted
from squall.run.folder import LOGS, write_json
from squall.run.tracker import CLOSE_S, Tracker

FILE = "trackers.json"

_EXTRAS = {"mlflow": "mlflow", "tensorboard": "report", "wandb": "wandb"}
_TITLES = {"mlflow": "the MLflow tracker", "tensorboard": "TensorBoard", "wandb": "the Weights & Biases tracker"}

NAMES = tuple(_EXTRAS)


def check(names: Sequence[str]) -> None:
    """Refuses names that are not known or not installed; imports nothing.

    Raises:
        InputError: not known; with the known ones.
        MissingExtraError: not installed; with pip's line.
    """
    rows = []
    for name in names:
        if name not in NAMES:
            near = nearest(name, NAMES)
            rows.append((name, f"not known. {f'Near: {near[0]}. ' if near else ''}One of: {' '.join(NAMES)}"))
    if rows:
        raise InputError(f"{len(rows)} unknown tracker{'' if len(rows) == 1 else 's'}", rows)
    for name in names:
        if not _installed(name):
            raise MissingExtraError(_TITLES[name], name, _EXTRAS[name])


def make(
    names: Sequence[str],
    *,
    folder: Path | None,
    name: str,
    config: Mapping[str, Any],
    start_step: int,
    warn: Callable[[str], None],
    close_s: float = CLOSE_S,
) -> list[Tracker]:
    """The trackers of a run, as sinks that start with its first record.

    "tensorboard" only asks that it be installed: its events are the folder's own (`squall.run.tensorboard`).

    Arguments:
        names: of `NAMES`.
        folder: the run's; None: nothing is kept to go on with.
        name: of the run.
        config: what fixes it; tables become dotted names.
        start_step: the first step that is computed now.
        warn: is told, in the calls of the sinks, what a person should know.
        close_s: seconds that the last values have to arrive, from the run's end on.

    Raises:
        InputError: as `check`.
    """
    check(names)
    known = Known(folder)
    return [
        Tracker(
            tracker,
            f"squall.run.track_{tracker}",
            {
                "known": known.get(tracker),
                "name": name,
                "start_step": start_step,
                "folder": str(folder.absolute()) if folder else None,
            },
            plain(config),
            keep=partial(known.keep, tracker),
            warn=warn,
            log=folder / LOGS / f"{tracker}.log" if folder else None,
            close_s=close_s,
        )
        for tracker in dict.fromkeys(names)
        if tracker != "tensorboard"
    ]


class Known:
    """What trackers call a run, kept in its folder; whatever cannot be read or written is a new run to them."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / FILE if folder else None
        self._lock = threading.Lock()

    def get(self, tracker: str) -> str | None:
        """The tracker's name of the run; None: it knows none."""
        found = self._read().get(tracker)
        return found if isinstance(found, str) else None

    def keep(self, tracker: str, identity: str) -> None:
        """Notes the tracker's name of the run; called by each tracker's own thread."""
        if self._path is not None:
            with self._lock, suppress(OSError):
                write_json(self._path, {**self._read(), tracker: identity})

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8")) if self._path else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Tables as dotted names; values as trackers know them, those that are not set left out."""
    return {
        key: value if isinstance(value, str | int | float | bool) else json.dumps(value, default=str)
        for key, value in dotted(config).items()
        if value is not None
    }


def _installed(name: str) -> bool:
    """A package, not just a folder of that name: wandb leaves one wherever it has run."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None
