"""What is known of a minibatch's size: measured results that a recipe can be held against.

Goyal et al. 2017, Figure 1 (and Table 1 at 8,192): top-1 validation error of ResNet-50 on ImageNet-1k, mean and
standard deviation of five runs each, gradual warm-up, rate 0.1 * kn / 256, 90 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from squall.recipe import Recipe
from squall.units import count


@dataclass(frozen=True)
class Published:
    """One paper's errors by minibatch size.

    Attributes:
        source: paper and table.
        reference: the size that the paper compares with.
        largest_safe: the largest size without a loss of accuracy: the elbow.
        beyond: the next size that was measured.
        errors: minibatch size -> (mean, standard deviation) of the error in per cent.
    """

    source: str
    reference: int
    largest_safe: int
    beyond: int
    errors: Mapping[int, tuple[float, float]]

    def note(self, size: int) -> str:
        """What the paper found at this size, or nothing."""
        if size not in self.errors or size == self.reference or size > self.largest_safe:
            return ""
        against = (
            f"{_spread(self.errors[size])} error against {_spread(self.errors[self.reference])} at {self.reference}"
        )
        if size < self.largest_safe:
            return f"the paper found {count(size)} safe: {against}."
        beyond = f"{count(self.beyond)} gave {self.errors[self.beyond][0]:.2f} %"
        return f"{count(size)} is the largest size the paper found safe: {against}; {beyond}."

    def warning(self, size: int) -> str:
        """A warning where the size lies past the elbow, or nothing."""
        if size <= self.largest_safe:
            return ""
        measured = [known for known in self.errors if self.largest_safe < known <= size]
        found = max(measured, default=self.beyond)
        against = (
            f"{_spread(self.errors[found])} error against {_spread(self.errors[self.reference])} at {self.reference}"
        )
        safe = count(self.largest_safe)
        return f"{count(size)} is past the largest size the paper found safe, {safe}: {count(found)} gave {against}."


def _spread(error: tuple[float, float]) -> str:
    return f"{error[0]:.2f} +- {error[1]:.2f} %"


_GOYAL = Published(
    source="Goyal et al. 2017, Table 1",
    reference=256,
    largest_safe=8192,
    beyond=16384,
    errors={
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


def known_results(recipe: Recipe) -> Published | None:
    """The published results that this recipe's network and data have, or None."""
    if recipe.model is None or recipe.data is None:
        return None
    same = recipe.model.name == "resnet50" and recipe.data.root == "imagenet" and recipe.optimizer.name == "sgd"
    return _GOYAL if same else None
