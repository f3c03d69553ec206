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
from functools import partial
from pathlib import Path
from typing import Any

import torch

from squall.cluster.program import Engine, Plan, Program
from squall.errors import RunError
from squall.optim.rules import RuleSpec
from squall.recipe import Recipe
from squall.records import Noted, Sink, Started, dotted
from squall.run import arithmetic
from squall.run.fingerprint import fingerprint
from squall.run.leaving import how_to_go_on, left, to_go_on
from squall.run.result import Result
from squall.run.signals import Signals
from squall.server.disk import OnDisk
from squall.server.gradients import Gradients
from squall.server.shard import Shard, ShardSpec, Snapshot, Snapshots, first_snapshot
from squall.server.snapshots import InMemory
from squall.strategy.downpour import (
    Coordinator,
    CoordinatorSpec,
    Evaluator,
    EvaluatorSpec,
    Replica,
    ReplicaSpec,
    Summary,
)
from squall.task import Task
from squall.training.held_out import check_held_out
from squall.training.journal import Journal
from squall.training.progress import Progress
from squall.training.roles import Built, Origin, make_gradients, make_measure
from squall.training.saved import save_recipe

EngineAt = Callable[[float], AbstractContextManager[Engine]]
"""An engine for a program that begins at so many seconds of its run."""


class Downpour:
    """A Downpour training, prepared: layout, shards, and the program of its roles.

    Arguments:
        built: the driver's network and sets.
        origin: from which role processes build theirs.
        shared: all roles live in this process, and borrow one network.
    """

    def __init__(self, built: Built, origin: Origin, *, shared: bool) -> None:
        recipe = origin.recipe
        assert recipe.downpour is not None
        self._built, self._origin, self._recipe, self._downpour = built, origin, recipe, recipe.downpour
        self._shared = shared
        self.layout = built.layout
        self.slices = self.layout.slices(self._downpour.shards)
        self.order = built.spec.order(len(built.task.train))
        self.rate = recipe.lr.rate()
        optimizer = recipe.optimizer
        rule = RuleSpec(optimizer.name, optimizer.momentum, optimizer.eps)
        counters = len(self.layout.counters)
        self.shards = [
            ShardSpec(part, rule, self.rate, self.order, 0 if part.index else counters, self._downpour.max_staleness)
            for part in self.slices
        ]

    def first_snapshots(self) -> list[Snapshot]:
        """The shards' state before the first push."""
        vector, counters = self.layout.vector(self._built.model), self._built.counters()
        return [first_snapshot(spec, vector, counters) for spec in self.shards]

    def program(self, snapshots: Snapshots, first_snapshot: int, carried: Mapping[str, Any] | None = None) -> Program:
        """The roles; `first_snapshot` is the number of the next set, `carried` what earlier sessions counted."""
        downpour = self._downpour
        replica = Plan(partial(Replica, self._replica(), self._make_gradients()), "replica")
        roles = {
            f"shard-{spec.slice.index}": Plan(partial(Shard, spec, snapshots), "shard", cpus=0.0)
            for spec in self.shards
        }
        roles |= {f"replica-{index}": replica for index in range(downpour.replicas)}
        task = self._built.task
        measures = task.val is not None or task.test is not None
        if measures:
            evaluator = EvaluatorSpec(self.layout, self.slices)
            make = partial(Evaluator, evaluator, self._make_measure())
            roles["evaluator"] = Plan(make, "evaluator", cpus=0.0, beside_driver=True, urgent=False)
        spec = CoordinatorSpec(
            order=self.order,
            rate=self.rate,
            replicas=downpour.replicas,
            shards=downpour.shards,
            push_every=downpour.push_every,
            warm_start=downpour.warm_minibatches(self.order.steps_per_epoch),
            lease_timeout=downpour.lease_seconds,
            checkpoint=self._recipe.checkpoint.rule(),
            evaluator="evaluator" if measures else None,
            replica=replica,
            first_snapshot=first_snapshot,
            carried=carried,
        )
        coordinator = partial(Coordinator, spec)
        roles["coordinator"] = Plan(coordinator, "coordinator", restarts=False, cpus=0.0, beside_driver=True)
        return Program(roles, "coordinator")

    def started(self, name: str, folder: Path | None, prints: Mapping[str, Any], engine: str) -> Started:
        """The first record."""
        spec = self._built.spec
        return Started(
            name=name,
            folder=str(folder) if folder else "",
            processes=self._downpour.replicas,
            seed=spec.seed,
            fingerprint=dict(prints),
            num_steps=self.order.num_steps,
            steps_per_epoch=self.order.steps_per_epoch,
            epochs=spec.epochs,
            global_batch_size=spec.worker_batch_size,
            worker_batch_size=spec.worker_batch_size,
            num_samples=self.order.num_samples,
            num_parameters=sum(p.numel() for p in self._built.model.parameters()),
            strategy=self._recipe.strategy,
            replicas=self._downpour.replicas,
            shards=self._downpour.shards,
            engine=engine,
        )

    def _replica(self) -> ReplicaSpec:
        downpour = self._downpour
        return ReplicaSpec(
            self.layout,
            self.slices,
            downpour.fetch_every,
            downpour.push_every,
            downpour.own_rate,
            self.rate,
            self.order,
        )

    def _make_gradients(self) -> Callable[[], Gradients]:
        if not self._shared:
            return partial(make_gradients, self._origin, "a replica")
        shared = self._built.gradients()
        return lambda: shared

    def _make_measure(self) -> Callable[[], Any]:
        if not self._shared:
            return partial(make_measure, self._origin)
        other = Built(self._origin, "the evaluator").measure()
        return lambda: other


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
        downpour = Downpour(built, origin, shared=shared)
        goes_on = journal.go_back(len(downpour.shards))
        number, seconds = goes_on or (0, 0.0)
        snapshots: OnDisk | InMemory
        if shared and journal.snapshots is None:
            snapshots = InMemory(downpour.first_snapshots())
        else:
            snapshots = journal.snapshots or OnDisk(temporary.enter_context(_folder()))
            if goes_on is None:
                snapshots.begin(downpour.first_snapshots())
        signals.listen()
        with engine_at(seconds) as engine:
            journal.begin(
                downpour.started(recipe.name, out, prints, engine_name),
                started,
                trackers,
                dotted(recipe.model_dump(mode="json")),
            )
            asked = _Asked(signals, journal)
            summary = engine.run(downpour.program(snapshots, number + 1, journal.carried), journal.hear, asked)
        assert summary is not None
        if summary.outcome == "stopped":
            settled = summary.values["minibatches"]["settled"]
            advice = to_go_on(out, journal.saved, settled, "minibatch") if out is not None else ""
            raise left(signals.noted, f"stopped {asked.by} after minibatch {settled:,}", advice)
        _take_over(built, snapshots, len(downpour.shards), summary.snapshot, how_to_go_on(out))
        return journal.finish(built.model, summary.values, summary.seconds)
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


def _take_over(built: Built, snapshots: Snapshots, shards: int, number: int, advice: str) -> None:
    """Gives the driver's network what the shards have saved at the end.

    Arguments:
        number: of the set that the program ended with.
        advice: how to go on.

    Raises:
        RunError: a shard's snapshot of it cannot be read.
    """
    found = [snapshots.newest(shard) for shard in range(shards)]
    for shard, snapshot in enumerate(found):
        if snapshot.number != number:
            raise RunError(
                f"the final weights of shard {shard} cannot be read",
                [
                    ("found", f"its newest whole snapshot is number {snapshot.number}"),
                    ("rule", f"the run ended with number {number}"),
                ],
                advice,
            )
    gradients = built.gradients()
    gradients.attach(torch.cat([snapshot.tensors["weights"] for snapshot in found]))
    gradients.set_counters(found[0].tensors["counters"].tolist())


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
