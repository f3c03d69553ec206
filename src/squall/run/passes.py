"""From the passes of one step to the gradient of the whole minibatch, in `.grad`.

The step's vector holds all gradients (in the order in which the backward pass completes them: the parameters'
reversed) and then the changes of the floating-point buffers. Post-accumulate hooks see when all gradients of a
bucket are there and move them into it; in a process's last pass it travels while the rest is still computed.
Counts, losses, metrics, votes and flags travel in a second, small float64 vector along the same tree::

    vector   | grad of last layer | ... | grad of first layer | changes of buffers |     float32 (or float64)
    tail     | loss | count | samples | passes | votes | busy seconds by rank | touched | integers | metrics |   float64

Gradients are sums over samples until the very end; then one division by the global count gives the gradient of the
mean: Goyal et al. 2017, Remark 3 (normalise by kn, not by n), in the one place where it can be done right for unequal
workers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from squall.cluster.world import World
from squall.errors import InputError, RunError
from squall.reduce import Bucket, FastReduction, Reduction, TreeReduction, buckets
from squall.reduce.flat import Place, aligned, place
from squall.run.buffers import Buffers
from squall.run.sums import FIXED, VOTES, StepSums, flags_at

BUCKET_BYTES = 4 << 20


class Passes:
    """Collects the gradients of a step's passes and reduces them over all processes.

    Arguments:
        model: on its device and in its memory format; its buffers are rebased (see `buffers.py`).
        world: the job's processes.
        exact: tree or collective.

    Attributes:
        words: what this process tells the others with its last pass: votes (`sums.VOTES`) and busy seconds.
    """

    def __init__(self, model: nn.Module, world: World, *, exact: bool) -> None:
        self._world, self._exact = world, exact
        self.words: Callable[[], tuple[Sequence[float], float]] = lambda: ((0.0,) * len(VOTES), 0.0)
        self._flags_at = flags_at(world.size)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in reversed(named)]
        self.parameters = [p for _, p in reversed(named)]
        wide = any(p.dtype == torch.float64 for p in self.parameters)
        dtype = torch.float64 if wide else torch.float32
        self._places: list[Place] = place(zip(self.names, self.parameters, strict=True))
        end = self._places[-1].end
        self.buffers = Buffers(model, end, dtype, world.device)
        like = torch.empty(0, dtype=dtype, device=world.device)
        ends = [p.end for p in self._places] + ([self.buffers.stop] if self.buffers.stop > end else [])
        self._cuts = buckets(ends, BUCKET_BYTES // like.element_size())
        self._reduction = self._new_reduction(self._cuts, like, tag=0)
        self._tail: Reduction | None = None
        self.metric_names: list[str] = []
        self._views: list[list[torch.Tensor]] = []
        self._bucket_of = [next(i for i, b in enumerate(self._cuts) if p.offset < b.stop) for p in self._places]
        self._members = [
            (bisect_left(self._bucket_of, bucket), bisect_right(self._bucket_of, bucket))
            for bucket in range(len(self._cuts))
        ]
        self._touched = [False] * len(self.parameters)
        self._ever_touched = [False] * len(self.parameters)
        self._leaves = range(0)
        self._open_pass = -1
        self._is_last = False
        self._missing: list[int] = []
        self._next_bucket = 0
        self._slot, self._accumulate = 0, False
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self.parameters)
        ]
        self._num_hooks = [_num_hooks(p) for p in self.parameters]

    @property
    def gradient_bytes(self) -> int:
        """Bytes of one step vector."""
        return self._cuts[-1].stop * self._reduction.vectors[0].element_size()

    @property
    def num_vectors(self) -> int:
        """Step vectors held (partial sums)."""
        return len(self._reduction.vectors)

    def open(self, num_passes: int) -> range:
        """Begins a step; returns the passes that this process computes."""
        self.detach()
        self._refuse_later_hooks()
        self.buffers.open()
        self._ever_touched = [False] * len(self.parameters)
        self._leaves = self._reduction.open(num_passes)
        if self._tail is not None:
            self._tail.open(num_passes)
        self._num_passes = num_passes
        return self._leaves

    def begin_pass(self, leaf: int) -> None:
        """The next backward pass is that of pass `leaf`."""
        self._slot, self._accumulate = self._reduction.begin_pass(leaf)
        while len(self._views) <= self._slot:
            vector = self._reduction.vectors[len(self._views)]
            self._views.append([p.view(vector) for p in self._places])
        self._touched = [False] * len(self.parameters)
        self._open_pass = leaf
        self._is_last = leaf == self._leaves[-1]
        self._next_bucket = 0
        self._missing = [stop - start for start, stop in self._members]

    def backward(self, loss: torch.Tensor) -> None:
        """The backward pass of a sum over the pass's samples."""
        loss.backward()  # type: ignore[no-untyped-call]

    def end_pass(
        self, loss: torch.Tensor, count: float | torch.Tensor, num_samples: int, metrics: dict[str, Any]
    ) -> None:
        """Completes the pass: parameters without a gradient, buffers, and the tail."""
        for bucket in range(self._next_bucket, len(self._cuts)):
            self._gather(bucket)
        self.buffers.end_pass(self._reduction.vectors[self._slot], num_samples, self._accumulate)
        if not all(self._ever_touched):
            self._ever_touched = [a or b for a, b in zip(self._ever_touched, self._touched, strict=True)]
        leaf, self._open_pass = self._open_pass, -1
        if self._is_last:
            for bucket in range(self._next_bucket, len(self._cuts)):
                self._reduction.ready(bucket)
        else:
            self._reduction.end_pass()
        self._add_tail(leaf, loss, count, num_samples, metrics)

    def finish(self, scale: float = 1.0) -> StepSums:
        """Waits for the sums of all processes; sets `.grad` to the mean's gradient and the buffers to their mean.

        The messages' order is the same on every rank, with passes or without, as NCCL matches by order::

            ready(0) ... ready(last) | tail: ready | finish | tail: finish

        Arguments:
            scale: the factor that was on the losses of all passes (float16); taken out in the same division.
        """
        if self._tail is None:
            raise RunError("this process computed no pass in the run's first step")
        if not self._leaves:
            for bucket in range(len(self._cuts)):
                self._reduction.ready(bucket)
            self._tail.ready(0)
        vector = self._reduction.finish()
        tail = self._tail.finish()[: self._tail_size]
        flags_end = self._flags_at + len(self.parameters)
        metrics_at = flags_end + self.buffers.num_integers
        vector[: self._places[-1].end].div_((tail[1] * scale).to(vector.dtype))
        if not self._views:
            self._views.append([p.view(self._reduction.vectors[0]) for p in self._places])
        # a parameter that got a gradient here got one; only for the others the other ranks' flags must be read
        used = self._ever_touched if all(self._ever_touched) else tail[self._flags_at : flags_end].tolist()
        for parameter, view, flag in zip(self.parameters, self._views[0], used, strict=True):
            if flag:
                parameter.grad = view if view.dtype == parameter.dtype else view.to(parameter.dtype)
        self.buffers.close(vector, tail[2].to(vector.dtype), tail[flags_end:metrics_at] / tail[3])
        return StepSums(tail, self.metric_names, metrics_at, self._world.size)

    @property
    def waited(self) -> float:
        """Seconds that this process has stood still for others since the step was opened."""
        return self._reduction.waited + (self._tail.waited if self._tail is not None else 0.0)

    def detach(self) -> None:
        """Takes the gradients away: the vectors they lie in are about to be used again."""
        for parameter in self.parameters:
            parameter.grad = None

    def release(self) -> None:
        """Takes the hooks off the parameters: a backward pass of the model is nobody's business any more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def is_finite(self) -> bool:
        """Whether every gradient is finite; waits for the device."""
        return bool(torch.isfinite(self._reduction.vectors[0][: self._places[-1].end].sum()))

    def _hook(self, index: int) -> Any:
        """What runs when the backward pass has completed one gradient; Python on the hot path, so nearly nothing."""
        bucket = self._bucket_of[index]

        def note(_: torch.Tensor) -> None:
            if self._open_pass < 0:
                raise RunError(
                    "a backward pass ran outside step.backward",
                    [("rule", "inside `for batch in step:` call step.backward(loss) once; Squall moves the gradients")],
                )
            if self._touched[index]:
                raise RunError(
                    "two backward passes in one pass", [("rule", "add the losses up and call step.backward once")]
                )
            self._touched[index] = True
            self._missing[bucket] -= 1
            while self._next_bucket < len(self._cuts) - 1 and not self._missing[self._next_bucket]:
                self._gather(self._next_bucket)
                if self._is_last:
                    self._reduction.ready(self._next_bucket)
                self._next_bucket += 1

        return note

    def _refuse_later_hooks(self) -> None:
        for name, parameter, before in zip(self.names, self.parameters, self._num_hooks, strict=True):
            if _num_hooks(parameter) > before:
                raise RunError(
                    f"a hook was registered on the gradient of {name} after run.setup",
                    [
                        ("rule", "it would see some gradients and miss others: a bucket moves when it is complete"),
                        ("to do", "register it before run.setup: it then sees the gradient of each pass"),
                    ],
                )

    def _gather(self, bucket: int) -> None:
        """Moves the gradients of one bucket's parameters into the pass's vector."""
        views = self._views[self._slot]
        members = range(*self._members[bucket])
        gradients, targets = [], []
        for index in members:
            parameter = self.parameters[index]
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                if self._accumulate:
                    views[index].add_(0.0)
                else:
                    views[index].zero_()
                continue
            if gradient.layout != torch.strided:
                raise InputError(
                    f"{self.names[index]} has a sparse gradient",
                    [
                        ("rule", "gradients are summed as one dense vector"),
                        ("to do", "build the layer with sparse=False"),
                    ],
                )
            gradients.append(gradient)
            targets.append(views[index])
        if gradients:
            (torch._foreach_add_ if self._accumulate else torch._foreach_copy_)(targets, gradients)

    def _new_reduction(self, cuts: Sequence[Bucket], like: torch.Tensor, tag: int) -> Reduction:
        world = self._world
        if self._exact:
            return TreeReduction(world.group, world.rank, world.size, cuts, like, tag)
        return FastReduction(world.group, world.rank, world.size, cuts, like, tag)

    def expect(self, metric_names: Sequence[str]) -> None:
        """Takes the names of a step's metrics from an earlier session: this one may begin in a step without a pass."""
        self._tail = self._make_tail(list(metric_names))

    def _make_tail(self, metric_names: list[str]) -> Reduction:
        self.metric_names = metric_names
        self._tail_size = self._flags_at + len(self.parameters) + self.buffers.num_integers + 2 * len(metric_names)
        like = torch.empty(0, dtype=torch.float64, device=self._world.device)
        return self._new_reduction([Bucket(0, aligned(self._tail_size))], like, tag=2 * len(self._cuts))

    def _add_tail(
        self, leaf: int, loss: torch.Tensor, count: float | torch.Tensor, num_samples: int, metrics: dict[str, Any]
    ) -> None:
        if self._tail is None:
            self._tail = self._make_tail(sorted(metrics))
            self._tail.open(self._num_passes)
        if sorted(metrics) != self.metric_names:
            raise RunError(
                "a step's metrics changed their names",
                [("before", " ".join(self.metric_names)), ("now", " ".join(sorted(metrics)))],
            )
        numbers: list[float] = [0.0] * self._flags_at
        numbers[2:FIXED] = float(num_samples), 1.0
        if self._is_last:
            numbers[FIXED : FIXED + len(VOTES)], numbers[FIXED + len(VOTES) + self._world.rank] = self.words()
        numbers += [1.0 if touched else 0.0 for touched in self._touched]
        values = torch.tensor(numbers, dtype=torch.float64)
        pairs = [x for name in self.metric_names for x in (metrics[name].sum, float(metrics[name].count))]
        device = self._world.device
        slot, accumulate = self._tail.begin_pass(leaf)
        target = self._tail.vectors[slot]
        row = target.new_zeros(len(target))
        row[: len(values)] = values.to(device, non_blocking=True)
        row[0] = loss.detach()
        row[1] = count
        offset = len(values)
        if self.buffers.num_integers:
            row[offset : offset + self.buffers.num_integers] = self.buffers.last_change().to(device)
            offset += self.buffers.num_integers
        for index, value in enumerate(pairs):
            row[offset + index] = value
        if accumulate:
            target.add_(row)
        else:
            target.copy_(row)
        if self._is_last:
            self._tail.ready(0)
        else:
            self._tail.end_pass()


def _num_hooks(parameter: torch.Tensor) -> int:
    return len(parameter._post_accumulate_grad_hooks or ())
