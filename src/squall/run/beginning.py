"""Where a session of a run begins: at its first step, or with the state of the newest whole checkpoint.

setup    find      read the checkpoint, compare it, put model, optimiser and averages back
steps    begin     cut the records back to it, put ledger, generators and what is kept back, say who is here
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from squall.records import Noted
from squall.run import account, folder, resuming, state, tensorboard, trackers
from squall.run.collect import on_main
from squall.run.guards import check_scheduler
from squall.run.profile import Profile

if TYPE_CHECKING:
    from squall.run.run import Run
    from squall.run.stepper import Stepper


@dataclass
class Start:
    """The place where a session begins.

    Attributes:
        found: the checkpoint that it goes on from; None: the beginning.
    """

    found: resuming.Found | None = None
    _profile: Profile | None = None

    @property
    def first_step(self) -> int:
        """The first step that is computed."""
        return self.found.step if self.found is not None else 0

    def check_data(self, num_samples: int, digest: str) -> None:
        """Refuses another training set than the checkpoint's."""
        if self.found is not None:
            resuming.check_same_data(self.found.body, num_samples, digest)

    def begin(self, run: Run, stepper: Stepper, path: Path | None) -> None:
        """Says that the run begins, or goes on; `path` is of its folder, on the rank that writes."""
        assert stepper.order is not None
        check_scheduler(run.optimizer, bool(run.saver.kept), run.saver.is_on)
        body = self.found.body if self.found is not None else None
        if run.saver.is_on:
            run.saver.signals.listen()  # before anybody reads that the run has begun

        def open_files() -> None:
            if path is not None:
                (path / folder.RESULT).unlink(missing_ok=True)
                _note_start(path, run)
                run.book.write_to(path / folder.RECORDS, path / folder.SESSIONS, body["records"] if body else 0)

        on_main(run.world, open_files)
        if path is not None:
            run.book.track(_trackers(run, path, self.first_step))
        started = account.started(run, stepper.order, run.model, self.first_step)
        if self.found is None:
            run.book.emit(started)
        else:
            self._put_back(run, stepper)
            run.book.show(started)
            for name, why in self.found.passed_over:
                run.book.show(Noted(f"the checkpoint {name} is passed over: {why}"))
        run.saver.begin(stepper.order, self.first_step, body)
        if run.wants_profile and run.path is not None:
            self._profile = Profile(run.path, run.world.rank, run.world.device)
        run.book.begin_epoch()

    def end_step(self) -> None:
        """A step of the session is over."""
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        """The session's steps are over."""
        if self._profile is not None:
            self._profile.close()

    def _put_back(self, run: Run, stepper: Stepper) -> None:
        assert self.found is not None
        body, tensors = self.found.body, self.found.tensors
        assert stepper.ledger is not None
        if run.is_main:
            held = body["ledger"]
            stepper.ledger.load(tensors["ledger.counts"].cpu().numpy(), held["digest"], held["skipped"])
        run.book.load(body["book"])
        stepper.scale.load(body["scale"])
        stepper.passes.expect(body["metrics"])
        run.saver.kept.load(body["kept"], tensors)
        state.set_random_state(body["random"], run.world.device)
        tensors.clear()


def find(run: Run, path: Path | None) -> Start:
    """Looks for a checkpoint and puts the trained state back.

    Arguments:
        path: of the run's folder, on the rank that writes.

    Raises:
        InputError: a checkpoint that does not fit.
    """
    run.saver.agree()
    if not run.saver.is_on:
        return Start()
    found = resuming.find(run.world, path, run.spec)
    if found is None:
        return Start()
    resuming.check_same_run(found.body, run.spec, run.rate, run.fingerprint, run.other_arithmetic)
    state.restore(found.body, found.tensors, run.model, run.optimizer, run.ema)
    run.steps_done = found.step
    return Start(found)


def _trackers(run: Run, path: Path, start_step: int) -> list[Any]:
    """Who gets the records beside the files; what goes wrong with one of them is said, and stops nothing."""

    def warn(text: str) -> None:
        run.book.show(Noted(text))

    config = dict(run.config) if run.config is not None else asdict(run.spec)
    found: list[Any] = trackers.make(
        run.trackers, folder=path, name=run.name, config=config, start_step=start_step, warn=warn
    )
    if tensorboard.installed():
        found.append(tensorboard.TensorBoard(path / tensorboard.FOLDER, start_step, warn))
    return found


def _note_start(path: Path, run: Run) -> None:
    """How the run was started, for whoever wants to go on with it."""
    if not (path / folder.STARTED).exists():
        argv = [sys.executable, *sys.argv] if sys.argv and sys.argv[0] else []
        found = {**(run.started or {"argv": argv}), "folder": str(Path.cwd()), "fields": asdict(run.spec)}
        folder.write_json(path / folder.STARTED, found)
