"""What became of an asynchronous run's minibatches, as tables whose rows and columns add up.

On each shard every minibatch of the run ends as applied, dropped (too stale) or lost (the shard was restarted from a
snapshot without it): the shards say which, the coordinator held that against what replicas reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from squall.report.blocks import Block, paragraph, table, text_block
from squall.report.lanes import lanes
from squall.report.pushes import Share, computed, shares
from squall.report.read import RunData
from squall.report.values import listed, mapping, whole
from squall.report.words import NONE, Html, duration, plural, safe
from squall.units import count

_FATES = ("applied", "dropped", "lost")
_TALL = 12


def settled(run: RunData) -> Block:
    """The ledger of an asynchronous run."""
    found = mapping(run.result.get("minibatches"))
    shards = [mapping(shard) for shard in listed(found.get("shards"))]
    if not shards:
        return text_block("ledger", *_so_far(run))
    total, of = whole(found.get("settled")), whole(found.get("of"))
    rows = [_shard(f"shard-{index}", shard) for index, shard in enumerate(shards)]
    if len(shards) > 1:
        sums = {key: sum(whole(shard.get(key)) for shard in shards) for key in (*_FATES, "restarts")}
        rows.append(tuple(Html(f"<b>{safe(cell)}</b>") for cell in _shard("all", sums)))
    head = ["shard", "applied", "dropped", "lost", "sum", "restarts"]
    listed_ = table("Minibatches on each shard", head, rows, tall=len(rows) > _TALL)
    closes = all(sum(whole(shard.get(key)) for key in _FATES) == total for shard in shards)
    words = f"{count(total)} of {plural(of, 'minibatch', 'minibatches')} settled"
    words += ": on each shard each of them applied, dropped or lost." if closes else "; shards hold others besides."
    meaning = "Dropped: staler than max_staleness. Lost: the shard came back from a snapshot without them. "
    return text_block("ledger", paragraph(words), listed_, paragraph(meaning, _pushes(run), kind="quiet"))


def _shard(name: str, found: Mapping[str, Any]) -> tuple[object, ...]:
    fates = [whole(found.get(key)) for key in _FATES]
    return (name, *map(count, fates), count(sum(fates)), count(whole(found.get("restarts"))))


def _pushes(run: RunData) -> str:
    number, repeated = computed(run)
    words = f"{plural(number, 'push', 'pushes')} {'on record' if repeated is None else 'computed'}"
    if repeated:
        words += f", {count(repeated)} of them of minibatches that another replica settled first: applied once"
    found = mapping(run.result.get("minibatches"))
    redone, unreported = (max(whole(found.get(key)), 0) for key in ("redone", "unreported"))
    if redone:
        words += f"; {plural(redone, 'minibatch', 'minibatches')} computed again, saved by no session"
    if unreported:
        words += f"; {plural(unreported, 'minibatch', 'minibatches')} on the shards and reported by no session"
    return f"{words}, no minibatch twice." if repeated == redone == 0 else f"{words}."


def _so_far(run: RunData) -> list[Html]:
    """What the records tell of a run that has come to no result."""
    why = "They are counted on the shards when the run finishes."
    if run.state != "running":
        why = "The run came to no end at which they are counted on the shards."
    lost = sum(mark.lost for lane in lanes(run) if lane.is_shard for mark in lane.marks)
    said = f"{plural(run.steps_done, *run.update)} settled by {plural(len(run.pushes), 'push', 'pushes')}"
    said += f"; {plural(run.pushes.dropped, 'answer')} of shards: dropped as too stale" if run.pushes.dropped else ""
    said += f"; {plural(lost, 'minibatch', 'minibatches')} lost with shards" if lost else ""
    return [paragraph(f"{said}. {why}")]


def replicas(run: RunData) -> Block | None:
    """Each replica's pushes, minibatches, samples and time; and all of them."""
    found = shares(run)
    if not found:
        return None
    rows = [_replica(share, found) for share in found]
    if len(found) > 1:
        rows.append(tuple(Html(f"<b>{safe(cell)}</b>") for cell in _replica(_all(found), found)))
    head = ["replica", "pushes", "minibatches", "share", "samples", "computing", "stood still", ""]
    listed_ = table("Work of each replica", head, rows, tall=len(rows) > _TALL)
    done, own = sum(share.minibatches for share in found), run.steps_done
    words = f"Computing: from the hand-over of a push to that of the next, in {run.second}s, less what it stood still."
    if done > own:
        again = plural(done - own, "minibatch", "minibatches")
        words += f" {count(done)} minibatches = {count(own)} settled + {again} computed again, "
        words += "by a second replica or after a loss."
    return text_block("replicas", listed_, paragraph(words, kind="quiet"))


def _all(found: Sequence[Share]) -> Share:
    return Share(
        "all",
        sum(share.pushes for share in found),
        sum(share.minibatches for share in found),
        sum(share.samples for share in found),
        sum(share.seconds for share in found),
        sum(share.stalled for share in found),
    )


def _replica(share: Share, found: Sequence[Share]) -> tuple[object, ...]:
    done = sum(other.minibatches for other in found)
    numbers = (count(share.pushes), count(share.minibatches), _percent(share.minibatches / done if done else math.nan))
    times = (duration(share.seconds - share.stalled), duration(share.stalled), _percent(share.still))
    return (share.name, *numbers, count(share.samples), *times)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %" if math.isfinite(fraction) else NONE
