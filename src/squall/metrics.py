"""What a training step says about its samples: a loss as sum and count, metrics as exact means or gathered values.

Means over processes go wrong when each process sends its own mean (unequal batches weigh wrongly: pytorch#42577,
fairchem#269). So nothing here is ever a mean: a loss is a sum with its count, a metric is the per-sample values; the
run divides once, by the global count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Loss:
    """The loss of one batch: the sum over its samples, and over how many things it sums.

    Attributes:
        sum: scalar tensor with a gradient.
        count: samples (or tokens, boxes...) summed over; the run divides by the count of the whole minibatch.
    """

    sum: torch.Tensor
    count: int | torch.Tensor


@dataclass(frozen=True)
class Mean:
    """A metric that is the mean of per-sample values over the whole set."""

    sum: torch.Tensor
    count: int


@dataclass(frozen=True)
class Gather:
    """A metric over all samples at once (AUC, F1): tensors gathered in data set order, then one function of them."""

    tensors: tuple[torch.Tensor, ...]
    function: Callable[..., Any]


Metric = Mean | Gather
Metrics = Mapping[str, Metric]


def mean(values: torch.Tensor) -> Mean:
    """Mean of per-sample values, for example ``squall.mean(logits.argmax(1) == labels)``.

    Arguments:
        values: any shape; bool, integer or float. Summed in float64.
    """
    values = values.detach()
    return Mean(values.sum(dtype=torch.float64), values.numel())


def gather(*arguments: Any) -> Gather:
    """A metric of all samples together: ``squall.gather(logits, labels, squall.metrics.auroc)``.

    Arguments:
        arguments: tensors whose first dimension counts the batch's samples, then the function that is called once with
            the gathered tensors, in data set order, on the CPU; it returns a number.
    """
    *tensors, function = arguments
    if not tensors or not callable(function) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise TypeError("squall.gather takes tensors and, last, a function of them: gather(scores, labels, auroc)")
    return Gather(tuple(tensor.detach() for tensor in tensors), function)


def auroc(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Area under the ROC curve, by ranks (Mann-Whitney); ties count half.

    Arguments:
        scores: (N,) for two classes; (N, 2) logits use column 1 minus column 0; (N, C) gives the mean of the C
            one-against-rest areas over the classes that occur.
        labels: (N,) integers.
    """
    scores = scores.double()
    if scores.ndim == 2 and scores.shape[1] == 2:
        scores = scores[:, 1] - scores[:, 0]
    if scores.ndim == 2:
        present = [index for index in range(scores.shape[1]) if 0 < int((labels == index).sum()) < len(labels)]
        return sum(auroc(scores[:, index], labels == index) for index in present) / max(len(present), 1)
    positive = labels.bool()
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks = (ends - (counts.double() - 1) / 2)[inverse]
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def f1(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Macro F1: the unweighted mean over classes of 2 TP / (2 TP + FP + FN).

    Arguments:
        scores: (N, C) logits, or (N,) predicted classes.
        labels: (N,) integers.
    """
    predicted = scores.argmax(1) if scores.ndim == 2 else scores
    num_classes = max(int(scores.shape[1]) if scores.ndim == 2 else int(predicted.max()) + 1, int(labels.max()) + 1)
    hits = torch.bincount(labels[predicted == labels].long(), minlength=num_classes).double()
    found = torch.bincount(predicted.long(), minlength=num_classes) + torch.bincount(
        labels.long(), minlength=num_classes
    )
    occurs = found > 0
    return float((2 * hits[occurs] / found[occurs].double()).mean())
