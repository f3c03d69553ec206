"""Which checkpoints stay on disk: the newest so many, and the best by a validation metric.

Pure book-keeping over step numbers. Only what is known to be whole counts, so a save that failed removes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


class Retention:
    """The checkpoints of a run that are whole.

    Arguments:
        keep: the newest so many stay.
        less: whether a smaller value is the better one.
        held: steps of those that are there already.
        best: the best value so far and its step.
    """

    def __init__(
        self, keep: int, less: bool = False, held: Iterable[int] = (), best: Sequence[float] | None = None
    ) -> None:
        self._keep, self._less = keep, less
        self._held = set(held)
        self._best: tuple[float, int] | None = (float(best[0]), int(best[1])) if best else None
        if self._best is not None and self._best[1] not in self._held:
            self._best = (self._best[0], -1)  # its value still decides, though it is gone
        self._hopes: dict[int, float] = {}  # steps whose values were the best, and which are not known to be whole

    @property
    def newest(self) -> int | None:
        """The newest that is whole."""
        return max(self._held, default=None)

    def is_better(self, value: float, step: int) -> bool:
        """Whether a value is the best so far; if so, the checkpoint of that step is hoped to become the best."""
        before = [*self._hopes.values(), *([self._best[0]] if self._best else [])]
        better = math.isfinite(value) and all(value < other if self._less else value > other for other in before)
        if better:
            self._hopes[step] = value
        return better

    def best_with(self, step: int) -> tuple[float, int] | None:
        """The best, if the checkpoint of a step comes to be whole."""
        return (self._hopes[step], step) if step in self._hopes else self._best

    def removable(self, step: int) -> list[int]:
        """What may go once the checkpoint of a step is whole."""
        held = sorted({*self._held, step}, reverse=True)
        best = self.best_with(step)
        kept = {step, *held[: self._keep], *([best[1]] if best else [])}
        return [other for other in held if other not in kept]

    def is_whole(self, step: int) -> None:
        """The checkpoint of a step is whole, and what may go is gone."""
        gone = self.removable(step)
        self._best = self.best_with(step)
        self._hopes.pop(step, None)
        self._held = {*self._held, step} - set(gone)

    def has_failed(self, step: int) -> None:
        """There is no checkpoint of a step: its value decides nothing."""
        self._hopes.pop(step, None)
