"""How the loss of an update of several batches is divided by their number: once, not at all, or twice.

The last two look like a factor of the loss's own. Windows of different lengths tell which it is; where all are alike,
what the loss was divided by; and else which number a person would sooner have written: a loss that weighs 0.3 in each
of 4 batches was not divided, one that weighs 0.075 was. What cannot be told is said to be so.
"""

from __future__ import annotations

from collections.abc import Sequence

from squall.verify.checks.law import Law, own
from squall.verify.checks.mixing import reduction, scales
from squall.verify.checks.training import Training, count, numbers, rounder, times
from squall.verify.finding import Finding
from squall.verify.update import Term, Update, close

_EQUAL = 2e-3
_WRITTEN = 1e-4  # as far as float32 keeps a number that stands in a script
_DIVIDE = {"Accelerate", "Lightning"}  # they divide a loss by the batches of an update themselves
_SQUARES = ("MseLoss", "Pow")  # a half of these is a loss as books write it


def dividing(training: Training, many: Sequence[Update], one: Law | None) -> Finding:
    """What the batches of an optimiser's updates weigh together.

    Arguments:
        many: its updates of several batches.
        one: what the weight of its loss follows.
    """
    windows = sorted({update.window for update in many})
    last = max(many, key=lambda update: update.window)
    said = f"{numbers(windows)} batches an update"
    if one is None or one.kind not in ("one", "batches"):
        says = said + (", all weigh alike" if one is not None else "")
        return Finding(check="accumulation", outcome="ok", says=says)
    weights = [(scales(update) or [0.0])[0] for update in many]
    if one.kind == "one" and len(windows) > 1 and close(min(weights), max(weights), _EQUAL):
        return _once(last, said)  # whatever a window holds, it weighs the same
    if one.kind == "batches" and one.factor(last) < 1:  # divided by what the window holds, and once more
        return _twice(training, last)
    return _alike(training, last, said, shorter=len(windows) > 1)


def _alike(training: Training, last: Update, said: str, *, shorter: bool) -> Finding:
    """Each batch has the same weight, whatever its window holds: is that the loss's own weight by the window?"""
    weights = scales(last) or [0.0]
    total, together, window = weights[0], sum(weights), last.window
    terms = (last.shares[0].terms or [[]])[0]
    divided = _divisions(last, terms)
    if close(total, 1.0, _EQUAL) or divided == 1 or (divided == 0 and close(together, 1.0, _EQUAL)):
        return _shorter(training, last, said) if shorter else _once(last, said)
    if divided > 1:
        by_hand = not _DIVIDE & set(last.shares[0].rank.about.get("frameworks", ()))
        halved = window == 2 and by_hand and any(term.of in _SQUARES for term in terms)
        counted = any(term.how == "sum" for term in terms) and not close(total * window, 1.0, _EQUAL)
        if halved or counted or close(together, 1.0, _EQUAL):
            return _unsure(training, last, "twice")
        return _twice(training, last)
    each = [one / window for one in (total, together)]
    whole = [*each, *(2 * one for one in each if any(term.of in _SQUARES for term in terms))]
    if any(close(one, 1.0, _EQUAL) for one in whole) or rounder(each[0], total):
        return _undivided(training, last)
    return _once(last, said) if rounder(total, each[0]) else _unsure(training, last, "not")


def _divisions(update: Update, terms: Sequence[Term]) -> int:
    """How often all of a loss, or the gradient, was divided by the number of batches of the update."""
    found = min((_divided(term, update.window) for term in terms), default=0)
    return found + int(close(reduction(update), 1 / update.window, _EQUAL))


def _divided(term: Term, window: int) -> int:
    """How often a term was divided by a number, or multiplied by 1 / it: not counted where that makes it a mean."""
    divisions = sum(close(divisor, window, _WRITTEN) for divisor in term.divisors)
    products = sum(close(constant, 1 / window, _WRITTEN) for constant in term.constants) - divisions
    if window == 2 and term.of in _SQUARES:
        products = 0  # 0.5 x the squared error
    if term.how == "sum" and divisions and close(term.units, window, _WRITTEN):
        divisions -= 1
    return divisions + products


def _once(update: Update, said: str) -> Finding:
    samples = f", {count(update.samples, 'sample')}" if update.samples else ""
    says = f"{said}{samples}, divided once{own(scales(update) or [1.0])}"
    return Finding(check="accumulation", outcome="ok", says=says)


def _shorter(training: Training, update: Update, said: str) -> Finding:
    return Finding(
        check="accumulation",
        outcome="note",
        says=f"{said}, each divided by {update.window}: an incomplete window moves less",
        place=training.place(update.shares[0].backwards[-1]),
    )


def _unsure(training: Training, update: Update, how: str) -> Finding:
    found = times((scales(update) or [0.0])[0])
    return Finding(
        check="accumulation",
        outcome="note",
        says=f"{found}: a factor of the loss's own, or {how} divided by the {update.window} batches of an update",
        place=training.place(update.shares[0].backwards[-1]),
    )


def _undivided(training: Training, update: Update) -> Finding:
    return _wrong(
        training,
        update,
        "not divided by",
        f"divide the loss by {update.window}, the batches of the window",
        ("axolotl#2262",),
    )


def _twice(training: Training, update: Update) -> Finding:
    return _wrong(
        training,
        update,
        "divided twice by",
        "divide by hand or let the framework do it: one of them",
        ("accelerate#3533",),
    )


def _wrong(training: Training, update: Update, how: str, change: str, known: tuple[str, ...]) -> Finding:
    found = times((scales(update) or [0.0])[0])
    return Finding(
        check="accumulation",
        outcome="FAIL",
        says=f"{found}: {how} the {update.window} batches of an update",
        place=training.place(update.shares[0].backwards[-1]),
        expected=f"the mean over {update.window} batches: each loss divided by {update.window}, once",
        found=f"the gradient of that mean, {found}",
        effect=f"the rate acts as if it were {found}; clipping and weight decay see another gradient",
        change=change,
        known=known,
    )
