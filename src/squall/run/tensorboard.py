"""A run's records as TensorBoard events, where tensorboard is installed; without it nothing happens.

Events are written by tensorboard's own record writer, in the call that brings them: no thread, no queue, and nothing is
lost when a run is killed. Steps come in thousands a second at times and nobody looks at each: one a second is written.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from squall.records import EpochEnded, Logged, Record, Stepped

FOLDER = "tb"
_STEP_S = 1.0


def installed() -> bool:
    """Whether events can be written; costs no import."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoard:
    """A sink that writes scalars: losses, metrics, rate, speed, and where the time went.

    Arguments:
        folder: of the events' file; made with the first record, when tensorboard is imported too (0.2 s).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None
        self._stepped = -_STEP_S

    def __call__(self, record: Record) -> None:
        """Writes one record's numbers."""
        match record:
            case Stepped() if record.seconds - self._stepped >= _STEP_S:
                self._stepped = record.seconds
                self._write(record.step, {"step/loss": record.loss, "step/lr": record.lr})
            case EpochEnded():
                self._write(record.step, _of_epoch(record))
            case Logged():
                self._write(record.step, {f"log/{name}": value for name, value in record.values.items()})

    def close(self) -> None:
        """Closes the file; what a full disk did not take was an error when it was written."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.0"
            self._file = RecordWriter((self._folder / name).open("wb"))
            self._file.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._file.write(Event(wall_time=now, step=step, summary=Summary(value=scalars)).SerializeToString())
        self._file.flush()


def _of_epoch(record: EpochEnded) -> dict[str, float]:
    splits = {"train": record.train, "val": record.val, "test": record.test}
    return {
        **{f"{split}/{name}": value for split, values in splits.items() for name, value in values.items()},
        "lr": record.lr,
        "speed/samples_per_second": record.samples_per_second,
        **{f"speed/{name}_seconds": seconds for name, seconds in record.spent.items()},
    }
