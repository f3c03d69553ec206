"""Puts the topics together: title, rows, notes, warnings, and the same as plain values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from squall.data.order import Order
from squall.errors import InputError
from squall.explain import downpour, sandblaster, sync
from squall.explain.facts import ModelFacts
from squall.explain.published import known_results
from squall.recipe import ModelSpec, Recipe
from squall.units import count

FEW_STEPS = 500
"""Below about so many updates a run rarely reaches the accuracy that its epochs would allow."""

_BARE_JUMP = 2.0
"""A rate scaled by more than this without a warm-up is worth a warning (Goyal et al. 2017, section 2.2)."""

# What the last line names beyond this text.
PLAN = "try: squall train {name}"

_SETS = {"imagenet": "ImageNet-1k", "cifar10": "CIFAR-10", "fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}


@dataclass(frozen=True)
class Explanation:
    """A recipe's arithmetic.

    Attributes:
        title: name, network, set, epochs.
        rows: (label, lines), in the order of printing.
        notes: what a reader should know.
        warnings: what a reader should change, or know well why not.
        numbers: the values behind the text.
        last_line: what follows the number of warnings.
    """

    title: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    numbers: Mapping[str, Any]
    last_line: str = ""

    def text(self) -> str:
        """What the command line prints, without a final newline."""
        lines = [self.title, ""]
        for label, texts in self.rows:
            labels = [label, *[""] * (len(texts) - 1)]
            lines += [f"{name:<12}{text}" for name, text in zip(labels, texts, strict=True)]
        lines.append("")
        lines += [f"note   {note}" for note in self.notes]
        lines += [f"warning   {warning}" for warning in self.warnings]
        number = len(self.warnings)
        verdict = f"{number or 'no'} warning{'' if number == 1 else 's'}."
        return "\n".join([*lines, f"{verdict} {self.last_line}".rstrip()])

    def to_json(self) -> dict[str, Any]:
        """The numbers, notes and warnings as plain values."""
        return {**self.numbers, "notes": list(self.notes), "warnings": list(self.warnings)}


def explain(recipe: Recipe, facts: ModelFacts, num_samples: int, processes: int = 8) -> Explanation:
    """Works out what a recipe means.

    Arguments:
        recipe: what is to be run.
        facts: of its network (`model_facts`).
        num_samples: size of the training set, without the samples held out.
        processes: for the bytes that each sends and holds; at most as many as there are passes are counted.

    Raises:
        InputError: the set holds no minibatch at all.
    """
    order = Order(
        num_samples=num_samples,
        global_batch_size=recipe.update_size,
        worker_batch_size=recipe.worker_batch_size,
        epochs=recipe.epochs,
        seed=recipe.seed,
        fuse=recipe.compute.fuse,
        last_batch=recipe.last_batch,
    )
    if order.num_steps < 1:
        raise InputError(
            "not one step",
            [
                ("found", f"{num_samples} training samples, {_size_field(recipe)}={recipe.update_size}"),
                ("to do", f"a smaller {_size_field(recipe)}, or last_batch=short"),
            ],
        )
    notes, warnings = [*_notes(recipe, order)], [*_warnings(recipe, order)]
    if recipe.strategy == "sandblaster":
        topics, numbers = sandblaster.topics(recipe, facts, order), sandblaster.numbers(recipe, facts, order)
        notes, warnings = [*sandblaster.notes(recipe, facts)], [*sandblaster.warnings(recipe, order)]
    elif recipe.strategy == "downpour":
        segments = recipe.lr.rate().describe(order)
        topics = downpour.topics(recipe, facts, order, segments)
        numbers = downpour.numbers(recipe, facts, order, segments)
        notes += downpour.notes(recipe, facts)
        warnings += downpour.warnings(recipe, order)
    else:
        topics, numbers = sync.topics_and_numbers(recipe, facts, order, recipe.lr.rate().describe(order), processes)
    return Explanation(
        title=_title(recipe),
        rows=tuple((label, tuple(lines)) for label, lines in topics.items()),
        notes=tuple(notes),
        warnings=tuple(warnings),
        numbers=numbers,
        last_line=PLAN.format(name=recipe.name),
    )


def _title(recipe: Recipe) -> str:
    what = "epoch" if recipe.strategy != "sandblaster" else "evaluation"
    epochs = f"{recipe.epochs} {what}{'' if recipe.epochs == 1 else 's'}"
    epochs = f"at most {epochs}" if what == "evaluation" else epochs
    if recipe.model is None or recipe.data is None:
        return f"{recipe.name}: {epochs}"
    model = _network(recipe.model)
    data = recipe.data.root or recipe.data.name
    published = known_results(recipe)
    source = f" ({published.source})" if published and published.note(recipe.update_size) else ""
    return f"{recipe.name}: {model} on {_SETS.get(data, data)}, {epochs}{source}"


def _network(spec: ModelSpec) -> str:
    arguments = spec.arguments
    name = "MLP" if spec.name == "mlp" else re.sub(r"^resnet(\d+)$", r"ResNet-\1", spec.name)
    if "width" in arguments:
        return f"{name} of width {arguments['width']}"
    hidden = arguments.get("hidden")
    if spec.name == "acoustic" and isinstance(hidden, list | tuple) and len(set(hidden)) == 1:
        return f"acoustic network of {len(hidden)} x {hidden[0]} sigmoid units"
    return name


def _size_field(recipe: Recipe) -> str:
    """The field that says how many samples an update has."""
    return "worker_batch_size" if recipe.global_batch_size is None else "global_batch_size"


def _notes(recipe: Recipe, order: Order) -> Iterator[str]:
    published = known_results(recipe)
    if published and (note := published.note(recipe.update_size)):
        yield note
    rest = order.num_samples % order.global_batch_size
    total = count(order.global_batch_size)
    carry = "" if recipe.strategy == "downpour" else "|carry"  # which is refused there
    if rest and recipe.last_batch == "short":
        change = f"last_batch=drop{carry} changes that"
        yield f"the epoch's last step has {count(rest)} images at the rate of {total}. {change}."
    elif rest and recipe.last_batch == "drop":
        yield f"{count(rest)} images are left out of each epoch, others each time. last_batch=short{carry} uses them."
    lr = recipe.lr
    if lr.warmup != "none" and lr.warmup_epochs and not lr.rate().warmup_length(recipe.update_size):
        start = lr.rate().warmup_start()
        yield f"no warm-up: it would start from {start:g}, and the peak is not above that. warmup_from=0 starts lower."


def _warnings(recipe: Recipe, order: Order) -> Iterator[str]:
    lr, total = recipe.lr, recipe.update_size
    size = lr.base_batch_size or total
    if lr.scaling == "none" and size != total:
        linear = lr.base * total / size
        yield (
            f"the rate is not scaled: {lr.base:g} is meant for {count(size)} and used at {count(total)}; "
            f"lr.scaling=linear makes it {linear:.4g}."
        )
    jump = lr.rate().peak(total) / lr.base
    if jump > _BARE_JUMP and lr.warmup == "none":
        yield f"the rate is scaled {jump:.4g} times without a warm-up. lr.warmup_epochs=5 starts it from {lr.base:g}."
    if lr.warmup != "none" and lr.warmup_epochs >= recipe.epochs:
        yield (
            f"the warm-up of {lr.warmup_epochs:g} epochs is as long as the run or longer ({recipe.epochs}): "
            "the full rate is never used."
        )
    published = known_results(recipe)
    if published and (warning := published.warning(total)):
        yield warning
    if order.num_steps < FEW_STEPS:
        yield (
            f"{count(order.num_steps)} step{'' if order.num_steps == 1 else 's'} in all, fewer than about {FEW_STEPS}: "
            f"more epochs or a smaller {_size_field(recipe)} may be worth trying."
        )
