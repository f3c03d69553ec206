"""When a run saves, how its ranks agree on it, and how they leave.

Nothing here waits for a disk or for another rank but the sums of the step, in which the ranks' votes travel::

    step i        votes of all ranks: stop? still saving? time to save?       known to all when the step's sums are
    boundary      save is due, and nobody is still saving   -->   copy the state (the only pause), order it written
    step i + 1    trained while the background processes write

Who is asked to leave waits for the writers, then goes. An evaluation at an epoch's end can be broken off: the state
before the epoch's last step was copied, and is written only then; the next session computes that step again. An
evaluation anywhere else is finished first.
"""

from __future__ import annotations

import os
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
from squall.records import Saved, SaveFailed, SessionEnded
from squall.run import account, requests, state
from squall.run.collect import differing, each, on_main, say
from squall.run.folder import CHECKPOINTS, RECORDS
from squall.run.leaving import Left, left_by
from squall.run.retention import Retention
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
        self._background: Background | None = None
        self._retention = Retention(1)
        self._writers: list[int] = []
        self._token = ""
        self._order: Order | None = None
        self._pending = False
        self._votes: dict[str, float] = {}
        self._looked = self._last_save = time.monotonic()
        self._request: requests.Request | None = None
        self._copied: dict[str, Any] | None = None  # an order for a state that is copied and not written
        self._copied_step = self._ordered_step = self._heard_step = -1
        self._blocked = 0.0
        self._length = 0  # of the records when the last loop's body was over

    @property
    def folder(self) -> Path:
        """Of the checkpoints."""
        assert self._run.path is not None
        return self._run.path.absolute() / CHECKPOINTS

    @property
    def saved_step(self) -> int | None:
        """Updates that the newest whole checkpoint holds, as rank 0 knows."""
        return self._retention.newest

    def agree(self) -> None:
        """Whether the run is saved at all is rank 0's word: only it needs a folder.

        Raises:
            RunError: ranks were given different rules.
        """
        wanted = self.spec is not None and self._run.path is not None
        self.is_on = bool(each(self._run.world, int(wanted))[0])
        if strayed := differing(self._run.world, repr(self.spec)) if self.is_on else []:
            raise RunError(
                f"rank {strayed[0]} has another checkpoint= than rank 0",
                [("rule", "all ranks save after the same steps")],
            )

    def begin(self, order: Order, start_step: int, body: Mapping[str, Any] | None) -> None:
        """The run's processes are here and about to train; `body` is of the checkpoint they go on from.

        Raises:
            RunError: a state that no checkpoint can hold: now, not after the first epoch.
        """
        run, world = self._run, self._run.world
        self._order, self._length = order, run.book.length
        if run.is_main and run.path is not None:
            requests.take_away(run.path)  # asked of processes that are gone
            run.book.emit(account.session_began(run, start_step))
        if not self.is_on:
            return
        assert self.spec is not None
        layout.entries(self._collected().tensors)
        self._token = say(world, f"{os.getpid()}-{time.time_ns():x}")
        on_main(world, lambda: self._open_folder(start_step))
        seen = each(world, int(self._sees_folder()))
        self._writers = [rank for rank, sees in enumerate(seen) if sees]
        if world.rank in self._writers:
            self._background = Background()
        if run.is_main:
            self._mark.unlink(missing_ok=True)
        less = self.spec.best is not None and self.spec.best[1]
        held = [step for step in files.steps_of(self.folder) if step <= start_step] if run.is_main else []
        self._retention = Retention(self.spec.keep, less, held, body["best"] if body is not None else None)
        self._ordered_step = self._heard_step = start_step if body is not None else -1
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

    def hear(self, step: int, votes: Mapping[str, float]) -> None:
        """All ranks' votes of a step."""
        self._votes, self._heard_step = dict(votes), step
        self._pending |= votes["due"] > 0

    def end_step(self, step: Step, before: float, after: float) -> None:
        """The loop's body is over: saves if that is due, leaves if that is asked.

        Arguments:
            before, after: epochs done before and after the step.
        """
        self._length = self._run.book.length
        if self.spec is None or self._order is None or not self.is_on:
            return  # without checkpoints, or closed in the loop
        self._hear_writer()
        best = step.ends_epoch and self._is_best(step.index + 1)
        self._pending |= best or self.spec.is_due(step.index, before, after)
        leaving = self._votes.get("stop") or self._votes.get("resize")
        last = step.index + 1 == self._order.num_steps
        # on a GPU the votes are those of the step before: cast, maybe, before the last order was given
        writing = self._votes.get("busy") or self._heard_step < self._ordered_step
        saves = leaving or (self._pending and (best or last or not writing))
        ahead = not last and not writing and self._order.step(step.index + 1).ends_epoch
        if saves or ahead:
            self._run.settle_late()
            self._length = self._run.book.length
        if saves:
            self.save()
        elif ahead:
            self._copy()  # for an evaluation that is broken off
        if leaving:
            raise self.leave("stop" if self._votes.get("stop") else "resize")

    def is_asked(self) -> bool:
        """Whether this rank is to leave an evaluation: asked to, and with a state from before the step at hand."""
        step, done = self._run.now, self._run.steps_done
        if not self.is_on or self._order is None:
            return False
        if step is not None and not self._run.body_ended and done - 1 not in (self._copied_step, self._ordered_step):
            return False
        self._listen()
        return bool(self.signals.noted) or self._request is not None

    def break_off_evaluation(self) -> Left:
        """All ranks have left an evaluation, since one was asked to: saves what is not on disk yet, and leaves."""
        if self._run.body_ended:
            self.save()
        elif self._copied_step == self._run.steps_done - 1:
            self._write()
        asked = self._request.do if self._request is not None and not self.signals.noted else ""
        marks = each(self._run.world, 2 * bool(self.signals.noted or asked == "stop") + (asked == "resize"))
        return self.leave("resize" if max(marks) == 1 else "stop")

    # -- saving --------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Copies the state and has it written; all ranks call it after the same step."""
        self._pending = False
        if self._copied_step != self._run.steps_done:
            self._copy()
        self._write()
        self._last_save = time.monotonic()

    def finish(self) -> None:
        """Waits until what is being written is written, on all ranks.

        Ranks tell each other once a second that they are still there: no deadline passes while a disk takes its time.
        """
        end = time.monotonic() + _PATIENCE_S
        background = self._background
        while self.is_on:
            if background is not None:
                self._answered(background.wait(_LOOK_S))
            busy = background is not None and background.busy
            if not any(each(self._run.world, int(busy))):
                return
            if time.monotonic() > end and background is not None and busy:
                self._answered(background.give_up(f"not written within {_PATIENCE_S:g} s"))

    def leave(self, why: str) -> Left:
        """Ends the run as stopped, once its checkpoint is whole; gives the exception to leave its loop by."""
        self.signals.deaf = True
        self.finish()
        if self._run.is_main and self._request is not None and self._request.do == "stop":
            assert self._run.path is not None
            requests.take_away(self._run.path)  # the one for another number of processes is the launcher's to follow
        noted = each(self._run.world, self.signals.noted)
        newest = each(self._run.world, -1 if self.saved_step is None else self.saved_step)[0]
        number, saved_step = next(filter(None, noted), 0), newest if newest >= 0 else None
        left = left_by(why, number, self._run, saved_step, self._ordered_step)
        self._run.leave(left)
        return left

    def close(self, outcome: str = "", why: str = "") -> None:
        """Ends the writer, which may end a checkpoint that is nearly written, and gives the signals back."""
        if self._background is not None:
            self._answered(self._background.wait(_PARTING_S))
            self._background.close()
            self._background = None
            if self._run.is_main:
                files.sweep(self.folder)
        began, self._order = self._order is not None, None
        if began and self._run.is_main and self._run.path is not None:
            self._run.book.emit(SessionEnded(time.time(), self._run.steps_done, outcome, why))
        self.signals.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _copy(self) -> None:
        """Copies the state into shared memory: the pause of a save. All ranks do, after the same step."""
        run, started = self._run, time.perf_counter()
        self.finish()  # of a writer whose rank had no pass to vote in nobody has heard
        assert run.stepper is not None
        assert run.stepper.ledger is not None
        counts, digest, skipped = run.stepper.ledger.total(run.world)
        found = self._collected()
        found.tensors["ledger.counts"] = torch.from_numpy(counts)
        placed = layout.entries(found.tensors)
        lengths = layout.lengths(placed)
        slices = {
            f"rank-{rank}.safetensors": {
                dtype: layout.cut(length, len(self._writers), number) for dtype, length in lengths.items()
            }
            for number, rank in enumerate(self._writers)
        }
        step, name = run.steps_done, f"rank-{run.world.rank}"
        self._copied, self._copied_step = None, step
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
                    "records": self._length,
                    "random": state.random_state(run.world.device),
                    "best": self._retention.best_with(step),
                }
                order |= self._completion(step, body)
            self._copied = order
        self._blocked = time.perf_counter() - started
        run.book.note_saving(self._blocked)

    def _write(self) -> None:
        """Orders the copied state written, unless it was."""
        order, self._copied, self._ordered_step = self._copied, None, self._copied_step
        if order is not None:
            assert self._background is not None
            self._background.order(order)

    def _collected(self) -> state.State:
        """What is trained, and what the loop keeps."""
        run = self._run
        found = state.collect(run.model, run.optimizer, run.ema)
        found.values["kept"] = self.kept.collect(found.tensors)
        return found

    def _facts(self) -> dict[str, Any]:
        run = self._run
        assert self._order is not None
        return {
            "format": manifest.FORMAT,
            "squall": own_version(),
            "name": run.name,
            "spec": asdict(run.spec),
            "rate": run.rate,
            "fingerprint": run.fingerprint,
            "num_samples": self._order.num_samples,
            "num_steps": self._order.num_steps,
            "data": run.data_digest,
            "processes": run.world.size,
        }

    def _completion(self, step: int, body: Mapping[str, Any]) -> dict[str, Any]:
        """What rank 0's writer needs to make the checkpoint of all ranks' files."""
        assert self._run.path is not None
        return {
            "parts": [f"rank-{rank}" for rank in self._writers],
            "final": files.name_of(step),
            "manifest": manifest.FILE,
            "body": body,
            "sync": [(str(self._run.path.absolute() / RECORDS), body["records"])],
            "remove": [files.name_of(other) for other in self._retention.removable(step)],
        }

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
        name, _ = self.spec.best
        values = self._run.book.epochs[-1].val
        value = say(self._run.world, repr(float(values[name])) if name in values else f"val/{' val/'.join(values)}")
        if value.startswith("val/"):
            raise RunError(
                f"keep_best={self.spec.keep_best} names no metric of this run",
                [
                    ("found", value if values else "no validation metric"),
                    ("rule", "it is measured in every epoch"),
                    ("to do", "checkpoint.keep_best= one of those that were found, or none"),
                ],
            )
        better = self._run.is_main and self._retention.is_better(float(value), step)
        return bool(each(self._run.world, int(better))[0])

    def _hear_writer(self) -> None:
        if self._background is not None:
            self._answered(self._background.answer())

    def _answered(self, answer: Mapping[str, Any] | None) -> None:
        """What the writer said of the last order."""
        if answer is None or not self._run.is_main:
            return
        step = int(answer["step"])
        if "error" in answer:
            self._retention.has_failed(step)
            self._run.book.emit(SaveFailed(step, str(answer["error"]), self.saved_step))
            return
        self._retention.is_whole(step)
        self._run.book.emit(Saved(step, self._blocked, float(answer["seconds"]), int(answer["bytes"])))

    @property
    def _mark(self) -> Path:
        return self.folder / f".session-{self._token}"

    def _open_folder(self, start_step: int) -> None:
        """Makes the folder of the checkpoints ready: without what died half written, the torn ones set aside."""
        self.folder.mkdir(exist_ok=True)
        files.sweep(self.folder)
        files.set_aside(self.folder, after=start_step)
        self._mark.touch()

    def _sees_folder(self) -> bool:
        """Whether this rank writes into the same folder as rank 0: on another machine it may be another one."""
        return self._run.path is not None and self._mark.exists()
