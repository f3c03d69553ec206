"""One rank of an observed training: hooks first, then the user's script as `python script.py` would run it."""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from squall.verify.observe import frameworks
from squall.verify.observe.appointment import Appointment
from squall.verify.observe.blind import Guard, watching
from squall.verify.observe.enough import Course, Enough
from squall.verify.observe.exchanges import Exchanges
from squall.verify.observe.interrupting import Interruption
from squall.verify.observe.keeping import Keeper
from squall.verify.observe.loaders import Loaders
from squall.verify.observe.models import Models
from squall.verify.observe.orders import Order
from squall.verify.observe.parameters import Parameters
from squall.verify.observe.recorder import Recorder
from squall.verify.observe.updates import Updates

STOP = "stop-before-epoch"
"""The appointment of the epoch before which all ranks leave, since enough was seen."""


def main(
    *,
    rank: int,
    processes: int,
    folder: Path,
    script: str | None = None,
    module: str | None = None,
    arguments: Sequence[str] = (),
    epochs: int = 2,
    steps: int = 24,
    patience_s: float = 60.0,
    interrupt: str | None = None,
    own: str | None = None,
) -> None:
    """Runs a script and leaves the rank's trace in the folder, also where the script fails.

    Arguments:
        script, module: what is run: a file, or a module as `python -m` runs it.
        epochs: that are observed; of those that follow only rates and ends are noted.
        steps: of an epoch that are run at least.
        patience_s: how long the epochs that follow may take in all.
        interrupt: a folder of checkpoints; shortly after one has come there, the rank kills itself.
        own: the trial's folder: what is written there need not be kept.
    """
    observer = Observer(Recorder(folder, rank, processes, epochs=epochs, steps=steps), patience_s)
    if interrupt is not None:
        observer.interruption = Interruption(observer.recorder, Path(interrupt))
    observer.install()
    Keeper(folder, [Path(own)] if own is not None else []).install()
    sys.argv = [script or str(module), *arguments]
    if script is not None:
        sys.path.insert(0, str(Path(script).resolve().parent))
    ended = "finished"
    try:
        if script is not None:
            runpy.run_path(str(Path(script).absolute()), run_name="__main__")  # as __file__ is
        else:
            runpy.run_module(str(module), run_name="__main__", alter_sys=True)
    except SystemExit as left:
        ended = "finished" if left.code in (None, 0) else "failed"
        raise
    except BaseException:
        ended = "failed"
        raise
    finally:
        observer.end(ended)


class Observer:
    """All that watches one rank, and what it does as the training goes on."""

    def __init__(self, recorder: Recorder, patience_s: float) -> None:
        self.recorder = recorder
        self.parameters = Parameters(recorder)
        self.loaders = Loaders(recorder, on_pass=self._pass_begins)
        self.models = Models(recorder, self.parameters, self.loaders)
        self.updates = Updates(recorder, self.parameters, self.models)
        self.exchanges = Exchanges(recorder)
        self.interruption: Interruption | None = None
        self._stop = Appointment(recorder.folder, STOP)
        self._enough = Enough(
            epochs=recorder.epochs,
            steps=recorder.steps,
            patience_s=patience_s,
            clock=time.monotonic,
            agreed=lambda: self._stop.number,
        )
        self.updates.on_backward = self._backward
        self.updates.on_step = self._stepped

    def install(self) -> None:
        """Puts all hooks into place."""
        for part in (self.loaders, self.models, self.updates, self.exchanges):
            part.install()
        frameworks.install(self.recorder, self.parameters, self.loaders)

    @watching(None)
    def _pass_begins(self, root: int, order: Order | None) -> None:
        self._take(self._enough.pass_begins(root, follows=self.loaders.follows(order, self._enough.last)))

    @watching(None)
    def _backward(self) -> None:
        self._take(self._enough.backward_ends(self._trained(), inside=_in_backward()))

    @watching(None)
    def _stepped(self) -> None:
        if self.interruption is not None:
            self.interruption.stepped(self.updates.steps)
        endless = any(self.loaders.has_no_end(data) for data in self._enough.data)
        step = self.recorder.last("step")
        first = step is not None and step["optimizer"] == 0
        self._take(self._enough.updated(first=first, endless=endless, inside=_in_backward()))

    def _trained(self) -> dict[int, int]:
        """The passes that a backward pass came from, by their data.

        Where calls of networks are no longer noted, these are the latest of the data that was trained on until then.
        """
        if self.recorder.observing:
            call = self.models.latest
            batches = [] if call is None or call["batch"] is None else [self.recorder.event(call["batch"])]
        else:
            batches = [self.loaders.latest_of[data] for data in self._enough.data]
        return {batch["data"]: batch["of"] for batch in batches if batch["of"] is not None}

    def _take(self, course: Course) -> None:
        if course is Course.LIGHT:
            self._light()
        elif course is Course.AGREE and self.recorder.rank == 0:
            self._stop.make(self._enough.leaving_before)
        elif course is Course.LEAVE:
            self.leave()

    def _light(self) -> None:
        """From here on only what is cheap is noted."""
        with Guard(self.recorder, "statistics at the end"):
            self.models.statistics_at_end()
        self.recorder.note("enough")
        self.recorder.observing = False
        self.loaders.keep_known()
        self._describe("observed")
        self.recorder.save()

    def leave(self) -> None:
        """Ends this rank in the midst of the script; all ranks do it at the same place."""
        try:
            self.end("left")
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # the others leave: to stay would be to hang
            os._exit(0)

    def end(self, how: str) -> None:
        """The script is over."""
        if not self.recorder.here:
            return
        for name, last in (
            ("statistics", self.models.statistics_at_end),
            ("horizons", self.updates.note_horizons),
            ("orders", self.loaders.finish),
        ):
            with Guard(self.recorder, f"{name} at the end"):
                last()
        self._describe(how)
        self.recorder.save()

    def _describe(self, how: str) -> None:
        kinds = {type(model).__name__ for model in self.models.known}
        self.recorder.about |= {
            "rank": self.recorder.rank,
            "processes": self.recorder.processes,
            "ended": how,
            "torch": str(torch.__version__),
            "models": sorted(kinds),
            "optimizers": [type(one).__name__ for one in self.updates.optimizers],
            "parameters": self.parameters.table(),
        }


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
