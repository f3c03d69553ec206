"""The coordinator of batch optimisation: L-BFGS in numbers, over shards with vectors and replicas that compute.

Dean et al. 2012, section 4.2 and algorithm 2. It holds numbers only, as many for any size of the network::

    minimise (squall.optim.lbfgs)
      do        -->  shards: commands on their slices; inner products come back and are added up in the shards' order
      evaluate  -->  shards: open; replicas: units of portions, to whoever is free; shards: close
      told      -->  evaluator: copy the point and measure it; shards: save it; a record

* A unit is handed out again when its replica is gone, and a copy of it to an idle replica when it takes longer than
  units usually do: whichever comes first is taken, on each shard once, and counted once.
* An evaluation is over when all shards hold all units. Neither its loss, float64 sums in the portions' order, nor its
  gradient, exact sums, depends on who computed what: the course is the same, bit for bit, with any replicas and deaths.
* A shard that died sets all of them back to the newest snapshot that is whole; the iterations since are done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from squall.checkpoint.spec import CheckpointSpec
from squall.cluster.program import Plan, Role, Task
from squall.data.order import Order as Portions
from squall.errors import DivergedError, RunError
from squall.optim.algebra import Command, Matrix
from squall.optim.lbfgs import Ended, LbfgsSpec, State, minimise
from squall.records import Evaluating, Noted, RoleChanged, SaveBegan, Saved, SaveFailed
from squall.server.client import shard_name
from squall.server.messages import Ask, Lease, Settled
from squall.server.vectors import Close, Copy, Restore
from squall.strategy.crew import LOOK_S, Crew
from squall.strategy.members import Member
from squall.strategy.sandblaster.batch import Batch, added
from squall.strategy.sandblaster.iterations import Iterations
from squall.strategy.sandblaster.shards import SetBackError, Shards, summed
from squall.strategy.sandblaster.tally import Tally
from squall.strategy.summary import Summary

_SHOW_S = 0.5  # between two words on how far an evaluation is
_LONG = 1.5  # times what a unit usually takes: then an idle replica computes it too


@dataclass(frozen=True)
class CoordinatorSpec:
    """What the coordinator is told.

    Attributes:
        lbfgs: the optimiser's numbers.
        order: the training set's portions, as the minibatches of one epoch.
        replicas: to begin with; named replica-0, replica-1, ...
        shards: their number.
        unit: portions that are handed out at once.
        counters: values of the integer buffers.
        backups: whether idle replicas compute copies of what others take long for.
        lease_timeout: seconds of silence after which a replica's unit is handed out again.
        checkpoint: when the shards save; None: only at the end.
        evaluator: its role's name; None where there is nothing to measure.
        replica: how one is made that joins later.
        patience: seconds of silence after which a shard is given up.
        snapshot: number of the one that it begins with.
        carried: what the session before had to say (`Saved.tally`).
        advice: by outcome, in place of L-BFGS's own.
    """

    lbfgs: LbfgsSpec
    order: Portions
    replicas: int
    shards: int
    unit: int = 1
    counters: tuple[int, ...] = ()
    backups: bool = True
    lease_timeout: float = 60.0
    checkpoint: CheckpointSpec | None = None
    evaluator: str | None = None
    replica: Plan | None = None
    patience: float = 600.0
    snapshot: int = 0
    carried: Mapping[str, Any] | None = None
    advice: Mapping[str, str] = field(default_factory=dict)


class _StoppedError(Exception):
    """Somebody asked."""


class Coordinator(Role):
    """The chief of a Sandblaster program; it is the `Problem` that L-BFGS minimises.

    Arguments:
        spec: of the run.
    """

    def __init__(self, spec: CoordinatorSpec) -> None:
        self.spec = spec
        self._batch: Batch | None = None
        self._stopping = ""
        self._over = False
        self._shown = 0.0
        self._evaluations = 0
        self._saving: Task[RunError | None] | None = None

    async def begin(self) -> None:
        """Sets the shards to where the run begins."""
        spec = self.spec
        self._crew = Crew(self.here, self, spec.replicas, spec.replica, spec.lease_timeout)
        self._shards = Shards(self.here, spec.shards, spec.patience)
        self._tally = Tally(spec.order, spec.carried)
        self._counters = spec.counters
        self._iterations = Iterations(self.here, spec.evaluator, spec.patience)
        self._began = self.here.now(), self._tally.samples
        self._snapshot = self._whole = spec.snapshot
        self._kept: dict[int, dict[str, Any] | None] = {spec.snapshot: dict(spec.carried) if spec.carried else None}
        self._saved_at, self._failed = (self.here.now(), 0), False
        self._state: State | None = None
        self._last: Batch | None = None
        await self._set_back()

    async def main(self) -> Summary:
        """Runs until the minimisation ends, or somebody asked to stop."""
        await self._iterations.prepare()
        if self._state is not None and self.spec.carried is not None and (untold := self.spec.carried["untold"]):
            await self._iterations.copied(self._state.iterations, self._counters)
            self._iterations.tell(untold)
        ended: Ended | None = None
        while True:
            try:
                try:
                    self._state, ended = await minimise(self, self.spec.lbfgs, self._state, self._told)
                except _StoppedError:
                    ended = None
                if ended is not None and ended.outcome == "not finite":
                    raise DivergedError(f"{ended.why} at the start", [("to do", "other first weights: another seed")])
                await self._save_last()
                break
            except SetBackError:
                await self._set_back()
        self._over = True
        self._crew.wake()
        outcome, state = "stopped" if ended is None else "finished", self._state
        if ended is not None and (advice := self.spec.advice.get(ended.outcome)):
            ended = replace(ended, advice=advice)
        values, done = self._tally.values(state, ended), state.iterations if state is not None else 0
        return Summary(outcome, self._whole, values, self.here.now(), done, self._counters)

    async def _save_last(self) -> None:
        """The final weights; those of the beginning, if nobody got further."""
        await self._iterations.over()
        if self._saving is not None:
            await self._saving
        if self._state is not None:
            await self._save()
            assert self._saving is not None
            if (failed := await self._saving) is not None:
                raise failed

    # -- the problem ------------------------------------------------------------------------------------------

    async def do(self, *commands: Command) -> list[Matrix]:
        """As of `squall.optim.algebra.Space`."""
        return summed(await self._shards.order(commands=commands))

    async def evaluate(self) -> float:
        """As of `squall.optim.lbfgs.Problem`."""
        self._evaluations += 1
        number = self._evaluations
        await self._shards.order(begin=number)
        self._batch = batch = Batch.of(
            number, self.spec.order.num_steps, self.spec.unit, first_alone=self._state is None
        )
        self._crew.wake()
        while not batch.pool.over:
            if self._stopping:
                self._batch = None
                raise _StoppedError
            await self.here.first_of(self._crew.changed(), within=LOOK_S)
            if self._batch is not batch:
                raise SetBackError
            self._crew.look()
            self._show(batch)
        self._batch = None
        self._tally.evaluated(batch)
        answers = await self._shards.order(close=Close(number, batch.count, batch.samples))
        self._tally.closed(all(answer.exact for answer in answers))
        self._last = batch
        return batch.loss + added([answer.penalty for answer in answers])

    def _show(self, batch: Batch) -> None:
        """Says how far it is, now and then."""
        now, state = self.here.now(), self._state
        if now - self._shown >= _SHOW_S:
            self._shown, settled = now, min(batch.pool.settled * batch.size, batch.portions)
            loss = state.value if state is not None else None
            alive = self._crew.members.active
            self.here.emit(Evaluating(now, batch.number, settled, batch.portions, alive, loss))

    # -- what replicas ask (Host) -----------------------------------------------------------------------------

    async def lease(self, ask: Ask) -> Lease:
        """Takes a replica's report and answers with its next unit."""
        return await self._crew.answer(ask)

    @property
    def closed(self) -> bool:
        """As of `Host`."""
        return self._over

    def find(self, member: Member, ask: Ask) -> Lease | None:
        """As of `Host`."""
        batch, now = self._batch, self.here.now()
        if batch is None:
            return None
        members = self._crew.members
        unit = batch.lease(member.name, member.part, members.wanted, members.leads(member.name), now)
        if unit is None and ask.patient and self.spec.backups:
            unit = batch.again(member.name, _LONG * self.spec.unit * self.usual_duration, now)
        return Lease(unit, evaluation=batch.number, counters=self._counters) if unit is not None else None

    def settle(self, ask: Ask) -> None:
        """As of `Host`."""
        for settled in ask.settled:
            self._note(ask.sender.name, settled)

    def hand_back(self, name: str) -> bool:
        """As of `Host`."""
        return self._batch is not None and bool(self._batch.pool.release(name))

    @property
    def usual_duration(self) -> float:
        """As of `Host`; of a portion."""
        return self._crew.members.usual_duration(LOOK_S)

    async def asked(self, word: str, value: Any) -> None:
        """What the user wants: ("stop", why) or ("resize", number of replicas)."""
        if word == "stop":
            self._stopping = str(value) or "asked to stop"
        elif word == "resize":
            self._crew.resize(int(value))
        self._crew.wake()

    def _note(self, name: str, settled: Settled) -> None:
        batch, counts = self._batch, False
        if batch is not None and settled.evaluation == batch.number:
            pairs = zip(settled.receipts, self._shards.incarnations, strict=True)
            if any(receipt.version.incarnation != known for receipt, known in pairs):
                self._batch = None  # a shard was restarted: `evaluate` hears of it
            elif any(receipt.outcome == "dropped" for receipt in settled.receipts):
                batch.hand_back(settled.unit, name)
            else:
                counts = batch.take(settled)
        if not settled.samples:
            return
        self._tally.add(name, settled, counts)
        member = self._crew.members.get(name)
        if member is not None:
            member.durations = [*member.durations[-8:], settled.seconds / settled.unit.count]

    # -- between iterations -----------------------------------------------------------------------------------

    async def _set_back(self) -> None:
        """All shards, and the optimiser, to the newest whole snapshot."""
        if self._saving is not None:
            await self._saving
        self._batch = None
        kept = self._kept[self._whole]
        state = State.of(kept["lbfgs"], self.spec.lbfgs.history) if kept is not None else None
        self._counters = tuple(kept["counters"]) if kept is not None else self.spec.counters
        self._evaluations = max(self._evaluations, kept["evaluations"] if kept is not None else 0)
        used = state.history.basis[:-1] if state is not None else ()
        is_first, lost = not self._shards.incarnations, self._state
        for shard in await self._shards.restore(Restore(self._whole, used)):
            self.here.emit(RoleChanged(self.here.now(), shard_name(shard), "restarted"))
        if not is_first:
            redone = (lost.iterations if lost is not None else 0) - (state.iterations if state is not None else 0)
            self._tally.set_back(redone)
            again = f"; {redone} iteration{'' if redone == 1 else 's'} to be done again" if redone else ""
            self.here.emit(Noted(f"all shards go back to their last snapshot{again}"))
        self._state = state

    async def _told(self, state: State) -> None:
        """An iteration has been accepted: measured, told and saved, all from copies of the point that it led to."""
        self._state, batch = state, self._last
        assert batch is not None
        self._counters = tuple(map(sum, zip(self._counters, batch.counters, strict=True)))
        await self._shards.order(accept=True)
        await self._iterations.copied(state.iterations, self._counters)
        await self._shards.order()  # a shard that was restarted meanwhile gave away no copy
        self._iterations.tell(self._told_of(state, batch))
        if self._is_due(state):
            await self._save()

    def _told_of(self, state: State, batch: Batch) -> dict[str, Any]:
        """Of an iteration's record, what is not measured."""
        now, samples = self.here.now(), self._tally.samples
        began, before = self._began
        self._began = now, samples
        metrics = {name: total / max(count, 1e-12) for name, (total, count) in batch.metrics.items()}
        return {
            "epoch": state.iterations - 1,
            "step": state.evaluations - 1,
            "train_loss": state.value,
            "lr": state.length,
            "samples_per_second": (samples - before) / max(now - began, 1e-9),
            "spent": self._tally.spent(),
            "seconds": now,
            "train": {**metrics, "gradient_norm": state.history.gradient_norm},
        }

    def _is_due(self, state: State) -> bool:
        rule = self.spec.checkpoint
        if rule is None or (self._saving is not None and not self._saving.done):
            return False
        when, iterations = self._saved_at
        duration = rule.duration
        if duration.unit == "second":
            return self.here.now() - when >= duration.amount
        return state.iterations - iterations >= duration.amount

    async def _save(self) -> None:
        """All shards take a copy now, of one point; they save it beside their work."""
        assert self._state is not None
        self._snapshot += 1
        number, began, state = self._snapshot, self.here.now(), self._state
        values = {
            "lbfgs": state.values(),
            "counters": list(self._counters),
            "evaluations": self._evaluations,
            "untold": self._iterations.untold,
        }
        self._saved_at = began, state.iterations
        self.here.emit(SaveBegan(number))
        copy = Copy(number, state.history.basis[:-1], self._whole, fresh=self._failed)
        stood = await self._shards.copy(copy)
        self._kept[number] = {**values, **self._tally.state()}
        self._saving = self.here.start(self._saved(number, began, stood))

    async def _saved(self, number: int, began: float, stood: float) -> RunError | None:
        """Waits until all have saved it; what kept one from it."""
        kept = self._kept[number]
        assert kept is not None
        iterations = int(kept["lbfgs"]["iterations"])
        try:
            num_bytes = await self._shards.saved(number)
        except RunError as error:
            said = ", ".join([error.headline, *(text for label, text in error.rows if label == "found")])
            newest, self._failed = self._kept[self._whole], True
            self.here.emit(SaveFailed(iterations, said, int(newest["lbfgs"]["iterations"]) if newest else None))
            return error
        self._kept = {self._whole: self._kept[self._whole], number: kept}
        self._whole, self._failed, now = number, False, self.here.now()
        self.here.emit(Saved(iterations, stood, now - began, num_bytes, number, now, kept))
        return None
