"""L-BFGS in numbers: whoever runs it needs no element of a vector.

Dean et al. 2012, section 4.2; Nocedal & Wright 2006, chapter 7. The direction -H g is a combination of the history's
steps s and changes of gradient y, and of g. Its factors follow from the inner products of these 2m + 1 vectors, so that
one round trip an iteration brings all that is needed (vector-free L-BFGS, Chen, Wang & Zhou 2014), where the two loops
of the textbook would take 2m in turn. Three of their rows are new in each iteration::

    direction   Combine d <- -H g;  trial <- x + t d
    evaluate    the value at trial, and its gradient; Dots d . gradient: the slope; again for each step t
    accept      Combine s <- t d;  y <- gradient - g;  the trial becomes x;  Dots (s, y, g) x (all s, all y, g)

What the paper leaves open, or has wrong (its algorithm 2 ends by adding the gradient where it means the direction):

* A pair is kept if s . y is large enough. With damping (Powell 1978), y is drawn towards B s until it is: B s is
  -t g here, as the step was -t H g. Both follow from slopes that the search knows, before a vector is touched.
* A direction that does not lead down, or along which no step is found, ends the history: the next direction is -g.
  If none is found there either, the end is "no descent"; so it is where a tolerance for noise lets it go on for long
  without getting anywhere.
* The end is a value, with a sentence of advice.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from squall.optim.algebra import Combine, Command, Dots, Space, Swap
from squall.optim.linesearch import SEARCHES, Found, Point, SearchSpec

X, GRADIENT, TRIAL, TRIAL_GRADIENT, DIRECTION = "x", "g", "trial", "trial_g", "d"


def names(history: int) -> tuple[str, ...]:
    """The vectors that L-BFGS works on.

    Pairs are read together, so they stand side by side. Those that change their names stand apart from each other and
    from the pairs: the bits of a sum do not depend on which of them is called what by now.
    """
    pairs = [f"{kind}{slot}" for kind in "sy" for slot in range(history)]
    return (*pairs, DIRECTION, GRADIENT, X, TRIAL_GRADIENT, TRIAL)


class Problem(Space, Protocol):
    """What is minimised: vectors somewhere, and a function that is evaluated there."""

    async def evaluate(self) -> float:
        """The value at `TRIAL`; its gradient is in `TRIAL_GRADIENT` afterwards."""


@dataclass(frozen=True, kw_only=True)
class LbfgsSpec:
    """Numbers of L-BFGS.

    Attributes:
        history: pairs that are kept, m.
        line_search: "strong_wolfe" or "armijo".
        search: its numbers.
        damping: y is damped until s.y is at least this share of s.Bs; 0: a pair below `curvature` is left out instead.
        curvature: a pair is kept if s.y is at least this share of s.Bs.
        tolerance_gradient: converged where the gradient's 2-norm is not above it.
        tolerance_step: converged where a step's 2-norm is not above this share of that of x (at least 1).
        tolerance_value: converged where a step takes off no more than this share of the value (at least 1).
        patience: iterations without a lower value and without a flatter gradient than ever before, after which nothing
            more is expected: what rounding hides is not found by going on.
        max_iterations, max_evaluations: the budget; None: no end.
    """

    history: int = 10
    line_search: Literal["strong_wolfe", "armijo"] = "strong_wolfe"
    search: SearchSpec = field(default_factory=SearchSpec)
    damping: float = 0.0
    curvature: float = 1e-8
    tolerance_gradient: float = 1e-5
    tolerance_step: float = 0.0
    tolerance_value: float = 0.0
    patience: int = 20
    max_iterations: int | None = None
    max_evaluations: int | None = None


Outcome = Literal["converged", "no descent", "budget spent", "not finite"]


@dataclass(frozen=True)
class Ended:
    """How a minimisation ended.

    Attributes:
        outcome: as a word.
        why: the test that was met.
        advice: what may help; "" where nothing is amiss.
    """

    outcome: Outcome
    why: str
    advice: str = ""


@dataclass(frozen=True)
class Direction:
    """Where to go: a combination of the basis, its slope, and its 2-norm."""

    terms: tuple[tuple[str, float], ...]
    slope: float
    norm: float


class History:
    """The pairs of steps and changes of gradient, as inner products.

    Arguments:
        most: pairs.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.slots: list[int] = []  # oldest first
        # s0 .. s(m-1), y0 .. y(m-1), g
        self._gram: Any = np.zeros((2 * most + 1, 2 * most + 1))

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def basis(self) -> tuple[str, ...]:
        """The names of all vectors that the direction is a combination of."""
        return (*(f"{kind}{slot}" for kind in "sy" for slot in sorted(self.slots)), GRADIENT)

    def take_slot(self) -> int:
        """Where the next pair goes: a free slot, or the oldest pair's."""
        slot = len(self.slots) if len(self.slots) < self.most else self.slots.pop(0)
        self.slots.append(slot)
        return slot

    def clear(self) -> None:
        """Forgets all pairs."""
        self.slots = []

    def tell(self, rows: tuple[str, ...], products: tuple[tuple[float, ...], ...]) -> None:
        """Takes inner products of some vectors with the whole basis."""
        columns = [self._place(name) for name in self.basis]
        for name, values in zip(rows, products, strict=True):
            self._gram[self._place(name), columns] = values
            self._gram[columns, self._place(name)] = values

    @property
    def gradient_norm(self) -> float:
        """Of the gradient, the 2-norm."""
        return float(np.sqrt(self._gram[-1, -1]))

    def direction(self) -> Direction:
        """-H g.

        The two loops of Nocedal & Wright's algorithm 7.4, on factors instead of vectors.
        """
        gram, m = self._gram, self.most
        factors = np.zeros(2 * m + 1)
        factors[-1] = -1.0
        shares: dict[int, float] = {}
        for slot in reversed(self.slots):
            shares[slot] = gram[slot] @ factors / gram[slot, m + slot]
            factors[m + slot] -= shares[slot]
        if self.slots:
            newest = self.slots[-1]
            factors *= gram[newest, m + newest] / gram[m + newest, m + newest]
        for slot in self.slots:
            share = gram[m + slot] @ factors / gram[slot, m + slot]
            factors[slot] += shares[slot] - share
        terms = tuple((name, float(factors[self._place(name)])) for name in self.basis)
        return Direction(terms, float(gram[-1] @ factors), float(np.sqrt(max(factors @ gram @ factors, 0.0))))

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return {"slots": list(self.slots), "gram": self._gram.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Takes `state` up."""
        self.slots, self._gram = list(state["slots"]), np.array(state["gram"])

    def _place(self, name: str) -> int:
        return 2 * self.most if name == GRADIENT else int(name[1:]) + self.most * (name[0] == "y")


@dataclass
class State:
    """Where a minimisation is, between two iterations: with the vectors, all that is needed to go on.

    Attributes:
        history: of it.
        value: of the function at x; its gradient's norm stands in the history.
        iterations, evaluations: so far.
        length: of the last step, in lengths of its direction.
        step: length of the last one, relative to that of x (at least 1); None before the first.
        decrease: of the last one, relative to the value (at least 1).
        kept, damped, skipped: pairs, by what became of them; a damped one is kept too.
        restarts: of the history.
        lowest, flattest: the least value and the least norm of a gradient so far.
        stale: iterations since one of them was beaten.
    """

    history: History
    value: float = math.nan
    iterations: int = 0
    evaluations: int = 0
    length: float = 0.0
    step: float | None = None
    decrease: float | None = None
    kept: int = 0
    damped: int = 0
    skipped: int = 0
    restarts: int = 0
    lowest: float = math.inf
    flattest: float = math.inf
    stale: int = 0

    def note_progress(self) -> None:
        """Holds value and gradient against the best so far."""
        norm = self.history.gradient_norm
        self.stale = 0 if self.value < self.lowest or norm < self.flattest else self.stale + 1
        self.lowest, self.flattest = min(self.lowest, self.value), min(self.flattest, norm)

    def values(self) -> dict[str, Any]:
        """Plain values, for `of`."""
        return {**vars(self), "history": self.history.state()}

    @classmethod
    def of(cls, values: dict[str, Any], most: int) -> State:
        """The state of such values, with room for so many pairs."""
        history = History(most)
        history.load(values["history"])
        return cls(**{**values, "history": history})


async def minimise(
    problem: Problem,
    spec: LbfgsSpec,
    state: State | None = None,
    told: Callable[[State], Awaitable[None]] | None = None,
) -> tuple[State, Ended]:
    """Minimises a function of a vector.

    Arguments:
        problem: with the start in `TRIAL`; where a minimisation goes on, all vectors as they were.
        state: where it goes on; None: it begins.
        told: awaited after each iteration.
    """
    if state is None:
        state = State(History(spec.history))
        state.value, state.evaluations = await problem.evaluate(), 1
        await _moved_to_trial(problem, state)
        state.note_progress()
    while (ended := _judged(state, spec)) is None:
        direction = state.history.direction()
        found = await _searched(problem, spec, state, direction) if direction.slope < 0 else Found(None, "no descent")
        if found.point is not None:
            await _accept(problem, spec, state, direction, found.point)
            if told is not None:
                await told(state)
        elif _spent(state, spec):
            continue
        elif len(state.history):
            state.history.clear()
            state.restarts += 1
        else:
            return state, Ended("no descent", f"{found.why}, along the gradient itself", _NO_DESCENT)
    return state, ended


async def _searched(problem: Problem, spec: LbfgsSpec, state: State, direction: Direction) -> Found:
    """Looks for a step; afterwards the trial is there, with its gradient."""
    first = 1.0 if len(state.history) else min(1.0, 1.0 / direction.norm)
    search = SEARCHES[spec.line_search](Point(0.0, state.value, direction.slope), first, spec.search)
    ahead: tuple[Command, ...] = (Combine(DIRECTION, direction.terms),)
    step = next(search)
    while True:
        point = await _tried(problem, state, step, ahead)
        ahead = ()
        try:
            step = search.send(point)
        except StopIteration as end:
            found: Found = end.value
            break
        if _spent(state, spec):
            return Found(None, "budget spent")
    if found.point is not None and found.point.step != point.step:
        await _tried(problem, state, found.point.step)  # another's gradient is there
    return found


async def _tried(problem: Problem, state: State, step: float, ahead: tuple[Command, ...] = ()) -> Point:
    await problem.do(*ahead, Combine(TRIAL, ((X, 1.0), (DIRECTION, step))))
    value = await problem.evaluate()
    state.evaluations += 1
    (((slope,),),) = await problem.do(Dots((DIRECTION,), (TRIAL_GRADIENT,)))
    return Point(step, value, slope)


async def _accept(problem: Problem, spec: LbfgsSpec, state: State, direction: Direction, point: Point) -> None:
    """Moves to the trial, and keeps the pair if it says something of the curvature."""
    step, change = point.step, (point.slope - direction.slope) / -direction.slope  # s.y / (t |slope|), and s.Bs is t
    share = 1.0  # of y's that is y, the rest B s
    if spec.damping and len(state.history) and change < spec.damping * step:
        share = (1.0 - spec.damping) / (1.0 - change / step)
        state.damped += 1
    pair: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()
    if share < 1.0 or change >= spec.curvature:
        slot = state.history.take_slot()
        pair = (f"s{slot}", f"y{slot}")
        terms = ((TRIAL_GRADIENT, share), (GRADIENT, -share - (1.0 - share) * step))
        commands = (Combine(pair[0], ((DIRECTION, step),)), Combine(pair[1], terms))
        state.kept += 1
    else:
        state.skipped += 1
    decrease = state.value - point.value
    state.decrease = decrease / max(abs(state.value), abs(point.value), 1.0)
    state.value, state.length = point.value, step
    length = await _moved_to_trial(problem, state, commands, pair)
    state.step = step * direction.norm / max(length, 1.0)
    state.iterations += 1
    state.note_progress()


async def _moved_to_trial(
    problem: Problem, state: State, commands: tuple[Command, ...] = (), pair: tuple[str, ...] = ()
) -> float:
    """The trial becomes x; all inner products that are new; returns the length of x."""
    rows, history = (*pair, GRADIENT), state.history
    swaps = Swap(X, TRIAL), Swap(GRADIENT, TRIAL_GRADIENT)
    products, squared = await problem.do(*commands, *swaps, Dots(rows, history.basis), Dots((X,), (X,)))
    history.tell(rows, products)
    return math.sqrt(squared[0][0])


def _spent(state: State, spec: LbfgsSpec) -> bool:
    return spec.max_evaluations is not None and state.evaluations >= spec.max_evaluations


def _judged(state: State, spec: LbfgsSpec) -> Ended | None:
    """Whether this is the end."""
    norm = state.history.gradient_norm
    if not (math.isfinite(state.value) and math.isfinite(norm)):
        found = f"the value is {state.value}, the gradient's norm {norm}"
        return Ended("not finite", found, "begin where the function is finite")
    if norm <= spec.tolerance_gradient:
        return Ended("converged", f"the gradient's norm {norm:.3g} is within {spec.tolerance_gradient:g}")
    if state.stale >= spec.patience:
        return Ended("no descent", f"neither value nor gradient got smaller in {state.stale} iterations", _NO_DESCENT)
    if state.step is not None and state.step <= spec.tolerance_step:
        return Ended("converged", f"the last step {state.step:.3g} is within {spec.tolerance_step:g} of x")
    if state.decrease is not None and spec.tolerance_value and state.decrease <= spec.tolerance_value:
        found = f"the last decrease {state.decrease:.3g} is within {spec.tolerance_value:g} of the value"
        return Ended("converged", found)
    for what, spent, most in (
        ("iterations", state.iterations, spec.max_iterations),
        ("evaluations", state.evaluations, spec.max_evaluations),
    ):
        if most is not None and spent >= most:
            return Ended("budget spent", f"{spent} {what}", f"max_{what}={2 * most}, or wider tolerances")
    return None


_NO_DESCENT = "the gradient is wrong, or this is the optimum as far as rounding lets one see it: float64, more noise"
