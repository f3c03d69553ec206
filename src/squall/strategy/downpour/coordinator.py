"""The coordinator: hands out minibatches, hears what became of them, and knows when the run is over.

It holds numbers only, no weights. What it decides with is pure (`squall.server.leases`); what has been applied is known
to the shards, which it asks when it begins, so that a run that goes on from their snapshots needs nothing else::

    replica   ask(settled, wanted) -->  coordinator   -->  lease(unit)
    shards    holdings, snapshot   <--                -->  evaluator: measure, once an epoch's minibatches are settled

An epoch's mark is a count: once as many minibatches are settled as e epochs have. A slow replica's last minibatch of an
epoch is then still under way, and delays nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from squall.checkpoint.spec import CheckpointSpec
from squall.cluster.program import Plan, Role, Task
from squall.data.order import Order
from squall.errors import RunError
from squall.optim.lr import Rate
from squall.records import Pushed, RoleChanged, SaveBegan, Saved, SaveFailed
from squall.server.client import shard_name, until_answered, worked
from squall.server.leases import Pool
from squall.server.messages import Ask, Holdings, Lease, Settled
from squall.strategy.crew import LOOK_S, Crew
from squall.strategy.downpour.epochs import Epochs
from squall.strategy.downpour.tally import Tally
from squall.strategy.members import Member
from squall.strategy.summary import Summary

_SLOW = 4.0
"""Times the usual duration: a unit as old as that is computed by an idle replica too; one is asked for ahead."""


@dataclass(frozen=True)
class CoordinatorSpec:
    """What the coordinator is told.

    Attributes:
        order, rate: of the run.
        replicas: to begin with; named replica-0, replica-1, ...
        shards: their number.
        push_every: minibatches of a unit.
        warm_start: minibatches that one replica does alone before the others are let loose.
        lease_timeout: seconds after which a unit is handed out again.
        checkpoint: when the shards save.
        evaluator: its role's name; None where there is nothing to measure.
        replica: how one is made that joins later.
        patience: seconds of silence after which a shard is given up.
        first_snapshot: number of the first one that this session makes.
        carried: the counts of the sessions before (`Saved.tally`).
    """

    order: Order
    rate: Rate
    replicas: int
    shards: int
    push_every: int
    warm_start: int = 0
    lease_timeout: float = 60.0
    checkpoint: CheckpointSpec | None = None
    evaluator: str | None = None
    replica: Plan | None = None
    patience: float = 600.0
    first_snapshot: int = 1
    carried: Mapping[str, Any] | None = None


class Coordinator(Role):
    """The chief of a Downpour program.

    Arguments:
        spec: of the run.
    """

    def __init__(self, spec: CoordinatorSpec) -> None:
        self.spec = spec
        order = spec.order
        self._pool = Pool(order.steps_per_epoch, order.num_steps, before=spec.warm_start)
        self._tally = Tally(spec.shards, order)
        self._stopping = ""
        self._saving: Task[RunError | None] | None = None
        self._kept: int | None = None
        self._snapshot = spec.first_snapshot - 1
        self._saved_at = (0.0, 0)

    async def begin(self) -> None:
        """Asks the shards what they hold."""
        self._crew = Crew(self.here, self, self.spec.replicas, self.spec.replica, self.spec.lease_timeout)
        held = await self._holdings()
        self._pool.restore([holdings.states for holdings in held], self.spec.push_every)
        spec, carried = self.spec, self.spec.carried
        self._tally.restore(held, carried)
        self._saved_at = self.here.now(), self._pool.settled
        self._epochs = Epochs(self.here, spec.order, spec.rate, spec.evaluator, spec.patience, carried)

    async def main(self) -> Summary:
        """Runs until all minibatches are settled, or somebody asked to stop and replicas have handed theirs in."""
        self._epochs.start(self._pool.settled, self._crew.wake)
        while not self._is_over():
            await self.here.first_of(self._crew.changed(), within=LOOK_S)
            self._crew.look()
            self._save_if_due()
        await self._epochs.told()
        if self._saving is not None:
            await self._saving
        failed = await self._save()
        if failed is not None:
            raise failed
        values = self._tally.values(await self._holdings(), self._pool)
        outcome = "finished" if self._pool.over else "stopped"
        return Summary(outcome, self._snapshot, values, self.here.now(), self._pool.settled)

    # -- what replicas ask ------------------------------------------------------------------------------------

    async def lease(self, ask: Ask) -> Lease:
        """Takes a replica's report and answers with its next unit."""
        return await self._crew.answer(ask)

    async def asked(self, word: str, value: Any) -> None:
        """What the user wants: ("stop", why) or ("resize", number of replicas)."""
        if word == "stop":
            self._stopping = str(value) or "asked to stop"
        elif word == "resize":
            self._crew.resize(int(value))
        self._crew.wake()

    @property
    def closed(self) -> bool:
        """As of `Host`."""
        return bool(self._stopping) or self._pool.over

    def find(self, member: Member, ask: Ask) -> Lease | None:
        """As of `Host`."""
        pool, name, now = self._pool, member.name, self.here.now()
        if (not pool.warm and not self._crew.members.leads(name)) or self._epochs.wait(pool):
            return None
        unit = pool.lease(name, member.part, self._crew.members.wanted, ask.wanted, now)
        if unit is None and ask.patient:
            unit = pool.again(name, _SLOW * self.usual_duration, now)
        return Lease(unit) if unit is not None else None

    def settle(self, ask: Ask) -> None:
        """As of `Host`."""
        for settled in ask.settled:
            self._note(ask.sender.name, settled)

    def hand_back(self, name: str) -> bool:
        """As of `Host`."""
        return bool(self._pool.release(name))

    @property
    def usual_duration(self) -> float:
        """As of `Host`; of a minibatch."""
        return self._crew.members.usual_duration(LOOK_S)

    def _note(self, name: str, settled: Settled) -> None:
        now = self.here.now()
        first = self._pool.settle(settled.unit)
        self._note_restarts(settled)
        self._tally.add(name, settled, first)
        if not first:
            return
        member = self._crew.members.get(name)
        if member is not None:
            member.durations = [*member.durations[-8:], settled.seconds / settled.unit.count]
        self.here.emit(
            Pushed(
                seconds=now,
                replica=name,
                minibatch=settled.unit.first,
                minibatches=settled.unit.count,
                samples=settled.samples,
                loss=settled.loss / settled.count,
                staleness=[-1 if r.staleness is None else r.staleness for r in settled.receipts],
                dropped=sum(r.outcome == "dropped" for r in settled.receipts),
                took=settled.seconds,
                stalled=settled.stalled,
                alive=self._crew.members.active,
                settled=self._pool.settled,
            )
        )
        self._epochs.add(settled, self._pool.settled)

    def _note_restarts(self, settled: Settled) -> None:
        for index, receipt in enumerate(settled.receipts):
            if self._tally.is_restarted(index, receipt.version):
                self.here.start(self._count_losses(index))

    async def _count_losses(self, index: int) -> None:
        """A shard came back with a snapshot: which minibatches does it no longer hold?"""
        holdings = await self._until_answered(shard_name(index), "holdings")
        lost = self._tally.restarted(index, holdings)
        self.here.emit(RoleChanged(self.here.now(), shard_name(index), "restarted", lost))

    # -- snapshots, the end -----------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        rule, order = self.spec.checkpoint, self.spec.order
        if rule is None or (self._saving is not None and not self._saving.done):
            return
        when, steps = self._saved_at
        duration = rule.duration
        if duration.unit == "second":
            due = self.here.now() - when >= duration.amount
        elif duration.unit == "step":
            due = self._pool.settled - steps >= duration.amount
        else:
            due = self._pool.settled - steps >= duration.amount * order.steps_per_epoch
        if due:
            self._saving = self.here.start(self._save())

    async def _save(self) -> RunError | None:
        """All shards save at about the same time; a set of snapshots of one number is what a run goes on from.

        Returns:
            What kept one from it: a full disk is no reason to stop.
        """
        self._snapshot += 1
        number, began, settled = self._snapshot, self.here.now(), self._pool.settled
        self._saved_at, tally = (began, settled), self._state()
        self.here.emit(SaveBegan(number))
        tasks = [self.here.start(self._snapshot_of(index, number)) for index in range(self.spec.shards)]
        answers = [await task for task in tasks]
        for error in answers:
            if isinstance(error, RunError):
                said = ", ".join([error.headline, *(text for label, text in error.rows if label == "found")])
                self.here.emit(SaveFailed(settled, said, self._kept))
                return error
        found = [answer for answer in answers if not isinstance(answer, RunError)]
        now, num_bytes = self.here.now(), sum(size for size, _ in found)
        self._kept = settled
        self.here.emit(Saved(settled, max(stood for _, stood in found), now - began, num_bytes, number, now, tally))
        return None

    def _state(self) -> dict[str, Any]:
        """What a later session begins with: counts, how many epochs are told, and the sums of those that are not."""
        return {**self._tally.state(), **self._epochs.state()}

    async def _snapshot_of(self, index: int, number: int) -> tuple[int, float] | RunError:
        try:
            found: tuple[int, float] = await worked(
                self.here, shard_name(index), "snapshot", number, patience=self.spec.patience
            )
        except RunError as error:
            return error
        return found

    def _is_over(self) -> bool:
        if self._pool.over:
            return True
        working = {name for known in self._pool.outstanding.values() for name in known.workers}
        return bool(self._stopping) and not any(
            member.name in working and not member.silent for member in self._crew.members
        )

    async def _holdings(self) -> list[Holdings]:
        shards = map(shard_name, range(self.spec.shards))
        tasks = [self.here.start(self._until_answered(shard, "holdings")) for shard in shards]
        return [await task for task in tasks]

    async def _until_answered(self, name: str, method: str, *values: Any) -> Any:
        handle = self.here.handle(name)
        return await until_answered(self.here, name, lambda: handle.call(method, *values), self.spec.patience)
