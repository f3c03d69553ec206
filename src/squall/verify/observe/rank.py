"""One rank of an observed training: hooks first, then the user's script as `python script.py` would run it."""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from squall.verify.observe import frameworks
from squall.verify.observe.exchanges import Exchanges
from squall.verify.observe.interrupting import Interruption
from squall.verify.observe.keeping import Keeper
from squall.verify.observe.loaders import Loaders
from squall.verify.observe.models import Models
from squall.verify.observe.parameters import Parameters
from squall.verify.observe.recorder import Recorder
from squall.verify.observe.updates import Updates

STOP = "stop-before-epoch"
"""File in the job's folder: the epoch before which all ranks leave, since enough was seen."""


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
    """All that watches one rank, and when enough was seen."""

    def __init__(self, recorder: Recorder, patience_s: float) -> None:
        self.recorder, self.patience_s = recorder, patience_s
        self.parameters = Parameters(recorder)
        self.loaders = Loaders(recorder, on_pass=self._pass_begins)
        self.models = Models(recorder, self.parameters, self.loaders)
        self.updates = Updates(recorder, self.parameters, self.models)
        self.exchanges = Exchanges(recorder)
        self._trained_on: dict[int, int] = {}  # data -> passes over it in which there was a backward pass
        self._in: int | None = None  # the data of the latest pass
        self._counted = False
        self._light_since = 0.0
        self.interruption: Interruption | None = None
        self.updates.on_backward = self._backward
        self.updates.on_step = self._stepped

    def install(self) -> None:
        """Puts all hooks into place."""
        for part in (self.loaders, self.models, self.updates, self.exchanges):
            part.install()
        frameworks.install(self.recorder, self.parameters, self.loaders)

    def _pass_begins(self, root: int) -> None:
        epochs = max(self._trained_on.values(), default=0)
        if self._trained_on.get(root) == epochs and epochs:
            self._epoch_begins(epochs)
        self._in, self._counted = root, False

    def _backward(self) -> None:
        if not self._counted and self._in is not None:
            self._counted = True
            self._trained_on[self._in] = self._trained_on.get(self._in, 0) + 1

    def _epoch_begins(self, done: int) -> None:
        """A pass over the training data begins, and `done` have been seen."""
        if done < self.recorder.epochs:
            return
        if self.recorder.observing:
            self._enough()
            self._light_since = time.monotonic()
        note = self.recorder.folder / STOP
        over = time.monotonic() - self._light_since > self.patience_s
        if self.recorder.rank == 0 and over and not note.exists():
            note.write_text(str(done + 1), encoding="utf-8")  # other ranks may be in this epoch already
        if note.exists() and done >= int(note.read_text(encoding="utf-8") or done + 1):
            self.leave()

    def _stepped(self) -> None:
        """After each update: where no loader tells epochs, some are enough."""
        if self.interruption is not None:
            self.interruption.stepped(self.updates.steps)
        if self.loaders.has_no_end(self._in) and self.updates.steps % self.recorder.steps == 0:
            self._epoch_begins(self.updates.steps // self.recorder.steps)  # as good as one
        if self._trained_on or self.updates.steps < self.recorder.epochs * self.recorder.steps:
            return
        self.leave()

    def _enough(self) -> None:
        """From here on only what is cheap is noted."""
        self.models.statistics_at_end()
        self.recorder.note("enough")
        self.recorder.observing = False
        self._describe("observed")
        self.recorder.save()

    def leave(self) -> None:
        """Ends this rank in the midst of the script; all ranks do it at the same place."""
        self.end("left")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def end(self, how: str) -> None:
        """The script is over."""
        if not self.recorder.here:
            return
        self.models.statistics_at_end()
        self.updates.note_horizons()
        self._describe(how)
        self.recorder.save()

    def _describe(self, how: str) -> None:
        import torch

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
