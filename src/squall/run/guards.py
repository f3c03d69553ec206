"""Mistakes in a training loop, found in its first step instead of in its final accuracy.

The commonest silent fault of distributed training is a mean where a sum is wanted (peers' threads on it fill pages:
pytorch#4406, apex#696, fairseq#494). A loss carries the proof of how it was made: its autograd graph. From the loss
down, as long as nodes only scale or add scalars, the walk keeps the factor; it ends at the reduction, which was a
mean or a sum. A mean of something else than the samples (a penalty on the weights) is none of the batch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from squall.data.order import Draw
from squall.errors import InputError, RunError

_SCALAR = ("Add", "Sub", "Neg", "Mul", "Div", "ToCopy", "Alias", "View", "Squeeze", "Reshape", "Clone", "Unsafe")


def check_loss(loss: Any, num_samples: int, where: str = "step.backward(loss)") -> None:
    """Refuses what is no scalar with a gradient, and a mean over samples where a sum is asked for.

    Raises:
        RunError: with what was found and the line to change.
    """
    if not isinstance(loss, torch.Tensor):
        raise RunError(
            f"{where} got a {type(loss).__name__}",
            [("rule", "give it the loss tensor: the sum over the batch's samples")],
        )
    if loss.numel() != 1:
        raise RunError(
            f"{where} got a tensor of shape {tuple(loss.shape)}",
            [("rule", "one number: the sum over the batch's samples"), ("to do", "loss.sum()")],
        )
    if not loss.requires_grad:
        raise RunError(
            f"{where} got a loss without a gradient",
            [
                ("rule", "the loss must come from the model's output"),
                ("to do", "look for torch.no_grad(), .item() or .detach() on the way"),
            ],
        )
    found = _accusation(list(_reductions(loss.grad_fn, 1.0, num_samples)), num_samples) if num_samples > 1 else ""
    if found:
        raise RunError(
            f"{where} got a mean over the batch; it takes the sum",
            [
                ("found", found),
                ("rule", "the minibatch's loss is the sum over all its samples, divided once by their global count"),
                ("to do", 'reduction="sum", or loss.sum() instead of loss.mean()'),
            ],
        )


def refuse_ignored(batch: Any, draw: Draw, name: str) -> None:
    """Refuses targets that a mean ignores (`ignore_index`, -100 by default): its count would not be the samples'.

    Looks at a batch of (inputs, targets) where it was read, on the CPU: a look on a GPU would wait for it. Sets that
    make whole batches on the device have labels from 0 on.

    Arguments:
        batch: as joined.
        draw: its samples.
        name: of the set.

    Raises:
        InputError: a target is negative.
    """
    targets = batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None
    if not isinstance(targets, torch.Tensor) or targets.is_floating_point() or targets.is_complex():
        return
    if not targets.numel() or int(targets.min()) >= 0:
        return
    rows = (targets < 0).reshape(len(targets), -1).any(1).nonzero() if targets.ndim else torch.zeros(1)
    first = int(rows[0])
    at = f"{int(targets.min())} in {name}[{draw.ids[first]}]" if first < len(draw) else f"{int(targets.min())}"
    raise InputError(
        "a target is negative while the loss averages: ignored samples would change the mean's count",
        [
            ("found", at),
            ("to do", "give step= and return squall.Loss(sum, count=number of targets that count)"),
        ],
    )


def check_training_mode(model: torch.nn.Module) -> None:
    """Refuses a model left in evaluation mode."""
    if not model.training:
        raise RunError(
            "the model is in evaluation mode in a training step",
            [
                ("effect", "batch normalisation would use its running statistics, dropout would be off"),
                ("to do", "call model.train() before the step; run.evaluate puts it back by itself"),
            ],
        )


def check_updates(step: int, updates: int) -> None:
    """Refuses a step without an update, and one with several.

    Raises:
        RunError: optimizer.step() was not called once.
    """
    if updates == 1:
        return
    found = "was not called" if updates == 0 else f"was called {updates} times"
    effect = "the model would not learn" if updates == 0 else "the same gradient would be applied again"
    raise RunError(
        f"optimizer.step() {found} in step {step}",
        [("rule", "one update a step: optimizer.step() after the inner loop"), ("effect", effect)],
    )


def check_open(step: int, ended: bool) -> None:
    """Refuses to go on with a run that has ended.

    Raises:
        RunError: run.finish() or run.close() was called in its loop.
    """
    if ended:
        raise RunError(
            f"run.steps cannot go on to step {step}: the run has ended",
            [
                ("found", "run.finish() or run.close() inside the loop"),
                ("to do", "leave the loop first: break, then run.finish()"),
            ],
        )


def check_left(step: int, complete: bool, updated: bool) -> None:
    """Refuses to end a run in a step that was begun: its samples are counted, its update is missing.

    Arguments:
        step: where the loop was left.
        complete: whether all of this process's batches were computed.
        updated: whether `optimizer.step()` was called.

    Raises:
        RunError: one of them was not.
    """
    if complete and updated:
        return
    raise RunError(
        f"run.steps was left in step {step}, before its update",
        [
            ("found", "optimizer.step() was not called" if complete else "not all of the step's batches were computed"),
            ("rule", "a step that was begun is finished: all of its batches, then optimizer.step(); then run.finish()"),
        ],
    )


def check_scheduler(optimizer: torch.optim.Optimizer, kept: bool, saved: bool) -> None:
    """Refuses a scheduler of torch's whose position would be lost with the process.

    Raises:
        RunError: it drives the optimiser, the run is saved, and nothing is kept beside it.
    """
    if not saved or kept or not hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return
    raise RunError(
        "a scheduler drives the optimiser, and the checkpoints would not hold its position",
        [
            ("rule", "what has a state of its own is kept by name, before run.steps(...)"),
            ("to do", "run.keep(scheduler=scheduler); or lr=squall.lr(...) in run.setup, which has no state"),
        ],
    )


def check_gradients(step: int, parameters: Sequence[torch.Tensor]) -> None:
    """Refuses an update after the gradients were taken away.

    Raises:
        RunError: every gradient is None.
    """
    if any(parameter.grad is not None for parameter in parameters):
        return
    raise RunError(
        f"optimizer.step() has no gradients in step {step}",
        [
            ("found", "every .grad is None: optimizer.zero_grad() between the inner loop and optimizer.step()"),
            ("to do", "call optimizer.zero_grad() after optimizer.step(), or not at all"),
        ],
    )


def _accusation(reductions: list[tuple[str, bool, float]], num_samples: int) -> str:
    """What is wrong with a loss that adds up these reductions; empty if nothing is."""
    for name, is_mean, factor in reductions:
        if is_mean and not _near(factor, num_samples):
            return f"{name} with a mean reduction over {num_samples} samples"
    # a smoothed or regularised sum may hold one small factor among others: only all of them together are a mean
    if reductions and all(not is_mean and _near(factor * num_samples, 1.0) for _, is_mean, factor in reductions):
        return f"a sum divided by {num_samples}"
    return ""


def _reductions(node: Any, factor: float, num_samples: int, depth: int = 32) -> Iterator[tuple[str, bool, float]]:
    """The reductions over samples that a scalar is made of: (name, whether it is a mean, factor)."""
    while node is not None and depth:
        depth -= 1
        name = str(node.name())
        is_mean = getattr(node, "_saved_reduction", None) == 1 or name.startswith("MeanBackward")
        is_single = getattr(node, "_saved_self_sym_numel", None) == 1  # loss.mean() of one number reduces nothing
        if not (is_mean and is_single) and (is_mean or not name.startswith(_SCALAR)):
            if not is_mean or num_samples in _lengths(node):
                yield name, is_mean, factor
            return
        if name.startswith(("Mul", "Div")):
            other = _scalar(getattr(node, "_saved_other", None))
            if other is None or other == 0:
                return
            factor = factor * other if name.startswith("Mul") else factor / other
        children = [child for child, _ in node.next_functions if child is not None]
        for child in children[1:]:
            yield from _reductions(child, factor, num_samples, depth)
        node = children[0] if children else None


def _lengths(node: Any) -> set[int]:
    """First dimensions of what a node takes the mean of; of `nll_loss` also its divisor, the targets not ignored."""
    shapes: list[tuple[int, ...]] = [getattr(node, "_saved_self_sym_sizes", ())]
    shapes += [getattr(getattr(node, name, None), "shape", ()) for name in ("_saved_self", "_saved_target")]
    divisor = _scalar(getattr(node, "_saved_total_weight", None))
    return {int(shape[0]) for shape in shapes if len(shape)} | ({round(divisor)} if divisor else set())


def _scalar(value: Any) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value)
    return None


def _near(a: float, b: float) -> bool:
    return abs(a - b) < 1e-6 * max(abs(b), 1e-12)
