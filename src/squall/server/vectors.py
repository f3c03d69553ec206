"""A shard of batch optimisation: one slice of every vector that the optimiser works on, and the sum of a batch.

Dean et al. 2012, section 4.2. All vectors are cut alike: the point, its gradient, the history, the direction, the
trial. The coordinator sends commands (`squall.optim.algebra`), and gets inner products of slices back; no vector
travels but the trial, to the replicas, and sums of gradients, from them::

    coordinator  order 7: trial <- x + d; open evaluation 3   -->   shard     <--  replica-4  fetch: the trial
                                                              <--   done      <--  replica-4  push: portions 8 .. 11
    coordinator  order 8: close evaluation 3; dots d . g      -->   g <- sum / count + decay * trial

* A unit of portions is added once, whoever sends it, and only to the evaluation that it was computed for.
* Sums are exact (`squall.server.exact`): their bits do not depend on who computed which unit, nor on what came first.
  Where nothing is known of their size, the coordinator has the first unit computed before all others.
* Decay belongs to the function: decay / 2 * |x|^2 is added to its value, decay * x to its gradient.
* Buffers (running statistics of a normalisation) have no gradient. Each portion begins with those of the point; the
  trial's are their mean over samples, and become the point's when the trial does.
* A shard that died comes back empty and says so; the coordinator sets all of them back to one snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from squall.cluster.program import Cost, Role, Task
from squall.errors import RunError
from squall.optim.algebra import Command, Matrix, Vectors, changed
from squall.optim.lbfgs import GRADIENT, TRIAL, TRIAL_GRADIENT, X, names
from squall.server.client import so_far
from squall.server.exact import ExactSums
from squall.server.layout import Slice
from squall.server.messages import Fetch, Fetched, Outcome, Push, Receipt, Version
from squall.server.shard import Snapshot, Snapshots

Tensors = dict[str, torch.Tensor]

BUFFERS, _SCALE = "buffers", "scale"


@dataclass(frozen=True)
class VectorSpec:
    """What a shard of vectors is told.

    Attributes:
        slice: of every vector.
        dtype: of the vectors.
        history: pairs of L-BFGS.
        portions, units: of a batch.
        reach: a pair is saved again after so many snapshots, so that older ones can go.
    """

    slice: Slice
    dtype: torch.dtype
    history: int
    portions: int
    units: int
    reach: int


@dataclass(frozen=True)
class Close:
    """The end of an evaluation: what its sums are divided by; losses and samples."""

    evaluation: int
    count: float
    samples: int


@dataclass(frozen=True)
class Restore:
    """Back to a snapshot, with the pairs that are used in it. In the beginning's, snapshot 0, is the trial alone."""

    number: int
    used: tuple[str, ...] = ()


@dataclass(frozen=True)
class Copy:
    """A snapshot that is to be made.

    Attributes:
        number: rises.
        used: pairs that belong to it.
        whole: the newest one that all shards have saved; what it and later ones do not need is removed.
        fresh: the one before did not become whole: nothing that it may have saved is relied on.
    """

    number: int
    used: tuple[str, ...]
    whole: int
    fresh: bool = False


@dataclass(frozen=True)
class Order:
    """What the coordinator tells a shard, all of it at once: close, then commands, then the rest.

    Attributes:
        number: rises; one that comes twice, or late, is carried out once.
        incarnation: of the shard that it is meant for; None: whichever there is, with `restore`.
        close: the evaluation that is complete.
        commands: on the slices.
        accept: the trial has become the point: its buffers are, and its sums are what the next are expected to be like.
        begin: the number of the evaluation that is opened, at the trial.
        restore: where all vectors are set back to.
    """

    number: int
    incarnation: int | None
    close: Close | None = None
    commands: tuple[Command, ...] = ()
    accept: bool = False
    begin: int | None = None
    restore: Restore | None = None


@dataclass(frozen=True)
class Answer:
    """What an order came to.

    Attributes:
        incarnation: of the shard that answers; where it is not the one that was meant, nothing was done.
        matrices: of the `Dots` among the commands, over this slice.
        penalty: decay's part of the value, with `close`.
        exact: whether the sums' bits are those of any order, with `close`.
    """

    incarnation: int
    matrices: tuple[Matrix, ...] = ()
    penalty: float = 0.0
    exact: bool = True


class VectorShard(Role):
    """Serves one slice of all vectors.

    Arguments:
        spec: of the shard.
        points: where its snapshots are: the point, its gradient, buffers.
        pairs: where those are that joined the history in between.
    """

    def __init__(self, spec: VectorSpec, points: Snapshots, pairs: Snapshots) -> None:
        self.spec, self._points, self._pairs = spec, points, pairs

    async def begin(self) -> None:
        """Makes room; what is in the vectors comes with an order to restore it."""
        part, dtype = self.spec.slice, self.spec.dtype
        self._vectors = Vectors(names(self.spec.history), part.buffers, dtype)
        self._buffers = torch.zeros(part.size - part.buffers, dtype=dtype)
        self._coming = self._buffers.clone()
        of_gradients, of_buffers = ExactSums(part.buffers, dtype), ExactSums(part.size - part.buffers, dtype)
        self._sums = of_gradients, of_buffers
        self._scale = 0.0, 0.0  # what is largest in a unit at the point
        self._evaluation = -1  # the one that is open
        self._states = torch.zeros(self.spec.portions, dtype=torch.uint8)  # 1: a portion is in the sums
        self._done = -1, Answer(self.here.incarnation)
        self._restored = False
        self._held: dict[str, int] = {}  # which snapshot has a pair's vector as it is now
        self._copied = -1
        self._copying: Task[float] | None = None
        self._saving: Task[int | RunError] | None = None
        self._fetched: dict[str, tuple[tuple[int, int], Fetched]] = {}
        self._bytes = part.size * dtype.itemsize

    # -- what replicas ask ------------------------------------------------------------------------------------

    async def fetch(self, fetch: Fetch, into: torch.Tensor) -> Fetched:
        """Writes a vector's slice, and the point's buffers, into a role's memory; (slice.size,).

        The version's count is the evaluation that is open at the trial, or -1.
        """

        def work() -> Fetched:
            last = self._fetched.get(fetch.sender.name)
            if last is not None and (fetch.sender.incarnation, fetch.number) <= last[0]:
                return last[1]  # came twice: its memory may be in use by now
            into[: self.spec.slice.buffers].copy_(self._vectors[fetch.vector])
            into[self.spec.slice.buffers :].copy_(self._buffers)
            found = Fetched(self._version())
            self._fetched[fetch.sender.name] = (fetch.sender.incarnation, fetch.number), found
            return found

        return await self.here.compute(work, Cost(bytes=2 * self._bytes))

    async def push(
        self, push: Push, fetch: Fetch | None, send: torch.Tensor, into: torch.Tensor | None = None
    ) -> Receipt:
        """Adds the sums over a unit's portions, once.

        Arguments:
            push: `base` is the version that was fetched.
            send: (slice.size,): sums over samples; of gradients, and of the buffers' values.
        """

        def work() -> Receipt:
            return Receipt(self._judged(push, send), None, self._version())

        return await self.here.compute(work, Cost(bytes=5 * self._bytes))

    def _judged(self, push: Push, send: torch.Tensor) -> Outcome:
        unit, part = push.unit, self.spec.slice
        if push.base != self._version() or self._evaluation < 0:
            return "dropped"
        states = self._states[unit.first : unit.first + unit.count]
        if len(states) != unit.count:
            raise RunError(f"{push.sender.name} pushed portion {unit.minibatches[-1]} of {len(self._states)}")
        if bool(states.any()):
            return "repeated"
        for sums, own in zip(self._sums, (send[: part.buffers], send[part.buffers :]), strict=True):
            sums.add(own)
        states.fill_(1)
        return "applied"

    def _version(self) -> Version:
        return Version(self.here.incarnation, self._evaluation)

    # -- what the coordinator tells ---------------------------------------------------------------------------

    async def order(self, order: Order) -> Answer:
        """Carries an order out, once."""
        reads = 2 + sum(len(getattr(command, "terms", ())) or 3 for command in order.commands)
        return await self.here.compute(lambda: self._carried_out(order), Cost(bytes=reads * self._bytes))

    def _carried_out(self, order: Order) -> Answer:
        if order.restore is None and (order.incarnation != self.here.incarnation or not self._restored):
            return Answer(-1)
        if order.number <= self._done[0]:
            return self._done[1]
        if order.restore is not None:
            self._set_back(order.restore)
        penalty = self._close(order.close) if order.close is not None else 0.0
        matrices = tuple(self._vectors.do(*order.commands))
        for name in changed(order.commands):
            self._held.pop(name, None)
        if order.accept:
            self._buffers.copy_(self._coming)
            self._scale = self._sums[0].largest, self._sums[1].largest
        if order.begin is not None:
            self._evaluation = order.begin
            self._states.zero_()
            for sums, largest in zip(self._sums, self._scale, strict=True):
                sums.begin(largest, self.spec.units)
        exact = all(sums.exact for sums in self._sums)
        self._done = order.number, Answer(self.here.incarnation, matrices, penalty, exact)
        return self._done[1]

    def _close(self, close: Close) -> float:
        """Makes the sums a gradient; returns decay's part of the value."""
        if self._evaluation != close.evaluation:
            raise RunError(f"evaluation {close.evaluation} is not open: {self._evaluation} is")
        gradients, buffers = (sums.take() for sums in self._sums)
        trial, gradient = self._vectors[TRIAL], self._vectors[TRIAL_GRADIENT]
        penalty = 0.0
        for piece in self.spec.slice.pieces:
            mine = slice(piece.start, piece.stop)
            found = gradients[mine].div_(close.count)
            if decay := piece.treated.weight_decay:
                point = trial[mine].double()
                found.add_(point, alpha=decay)
                penalty += decay / 2 * float(point @ point)
            gradient[mine].copy_(found)
        self._coming.copy_(buffers.div_(max(close.samples, 1)))
        self._evaluation = -1
        return penalty

    # -- snapshots --------------------------------------------------------------------------------------------

    async def copy(self, incarnation: int, copy: Copy) -> float | None:
        """Takes a copy, and begins to save it beside its work: the point, its gradient, and those of the pairs that are
        used which are not saved as they are.

        Returns:
            Seconds that work stood still for it; None of another incarnation than was meant. One that asks again for
            the same number gets the same answer.
        """
        if incarnation != self.here.incarnation or not self._restored:
            return None
        if copy.number > self._copied:
            self._copied, self._copying = copy.number, self.here.start(self._copy(copy))
        return await self._copying if self._copying is not None else None

    async def _copy(self, copy: Copy) -> float:
        began = self.here.now()
        point, pairs = await self.here.compute(lambda: self._taken(copy), Cost(bytes=8 * self._bytes))
        self._saving = self.here.start(self._save(copy, point, pairs))
        return self.here.now() - began

    async def saved(self, number: int) -> int | None:
        """Bytes of the snapshot that was copied last, once it is saved; None while it is at it."""
        if number != self._copied or self._saving is None:
            raise RunError(f"{self.here.name} has no copy {number}")
        found = await so_far(self.here, self._saving)
        if isinstance(found, RunError):
            raise found
        return found

    async def _save(self, copy: Copy, point: Tensors, pairs: Tensors) -> int | RunError:
        index = self.spec.slice.index

        def save() -> int:
            num_bytes = self._pairs.save(index, Snapshot(copy.number, pairs, 0, {})) if pairs else 0
            num_bytes += self._points.save(index, Snapshot(copy.number, point, 0, {}))
            self._pairs.forget(index, copy.whole - self.spec.reach)
            return num_bytes

        try:
            return await self.here.beside(save, Cost(bytes=8 * self._bytes))
        except RunError as error:  # whoever asks for the snapshot hears of it
            return error

    def _taken(self, copy: Copy) -> tuple[Tensors, Tensors]:
        """Copies: of the point, its gradient and the buffers; and of pairs."""
        point = {name: self._vectors[name].clone() for name in (X, GRADIENT)} | {BUFFERS: self._buffers.clone()}
        point[_SCALE] = torch.tensor(self._scale, dtype=torch.float64)
        pairs = {}
        for name in copy.used:
            if copy.fresh or name not in self._held or self._held[name] <= copy.number - self.spec.reach:
                pairs[name], self._held[name] = self._vectors[name].clone(), copy.number
        return point, pairs

    def _set_back(self, to: Restore) -> None:
        index = self.spec.slice.index
        for kept in (self._points, self._pairs):
            kept.forget(index, above=to.number)  # of a course that is taken again
        point = self._points.read(index, to.number).tensors
        self._scale = tuple(point[_SCALE].tolist()) if _SCALE in point else (0.0, 0.0)
        self._take_up({name: tensor for name, tensor in point.items() if name != _SCALE})
        self._held, wanted = {}, set(to.used)
        for number in reversed(self._pairs.numbers(index)):
            if not wanted:
                break
            found = {name: vector for name, vector in self._pairs.read(index, number).tensors.items() if name in wanted}
            self._take_up(found)
            self._held |= dict.fromkeys(found, number)
            wanted -= set(found)
        if wanted:
            raise RunError(f"snapshot {to.number} of shard {index} lacks {', '.join(sorted(wanted))}")
        self._evaluation, self._restored = -1, True

    def _take_up(self, tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            (self._buffers if name == BUFFERS else self._vectors[name]).copy_(tensor)


def first_layer(part: Slice, vector: torch.Tensor) -> Snapshot:
    """The beginning: the trial is where the whole vector is."""
    own = vector[part.start : part.stop]
    return Snapshot(0, {TRIAL: own[: part.buffers].clone(), BUFFERS: own[part.buffers :].clone()}, 0, {})
