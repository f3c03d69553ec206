"""One minibatch's gradient at any weights: the network of a process, lent to whoever brings weights.

In simulated time two hundred replicas share one process. Each has weights of its own, a vector; there is one network,
whose parameters and buffers are made views of the vector at hand before it computes. What a minibatch is (its samples,
their order and augmentation, the generators' seeds) is a function of its number, as in synchronous training with one
virtual worker: one replica that fetches and pushes at every step gives the bits of `strategy = "sync"`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from squall.data.batches import read
from squall.data.order import Order
from squall.errors import RunError
from squall.metrics import Loss, Mean, Metrics
from squall.model.ghostnorm import has_batch_norm, refuse_synchronised
from squall.rng import seed_pass
from squall.run import precision
from squall.run.buffers import is_whole, owners
from squall.run.guards import check_loss, check_training_mode
from squall.run.spec import RunSpec
from squall.run.stepper import check_hosting, check_skipped, finisher
from squall.server.layout import Layout, held_buffer


@dataclass
class Sums:
    """What minibatches came to; sums over them.

    Attributes:
        loss, count: of the losses, and what they are divided by.
        samples: read.
        metrics: (sum, count) by name.
        touched: for each parameter, whether it got a gradient.
        counters: how the integer buffers changed.
    """

    loss: float = 0.0
    count: float = 0.0
    samples: int = 0
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    touched: list[bool] = field(default_factory=list)
    counters: list[int] = field(default_factory=list)

    def add(self, other: Sums) -> None:
        """Adds another minibatch's."""
        self.loss, self.count, self.samples = (
            self.loss + other.loss,
            self.count + other.count,
            self.samples + other.samples,
        )
        for name, (total, count) in other.metrics.items():
            before = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = before[0] + total, before[1] + count
        pairs = zip(self.touched or [False] * len(other.touched), other.touched, strict=True)
        self.touched = [a or b for a, b in pairs]
        self.counters = [a + b for a, b in zip(self.counters or [0] * len(other.counters), other.counters, strict=True)]


class Gradients:
    """Computes minibatches with a network.

    Arguments:
        model: on its device, in its memory format; its parameters and buffers become views of vectors.
        layout: of the vectors.
        spec: of the run; `global_batch_size` is one replica's minibatch.
        step: (model, batch) -> (loss as sum and count, metrics).
        data: the training set.
        collate: joins samples to a batch.
        clip_grad_norm: the most that the norm of a minibatch's gradient may be.
        backward: what a loss is handed to; torch's own, or that with users' frames shown.

    Attributes:
        at: the minibatch that is computed, or was last; -1: none yet.

    Raises:
        InputError: a minibatch that leaves one sample to a network with batch normalisation.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        spec: RunSpec,
        step: Callable[[nn.Module, Any], tuple[Loss, Metrics]],
        data: Any,
        collate: Callable[..., Any] | None = None,
        clip_grad_norm: float | None = None,
        backward: Callable[[torch.Tensor], None] = torch.autograd.backward,
    ) -> None:
        refuse_synchronised(model)
        self.model, self.layout, self.spec, self.data = model, layout, spec, data
        self.order: Order = spec.order(len(data))
        self._normalises = has_batch_norm(model)
        check_hosting(self.order, 1, self._normalises)
        self._step, self._collate, self._clip, self._backward = step, collate, clip_grad_norm, backward
        self.at = -1
        self.device = next(model.parameters()).device
        self._finish = finisher(data, spec)
        precision.wrap_forward(model, spec.precision, self.device)
        named = dict(model.named_parameters())
        self._parameters = [named[place.name] for place in layout.parameters]
        held = owners(model, torch.Tensor.is_floating_point)
        self._buffers = [held[place.name] for place in layout.buffers]
        whole = owners(model, is_whole)
        self._counters = [held_buffer(whole[name][0]) for name in layout.counters]
        self._at: torch.Tensor | None = None
        self._checked = False

    def attach(self, weights: torch.Tensor) -> None:
        """Makes the network's parameters and buffers views of a vector."""
        if self._at is weights:
            return
        self._at = weights
        for parameter, place in zip(self._parameters, self.layout.parameters, strict=True):
            parameter.data = place.view(weights)
        for slots, place in zip(self._buffers, self.layout.buffers, strict=True):
            view = place.view(weights)
            for module, name in slots:
                module._buffers[name] = view

    def set_counters(self, counters: list[int]) -> None:
        """Gives the integer buffers their values."""
        for buffer, value in zip(self._counters, counters, strict=True):
            buffer.fill_(value)

    def compute(
        self, minibatch: int, weights: torch.Tensor, counters: list[int], into: torch.Tensor, *, mean: bool = True
    ) -> Sums:
        """The gradient of a minibatch's mean loss, or of its sum.

        Arguments:
            minibatch: its number in the run.
            weights: (layout.size,); its buffers' section is moved on by the forward pass.
            counters: values of the integer buffers, moved on too.
            into: (layout.size,); the parameters' section is overwritten with the gradient, 0 where there is none.
        """
        self.attach(weights)
        self.at = minibatch
        plan = self.order.step(minibatch)
        planned = self.order.draw(plan, 0)
        draw, batch = next(self._reader(planned))
        if len(draw) < len(planned):
            check_skipped(plan, planned, draw, (len(draw),) if len(draw) else (), self._normalises)
        ours = self.layout.parameters_end
        before = weights[ours:].clone()
        self.set_counters(counters)
        generator = torch.default_generator.get_state()
        seed_pass(self.device, self.spec.seed, plan.epoch, plan.index, 0)
        loss, metrics = self._step(self.model, batch)
        if not self._checked:
            if self.spec.loss_over == "sample":
                check_loss(loss.sum, int(loss.count))
            check_training_mode(self.model)
            self._checked = True
        total, count = (loss.sum * len(draw), len(draw)) if self.spec.loss_over == "worker" else (loss.sum, loss.count)
        if count <= 0:
            raise RunError(
                f"the losses of minibatch {minibatch} count {count:g} samples",
                [("rule", "the count must be positive")],
            )
        self._backward(total)
        torch.default_generator.set_state(generator)
        touched = self._gather(into[:ours], float(count) if mean else 1.0)
        self._settle_buffers(before, weights[ours:], len(draw))
        changes = [int(buffer) - value for buffer, value in zip(self._counters, counters, strict=True)]
        counters[:] = [int(buffer) for buffer in self._counters]
        means = {n: (float(m.sum), float(m.count)) for n, m in metrics.items() if isinstance(m, Mean)}
        return Sums(float(total.detach()), float(count), len(draw), means, touched, changes)

    def _gather(self, into: torch.Tensor, count: float) -> list[bool]:
        """Moves the gradients into their places and divides them once."""
        targets, gradients, touched = [], [], []
        for parameter, place in zip(self._parameters, self.layout.parameters, strict=True):
            gradient, parameter.grad = parameter.grad, None
            touched.append(gradient is not None)
            view = place.view(into)
            if gradient is None:
                view.zero_()
            else:
                targets.append(view)
                gradients.append(gradient)
        torch._foreach_copy_(targets, gradients)
        if count != 1.0:
            into.div_(torch.tensor(count, dtype=torch.float64).to(into.dtype))
        if self._clip is not None:
            for parameter, place, got in zip(self._parameters, self.layout.parameters, touched, strict=True):
                parameter.grad = place.view(into) if got else None
            torch.nn.utils.clip_grad_norm_(reversed(self._parameters), self._clip)  # as the run's vector is laid out
            for parameter in self._parameters:
                parameter.grad = None
        return touched

    def _settle_buffers(self, before: torch.Tensor, now: torch.Tensor, samples: int) -> None:
        """Buffers as synchronous training leaves them: start minus (start - now) * n / n, to the last bit."""
        if not len(now):
            return
        assert self._at is not None
        for slots, place in zip(self._buffers, self.layout.buffers, strict=True):
            own, view = held_buffer(slots[0]), place.view(self._at)
            if own is not view:  # a module may have put a new tensor in its buffer's place
                view.copy_(own)
        change = torch.sub(before, now).masked_fill_(now.eq(before), 0.0).mul_(samples)
        torch.sub(before, change.div_(samples), out=now)
        weights, self._at = self._at, None
        self.attach(weights)

    def _reader(self, draw: Any) -> Iterator[tuple[Any, Any]]:
        return iter(
            read(
                self.data,
                [draw],
                seed=self.spec.seed,
                device=self.device,
                collate=self._collate,
                finish=self._finish,
            )
        )
