"""A task: what is trained on what. A model, a loss, data sets, metrics; nothing about how.

The loss may be given as a function of (outputs, targets), as in every PyTorch script. Whether that function sums,
averages or leaves the samples apart decides how its gradient must be weighed when minibatches are cut into unequal
workers; it is therefore found out once, on real outputs: on a batch and two unequal parts of it. A function that is
none of the three depends on the batch it is given (class weights or `ignore_index` under a mean, contrastive losses),
and is refused, because the minibatch's loss would then depend on how it is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from squall.data.nested import each_output
from squall.errors import InputError
from squall.metrics import Loss, Metrics, mean

LossKind = Literal["samples", "sum", "mean", "worker"]
StepFunction = Callable[[nn.Module, Any], tuple[Loss, Metrics]]
_TOLERANCE = 1e-4


class Task:
    """What to train on what.

    Arguments:
        model: called once a process; gives the module.
        loss: (outputs, targets) -> loss, for data of (input, target) pairs. Or:
        step: (model, batch) -> `squall.Loss`, or (`squall.Loss`, {name: metric}).
        train: map-style data set (`len`, `[index]`).
        val: set for choices during training; test: set that no choice may look at.
        metrics: with `loss`: {name: (outputs, targets) -> one value per sample}; classification gets "accuracy".
        collate: joins a list of samples into a batch.
        num_workers: loader processes of each process; they change no result.
        name: what messages and run folders call it.

    Raises:
        InputError: neither or both of `loss` and `step`.
    """

    def __init__(
        self,
        *,
        model: Callable[[], nn.Module],
        train: Any,
        loss: Callable[[Any, Any], torch.Tensor] | None = None,
        step: Callable[[nn.Module, Any], Any] | None = None,
        val: Any = None,
        test: Any = None,
        metrics: Mapping[str, Callable[[Any, Any], torch.Tensor]] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        name: str = "task",
    ) -> None:
        if (loss is None) == (step is None):
            raise InputError(
                "a task needs a loss or a step" + (", not both" if loss is not None else ""),
                [("rule", "loss=F.cross_entropy for (input, target) pairs, or step=function of (model, batch)")],
            )
        if not callable(model) or isinstance(model, nn.Module):
            raise InputError(
                "a task's model must be a function that makes the module",
                [("found", type(model).__name__), ("to do", "model=lambda: MyNet(), or model=MyNet")],
            )
        self.model, self.train, self.val, self.test = model, train, val, test
        self.loss, self.own_step, self.metrics, self.collate, self.name = loss, step, metrics, collate, name
        self.num_workers = num_workers

    def step_function(self, kind: LossKind | None = None) -> StepFunction:
        """The step as the loop calls it: (model, batch) -> (Loss, metrics).

        Arguments:
            kind: how the loss treats samples, as `probe` found it; "worker": it is that of a virtual worker's batch
                and is handed on as it is (`run.steps` weighs it by the worker's samples). Needed with a `loss`.
        """
        if self.own_step is not None:
            return _normalised(self.own_step)
        assert self.loss is not None
        assert kind is not None
        return _from_loss(self.loss, kind, self.metrics)


def probe(loss: Callable[[Any, Any], torch.Tensor], outputs: Any, targets: Any) -> LossKind:
    """Finds out how a loss function treats the samples of a batch.

    Arguments:
        outputs: of the model for two samples or more (first dimension: samples; nested containers work).
        targets: theirs.

    Raises:
        InputError: the loss depends on the batch, or gives something that is no loss.
    """
    size = _length(targets)
    outputs = each_output(_disturbed, outputs)
    first = size // 2 + 1 if size > 2 else 1
    parts = [(0, size), (0, first), (first, size)]
    values = [loss(_cut(outputs, a, b), _cut(targets, a, b)) for a, b in parts]
    whole = values[0]
    if not isinstance(whole, torch.Tensor):
        raise InputError(f"the loss gives a {type(whole).__name__}", [("rule", "it must give a tensor")])
    if whole.ndim and whole.shape[0] == size and size != 1:
        return "samples"
    if whole.numel() != 1:
        raise InputError(
            f"the loss gives a tensor of shape {tuple(whole.shape)} for {size} samples",
            [("rule", "one number, or one per sample (first dimension)")],
        )
    total, left, right = (float(value) for value in values)
    scale = max(abs(left) + abs(right), 1e-12)
    if abs(total - (left + right)) <= _TOLERANCE * scale:
        return "sum"
    if abs(total - (left * first + right * (size - first)) / size) <= _TOLERANCE * scale:
        return "mean"
    raise InputError(
        "the loss depends on the batch: it is neither a sum, nor a mean, nor one value per sample",
        [
            (
                "found",
                f"{total:.6g} on {size} samples; {left:.6g} and {right:.6g} on parts of {first} and {size - first}",
            ),
            ("often", "class weights or ignore_index under reduction='mean', or a contrastive loss"),
            (
                "to do",
                "give step= and return squall.Loss(sum, count=...), such as sums of weighted losses and weights;",
            ),
            ("", 'or loss_over = "worker" if the loss of a virtual worker\'s batch is what you mean'),
        ],
    )


def probe_step(step: StepFunction, model: nn.Module, whole: Any, parts: tuple[Any, Any], size: int) -> None:
    """Checks that a task's own step gives sums: the sums of two parts must add up to that of the whole.

    Raises:
        InputError: it gives a mean.
    """
    losses = [step(model, batch)[0] for batch in (whole, *parts)]
    total, left, right = (float(loss.sum.detach()) for loss in losses)
    counts = [float(loss.count) for loss in losses]
    scale = max(abs(left) + abs(right), 1e-12)
    if abs(counts[0] - counts[1] - counts[2]) > 1e-6 * max(counts[0], 1.0):
        raise InputError(
            "the count of squall.Loss does not add up",
            [("found", f"{counts[0]:g} for {size} samples, {counts[1]:g} and {counts[2]:g} for their two parts")],
        )
    if (
        abs(total - left - right) > 0.02 * scale
        and abs(total * counts[0] - left * counts[1] - right * counts[2]) <= 0.02 * scale * counts[0]
    ):
        raise InputError(
            "step returns the mean over its batch as squall.Loss; it takes the sum",
            [
                ("found", f"{total:.6g} on {size} samples; {left:.6g} and {right:.6g} on two parts of them"),
                ("to do", 'reduction="sum", or loss.sum() instead of loss.mean()'),
            ],
        )


def over_samples(step: StepFunction) -> StepFunction:
    """A step whose loss is that of its batch (a virtual worker's) -> one whose loss is a sum, as evaluation adds up."""

    def call(model: nn.Module, batch: Any) -> tuple[Loss, Metrics]:
        loss, metrics = step(model, batch)
        return Loss(loss.sum * loss.count, loss.count), metrics

    return call


def as_pair(batch: Any) -> tuple[Any, Any]:
    """Input and target of a batch.

    Raises:
        InputError: it is no pair, as `loss=` needs it.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        keys = f" with the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
        raise InputError(
            f"loss= needs batches of (input, target); got a {type(batch).__name__}{keys}",
            [("to do", "give step=function of (model, batch), or a collate that makes pairs")],
        )
    return batch[0], batch[1]


def _from_loss(
    loss: Callable[[Any, Any], torch.Tensor],
    kind: LossKind,
    metrics: Mapping[str, Callable[[Any, Any], torch.Tensor]] | None,
) -> StepFunction:
    def step(model: nn.Module, batch: Any) -> tuple[Loss, Metrics]:
        inputs, targets = as_pair(batch)
        outputs = model(inputs)
        value = loss(outputs, targets)
        size = _length(targets)
        if kind == "worker" and value.numel() != 1:
            raise InputError(
                f'the loss gives a tensor of shape {tuple(value.shape)}; with loss_over = "worker" it is one number',
                [("to do", "the mean over its batch, or loss_over = sample")],
            )
        total = value.sum() if kind == "samples" else value * size if kind == "mean" else value
        if (
            kind == "mean"
            and isinstance(targets, torch.Tensor)
            and not targets.is_floating_point()
            and targets.device.type == "cpu"
        ):
            _refuse_ignored(targets)
        found = {name: mean(measure(outputs, targets)) for name, measure in (metrics or {}).items()}
        if metrics is None and _is_classification(outputs, targets):
            found["accuracy"] = mean(outputs.argmax(1) == targets)
        return Loss(total, size), found

    return step


def _refuse_ignored(targets: torch.Tensor) -> None:
    if targets.numel() and int(targets.min()) < 0:
        raise InputError(
            "a target is negative while the loss averages: ignored samples would change the mean's count",
            [("to do", "give step= and return squall.Loss(sum, count=number of targets that count)")],
        )


def _normalised(step: Callable[[nn.Module, Any], Any]) -> StepFunction:
    def call(model: nn.Module, batch: Any) -> tuple[Loss, Metrics]:
        given = step(model, batch)
        loss, metrics = given if isinstance(given, tuple) and len(given) == 2 else (given, {})
        if not isinstance(loss, Loss):
            raise InputError(
                f"step returned a {type(loss).__name__}",
                [("rule", "return squall.Loss(sum, count=...), or that and a dictionary of metrics")],
            )
        return loss, metrics

    return call


def _is_classification(outputs: Any, targets: Any) -> bool:
    return (
        isinstance(outputs, torch.Tensor)
        and isinstance(targets, torch.Tensor)
        and outputs.ndim == 2
        and targets.ndim == 1
        and not targets.is_floating_point()
    )


def _length(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return len(value)
    items = list(value.values()) if isinstance(value, Mapping) else list(value)
    return _length(items[0])


def _cut(value: Any, start: int, stop: int) -> Any:
    return each_output(lambda tensor: tensor[start:stop], value)


def _disturbed(output: torch.Tensor) -> torch.Tensor:
    """Outputs that differ from sample to sample even where a fresh model gives the same for all."""
    if not output.is_floating_point():
        return output
    generator = torch.Generator().manual_seed(0)
    output = output.detach()
    return output + 0.5 * torch.rand(output.shape, generator=generator).to(output)
