"""The folder of an asynchronous run, as its driver writes it: records, sets of snapshots, weights, result.

The training's records and a set of snapshots are tied as records and checkpoints are: a set notes how long
`records.jsonl` was when it was begun, and a session that goes on from it cuts the file back to there.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from squall.errors import RunError
from squall.model import weights
from squall.records import (
    Ended,
    EpochEnded,
    Evaluating,
    Noted,
    Pushed,
    Record,
    SaveBegan,
    Saved,
    SaveFailed,
    SessionBegan,
    SessionEnded,
    Sink,
    Started,
)
from squall.run import folder, tensorboard, trackers
from squall.run.account import facts
from squall.run.book import Book
from squall.run.ending import write_result
from squall.run.requests import Request, take_away, waiting
from squall.run.result import Outcome, Result, cause
from squall.run.spec import RunSpec
from squall.server.disk import FOLDER, OnDisk
from squall.strategy.summary import Summary
from squall.version import own_version

_LOOK_S = 1.0


class Journal:
    """One run's records and files.

    Arguments:
        out: the run folder; None: nothing is written.
        name: of the run.
        spec: its numbers.
        fingerprint: its arithmetic's.
        sinks: called with every record.
        keep: sets of snapshots that stay.

    Raises:
        InputError: a folder that is busy, unwritable, or holds a run that came to its end.
    """

    def __init__(
        self,
        out: Path | None,
        name: str,
        spec: RunSpec,
        fingerprint: Mapping[str, Any],
        sinks: Sequence[Sink],
        keep: int,
    ) -> None:
        self.path, self._name, self._spec, self._fingerprint = out, name, spec, fingerprint
        self.book = Book(sinks)
        self.begun = False
        self._saved: int | None = None
        self._settled, self._seconds = 0, 0.0
        self._folder = folder.Folder(out, goes_on=True) if out is not None else None
        self.snapshots = OnDisk(out / FOLDER, keep) if out is not None else None
        self._looked = 0.0
        self._body: dict[str, Any] | None = None
        self._by_epoch = False
        self._mark: dict[str, Any] = {}

    def go_back(self, shards: int) -> tuple[int, float] | None:
        """The newest whole set of snapshots and the seconds it was made at; None: the run begins."""
        found = self.snapshots.go_back(shards) if self.snapshots is not None and self._has_records() else None
        if found is None:
            return None
        number, self._body = found
        self.book.load(self._body["book"])
        self._saved = self._settled = int(self._body["settled"])
        self._seconds = float(self._body["seconds"])
        return number, self._seconds

    @property
    def saved(self) -> int | None:
        """Minibatches, or iterations, in the newest whole set, from which the run would go on; None: there is none."""
        return self._saved

    @property
    def carried(self) -> Mapping[str, Any] | None:
        """What the coordinator of the session before had to say."""
        return self._body["tally"] if self._body is not None else None

    def begin(self, started: Started, argv: Mapping[str, Any] | None, names: Sequence[str], config: Any) -> None:
        """The first thing that is written: from here on there is a run."""
        body, path = self._body, self.path
        self._by_epoch = started.strategy == "sandblaster"  # its iterations are told as epochs are
        started = Started(**{**vars(started), "start_step": self._settled})
        if path is not None:
            (path / folder.RESULT).unlink(missing_ok=True)
            self._note_start(path, argv)
            take_away(path)  # what was asked of those before
            self.book.write_to(path / folder.RECORDS, path / folder.SESSIONS, body["records"] if body else 0)
            self.book.track(self._trackers(path, names, config))
        self.begun = True
        (self.book.show if body else self.book.emit)(started)
        self.book.emit(
            SessionBegan(
                time=time.time(),
                host=socket.gethostname(),
                pid=os.getpid(),
                processes=started.replicas,
                start_step=self._settled,
                fingerprint=dict(self._fingerprint),
                version=own_version(),
                launched=True,
            )
        )

    def hear(self, record: Record) -> None:
        """Takes what the coordinator says."""
        if isinstance(record, EpochEnded):
            if self._by_epoch:
                self._settled, self._seconds = record.epoch + 1, record.seconds
            self.book.note_epoch(record)
            return
        if isinstance(record, Evaluating):
            self.book.show(record)
            return
        if isinstance(record, SaveBegan):
            self._mark = {"records": self.book.length, "book": self.book.state()}
            return
        if isinstance(record, Pushed):
            self._settled, self._seconds = record.settled, record.seconds
        self.book.emit(self._noted(record) if isinstance(record, Saved) else record)

    def _noted(self, saved: Saved) -> Record:
        """Ties a set of snapshots to the records; what came of that."""
        if self.snapshots is not None:
            body = {"settled": saved.step, "seconds": saved.at, "tally": saved.tally, **self._mark}
            try:
                self.snapshots.note_whole(saved.number, body)
            except OSError as error:
                return SaveFailed(saved.step, error.strerror or str(error), self._saved)
        self._saved = saved.step
        lbfgs = {name: value for name, value in saved.tally.get("lbfgs", {}).items() if name != "history"}
        return (
            replace(saved, tally={**saved.tally, "lbfgs": lbfgs}) if lbfgs else saved
        )  # 10 kB that nobody reads there

    def request(self) -> Request | None:
        """What somebody asks of the run by a file in its folder; looked for once a second."""
        if self.path is None or time.monotonic() - self._looked < _LOOK_S:
            return None
        self._looked = time.monotonic()
        found = waiting(self.path)
        if found is not None:
            take_away(self.path)
        return found

    def finish(self, model: nn.Module, summary: Summary) -> Result:
        """Writes weights and result of a run that came to one."""
        values, seconds, self._settled = summary.values, summary.seconds, summary.done
        sha256 = weights.sha256(model.named_parameters())
        if self.path is not None:
            tensors = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
            try:
                self.book.flush()
                weights.save(self.path / folder.WEIGHTS, tensors, {"squall": "weights", "sha256": sha256})
            except OSError as error:
                raise RunError(
                    f"the weights cannot be written to {self.path}", [("found", error.strerror or str(error))]
                ) from error
        found = {
            **facts(self._name, "finished", self._spec, self._settled, self._fingerprint),
            **self.book.headline(),
            **values,
            "seconds": seconds,
            "weights_sha256": sha256,
        }
        if self.path is not None:
            write_result(self.path, found)
        self.book.emit(SessionEnded(time.time(), self._settled, "finished"))
        self.book.emit(Ended("finished", "", seconds, found))
        last = self.book.epochs[-1] if self.book.epochs else None
        averages = {split: getattr(last, split) for split in ("train", "val", "test")} if last else {}
        return Result("finished", "", self.path, found, **averages)

    def break_off(self, error: BaseException | None, summary: Summary | None) -> None:
        """Leaves word of an end without a result.

        Arguments:
            error: what ended it.
            summary: what its program came to; without one the numbers are those of the last push.
        """
        values: Mapping[str, Any] = {}
        if summary is not None:
            values, self._seconds = summary.values, summary.seconds
            self._settled = summary.done
        outcome: Outcome
        outcome, headline, advice = cause(error)
        base = {**facts(self._name, outcome, self._spec, self._settled, self._fingerprint), **values}
        seconds = self._seconds
        ended = Ended(
            outcome,
            advice,
            seconds,
            {**base, "error": headline, f"{outcome}_at_step": self._settled, "seconds": seconds},
        )
        self.book.emit(SessionEnded(time.time(), self._settled, outcome, headline))
        self.book.close_files()
        if self.path is not None:
            folder.note_end(self.path, ended)
        with suppress(Exception):
            self.book.emit(ended)

    def close(self) -> None:
        """Closes the files and gives the folder free; one in which nothing was trained is left empty."""
        self.book.close()
        if self._folder is not None:
            if self.path is not None and not self.begun:
                folder.clear(self.path)
            self._folder.close()
            self._folder = None

    def _has_records(self) -> bool:
        return self.path is not None and (self.path / folder.RECORDS).exists()

    def _note_start(self, path: Path, argv: Mapping[str, Any] | None) -> None:
        if not (path / folder.STARTED).exists():
            given = [sys.executable, *sys.argv] if sys.argv and sys.argv[0] else []
            fields = {"folder": str(Path.cwd()), "fields": asdict(self._spec)}
            folder.write_json(path / folder.STARTED, {**(argv or {"argv": given}), **fields})

    def _trackers(self, path: Path, names: Sequence[str], config: Any) -> list[Any]:
        def warn(text: str) -> None:
            self.book.show(Noted(text))

        found: list[Any] = trackers.make(
            names, folder=path, name=self._name, config=config, start_step=self._settled, warn=warn
        )
        if tensorboard.installed():
            found.append(tensorboard.TensorBoard(path / tensorboard.FOLDER, self._settled, warn))
        return found
