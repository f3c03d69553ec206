"""When enough was seen of a training: what has happened comes in, what to do comes out.

An epoch is a pass over the data with backward passes from its batches; one that is only evaluated, in between or
afterwards, is none. It is over when the next pass over the same data begins. Where a pass beside it may be meant (the
held-out part of the same data), that shows with the first backward pass from its batches::

    pass  bwd bwd ... pass  bwd bwd ...  pass      bwd ...    pass             pass
    epoch 0           epoch 1            2: LIGHT             3: time? AGREE   4: LEAVE, all ranks

Without passes, updates are counted: of the first optimiser, since several may step for each minibatch. Nobody leaves
in the midst of a backward pass, in which other ranks may wait for this one's gradients.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping


class Course(enum.Enum):
    """What to do now."""

    GO_ON = "go on"
    LIGHT = "light"
    """From now on only what is cheap is noted."""
    AGREE = "agree"
    """It is time to leave: rank 0 says when, for all ranks."""
    LEAVE = "leave"


class Enough:
    """How far a training has come, and what that means for its observer.

    Arguments:
        epochs: that are observed.
        steps: updates that are as good as an epoch, where there are no passes or they have no end.
        patience_s: how long the epochs that follow may take.
        clock: seconds, from anywhere.
        agreed: before which epoch all ranks leave; None as long as that is open.
    """

    def __init__(
        self,
        *,
        epochs: int,
        steps: int,
        patience_s: float,
        clock: Callable[[], float],
        agreed: Callable[[], int | None],
    ) -> None:
        self.epochs, self.steps, self.patience_s = epochs, steps, patience_s
        self.clock, self.agreed = clock, agreed
        self.last: int | None = None  # the pass that the latest backward pass came from
        self._trained: dict[int, set[int]] = {}  # data -> passes over it with backward passes
        self._updates = 0
        self._over = 0  # epochs whose end was acted on
        self._ended = 0  # epochs that have ended
        self._without_passes = False  # enough was seen, and nothing tells epochs
        self._light_since: float | None = None

    @property
    def done(self) -> int:
        """How many epochs have begun."""
        return max((len(passes) for passes in self._trained.values()), default=0)

    @property
    def data(self) -> set[int]:
        """The data sets that were trained on."""
        return set(self._trained)

    def pass_begins(self, data: int, *, follows: bool) -> Course:
        """A pass over a data set begins; `follows`: certainly after the latest one over it, not beside it."""
        if follows and self.done and len(self._trained.get(data, ())) == self.done:
            self._ended = max(self._ended, self.done)
        return self._decide(inside=False)

    def backward_ends(self, passes: Mapping[int, int], *, inside: bool) -> Course:
        """A backward pass has ended.

        Arguments:
            passes: for each data set of its batches, the pass.
            inside: another backward pass.
        """
        for data, pass_ in passes.items():
            self._trained.setdefault(data, set()).add(pass_)
            self.last = pass_
        self._ended = max(self._ended, self.done - 1)
        return self._decide(inside=inside)

    def updated(self, *, first: bool, endless: bool, inside: bool) -> Course:
        """An optimiser has stepped.

        Arguments:
            first: it was the first optimiser.
            endless: the data comes in passes that may have no end.
            inside: a backward pass, in a hook.
        """
        self._updates += first
        if endless:
            self._ended = max(self._ended, self._updates // self.steps)
        self._without_passes = not self._trained and self._updates >= self.epochs * self.steps
        return self._decide(inside=inside)

    def _decide(self, *, inside: bool) -> Course:
        if inside:
            return Course.GO_ON
        if self._without_passes:
            return Course.LEAVE
        if self._ended <= self._over:
            return Course.GO_ON
        self._over = self._ended
        if self._over < self.epochs:
            return Course.GO_ON
        if self._light_since is None:
            self._light_since = self.clock()
            return Course.LIGHT
        agreed = self.agreed()
        if agreed is not None:
            return Course.LEAVE if self._over >= agreed else Course.GO_ON
        return Course.AGREE if self.clock() - self._light_since >= self.patience_s else Course.GO_ON

    @property
    def leaving_before(self) -> int:
        """The epoch before which all can leave: other ranks may be in this one already."""
        return self._over + 1
