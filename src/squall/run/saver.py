"""When a run saves, how its ranks agree on it, and how they leave.

Nothing here waits for a disk or for another rank but the sums of the step, in which the ranks' votes travel::

    step i        votes of all ranks: stop? still saving? time to save?       known to all when the step's sums are
    boundary      save is due, and nobody is still saving   -->   copy the state (the only pause), order it written
    step i + 1    trained while the background processes write

Who is asked to leave waits for its own writer, then goes. An evaluation that is broken off by a signal leaves the step
that it belongs to open: the checkpoint holds the state right after the update, and the next session runs the rest of
the loop's body again.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from squall.checkpoint import files, layout, manifest
from squall.checkpoint.background import Background
from squall.checkpoint.spec import CheckpointSpec
from squall.data.order import Order
from squall.errors import RunError
from squall.records import Saved, SaveFailed, SessionBegan, SessionEnded, finite
from squall.run import requests, state
from squall.run.collect import each, say
from squall.run.folder import CHECKPOINTS, RECORDS
from squall.run.leaving import Left, left_by
from squall.run.signals import Signals
from squall.version import own_version

if TYPE_CHECKING:
    from squall.run.run import Run
    from squall.run.steps import Step

_LOOK_S = 1.0
_PATIENCE_S = 600.0
_PARTING_S = 3.0


class Saver:
    """Saves a run and lets it leave.

    Arguments:
        run: with a folder.
        spec: when, and what stays; None: no checkpoints, and signals do what they always do.
    """

    def __init__(self, run: Run, spec: CheckpointSpec | None) -> None:
        self._run = run
        self.spec = spec
        self.is_on = False
        self.kept = state.Kept()
        self.signals = Signals()
        self.saved_step: int | None = None
        self._background: Background | None = None
        self._writers: list[int] = []
        self._token = ""
        self._order: Order | None = None
        self._best: tuple[float, int] | None = None
        self._held: list[int] = []  # steps of the checkpoints on disk
        self._pending = False
        self._votes: dict[str, float] = {}
        self._looked = self._last_save = time.monotonic()
        self._request: requests.Request | None = None
        self._moment: dict[str, Any] = {}
        self._blocked = 0.0
        self._removed: list[int] = []

    def agree(self) -> None:
        """Whether the run is saved at all is rank 0's word: only it needs a folder."""
        wanted = self.spec is not None and self._run.path is not None
        self.is_on = bool(each(self._run.world, int(wanted))[0])

    @property
    def folder(self) -> Path:
        """Of the checkpoints."""
        assert self._run.path is not None
        return self._run.path.absolute() / CHECKPOINTS

    def begin(self, order: Order, start_step: int, body: Mapping[str, Any] | None) -> None:
        """The run's processes are here and about to train; `body` is of the checkpoint they go on from."""
        run, world = self._run, self._run.world
        self._order = order
        if run.is_main and run.path is not None:
            requests.take_away(run.path)  # asked of processes that are gone
            host, pid, size = socket.gethostname(), os.getpid(), world.size
            run.book.emit(SessionBegan(time.time(), host, pid, size, start_step, run.fingerprint, own_version()))
        if not self.is_on:
            return
        self._token = say(world, f"{os.getpid()}-{time.time_ns():x}")
        self._writers = [rank for rank, sees in enumerate(each(world, int(self._sees_folder()))) if sees]
        if world.rank in self._writers:
            if run.is_main:
                self.folder.mkdir(exist_ok=True)
                files.sweep(self.folder)
                self._held = files.steps_of(self.folder)
            self._background = Background()
        if body is not None:
            self._best = tuple(body["best"]) if body.get("best") else None
            self.saved_step = start_step
        self._last_save = time.monotonic()

    # -- what ranks tell each other ------------------------------------------------------------------------------------

    def votes(self) -> tuple[float, ...]:
        """This rank's votes, for the step's sums."""
        if not self.is_on:
            return (0.0, 0.0, 0.0, 0.0)
        self._listen()
        stop = bool(self.signals.noted) or (self._request is not None and self._request.do == "stop")
        resize = self._request is not None and self._request.do == "resize"
        busy = self._background is not None and self._background.busy
        return float(stop), float(resize), float(busy), float(self._run.is_main and self._is_time())

    def hear(self, votes: Mapping[str, float]) -> None:
        """All ranks' votes of a step."""
        self._votes = dict(votes)
        self._pending |= votes["due"] > 0

    def updated(self, step: Step) -> None:
        """An update was applied: notes what is needed to go on from here, if the rest of the body is broken off."""
        if self.is_on and not step.is_replay:
            self._moment = self._now()

    def end_step(self, step: Step, before: float, after: float) -> None:
        """The loop's body is over: saves if that is due, leaves if that is asked.

        Arguments:
            before, after: epochs done before and after the step.
        """
        if self.spec is None or self._order is None or not self.is_on:
            return  # without checkpoints, or closed in the loop
        self._hear_writer()
        best = step.ends_epoch and self._is_best(step.index + 1)
        self._pending |= best or self.spec.is_due(step.index, before, after)
        leaving = self._votes.get("stop") or self._votes.get("resize")
        now = best or step.index + 1 == self._order.num_steps  # this state and no later one: waits if it must
        if leaving or (self._pending and (now or not self._votes.get("busy"))):
            self.save()
        if leaving:
            raise self.leave("resize" if self._votes.get("resize") else "stop")

    def break_off_evaluation(self) -> Left:
        """All ranks have left an evaluation, since one was asked to: saves and leaves.

        The update of the step at hand is applied and the rest of the loop's body is not done, so it is left open.
        """
        step = self._run.now
        done = self._run.steps_done
        open_step = step is not None and step.index + 1 == done and not self._run.body_ended
        self.save(open_step=step if open_step else None)
        resize = any(each(self._run.world, int(self._request is not None and self._request.do == "resize")))
        return self.leave("resize" if resize else "stop")

    def is_asked(self) -> bool:
        """Whether this rank was asked to leave: looked at between the batches of an evaluation."""
        if not self.is_on or self._order is None:
            return False
        step = self._run.now
        if step is not None and self._run.steps_done != step.index + 1:
            return False  # in the middle of a step, which has no state to save
        self._listen()
        return bool(self.signals.noted) or self._request is not None

    # -- saving --------------------------------------------------------------------------------------------------------

    def save(self, open_step: Step | None = None) -> None:
        """Copies the state and has it written; all ranks call it after the same step.

        Arguments:
            open_step: the step whose update is applied and whose rest of the loop's body is to be run again.
        """
        run, started = self._run, time.perf_counter()
        assert self.spec is not None
        assert run.stepper is not None
        assert run.stepper.ledger is not None
        self._pending = False
        if self._background is not None and self._background.busy:
            self._answered(self._background.wait(_PATIENCE_S))
        counts, digest, skipped = run.stepper.ledger.total(run.world)
        found = state.collect(run.model, run.optimizer, run.ema)
        found.tensors["ledger.counts"] = torch.from_numpy(counts)
        moment = self._moment if open_step is not None else self._now()
        kept = {name: {**held, "tensors": None} for name, held in moment["kept"].items()}
        for held in moment["kept"].values():
            found.tensors |= held["tensors"]
        placed = layout.entries(found.tensors)
        lengths = layout.lengths(placed)
        slices = {
            f"rank-{rank}.safetensors": {
                dtype: layout.cut(length, len(self._writers), number) for dtype, length in lengths.items()
            }
            for number, rank in enumerate(self._writers)
        }
        step, name = run.steps_done, f"rank-{run.world.rank}"
        if self._background is not None:
            header, size = self._background.copy(placed, found.tensors, slices[f"{name}.safetensors"])
            folder = self.folder / f".{files.name_of(step)}.{self._token}"
            order = {"step": step, "folder": str(folder), "name": name, "header": header, "bytes": size}
            if run.is_main:
                body = {
                    **found.values,
                    **self._facts(),
                    "step": step,
                    "tensors": [entry.as_json() for entry in placed],
                    "slices": slices,
                    "scale": run.stepper.scale.state(),
                    "metrics": run.stepper.passes.metric_names,
                    "ledger": {"digest": digest, "skipped": skipped},
                    "book": run.book.state(),
                    "records": moment["records"],
                    "random": state.encoded(moment["random"]),
                    "kept": kept,
                    "open_step": _open(open_step),
                    "best": self._best,
                }
                order |= self._completion(step, body)
            self._background.order(order)
        blocked = time.perf_counter() - started
        run.book.note_saving(blocked)
        self._blocked = blocked
        self._last_save = time.monotonic()

    def finish(self) -> None:
        """Waits until what is being written is written: the run is over."""
        if self._background is not None and self._background.busy:
            self._answered(self._background.wait(_PATIENCE_S))

    def leave(self, why: str) -> Left:
        """Ends the run as stopped, once its checkpoint is whole; gives the exception to leave its loop by."""
        self.signals.deaf = True
        self.finish()
        each(self._run.world, 0)  # rank 0's writer has all files: nobody's end disturbs it any more
        if self._run.is_main and self._request is not None and self._request.do == "stop":
            assert self._run.path is not None
            requests.take_away(self._run.path)  # the one for another number of processes is the launcher's to follow
        number = self.signals.noted or signal.SIGTERM
        asked = not self.signals.noted and self._request is not None
        left = left_by(why, number, self._run, self.saved_step, asked=asked)
        self._run.leave(left)
        return left

    def close(self, outcome: str = "", why: str = "") -> None:
        """Ends the writer, which may end a checkpoint that is nearly written, and gives the signals back."""
        if self._background is not None:
            self._answered(self._background.wait(_PARTING_S))
            self._background.close()
            if self._run.is_main:
                files.sweep(self.folder)
            self._background = None
        if self._order is not None and self._run.is_main and self._run.path is not None:
            self._run.book.emit(SessionEnded(time.time(), self._run.steps_done, outcome, why))
            self._order = None
        self.signals.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Looks for a request in the folder, at most once a second; rank 0 does it for all."""
        now = time.monotonic()
        if self._run.is_main and now - self._looked > _LOOK_S:
            self._looked = now
            assert self._run.path is not None
            self._request = self._request or requests.waiting(self._run.path)
            self._hear_writer()

    def _is_time(self) -> bool:
        assert self.spec is not None
        duration = self.spec.duration
        return duration.unit == "second" and time.monotonic() - self._last_save >= duration.amount

    def _is_best(self, step: int) -> bool:
        """Whether the epoch's validation metric is the best so far; rank 0's word for all."""
        assert self.spec is not None
        if self.spec.best is None:
            return False
        name, less = self.spec.best
        values = self._run.book.epochs[-1].val
        value = say(self._run.world, repr(float(values[name])) if name in values else f"val/{' val/'.join(values)}")
        if value.startswith("val/"):
            raise RunError(
                f"keep_best={self.spec.keep_best} names no metric of this run",
                [("found", value if values else "no validation metric"), ("rule", "it is measured in every epoch")],
            )
        now, before = float(value), self._best[0] if self._best else math.nan
        better = math.isfinite(now) and (math.isnan(before) or (now < before if less else now > before))
        if better:
            self._best = (now, step)
        return better

    def _now(self) -> dict[str, Any]:
        return {
            "random": state.random_state(self._run.world.device),
            "kept": self.kept.state() if self.kept else {},
            "records": self._run.book.length,
        }

    def _facts(self) -> dict[str, Any]:
        run = self._run
        assert self._order is not None
        return {
            "format": manifest.FORMAT,
            "squall": own_version(),
            "name": run.name,
            "spec": asdict(run.spec),
            "fingerprint": run.fingerprint,
            "num_samples": self._order.num_samples,
            "num_steps": self._order.num_steps,
            "data": run.data_digest,
            "processes": run.world.size,
        }

    def _completion(self, step: int, body: Mapping[str, Any]) -> dict[str, Any]:
        """What rank 0's writer needs to make the checkpoint of all ranks' files."""
        assert self.spec is not None
        assert self._run.path is not None
        held = sorted({*self._held, step}, reverse=True)
        kept = {*held[: self.spec.keep], self._best[1] if self._best else step}
        self._removed = [other for other in held if other not in kept]
        return {
            "parts": [f"rank-{rank}" for rank in self._writers],
            "final": files.name_of(step),
            "manifest": manifest.FILE,
            "body": body,
            "sync": [(str(self._run.path.absolute() / RECORDS), body["records"])],
            "remove": [files.name_of(other) for other in self._removed],
        }

    def _hear_writer(self) -> None:
        if self._background is not None:
            self._answered(self._background.answer())

    def _answered(self, answer: Mapping[str, Any] | None) -> None:
        """What the writer said of the last order."""
        if answer is None:
            return
        step = int(answer["step"])
        error = answer.get("error", "")
        try:
            self._run.book.flush()
        except OSError as full:  # a checkpoint counts on the records before it
            error = error or full.strerror or str(full)
        if error:
            if self._run.is_main:
                self._run.book.emit(SaveFailed(step, str(error), self.saved_step))
            return
        self.saved_step = step
        if self._run.is_main:
            self._held = [other for other in {*self._held, step} if other not in self._removed]
            seconds, size = float(answer["seconds"]), int(answer["bytes"])
            self._run.book.emit(Saved(step, self._blocked, seconds, size))

    def _sees_folder(self) -> bool:
        """Whether this rank writes into the same folder as rank 0: on another machine it may be another one."""
        path = self._run.path
        mark = path / f".session-{self._token}" if path is not None else None
        if self._run.is_main and mark is not None:
            mark.touch()
        each(self._run.world, 0)
        sees = mark is not None and mark.exists()
        each(self._run.world, 0)
        if self._run.is_main and mark is not None:
            mark.unlink(missing_ok=True)
        return sees


def _open(step: Step | None) -> dict[str, Any] | None:
    """A step whose loop's body is to be run again from its update on, as plain values."""
    if step is None:
        return None
    assert step.sums is not None
    sums = {"loss": step.sums.loss, "count": step.sums.count, "samples": step.sums.samples}
    return {"seconds": step.seconds, "sums": finite({**sums, "metrics": step.sums.metrics})}
