"""One asynchronous training: a recipe and a task become a program of roles, run by an engine, and a result.

    Recipe + Task -> network, layout, first snapshots -> roles -> engine -> records -> folder -> Result

The driver builds the network once, for its layout and first weights; replicas build theirs where they compute. What
roles do stands in `squall.strategy.downpour`, where they live in `squall.engine`.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from squall.cluster.program import Engine
from squall.errors import RunError
from squall.recipe import Recipe
from squall.records import Noted, Sink, dotted
from squall.run import arithmetic
from squall.run.fingerprint import fingerprint
from squall.run.leaving import how_to_go_on, left, to_go_on
from squall.run.result import Result
from squall.run.signals import Signals
from squall.server.disk import OnDisk
from squall.server.shard import Snapshots
from squall.server.snapshots import InMemory
from squall.strategy.summary import Summary
from squall.task import Task
from squall.training.downpour import Downpour
from squall.training.held_out import check_held_out
from squall.training.journal import Journal
from squall.training.prepared import Prepared
from squall.training.progress import Progress
from squall.training.roles import Built, Origin
from squall.training.sandblaster import Sandblaster
from squall.training.saved import save_recipe

EngineAt = Callable[[float], AbstractContextManager[Engine]]
"""An engine for a program that begins at so many seconds of its run."""


PREPARED: dict[str, Callable[..., Prepared]] = {"downpour": Downpour, "sandblaster": Sandblaster}
"""By strategy: what makes a program of roles of a recipe."""


def train_asynchronously(
    task: Task | None,
    recipe: Recipe,
    engine_at: EngineAt,
    *,
    engine_name: str,
    shared: bool,
    out: Path | None = None,
    sinks: tuple[Sink, ...] | None = None,
    data_root: Path | None = None,
    trackers: Sequence[str] = (),
    started: Mapping[str, Any] | None = None,
) -> Result:
    """Trains by replicas and shards.

    Arguments:
        task, recipe, out, sinks, data_root, trackers, started: as of `squall.train`. Without a folder the shards of
            other processes keep their snapshots in a temporary one, which is gone afterwards.
        engine_at: gives the engine; `engine_name` for the records.
        shared: its roles live in this process.

    Raises:
        InputError: a mistake in recipe, data, task or cluster.
        UserCodeError: an exception in the task's own code.
        RunError: the run could not go on.
        KeyboardInterrupt, SystemExit: it was asked to stop, and is saved.
    """
    sinks = (Progress(),) if sinks is None else sinks
    origin = Origin(recipe, task, (data_root or Path("data")).absolute())
    journal: Journal | None = None
    settings: arithmetic.Settings | None = None
    summary: Summary | None = None
    signals, temporary = Signals(), ExitStack()
    try:
        built = Built(origin, "the driver")
        check_held_out(built.task, recipe)
        settings = arithmetic.enter(built.spec, built.world.device)
        prints = fingerprint(built.spec, built.world.device)
        journal = Journal(out, recipe.name, built.spec, prints, sinks, recipe.checkpoint.keep)
        if out is not None:
            save_recipe(out, recipe)
        prepared = PREPARED[recipe.strategy](built, origin, shared=shared)
        goes_on = journal.go_back(len(prepared.slices))
        number, seconds = goes_on or (0, 0.0)
        snapshots: OnDisk | InMemory
        if shared and journal.snapshots is None:
            snapshots = InMemory(prepared.first_snapshots())
        else:
            snapshots = journal.snapshots or OnDisk(temporary.enter_context(_folder()))
            if goes_on is None:
                snapshots.begin(prepared.first_snapshots())
        signals.listen()
        with engine_at(seconds) as engine:
            journal.begin(
                prepared.started(recipe.name, out, prints, engine_name),
                started,
                trackers,
                dotted(recipe.model_dump(mode="json")),
            )
            asked = _Asked(signals, journal)
            summary = engine.run(prepared.program(snapshots, number, journal.carried), journal.hear, asked)
        assert summary is not None
        if summary.outcome == "stopped":
            done, unit = summary.done, prepared.unit
            advice = to_go_on(out, journal.saved, done, unit) if out is not None else ""
            raise left(signals.noted, f"stopped {asked.by} after {unit} {done:,}", advice)
        _take_over(built, snapshots, prepared, summary, how_to_go_on(out))
        return journal.finish(built.model, summary)
    except BaseException as error:
        if journal is not None and journal.begun:
            journal.break_off(error, summary)
        raise
    finally:
        temporary.close()
        signals.close()
        if journal is not None:
            journal.close()
        if settings is not None:
            arithmetic.leave(settings)


@contextmanager
def _folder() -> Iterator[Path]:
    """For the snapshots of a run that has no folder of its own."""
    with tempfile.TemporaryDirectory(prefix="squall-server-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _take_over(built: Built, snapshots: Snapshots, prepared: Prepared, summary: Summary, advice: str) -> None:
    """Gives the driver's network what the shards have saved at the end.

    Arguments:
        advice: how to go on.

    Raises:
        RunError: a shard's snapshot of it cannot be read.
    """
    found = [snapshots.newest(part.index) for part in prepared.slices]
    for shard, snapshot in enumerate(found):
        if snapshot.number != summary.snapshot:
            raise RunError(
                f"the final weights of shard {shard} cannot be read",
                [
                    ("found", f"its newest whole snapshot is number {snapshot.number}"),
                    ("rule", f"the run ended with number {summary.snapshot}"),
                ],
                advice,
            )
    weights, counters = prepared.weights(found, summary)
    gradients = built.gradients()
    gradients.attach(weights)
    gradients.set_counters(counters)


class _Asked:
    """What the user wants of the run: by signal, or by a file in its folder."""

    def __init__(self, signals: Signals, journal: Journal) -> None:
        self._signals, self._journal = signals, journal
        self.by = ""

    def __call__(self) -> list[tuple[str, Any]]:
        """Words and values for the coordinator."""
        if self._signals.noted and not self.by:
            number = self._signals.noted
            self.by = f"by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}"
            again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
            self._journal.book.show(Noted(f"stopping: replicas hand in what they have under way{again}"))
            return [("stop", self.by)]
        request = self._journal.request()
        if request is None:
            return []
        if request.do == "resize":
            return [("resize", request.replicas)] if request.replicas else []
        self.by = self.by or "on request"
        return [("stop", self.by)]
