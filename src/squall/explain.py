"""A recipe as arithmetic, before anything runs: minibatch, steps, rate, decay, bytes, memory, hosting, and warnings.

Every number follows from the recipe, the size of the training set and a few facts on the network; no data is read and
no weight is made (the facts come from a network on torch's meta device). The steps are those of
`squall.data.order.Order`, the rate is that of `squall.optim.lr.Rate`, the partial sums are those of
`squall.reduce.tree`: what is printed is what a run does. What is known of a minibatch's size comes from Goyal et al.
2017, Figure 1 and Table 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from squall.data.order import Order
from squall.optim.lr import Rate, Segment
from squall.recipe import OptimizerSpec, Recipe
from squall.units import count, megabytes

if TYPE_CHECKING:
    from torch import nn

FEW_STEPS = 500
"""Below about so many updates a run rarely reaches the accuracy that its epochs would allow."""

_FLOAT_BYTES = 4  # weights, gradients and their sums are float32 whatever the precision of products is
_STATES = {"adam": 2, "adamw": 2, "lamb": 2, "adagrad": 1}  # vectors beside the weights; sgd and others: momentum
_STATE_WORDS = {0: "weights + gradient", 1: "weights + gradient + momentum", 2: "weights + gradient + two moments"}
_TITLES = {"imagenet": "ImageNet-1k", "cifar10": "CIFAR-10", "fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}
_TITLES |= {"digits": "the digits inside the package"}


@dataclass(frozen=True)
class ModelFacts:
    """What explaining needs to know of a network.

    Attributes:
        num_parameters: all of them, frozen ones too.
        num_trainable: those that get a gradient.
        decayed: tensors under weight decay by kind: "convolution", "linear weight", "linear bias", ...
        undecayed: trainable tensors without it, by kind: "normalisation", ...
        batch_norms: layers that normalise over the samples of a virtual worker.
    """

    num_parameters: int
    num_trainable: int
    decayed: Mapping[str, int] = field(default_factory=dict)
    undecayed: Mapping[str, int] = field(default_factory=dict)
    batch_norms: int = 0


def model_facts(model: nn.Module, optimizer: OptimizerSpec) -> ModelFacts:
    """Counts what a network consists of; its parameters may lie on the meta device.

    Arguments:
        model: the network.
        optimizer: says which parameters are decayed.

    Raises:
        InputError: a pattern of the optimizer's groups matches no parameter.
    """
    from torch import nn

    from squall.optim.groups import named, parameter_groups

    groups = parameter_groups(
        model,
        weight_decay=optimizer.weight_decay,
        no_weight_decay=optimizer.no_weight_decay,
        groups=optimizer.groups,
    )
    owner = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    norms = {id(entry.parameter) for entry in named(model) if entry.is_norm}
    tallies: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for group in groups:
        tally = tallies[0 if group["weight_decay"] else 1]
        for parameter in group["params"]:
            kind = "normalisation" if id(parameter) in norms else _kind(owner[id(parameter)], parameter.ndim)
            tally[kind] = tally.get(kind, 0) + 1
    return ModelFacts(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trainable=sum(p.numel() for group in groups for p in group["params"]),
        decayed=tallies[0],
        undecayed=tallies[1],
        batch_norms=sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()),
    )


def _kind(module: nn.Module, ndim: int) -> str:
    name = type(module).__name__
    if name.startswith(("Conv", "LazyConv")):
        return "convolution" if ndim > 1 else "convolution bias"
    if name.endswith("Linear"):
        return "linear weight" if ndim > 1 else "linear bias"
    return "other weight"


@dataclass(frozen=True)
class _Published:
    """What a paper measured of a minibatch's size: top-1 error in per cent, mean and standard deviation of runs."""

    source: str
    reference: int
    largest_safe: int
    errors: Mapping[int, tuple[float, float]]


# (network, folder of the set) -> Goyal et al. 2017, Figure 1: five runs each, gradual warm-up, rate 0.1 * kn / 256
_PUBLISHED = {
    ("resnet50", "imagenet"): _Published(
        "Goyal et al. 2017, Table 1",
        256,
        8192,
        {
            128: (23.49, 0.12),
            256: (23.60, 0.12),
            512: (23.48, 0.09),
            1024: (23.53, 0.08),
            2048: (23.49, 0.11),
            4096: (23.56, 0.12),
            8192: (23.74, 0.09),
            16384: (24.79, 0.27),
            32768: (27.55, 0.28),
            65536: (33.96, 0.80),
        },
    )
}


@dataclass(frozen=True)
class Explanation:
    """A recipe's arithmetic.

    Attributes:
        title: name, network, set, epochs.
        rows: (label, lines) in the order of printing.
        notes: what a reader should know.
        warnings: what a reader should change, or know very well why not.
        numbers: the values behind the text, for `to_json`.
        next_line: what to type next, after the warnings.
    """

    title: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    numbers: Mapping[str, Any]
    next_line: str = ""

    def text(self) -> str:
        """The whole as the command line prints it, without a final newline."""
        lines = [self.title, ""]
        for label, texts in self.rows:
            lines += [f"{name:<12}{text}" for name, text in zip([label, *[""] * len(texts)], texts, strict=False)]
        lines.append("")
        lines += [f"note   {note}" for note in self.notes]
        lines += [f"warning   {warning}" for warning in self.warnings]
        number = len(self.warnings)
        verdict = "no warnings." if not number else f"{number} warning{'s' * (number > 1)}."
        return "\n".join([*lines, f"{verdict} {self.next_line}".rstrip()])

    def to_json(self) -> dict[str, Any]:
        """The numbers, notes and warnings as plain values."""
        return {**self.numbers, "notes": list(self.notes), "warnings": list(self.warnings)}


def explain(recipe: Recipe, facts: ModelFacts, num_samples: int, processes: int = 8) -> Explanation:
    """Works out what a recipe means.

    Arguments:
        recipe: what is to be run.
        facts: of its network (`model_facts`).
        num_samples: size of the training set, without the samples held out.
        processes: for the bytes each sends and holds; no more than there are passes are used.

    Raises:
        InputError: the set is smaller than one minibatch and last_batch leaves that out.
    """
    order = Order(
        num_samples=num_samples,
        global_batch_size=recipe.global_batch_size,
        worker_batch_size=recipe.worker_batch_size,
        epochs=recipe.epochs,
        seed=recipe.seed,
        fuse=recipe.compute.fuse,
        last_batch=recipe.last_batch,
    )
    return _Explainer(recipe, facts, order, processes).explanation()
