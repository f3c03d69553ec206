"""How an applied gradient is mixed of the ranks' own, and the weight with which each term of the loss enters by that.

    applied = f_0 x (rank 0's own) + f_1 x (rank 1's own) + ...

A mean over ranks is the mixture with equal factors. One with factors as the ranks' samples, or tokens, is the mean over
all of those, where ranks hold unequally many.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from squall.verify.trace import Array
from squall.verify.update import Update, alike, close

_EXACT = 1e-3
_COUNTED = 1e-2
"""Relative difference up to which a factor is that of a count."""


def mixture(applied: Sequence[Array], own: Sequence[Sequence[Array]]) -> list[float] | None:
    """The factors with which the ranks' own gradients add up to an applied one; None where none do.

    Arguments:
        applied: parameter by parameter.
        own: of each rank, parameter by parameter.
    """
    target = numpy.concatenate(list(applied))
    parts = numpy.stack([numpy.concatenate(list(rank)) for rank in own], axis=1)
    if not numpy.isfinite(parts).all() or not numpy.isfinite(target).all() or len(target) < 2 * parts.shape[1]:
        return None
    factors, *_ = numpy.linalg.lstsq(parts, target, rcond=None)
    size = float(numpy.linalg.norm(target))
    if not size or float(numpy.linalg.norm(parts @ factors - target)) > _EXACT * size:
        return None
    return [float(factor) for factor in factors]


def factors(update: Update) -> list[float] | None:
    """The factor of each rank's own gradient in what all ranks applied; None where it is no such mixture."""
    if update.reduced:
        return [one.ratio for one in update.matches]
    return mixture(update.applied[0], update.own) if alike(update.applied) else None


def by_counts(update: Update) -> list[float] | None:
    """The factors where ranks enter by how many samples each holds, or by what their losses count; else None."""
    found = factors(update)
    if found is None or min(found) <= 0:
        return None
    counts = [[float(share.samples) for share in update.shares]]
    terms = [share.terms for share in update.shares]
    if all(one is not None for one in terms):
        counts.append([sum(term.units for batch in one or () for term in batch[:1]) for one in terms])
    for held in counts:
        if min(held) > 0:
            each = [factor / number for factor, number in zip(found, held, strict=True)]
            if close(min(each), max(each), _COUNTED):
                return found
    return None


def reduction(update: Update) -> float:
    """What became of the mean over ranks on its way to the optimiser: 1, or the factor of the reduction."""
    found = factors(update)
    return numpy.nan if found is None else sum(found) * update.scaling


def scales(update: Update) -> list[float] | None:
    """For each term of the loss: the weight of a mean over its units in the update; None where it is not known."""
    found = factors(update)
    if found is None:
        return None
    totals: list[float] = []
    for share, factor in zip(update.shares, found, strict=True):
        if share.terms is None:
            return None
        for batch in share.terms:
            for term in batch:
                totals += [0.0] * (term.slot + 1 - len(totals))
                totals[term.slot] += factor * term.weight
    return totals or None
