"""A minimisation in words and tables: how it ended, what each replica did, and what became of the portions.

An evaluation takes each portion of the batch once. What replicas computed besides was a copy, came too late, or belongs
to an evaluation that was broken off. The counts are those of result.json, or, of a run that is under way or came to
none, of its newest checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from squall.report.blocks import Block, pairs, paragraph, table, text_block
from squall.report.course import course
from squall.report.pushes import Share, shares
from squall.report.read import RunData
from squall.report.values import mapping, number, whole
from squall.report.words import NONE, Html, duration, plural, safe, written
from squall.units import count

_TALL = 12


@dataclass(frozen=True)
class Counts:
    """What came of a minimisation's portions.

    Attributes:
        evaluations, samples: that were completed, and their samples.
        portions: that are part of them; `wasted`: copies, and what came too late; `computed`: by all replicas.
        inexact: evaluations whose sums' bits depend on their order.
        set_backs: times that all went back to a snapshot; `redone`: iterations that this cost.
        final: of all the run, not of its newest checkpoint.
    """

    evaluations: int
    samples: int
    portions: int
    wasted: int
    computed: int
    inexact: int
    set_backs: int
    redone: int
    final: bool

    @property
    def broken_off(self) -> int:
        """Portions of evaluations that a shard's death, or the run's end, broke off."""
        return max(self.computed - self.portions - self.wasted, 0)


def counts(run: RunData) -> Counts | None:
    """The counts of a run; None where it told none yet."""
    result, tally = run.result, run.tally
    computed = sum(share.minibatches for share in shares(run))
    if "evaluations" in result:
        portions, back = mapping(result.get("portions")), mapping(result.get("set_backs"))
        parts = (portions.get("counted"), portions.get("wasted")), (back.get("times"), back.get("iterations"))
        return _counts(result, result.get("evaluations"), *parts, computed, final=True)
    if "evaluated" in tally:
        parts = (tally.get("portions"), tally.get("wasted")), (tally.get("set_backs"), tally.get("redone"))
        return _counts(tally, tally.get("evaluated"), *parts, computed, final=False)
    return None


def _counts(
    table_: object,
    evaluations: object,
    portions: tuple[object, object],
    back: tuple[object, object],
    computed: int,
    *,
    final: bool,
) -> Counts:
    samples, inexact = (_whole(mapping(table_).get(key)) for key in ("samples", "inexact"))
    counted, wasted, times, redone = map(_whole, (*portions, *back))
    return Counts(_whole(evaluations), samples, counted, wasted, computed, inexact, times, redone, final)


def _whole(value: object) -> int:
    return max(whole(value), 0)


def ending(run: RunData) -> Block | None:
    """How the minimisation ended, and where it is."""
    found, end, about = counts(run), mapping(run.result.get("minimum")), mapping(run.result.get("pairs"))
    _, values = course(run, lambda record: record.get("train_loss"))
    _, norms = course(run, lambda record: mapping(record.get("train")).get("gradient_norm"))
    rows: list[tuple[object, object]] = []
    if end:
        rows.append(("ended", ": ".join(str(end[key]) for key in ("outcome", "why") if end.get(key))))
        rows.append(("advice", str(end.get("advice") or "")))
    for label, key, told in (("value", "loss", values), ("gradient's norm", "gradient_norm", norms)):
        value = number(run.result.get(key))
        value = value if math.isfinite(value) or not told else told[-1]
        rows.append((label, written(value) if math.isfinite(value) else ""))
    reached = run.evaluations
    rows.append(
        ("iterations", f"{count(run.steps_done)}, with {plural(reached, 'evaluation')}" if run.steps_done else "")
    )
    if about:
        kept, damped, skipped = (count(_whole(about.get(key))) for key in ("kept", "damped", "skipped"))
        rows.append(("pairs", f"{kept} kept, {damped} of them damped; {skipped} left out, without curvature"))
    if restarts := _whole(run.result.get("restarts")):
        rows.append(("restarts", f"{count(restarts)}: the history was forgotten, where its direction led nowhere"))
    if found is not None:
        rows.append(("set-backs", _set_backs(found)))
    return text_block("minimum", pairs(rows)) if any(str(text) for _, text in rows) else None


def _set_backs(found: Counts) -> str:
    if not found.set_backs:
        return "none"
    redone = f"{plural(found.redone, 'iteration')} done again" if found.redone else "no iteration was lost"
    return f"{count(found.set_backs)}, where a shard was restarted: {redone}"


def replicas(run: RunData) -> Block | None:
    """Each replica's units, portions, samples and time; and all of them."""
    found = shares(run)
    if not found:
        return None
    rows = [_replica(share, found) for share in found]
    if len(found) > 1:
        every = [[getattr(share, key) for share in found] for key in ("pushes", "minibatches", "samples")]
        times = [[getattr(share, key) for share in found] for key in ("seconds", "stalled")]
        all_ = Share("all", *map(sum, every), *map(math.fsum, times))
        rows.append(tuple(Html(f"<b>{safe(cell)}</b>") for cell in _replica(all_, found)))
    head = ["replica", "units", "portions", "share", "samples", "computing", "stood still", ""]
    listed = table("Work of each replica", head, rows, tall=len(rows) > _TALL)
    words = f"Computing: from the hand-over of a unit to that of the next, in {run.second}s, less what it stood still."
    return text_block("replicas", listed, paragraph(words, *_as_of(counts(run)), kind="quiet"))


def _replica(share: Share, found: list[Share]) -> tuple[object, ...]:
    done = sum(other.minibatches for other in found)
    numbers = (count(share.pushes), count(share.minibatches), _percent(share.minibatches, done))
    times = (duration(share.seconds - share.stalled), duration(share.stalled), _percent(share.stalled, share.seconds))
    return (share.name, *numbers, count(share.samples), *times)


def ledger(run: RunData) -> Block:
    """How often each sample was counted, and what became of all portions that were computed."""
    found = counts(run)
    if found is None:
        why = "They come with the first checkpoint, and when the run finishes."
        if run.state != "running":
            why = "The run came to no checkpoint and to no end that tells them."
        return text_block("ledger", paragraph(f"No counts. {why}"))
    each = whole(run.started.get("num_samples"))
    evaluations = plural(found.evaluations, "evaluation")
    if found.samples == found.evaluations * each:
        words = f"{evaluations} counted each of {plural(each, 'sample')} exactly once: {count(found.samples)} in all."
    else:
        words = f"Not as it must be: {evaluations} of {plural(each, 'sample')} counted {count(found.samples)}."
    if found.final and (astray := found.evaluations - run.evaluations) > 0:
        words += f" {count(astray)} led to no iteration that counts: done again after a set-back, or no step was found."
    rows = [
        ("counted", found.portions, "each once in its evaluation"),
        ("wasted", found.wasted, "copies of what another replica handed in first, and what came too late"),
        ("broken off", found.broken_off, "of evaluations that came to no end"),
    ]
    cells: list[tuple[object, ...]] = [
        (Html(f"{safe(name)}<small>{safe(meaning)}</small>"), count(number_), _percent(number_, found.computed))
        for name, number_, meaning in rows
    ]
    cells.append(tuple(Html(f"<b>{safe(cell)}</b>") for cell in ("computed", count(found.computed), "")))
    listed = table("Portions", ["", "portions", "share"], cells)
    exact = "All sums are exact: their bits do not depend on who computed what, nor when."
    if found.inexact:
        exact = f"In {plural(found.inexact, 'evaluation')} the sums were not exact: their bits depend on their order."
    return text_block("ledger", paragraph(words), listed, paragraph(exact, *_as_of(found), kind="quiet"))


def _as_of(found: Counts | None) -> list[str]:
    return [] if found is None or found.final else [" Counted up to the newest checkpoint."]


def _percent(part: float, of: float) -> str:
    return f"{100 * part / of:.1f} %" if of > 0 and math.isfinite(part) else NONE
