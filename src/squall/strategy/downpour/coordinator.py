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
from squall.cluster.program import Plan, Promise, Role, Task
from squall.data.order import Order
from squall.errors import RunError
from squall.optim.lr import Rate
from squall.records import Noted, Pushed, Resized, RoleChanged, SaveBegan, Saved, SaveFailed
from squall.server.client import shard_name, until_answered, worked
from squall.server.leases import Pool
from squall.server.messages import Ask, Holdings, Lease, Settled, Unit
from squall.strategy.downpour.epochs import Epochs
from squall.strategy.downpour.members import Member, Members
from squall.strategy.downpour.tally import Tally

_ANSWER_S = 10.0  # that a question may stay open before it is answered "nothing now"
_LOOK_S = 1.0
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


@dataclass(frozen=True)
class Summary:
    """What a program of Downpour comes to.

    Attributes:
        outcome: finished, or stopped because somebody asked.
        snapshot: number of the shards' last one: the final weights.
        values: for result.json: pushes, staleness, replicas, ledger.
        seconds: of the program.
    """

    outcome: str
    snapshot: int
    values: dict[str, Any]
    seconds: float


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
        self._members = Members(spec.replicas)
        self._waiting: list[Promise] = []
        self._stopping = ""
        self._saving: Task[RunError | None] | None = None
        self._kept: int | None = None
        self._snapshot = spec.first_snapshot - 1
        self._saved_at = (0.0, 0)

    async def begin(self) -> None:
        """Asks the shards what they hold."""
        held = await self._holdings()
        self._pool.restore([holdings.states for holdings in held], self.spec.push_every)
        spec, carried = self.spec, self.spec.carried
        self._tally.restore(held, carried)
        self._saved_at = self.here.now(), self._pool.settled
        self._epochs = Epochs(self.here, spec.order, spec.rate, spec.evaluator, spec.patience, carried)

    async def main(self) -> Summary:
        """Runs until all minibatches are settled, or somebody asked to stop and replicas have handed theirs in."""
        self._epochs.start(self._pool.settled, self._wake)
        while not self._is_over():
            changed = self._changed()
            await self.here.first_of(changed, within=_LOOK_S)
            self._look_for_the_silent()
            self._save_if_due()
        await self._epochs.told()
        if self._saving is not None:
            await self._saving
        failed = await self._save()
        if failed is not None:
            raise failed
        values = self._tally.values(await self._holdings(), self._pool)
        outcome = "finished" if self._pool.over else "stopped"
        return Summary(outcome, self._snapshot, values, self.here.now())

    # -- what replicas ask ------------------------------------------------------------------------------------

    async def lease(self, ask: Ask) -> Lease:
        """Takes a replica's report and answers with its next unit."""
        now, name = self.here.now(), ask.sender.name
        is_new = self._members.is_new(ask.sender, ask.number)
        member, change = self._members.heard(ask.sender, now)
        if change:
            self.here.emit(RoleChanged(now, name, change))
            self._hand_back(name)
        if member is None:  # it is dead, or has left; what it has done is done
            if is_new:
                self._settle(ask)
            return Lease(None, over=True)
        if ask.number <= member.asked:
            return await self._answered_before(member, ask)
        member.asked, member.answer, member.answered = ask.number, None, self.here.promise()
        self._settle(ask)
        lease = await self._granted(member, ask) if ask.wanted else Lease(None, over=True)
        if member.asked == ask.number:
            member.answer = lease
            member.answered.keep()
        goes = member.leaving or not (self._stopping or self._pool.over)
        if goes and not ask.wanted and self._members.get(name) is member:
            self._leave(name)
        return lease

    async def asked(self, word: str, value: Any) -> None:
        """What the user wants: ("stop", why) or ("resize", number of replicas)."""
        if word == "stop":
            self._stopping = str(value) or "asked to stop"
        elif word == "resize":
            self._resize(int(value))
        self._wake()

    async def _answered_before(self, member: Member, ask: Ask) -> Lease:
        """The same question came twice: it has one answer."""
        if ask.number == member.asked and member.answer is None and member.answered is not None:
            await self.here.first_of(member.answered, within=_ANSWER_S)
        return member.answer if ask.number == member.asked and member.answer is not None else Lease(None)

    async def _granted(self, member: Member, ask: Ask) -> Lease:
        until = self.here.now() + min(_ANSWER_S, self.spec.lease_timeout / 3)  # who asks again is not silent
        while not (self._stopping or self._pool.over or member.leaving):
            unit = self._found(member, ask)
            if unit is not None:
                return Lease(unit)
            if not ask.patient or self.here.now() >= until:
                return Lease(None)
            await self.here.first_of(self._changed(), within=min(_LOOK_S, self._usual_duration()))
            if self._members.get(member.name) is not member or member.asked != ask.number:
                break  # nobody waits for this answer any more
        return Lease(None, over=True)

    def _found(self, member: Member, ask: Ask) -> Unit | None:
        """What there is for a replica to do."""
        pool, name, now = self._pool, member.name, self.here.now()
        if (not pool.warm and not self._members.leads(name)) or self._epochs.wait(pool):
            return None
        unit = pool.lease(name, member.part, self._members.wanted, ask.wanted, now)
        if unit is None and ask.patient:
            unit = pool.again(name, _SLOW * self._usual_duration(), now)
        return unit

    def _settle(self, ask: Ask) -> None:
        for settled in ask.settled:
            self._note(ask.sender.name, settled)
        if ask.settled:
            self._wake()

    def _note(self, name: str, settled: Settled) -> None:
        now = self.here.now()
        first = self._pool.settle(settled.unit)
        self._note_restarts(settled)
        self._tally.add(name, settled, first)
        if not first:
            return
        member = self._members.get(name)
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
                alive=self._members.active,
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

    # -- who is there -----------------------------------------------------------------------------------------

    def _hand_back(self, name: str) -> None:
        if self._pool.release(name):
            self._wake()

    def _look_for_the_silent(self) -> None:
        now = self.here.now()
        for member in self._members.fall_silent(now - self.spec.lease_timeout):
            self.here.emit(RoleChanged(now, member.name, "silent"))
            self._hand_back(member.name)
            self._wake()  # another may lead the warm start
        for name in [member.name for member in self._members if member.silent and member.leaving]:
            self._leave(name)

    def _resize(self, wanted: int) -> None:
        before = self._members.wanted
        joining, unheard = self._members.resize(wanted)
        for name in joining:
            self._enlist(name)
        for name in unheard:
            self.here.dismiss(name)
        self.here.emit(Resized(self.here.now(), wanted, before))
        self.here.emit(Noted(f"from now on {wanted} replica{'' if wanted == 1 else 's'}; there were {before}"))

    def _enlist(self, name: str) -> None:
        assert self.spec.replica is not None
        self.here.enlist(name, self.spec.replica)

    def _leave(self, name: str) -> None:
        wanted = self._members.leave(name)  # again, by somebody who asked while it was on its way out
        self._hand_back(name)
        self.here.emit(RoleChanged(self.here.now(), name, "left"))
        self.here.dismiss(name)
        if wanted:
            self._enlist(name)

    def _usual_duration(self) -> float:
        return self._members.usual_duration(_LOOK_S)

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
            member.name in working and not member.silent for member in self._members
        )

    async def _holdings(self) -> list[Holdings]:
        shards = map(shard_name, range(self.spec.shards))
        tasks = [self.here.start(self._until_answered(shard, "holdings")) for shard in shards]
        return [await task for task in tasks]

    async def _until_answered(self, name: str, method: str, *values: Any) -> Any:
        handle = self.here.handle(name)
        return await until_answered(self.here, name, lambda: handle.call(method, *values), self.spec.patience)

    def _changed(self) -> Promise:
        promise = self.here.promise()
        self._waiting.append(promise)
        return promise

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for promise in waiting:
            promise.keep()
