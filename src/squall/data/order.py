"""Who sees which sample, and when: a pure function of (seed, epoch, step, worker).

Goyal et al. 2017, Remark 4: each epoch is one random shuffle of the whole set, cut into k parts. Here the cut goes
through each minibatch: step t of an epoch takes the next kn samples of the epoch's permutation, and its j-th virtual
worker takes n consecutive ones of these::

    epoch's permutation   |<------------ step 0 ------------>|<------------ step 1 ...
                          | worker 0 | worker 1 | worker 2 ..|
                          |  n ids   |  n ids   |
    passes (fuse = 2)     |       pass 0        |   pass 1 ..|

An epoch's last minibatch has r <= kn samples. `last_batch` says what becomes of it:

* ``short``: ceil(r/n) workers whose sizes differ by at most one. Nothing is padded, repeated or left out.
* ``drop``: these r samples are not used in this epoch.
* ``carry``: they open the next epoch's first minibatch; only the run's very last step may be short.

No process appears anywhere in this module: processes only host passes (`squall.run.stepper`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from squall.rng import permutation

LastBatch = Literal["short", "drop", "carry"]


@dataclass(frozen=True)
class StepPlan:
    """One update: which part of which epoch, and how it is cut into workers and passes.

    Attributes:
        index: number of the update in the run, from 0.
        epoch: epoch of its first sample, from 0.
        index_in_epoch: number of the update in that epoch, from 0.
        start: samples of the run that came before it (epoch * N + position, dropped samples counted).
        worker_sizes: samples of each virtual worker.
        fuse: consecutive workers a pass.
        ends_epoch: whether an epoch's last sample is in it.
    """

    index: int
    epoch: int
    index_in_epoch: int
    start: int
    worker_sizes: tuple[int, ...]
    fuse: int
    ends_epoch: bool

    @property
    def num_samples(self) -> int:
        """Samples in this minibatch."""
        return sum(self.worker_sizes)

    @property
    def num_passes(self) -> int:
        """Leaves of this step's reduction tree."""
        return -(-len(self.worker_sizes) // self.fuse)

    def pass_workers(self, index: int) -> tuple[int, ...]:
        """Sizes of the virtual workers that pass `index` computes."""
        return self.worker_sizes[index * self.fuse : (index + 1) * self.fuse]

    def pass_range(self, index: int) -> tuple[int, int]:
        """First sample and the one after the last of pass `index`, counted from the minibatch's start."""
        first = sum(self.worker_sizes[: index * self.fuse])
        return first, first + sum(self.pass_workers(index))


@dataclass(frozen=True)
class Draw:
    """The samples of one pass: what to read, in order.

    Attributes:
        ids: indices into the training set, int64, shape (n,).
        epochs: the epoch each is drawn in (they differ only under ``carry``), int64, shape (n,).
    """

    ids: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Order:
    """The whole run's order.

    Arguments:
        num_samples: N, size of the training set.
        global_batch_size: kn, samples an update.
        worker_batch_size: n, samples of a virtual worker.
        epochs: passes over the training set.
        seed: the recipe's seed.
        fuse: virtual workers a pass.
        last_batch: what becomes of an epoch's last, smaller minibatch.

    Example:
        >>> order = Order(num_samples=1437, global_batch_size=128, worker_batch_size=16, epochs=30, seed=0)
        >>> order.steps_per_epoch, order.num_steps, order.step(11).worker_sizes
        (12, 360, (15, 14))
    """

    num_samples: int
    global_batch_size: int
    worker_batch_size: int
    epochs: int
    seed: int
    fuse: int = 1
    last_batch: LastBatch = "short"

    @property
    def steps_per_epoch(self) -> int:
        """Updates an epoch; under ``carry`` the most that any epoch begins."""
        if self.last_batch == "drop":
            return self.num_samples // self.global_batch_size
        return -(-self.num_samples // self.global_batch_size)

    @property
    def num_steps(self) -> int:
        """Updates in the run."""
        if self.last_batch == "carry":
            return -(-self.num_samples * self.epochs // self.global_batch_size)
        return self.steps_per_epoch * self.epochs

    def step(self, index: int) -> StepPlan:
        """The plan of update `index`, 0 .. num_steps - 1."""
        batch, total = self.global_batch_size, self.num_samples
        if self.last_batch == "carry":
            start = index * batch
            stop = min(start + batch, total * self.epochs)
            epoch = start // total
            first_of_epoch = -(-epoch * total // batch)
            ends_epoch = stop // total > start // total
            in_epoch = index - first_of_epoch
        else:
            epoch, in_epoch = divmod(index, self.steps_per_epoch)
            start = epoch * total + in_epoch * batch
            stop = min(start + batch, (epoch + 1) * total)
            ends_epoch = in_epoch == self.steps_per_epoch - 1
        sizes = worker_sizes(stop - start, self.worker_batch_size)
        return StepPlan(index, epoch, in_epoch, start, sizes, self.fuse, ends_epoch)

    def progress(self, index: int) -> float:
        """Epochs done before update `index`: what the learning rate is a function of.

        Within an epoch equal steps count equally (also the short last one), so that a ramp rises by equal
        increments (check G5).
        """
        if self.last_batch == "carry":
            return index * self.global_batch_size / self.num_samples
        epoch, in_epoch = divmod(index, self.steps_per_epoch)
        return epoch + in_epoch / self.steps_per_epoch

    def draw(self, plan: StepPlan, pass_index: int) -> Draw:
        """The samples of one pass of a step."""
        first, stop = plan.pass_range(pass_index)
        return self.samples(plan.start + first, plan.start + stop)

    def samples(self, start: int, stop: int) -> Draw:
        """The samples at positions start .. stop - 1 of the run's stream of epochs."""
        parts, epochs = [], []
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            take = min(stop - start, self.num_samples - offset)
            parts.append(_epoch_order(self.seed, epoch, self.num_samples)[offset : offset + take])
            epochs.append(np.full(take, epoch, dtype=np.int64))
            start += take
        if not parts:
            return Draw(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        return Draw(np.concatenate(parts), np.concatenate(epochs))

    @property
    def samples_seen(self) -> int:
        """Samples that the whole run reads."""
        if self.last_batch == "drop":
            return self.num_steps * self.global_batch_size
        return self.num_samples * self.epochs


def worker_sizes(num_samples: int, worker_batch_size: int) -> tuple[int, ...]:
    """Cuts a minibatch into ceil(r/n) workers whose sizes differ by at most one, the larger first.

    Example (ImageNet at 8,192, the epoch's last step):
        >>> sizes = worker_sizes(3215, 32)
        >>> len(sizes), sizes.count(32), sizes.count(31)
        (101, 84, 17)
    """
    num_workers = -(-num_samples // worker_batch_size)
    small, larger = divmod(num_samples, num_workers) if num_workers else (0, 0)
    return (small + 1,) * larger + (small,) * (num_workers - larger)


@lru_cache(maxsize=3)
def _epoch_order(seed: int, epoch: int, num_samples: int) -> npt.NDArray[np.int64]:
    order = permutation(seed, epoch, num_samples)
    order.setflags(write=False)
    return order
