"""Runs a program with a number of processes under observation: one *trial*, and how it went."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from squall.errors import RunError
from squall.verify import trackers
from squall.verify.checks.training import count
from squall.verify.finding import Trouble
from squall.verify.matching import matched
from squall.verify.observe.interrupting import KILL
from squall.verify.observe.journal import ASIDE
from squall.verify.program import Program
from squall.verify.requests import requests
from squall.verify.restoring import Restored, is_all_back, restore
from squall.verify.stage import Ended, Job, Stage
from squall.verify.trace import Run, read
from squall.verify.troubles import of_files, troubles

_PATIENCE = 0.25  # of the limit: for the epochs after those that are observed


@dataclass(frozen=True)
class Trial:
    """How one run went: its traces, if all ranks left one, and what went wrong."""

    run: Run | None
    troubles: list[Trouble]
    ended: Ended
    killed_at: int | None = None

    @property
    def usable(self) -> bool:
        """Whether updates were observed."""
        return self.run is not None and bool(self.run.first.steps)


@dataclass(frozen=True)
class Trials:
    """Runs a program again and again.

    Arguments:
        epochs, steps: observed, and updates in each epoch that are run at least.
        limit_s: seconds for each run.
        say: told what is being done.
    """

    program: Program
    stage: Stage
    epochs: int
    steps: int
    limit_s: float
    say: Callable[[str], None]

    def run(self, processes: int, *, why: str = "") -> Trial:
        """From the beginning, in a new folder."""
        with _folder() as folder:
            return self._run(processes, self.program.options(folder) | {"own": str(folder)}, why)

    def interrupted(self, processes: int, *, also: tuple[int, ...] = ()) -> tuple[Trial, dict[int, Trial]]:
        """Kills it shortly after a checkpoint and starts it again, with as many processes and with other numbers.

        Returns:
            The killed run, and what was started after the kill by its number of processes; none where no kill came.
        """
        with _folder() as folder, _folder() as spare:
            options = self.program.options(folder, often=True)
            options |= {"own": str(folder)}
            options["interrupt"] = str(self.program.checkpoints(folder))
            killed = self._run(processes, options, "to be killed")
            resumed: dict[int, Trial] = {}
            if killed.killed_at is None:
                return killed, resumed
            shutil.copytree(folder, spare / "kept")
            for number in (processes, *(one for one in also if one != processes)):
                shutil.rmtree(folder)
                shutil.copytree(spare / "kept", folder)
                resumed[number] = self._run(
                    number, self.program.resumed(folder) | {"own": str(folder)}, "after the kill"
                )
            return killed, resumed

    def _run(self, processes: int, options: dict[str, object], why: str) -> Trial:
        self.say(f"{count(processes, 'process')}{f', {why}' if why else ''} ...")
        with requests() as asked, _job_folder() as folder:
            job = Job(
                main="squall.verify.observe.rank:main",
                options={
                    **options,
                    "epochs": self.epochs,
                    "steps": self.steps,
                    "patience_s": _PATIENCE * self.limit_s,
                },
                processes=processes,
                folder=folder,
                limit_s=self.limit_s,
                environment=trackers.offline(os.environ, folder),
                without_owner="squall.verify.restoring:restore",
            )
            try:
                with asked.heard():
                    ended = self.stage.run(job)
            finally:
                restored = restore(folder)
                _raise_if_left(restored, folder)
            note = folder / KILL
            killed_at = int(note.read_text(encoding="utf-8")) if note.exists() else None
            run = None if killed_at is not None else _traces(folder, processes)
            found = [] if killed_at is not None else troubles(self.program.given, ended, run, self.limit_s)
            found = of_files(self.program.given, restored, processes, found)
        return Trial(run, found, ended, killed_at)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="squall-verify-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def _job_folder() -> Iterator[Path]:
    """A folder that stays if it holds copies of files that could not be put back."""
    folder = Path(tempfile.mkdtemp(prefix="squall-verify-"))
    try:
        yield folder
    finally:
        if is_all_back(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _raise_if_left(restored: Restored, folder: Path) -> None:
    if not restored.left:
        return
    number = len(restored.left)
    raise RunError(
        f"{number} of your files could not be put back as {'it was' if number == 1 else 'they were'}",
        [(path, f"{why}{f'; it lies in {lies}' if lies else ''}") for path, why, lies in restored.left],
        f"all that was put aside stays in {folder / ASIDE}",
    )


def _traces(folder: Path, processes: int) -> Run | None:
    try:
        return Run(processes, matched(read(folder, processes).ranks))
    except FileNotFoundError:
        return None
