"""The machinery behind a step: reads this process's passes, computes them, reduces, keeps time and ledger.

Hosting: the step's passes are the leaves of the reduction tree; a process hosts a contiguous run of them. Nothing a
pass computes depends on who hosts it: its samples come from the order, its random numbers from (seed, epoch, step,
pass), its buffers from the step's start, its normalisation groups from the plan.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from squall.cluster.world import World
from squall.data.batches import finish_of, read
from squall.data.nested import each_tensor
from squall.data.order import Draw, Order, StepPlan
from squall.errors import InputError, RunError
from squall.metrics import Mean
from squall.model.ghostnorm import has_batch_norm, split_normalisation
from squall.reduce.tree import share
from squall.rng import seed_pass
from squall.run.ledger import Ledger
from squall.run.passes import Passes
from squall.run.precision import LossScale
from squall.run.spec import RunSpec
from squall.run.sums import VOTES, StepSums


@dataclass
class Clock:
    """Where the time of the step at hand goes, on this process.

    Attributes:
        opened: when the step began, on `time.perf_counter`.
        data: seconds spent on reading batches.
        blocked: seconds spent on waiting for sums: for slower ranks, and for what travels.
    """

    opened: float = 0.0
    data: float = 0.0
    blocked: float = 0.0

    def open(self) -> None:
        """Begins a step."""
        self.opened, self.data, self.blocked = time.perf_counter(), 0.0, 0.0


class Stepper:
    """Runs the passes of one process.

    Arguments:
        spec: the numbers of the run.
        world: the job's processes.
        model: on its device, in its memory format.
    """

    def __init__(self, spec: RunSpec, world: World, model: nn.Module) -> None:
        self.spec, self.world, self.model = spec, world, model
        self.passes = Passes(model, world, exact=spec.reduction == "exact")
        self.parameters = self.passes.parameters
        self.scale = LossScale(spec.precision, spec.worker_batch_size * spec.fuse)
        self.clock = Clock()
        self.votes: Callable[[], Sequence[float]] = lambda: (0.0,) * len(VOTES)
        self.passes.words = self._words
        self._generator = torch.default_generator.get_state()
        self.first_step = 0
        self.num_passes = 0
        self.read_samples = 0
        self.late = world.device.type == "cuda"  # a step's numbers are looked at when the next one is under way
        self._groups = split_normalisation(model) if spec.fuse > 1 else None
        self._normalises = has_batch_norm(model)
        self._reader: Iterator[tuple[Draw, Any]] = iter(())
        self._planned: deque[Draw] = deque()  # asked of the reader, not yet computed
        self.ledger: Ledger | None = None
        self.order: Order | None = None
        self.where = (0, 0)

    def begin(self, data: Any, collate: Callable[..., Any] | None, num_workers: int, first_step: int = 0) -> Order:
        """Prepares to read a training set from a given step on.

        Arguments:
            data: the training set.
            collate: joins samples into a batch; torch's default otherwise.
            num_workers: loader processes of this process.
            first_step: of the run, where reading begins.

        Returns:
            Who sees which sample of it.

        Raises:
            InputError: more processes than passes; a virtual worker of one sample under batch normalisation.
        """
        order = self.spec.order(len(data))
        check_hosting(order, self.world.size, self._normalises)
        self.order, self.ledger, self.first_step = order, Ledger(order), first_step
        self._planned.clear()
        self._reader = iter(
            read(
                data,
                self._draws(order, first_step),
                seed=self.spec.seed,
                device=self.world.device,
                collate=collate,
                num_workers=num_workers,
                finish=finisher(data, self.spec),
            )
        )
        return order

    def open_step(self, plan: StepPlan) -> range:
        """Begins a step; returns the passes to compute here."""
        self.clock.open()
        self._generator = torch.default_generator.get_state()
        leaves = self.passes.open(plan.num_passes)
        self.num_passes = len(leaves)
        return leaves

    def open_pass(self, plan: StepPlan, leaf: int) -> Any:
        """Reads the pass's batch and prepares the model and the generators for it.

        Raises:
            InputError: so many samples were skipped that the pass cannot be computed.
        """
        started = time.perf_counter()
        self.where = (plan.index, plan.epoch)
        draw, batch = next(self._reader, (None, None))
        if draw is None:
            raise RunError(
                f"step {plan.index} was iterated after the run had ended",
                [("rule", "compute a step while run.steps and the run are open")],
            )
        assert self.ledger is not None
        planned = self._planned.popleft()
        self.ledger.note(plan, leaf, planned, draw)
        self.read_samples = len(draw)
        self.clock.data += time.perf_counter() - started
        sizes = plan.pass_workers(leaf)
        if len(draw) < len(planned):
            sizes = _shrink(sizes, len(draw))
            check_skipped(plan, planned, draw, sizes, self._normalises)
        if self._groups is not None:
            self._groups.sizes = sizes
        seed_pass(self.world.device, self.spec.seed, plan.epoch, plan.index, leaf)
        self.passes.begin_pass(leaf)
        return batch

    def backward(
        self, loss: torch.Tensor, count: float | torch.Tensor, num_samples: int, metrics: dict[str, Mean]
    ) -> None:
        """The pass's backward, and its share of the step's sums."""
        self.passes.backward(loss * self.scale.factor if self.scale.active else loss)
        self.passes.end_pass(loss, count, num_samples, metrics)

    def close_step(self) -> StepSums:
        """Waits for the sums of all processes.

        torch's generator goes on from where it was before the step: what a loop draws between steps depends neither on
        the passes that this process happens to host nor on their number.
        """
        sums = self.passes.finish(scale=self.scale.factor)
        self.clock.blocked = self.passes.waited
        torch.default_generator.set_state(self._generator)
        if self.scale.active:
            finite = self.passes.is_finite()
            self.scale.note(finite)
            if not finite:
                self.passes.detach()
        return sums

    def close(self) -> None:
        """Ends the reader's processes."""
        closer = getattr(self._reader, "close", None)
        if closer is not None:
            closer()
        self._reader = iter(())

    def release(self) -> None:
        """Ends the reader and takes everything off the model that was hung on it."""
        self.close()
        self.passes.release()
        if self._groups is not None:
            self._groups.remove()

    def _words(self) -> tuple[Sequence[float], float]:
        """Votes, and the seconds that this process has been busy in the step."""
        return self.votes(), time.perf_counter() - self.clock.opened - self.passes.waited

    def _draws(self, order: Order, first_step: int) -> Iterator[Draw]:
        for index in range(first_step, order.num_steps):
            plan = order.step(index)
            for leaf in range(*share(plan.num_passes, self.world.size, self.world.rank)):
                self._planned.append(order.draw(plan, leaf))
                yield self._planned[-1]


def check_hosting(order: Order, num_processes: int, normalises: bool) -> None:
    """Refuses a number of processes or a cut that cannot work.

    Raises:
        InputError: with the numbers and what to change.
    """
    if order.num_steps == 0:
        raise InputError(
            f"no minibatch of {order.global_batch_size} fits into {order.num_samples} samples",
            [
                ("rule", 'last_batch = "drop" leaves nothing'),
                ("to do", "a smaller global_batch_size, or last_batch=short"),
            ],
        )
    plan = order.step(0)
    if num_processes > plan.num_passes:
        raise InputError(
            f"{num_processes} processes for {plan.num_passes} passes",
            [
                (
                    "found",
                    f"{plan.num_passes} passes a step: {len(plan.worker_sizes)} virtual workers, fuse={order.fuse}",
                ),
                ("rule", "each process needs a pass of its own to compute"),
                ("to do", f"--processes {plan.num_passes} or fewer, or a smaller fuse or worker_batch_size"),
            ],
        )
    last = order.step(order.num_steps - 1)
    for step in (plan, order.step(min(order.steps_per_epoch, order.num_steps) - 1), last):
        if normalises and 1 in step.worker_sizes:
            raise InputError(
                f"step {step.index} has a virtual worker of one sample, and the model has batch normalisation",
                [
                    (
                        "found",
                        f"{step.num_samples} samples over {len(step.worker_sizes)} workers",
                    ),
                    ("rule", "a mean and a variance need two samples or more"),
                    ("to do", "another worker_batch_size or global_batch_size, or last_batch=drop or carry"),
                ],
            )


def check_skipped(plan: StepPlan, planned: Draw, draw: Draw, sizes: tuple[int, ...], normalises: bool) -> None:
    """Refuses a pass that lost too many samples to files that do not decode.

    Arguments:
        planned, draw: the pass's samples as the order has them, and as they could be read.
        sizes: of the virtual workers that are left.

    Raises:
        InputError: no sample is left; or one in a virtual worker, under batch normalisation.
    """
    gone = [index for index in planned.ids.tolist() if index not in set(draw.ids.tolist())]
    first = f"{', '.join(f'train[{index}]' for index in gone[:3])}{' ...' if len(gone) > 3 else ''}"
    found = f"{len(gone)} of {len(planned)} samples could not be read: {first}"
    if not sizes:
        raise InputError(
            f"step {plan.index}: all samples of a pass were skipped",
            [
                ("found", found),
                ("rule", "each pass needs a sample to compute"),
                ("to do", "repair or delete these files, or a larger worker_batch_size"),
            ],
        )
    if normalises and 1 in sizes:
        raise InputError(
            f"step {plan.index}: skipped samples leave a virtual worker of one, and the model has batch normalisation",
            [
                ("found", found),
                ("rule", "a mean and a variance need two samples or more"),
                ("to do", "repair or delete these files, or a larger worker_batch_size"),
            ],
        )


def finisher(data: Any, spec: RunSpec) -> Callable[[Any, Draw], Any]:
    """What is done to a batch once it is on its device: the set's own `finish`, then the recipe's memory format."""
    own = finish_of(data)
    formatted = partial(_in_memory_format, spec.channels_last)

    def finish(batch: Any, draw: Draw) -> Any:
        return each_tensor(formatted, batch if own is None else own(batch, draw, spec.seed))

    return finish


def _in_memory_format(channels_last: bool, tensor: torch.Tensor) -> torch.Tensor:
    """Of images, which are what has four dimensions and is floating-point."""
    if tensor.ndim != 4 or not tensor.is_floating_point():
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _shrink(sizes: tuple[int, ...], num_samples: int) -> tuple[int, ...]:
    """Group sizes after skipped images: the last workers of the pass give them up."""
    missing = sum(sizes) - num_samples
    shrunk = list(sizes)
    for index in reversed(range(len(shrunk))):
        taken = min(missing, shrunk[index])
        shrunk[index] -= taken
        missing -= taken
    return tuple(size for size in shrunk if size)
