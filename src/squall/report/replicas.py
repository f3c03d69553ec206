"""The plots of how an asynchronous run worked: who was there when, pushes a second, staleness, shares of the work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from squall.report.blocks import Chart
from squall.report.draw import bars, figure, line, thousands, upright
from squall.report.lanes import Lane, Mark, Span, end_of, lanes
from squall.report.pushes import Share, in_order, shares, staleness
from squall.report.read import RunData
from squall.report.values import whole
from squall.report.words import duration, plain, plural, written
from squall.units import count

_CLOCK = "clock"
"""Charts over the run's time zoom together."""

_MOST_LANES = 250
_NAMED = 20
_BINS = 60
_MARKS = {
    "joined": ("joined", "triangle-right", "$good"),
    "restarted": ("came back", "diamond", "$c2"),
    "silent": ("called silent", "x", "$bad"),
    "left": ("left", "square-open", "$muted"),
}


def timeline(run: RunData) -> Chart | None:
    """Shards and replicas one below the other over the run's time."""
    every = lanes(run)
    if not every or not end_of(run):
        return None
    found = every
    if len(every) > _MOST_LANES:
        dull = sorted(every, key=lambda lane: (not lane.is_shard, len(lane.marks) < 2 and len(lane.spans) < 2))
        chosen = {id(lane) for lane in dull[:_MOST_LANES]}
        found = [lane for lane in every if id(lane) in chosen]
    thick = min(12.0, max(2.0, 420 / len(found)))
    traces = [
        _spans("shard", found, "$c4", thick, lambda lane, _: lane.is_shard),
        _spans(
            "replica" if run.minimises else "replica, heard of",
            found,
            "$c1",
            thick,
            lambda lane, span: not lane.is_shard and span.heard,
        ),
        _spans(
            "replica, missed" if run.minimises else "replica, not heard of",
            found,
            "$c1/0.22",
            thick,
            lambda _, span: not span.heard,
        ),
    ]
    traces += [_marks(run, change, found, thick) for change in _MARKS]
    drawn = figure([trace for trace in traces if trace["x"]], _clock(run), xaxis=_from_zero(run), yaxis=_names(found))
    drawn["layout"]["hovermode"] = "closest"
    drawn["height"] = round(min(max(150, 90 + 20 * len(found)), 720))
    words = _told(run, every)
    faint = "Faint: it was missed, and no checkpoint had counted more work of its"
    words += [faint] * (run.minimises and any(not span.heard for lane in every for span in lane.spans))
    words += [f"{count(len(every) - len(found))} replicas of which there is nothing to tell are left out"] * (
        len(found) < len(every)
    )
    return Chart("roles", "Roles over the run", drawn, ". ".join(words) + ".", wide=True, linked=_CLOCK)


def _spans(name: str, found: Sequence[Lane], colour: str, thick: float, wanted: Any) -> dict[str, Any]:
    x: list[float] = []
    y: list[float] = []
    told: list[str] = []
    for at, lane in enumerate(found):
        for span in lane.spans:
            if wanted(lane, span):
                x += [span.start, span.stop, math.nan]
                y += [float(at), float(at), math.nan]
                told += [_span(lane, span)] * 3
    return line(name, x, y, colour, width=thick, text=told, hovertemplate="%{text}<extra></extra>")


def _span(lane: Lane, span: Span) -> str:
    what = "" if span.heard else "nothing heard "
    return f"{plain(lane.name)}: {what}from {duration(span.start)} to {duration(span.stop)}"


def _marks(run: RunData, change: str, found: Sequence[Lane], thick: float) -> dict[str, Any]:
    """Signs on the lanes; that those joined with which the run began is no news."""
    name, symbol, colour = _MARKS[change]
    places = [(mark, at, lane) for at, lane in enumerate(found) for mark in lane.marks if mark.change == change]
    if change == "joined":
        began = whole(run.started.get("replicas"))
        places = [place for place in places if in_order(place[2].name)[1] >= began or place[0] is not place[2].marks[0]]
    x, y = [mark.at for mark, _, _ in places], [float(at) for _, at, _ in places]
    told = [f"{plain(lane.name)}: {_sign(run, mark, lane)} at {duration(mark.at)}" for mark, _, lane in places]
    marker = {"color": colour, "symbol": symbol, "size": min(11, thick + 3), "line": {"color": "$surface", "width": 1}}
    if symbol.endswith("-open"):
        marker["line"] = {"color": colour, "width": 1.5}
    more: dict[str, Any] = {"mode": "markers", "marker": marker, "text": told}
    return line(name, x, y, colour, hovertemplate="%{text}<extra></extra>", **more)


def _sign(run: RunData, mark: Mark, lane: Lane) -> str:
    if mark.change == "restarted" and lane.is_shard:
        lost = f", {plural(mark.lost, 'minibatch', 'minibatches')} lost," * (not run.minimises)
        return f"came back from its snapshot{lost}"
    return _MARKS[mark.change][0]


def _told(run: RunData, found: Sequence[Lane]) -> list[str]:
    """What happened, in words."""
    shards = sum(lane.is_shard for lane in found)
    words = [f"{plural(len(found) - shards, 'replica')} and {plural(shards, 'shard')}"]
    for shard, called in ((False, "replica"), (True, "shard")):
        marks = [mark for lane in found if lane.is_shard is shard for mark in lane.marks]
        numbers = {change: sum(mark.change == change for mark in marks) for change in _MARKS}
        parts = []
        if back := numbers["restarted"]:
            lost = sum(mark.lost for mark in marks)
            told_lost = shard and not run.minimises
            parts.append(f"{count(back)} came back" + (f", {count(lost)} minibatches lost" if told_lost else ""))
        parts += [f"{count(numbers['silent'])} called silent"] * bool(numbers["silent"])
        parts += [f"{count(numbers['left'])} left"] * bool(numbers["left"])
        lanes_ = [lane for lane in found if lane.is_shard is shard and lane.spans]
        gone = sum(not lane.spans[-1].heard and lane.marks[-1].change != "left" for lane in lanes_ if lane.marks)
        parts += [f"{count(gone)} not heard of at the end"] * bool(gone)
        words += [f"Of the {called}s, {', '.join(parts)}"] * bool(parts)
    return words if len(words) > 1 else [words[0] + ", all there throughout"]


def _names(found: Sequence[Lane]) -> dict[str, Any]:
    """The y axis: names of roles, or of some of them where they are many."""
    every = math.ceil(len(found) / _NAMED)
    ticks = list(range(0, len(found), every))
    names = [plain(found[at].name, 18) for at in ticks]
    place = {"autorange": False, "range": [len(found) - 0.3, -0.7], "showgrid": False}
    return {"tickvals": ticks, "ticktext": names, **place}


def pace(run: RunData) -> Chart | None:
    """Pushes a second over the run's time."""
    end, times = end_of(run), [at for at in run.pushes.seconds if at >= 0]
    if not times or not end > 0:
        return None
    bins = min(_BINS, max(len(times) // 4, 1))
    width = end / bins
    numbers = [0] * bins
    for at in times:
        numbers[int(min(at / width, bins - 1))] += 1
    x = [width * place for place in range(bins + 1)]
    y = [number / width for number in (*numbers, numbers[-1])]
    changes = [mark.at for lane in lanes(run) for mark in lane.marks if mark.change in ("restarted", "silent")]
    shapes = [upright(at)[0] for at in changes[:_BINS]]
    words = f"{written(len(times) / end, 3)} a {run.second} over the run: {plural(len(times), 'push', 'pushes')}"
    words += f" in {duration(end)}, counted in stretches of {duration(width)}."
    words += " Dotted: a role fell silent or came back." if shapes else ""
    drawn = figure(
        [line("pushes", x, y, "$c1", line={"color": "$c1", "width": 2, "shape": "hv"}, form=".3~g")],
        _clock(run),
        shapes=shapes,
        xaxis={**_from_zero(run), "unifiedhovertitle": {"text": "%{x:.3~s} s"}},
        yaxis=thousands(max(y)),
    )
    return Chart("pushes", "Pushes answered", drawn, words, unit=f"a {run.second}", linked=_CLOCK)


def histogram(run: RunData) -> Chart | None:
    """How many pushes were how stale."""
    found = staleness(run)
    if not found.known:
        return None
    most = max(found.counts)
    width = math.ceil((most + 1) / _BINS)
    numbers = [0] * (most // width + 1)
    for value, times in found.counts.items():
        numbers[value // width] += times
    x = [place * width + (width - 1) / 2 for place in range(len(numbers))]
    shape, words = upright(found.mean, "$ink", f"mean {written(found.mean, 3)} ", "dash")
    if found.mean < most / 3:
        words = {**words, "xanchor": "left", "text": f" {str(words['text']).strip()}"}
    told = [f"Mean {written(found.mean, 3)}, median {count(found.median)}, at most {count(most)}"]
    told[0] += ": updates that a shard applied between a replica's fetch and the push that came of it"
    replicas = whole(run.started.get("replicas"))
    told += [f"Replicas of equal speed would be {count(replicas - 1)} stale, R - 1"] * _every_minibatch(run)
    shards = max(whole(run.started.get("shards")), 1)
    answers = f"Counted on each of {plural(shards, 'shard')}"
    told += [answers] * (shards > 1)
    told += [
        f"{plural(found.unknown, 'answer')} told none: a shard was restarted in between, or knew these minibatches"
    ] * (found.unknown > 0)
    names = [
        str(place * width) if width == 1 else f"{place * width} – {place * width + width - 1}"
        for place in range(len(numbers))
    ]
    hover = {"text": names, "textposition": "none", "hovertemplate": "%{text}: %{y:,}<extra></extra>"}
    axis: dict[str, Any] = {"range": [-0.75 * width, most + 0.75 * width], **({"dtick": 1} if most <= 12 else {})}
    drawn = figure(
        [bars("answers", x, numbers, "$c1", **hover)],
        "staleness",
        shapes=[{**shape, "layer": "above"}],
        annotations=[words],
        xaxis=axis,
        yaxis={**thousands(max(numbers)), "range": [0, 1.12 * max(numbers)]},
        bargap=0.12,
        hovermode="closest",
    )
    return Chart("staleness", "Staleness of pushes", drawn, ". ".join(told) + ".", unit="answers of shards")


def _every_minibatch(run: RunData) -> bool:
    """Replicas fetch and push at every minibatch, and there are several: then the staleness to expect is R - 1."""
    table = run.recipe.get("downpour")
    several = whole(run.started.get("replicas")) > 1
    return several and isinstance(table, dict) and table.get("fetch_every", 1) == table.get("push_every", 1) == 1


def work(run: RunData) -> Chart | None:
    """Each replica's minibatches."""
    found = _at_work(run)
    if not found:
        return None
    done = [share.minibatches for share in found]
    even = sum(done) / len(done)
    said = f"{plural(len(found), 'replica')} computed {plural(sum(done), *run.piece)}"
    shapes = []
    if len(found) > 1:
        most, least = (found[done.index(end(done))] for end in (max, min))
        ends = [f"{plain(share.name)} {count(share.minibatches)}" for share in (most, least)]
        said += f", {written(even, 3)} each on average; most {ends[0]}, least {ends[1]}. Dashed: equal shares"
        level = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": even, "y1": even, "layer": "above"}
        shapes.append({**level, "line": {"color": "$ink", "width": 1.25, "dash": "dash"}})
    trace = _by_replica(run.piece[1], found, done, "$c1", f"%{{y:,}} {run.piece[1]}")
    drawn = figure([trace], "replica", shapes=shapes, yaxis=thousands(max(done)), **_columns(found))
    return Chart("work", "Share of the work", drawn, f"{said}.", unit=run.piece[1])


def stalls(run: RunData) -> Chart | None:
    """How much of its time each replica stood still."""
    found = [share for share in _at_work(run) if share.seconds > 0]
    if not found:
        return None
    still = [100 * share.still for share in found]
    seconds, stalled = sum(share.seconds for share in found), sum(share.stalled for share in found)
    share = written(100 * stalled / seconds, 3)
    words = f"Computing stood still for fetches, pushes and {run.piece[1]} {share} % of the time"
    if len(found) > 1:
        words += f" of all replicas; at most {written(max(still), 3)} %, {plain(found[still.index(max(still))].name)}"
    trace = _by_replica("stood still", found, still, "$c2", "%{y:.3~g} %")
    y = {"ticksuffix": " %", "rangemode": "tozero", **({"range": [0, 1]} if max(still) < 1 else {})}
    drawn = figure([trace], "replica", yaxis=y, **_columns(found))
    return Chart("stalled", "Time that replicas stood still", drawn, f"{words}.", unit="of their time")


def _at_work(run: RunData) -> list[Share]:
    return [share for share in shares(run) if share.pushes > 0]


def _by_replica(name: str, found: Sequence[Share], y: Sequence[float], colour: str, form: str) -> dict[str, Any]:
    """A column a replica."""
    told = {"text": [plain(share.name) for share in found], "textposition": "none"}
    x = [float(place) for place in range(len(found))]
    return bars(name, x, y, colour, **told, hovertemplate=f"%{{text}}: {form}<extra></extra>")


def _columns(found: Sequence[Share]) -> dict[str, Any]:
    """The layout of columns by replica: their numbers below, or names where they are not numbered."""
    ticks = list(range(0, len(found), 1 if len(found) <= _NAMED else math.ceil(len(found) / (_NAMED // 2))))
    names = [plain(found[at].name.removeprefix("replica-"), 12) for at in ticks]
    axis = {"tickvals": ticks, "ticktext": names, "range": [-0.6, len(found) - 0.4]}
    return {"xaxis": axis, "bargap": max(0.25, 0.9 - 0.15 * len(found)), "hovermode": "closest"}


def _clock(run: RunData) -> str:
    return f"{run.second}s"


def _from_zero(run: RunData) -> dict[str, Any]:
    """An x axis over all of the run's time."""
    end = end_of(run)
    return {"range": [-0.01 * end, 1.01 * end]}
