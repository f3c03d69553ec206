"""The ledger: proof that every sample was seen exactly as often as the order says.

Each rank counts the samples that it really read and trained on, not the ones it was told to read. At the end the
counts of all ranks are added and held against the order, sample by sample. The digest is a sum (mod 2^64) of hashes
of (step, position in the minibatch, epoch, sample): equal digests mean that the same samples stood in the same
workers of the same steps, whatever number of processes read them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from squall.cluster.world import World
from squall.data.order import Draw, Order, StepPlan
from squall.errors import RunError
from squall.rng import mix, mix_array
from squall.run.collect import add_up

_AT_ONCE = 64  # passes


@dataclass(frozen=True)
class LedgerResult:
    """What the ledger found.

    Attributes:
        samples: sample reads counted over all processes.
        distinct: different samples among them.
        least, most: how often any sample was seen.
        skipped: reads left out because a file did not decode (policy skip).
        digest: hash of who saw what where, 16 hex digits.
        complete: every sample was seen exactly as often as the order says.
    """

    samples: int
    distinct: int
    least: int
    most: int
    skipped: int
    digest: str
    complete: bool

    def as_dict(self) -> dict[str, Any]:
        """For result.json."""
        return asdict(self)


class Ledger:
    """Counts one rank's samples.

    Arguments:
        order: what the counts are held against at the end.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._counts = np.zeros(order.num_samples, dtype=np.int64)
        self._digest = np.zeros(1, dtype=np.uint64)
        self._skipped = 0
        self._noted: list[tuple[int, int, Draw]] = []

    def load(self, counts: np.ndarray[Any, np.dtype[np.int64]], digest: int, skipped: int) -> None:
        """Takes over what earlier sessions counted; called on one rank, as all ranks are added up."""
        self._counts += counts
        self._digest += np.array([digest], dtype=np.uint64)
        self._skipped += skipped

    def total(self, world: World) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int, int]:
        """Counts, digest and skipped reads of all ranks together."""
        self._count()
        counts = add_up(world, self._counts)
        digest, skipped = add_up(world, np.array([self._digest.view(np.int64)[0], self._skipped], dtype=np.int64))
        return counts, int(digest) & (1 << 64) - 1, int(skipped)

    def note(self, plan: StepPlan, pass_index: int, planned: Draw, read: Draw) -> None:
        """Counts what one pass really read."""
        first, _ = plan.pass_range(pass_index)
        self._noted.append((mix(plan.index), first, read))
        self._skipped += len(planned) - len(read)
        if len(self._noted) == _AT_ONCE:
            self._count()

    def _count(self) -> None:
        """Takes in what was noted: many passes at once, as the cost is one of calls."""
        if not self._noted:
            return
        lengths = [len(read) for _, _, read in self._noted]
        steps = np.repeat(np.array([step for step, _, _ in self._noted], dtype=np.uint64), lengths)
        positions = np.concatenate([first + np.arange(len(read), dtype=np.uint64) for _, first, read in self._noted])
        ids = np.concatenate([read.ids for _, _, read in self._noted])
        epochs = np.concatenate([read.epochs for _, _, read in self._noted])
        self._noted = []
        np.add.at(self._counts, ids, 1)
        hashes = mix_array(mix_array(mix_array(steps, positions), epochs), ids)
        with np.errstate(over="ignore"):
            self._digest += hashes.sum(dtype=np.uint64)

    def settle(self, world: World, steps_done: int) -> LedgerResult:
        """Adds up all ranks and compares with the order.

        Arguments:
            steps_done: updates that were applied.

        Raises:
            RunError: a sample was missed or seen too often.
        """
        counts, digest, skipped = self.total(world)
        expected = self._expected(steps_done)
        wrong = np.flatnonzero(counts != expected) if not skipped else np.flatnonzero(counts > expected)
        if len(wrong) or (skipped and int((expected - counts).sum()) != int(skipped)):
            first = int(wrong[0]) if len(wrong) else int(np.flatnonzero(counts != expected)[0])
            raise RunError(
                f"the ledger does not close: {len(wrong)} samples were missed or doubled",
                [("first", f"sample {first} was seen {int(counts[first])} times instead of {int(expected[first])}")],
            )
        return LedgerResult(
            samples=int(counts.sum()),
            distinct=int((counts > 0).sum()),
            least=int(counts.min()),
            most=int(counts.max()),
            skipped=skipped,
            digest=f"{digest:016x}",
            complete=steps_done == self._order.num_steps and not skipped,
        )

    def _expected(self, steps_done: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        order = self._order
        expected = np.zeros(order.num_samples, dtype=np.int64)
        if steps_done == order.num_steps and order.last_batch != "drop":
            expected += order.epochs
            return expected
        for index in range(steps_done):
            plan = order.step(index)
            np.add.at(expected, order.samples(plan.start, plan.start + plan.num_samples).ids, 1)
        return expected
