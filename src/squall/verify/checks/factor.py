"""The weight with which the mean over the samples enters an update, where that is made of the ranks' own gradients.

What it follows over the runs (`law.py`) says whether it is right: the number of processes must not be in it, a constant
is the loss's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from squall.verify.checks.law import Law, laws, own
from squall.verify.checks.mixing import factors, reduction, scales
from squall.verify.checks.training import Training, count, numbers, times
from squall.verify.finding import Finding
from squall.verify.update import Update, close

_EQUAL = 2e-3
_KNOWN = {  # whether it is in the loss, and whether it is too large
    (True, True): "sparseml#135",
    (True, False): "verl-SpeCo#29",
    (False, True): "torchft#286",
    (False, False): "kubeflow/pytorch-operator#122",
}


def factor(training: Training, updates: Sequence[Update]) -> Finding:
    """With what weight the mean enters.

    Arguments:
        updates: those that are mixtures of the ranks' own gradients, each of batches of one epoch.
    """
    if any(scales(update) is None for update in updates):
        return _unread(training, updates)
    fitted = laws(updates)
    for (optimizer, slot), one in fitted.items():
        if one.kind == "processes" and slot == 0:
            return _follows(training, _largest(updates, optimizer), one)
    part = next((one for one in fitted.values() if one.kind == "processes"), None)
    if part is not None:
        return _note(training, updates[-1], f"the weight of a term of the loss beside the others follows {part.name}")
    exact = _exact(updates)
    sums = next((one for one in fitted.values() if one.kind == "samples"), None)
    if sums is not None:
        says = f"= {sums.constant:.3g} x the sum over {sums.name}, not their mean: the rate has to know how many"
        return _note(training, updates[-1], f"{says}; {exact}")
    last = _largest(updates, updates[0].key[0])
    weights = [one.constant for key, one in fitted.items() if key[0] == last.key[0] and one.kind == "one"]
    if last.window > 1 or len(weights) < len(scales(last) or ()):  # see accumulation
        weights = [1.0]
    samples = f" / {count(last.samples, 'sample')}" if last.samples else ""
    says, said = f"= mean of {count(last.processes, 'rank')}{samples}", own(weights)
    alone = len({update.processes for update in updates}) == 1 < last.processes
    if said and alone and any(close(weights[0], one, _EQUAL) for one in (last.processes, 1 / last.processes)):
        said += " or that of the processes: --processes with another number would tell"
        return _note(training, last, f"{says}{said}; {exact}")
    return Finding(check="gradient", outcome="ok", says=f"{says}{said}; {exact}")


def _largest(updates: Sequence[Update], optimizer: int) -> Update:
    """An optimiser's first update in the run with the most processes."""
    return max((update for update in updates if update.key[0] == optimizer), key=lambda update: update.processes)


def _note(training: Training, update: Update, says: str) -> Finding:
    place = training.place(update.shares[0].backwards[-1])
    return Finding(check="gradient", outcome="note", says=says, place=place)


def _exact(updates: Sequence[Update]) -> str:
    """How exactly what was applied is made of the ranks' own."""
    reduced = [update for update in updates if update.reduced]
    if not reduced:
        return "ranks enter by how much each holds"
    worst = max(reduced, key=lambda update: update.matches[0].difference)
    one = worst.matches[0]
    return f"largest relative difference {one.difference:.0e} ({worst.shares[0].rank.name(one.worst)})"


def _unread(training: Training, updates: Sequence[Update]) -> Finding:
    """The loss is not one that can be read: only the reduction is known."""
    wrong = next((update for update in updates if not close(reduction(update), 1.0, _EQUAL)), None)
    last = wrong or updates[-1]
    says = f"mean of {count(last.processes, 'rank')}; how a rank's loss is made of its samples could not be read"
    if wrong is None:
        return Finding(check="gradient", outcome="ok", says=f"= {says}")
    return Finding(
        check="gradient",
        outcome="note",
        says=f"{times(sum(factors(wrong) or ()))} the {says}",
        place=training.place(wrong.step),
    )


def _follows(training: Training, update: Update, one: Law) -> Finding:
    by = one.factor(update)
    in_loss = close(reduction(update), 1.0, _EQUAL)
    backward, step = update.shares[0].backwards[-1], update.step
    processes = count(update.processes, "process")
    if by > 1:
        change = (
            "take the factor out of the loss: DDP already takes the mean over ranks"
            if in_loss
            else "divide the summed gradients by the number of processes before the step"
        )
        effect = f"the rate acts as if it were {times(by)} with {processes}, and grows with them"
    else:
        change = (
            "leave the loss of each rank as it is: the mean over ranks is taken of the gradients"
            if in_loss
            else "divide once: DDP's all-reduce has taken the mean already"
        )
        effect = (
            f"the rate acts as if it were {times(by)} with {processes}: slower training, and weight decay that is too "
            "strong beside it; Adam hides it but for its epsilon"
        )
    found = [times(one.factor(other)) for other in _of_each(training, update)]
    numbers_ = [other.processes for other in _of_each(training, update)]
    return Finding(
        check="gradient",
        outcome="FAIL",
        says=f"{times(by)} with {processes}: it follows {one.name}",
        place=training.place(backward if in_loss else step),
        expected=f"the gradient of the mean over all {update.samples or ''} samples of the step".replace("  ", " "),
        found=f"that gradient, {numbers(found)} with {numbers(numbers_)} processes: it is in the "
        + ("loss" if in_loss else "reduction"),
        effect=effect,
        change=change,
        known=(_KNOWN[in_loss, by > 1],),
    )


def _of_each(training: Training, update: Update) -> list[Update]:
    """An update of the same optimiser in each run."""
    found = {one.processes: one for one in training.all_updates if one.key[0] == update.key[0]}
    return [found[number] for number in sorted(found)]
