"""The page of one run."""

from __future__ import annotations

from squall.report import charts, counts, course, minimum, replicas, tables, work
from squall.report.arithmetic import arithmetic
from squall.report.blocks import Block, Chart, Document, paragraph, sections_of, text_block
from squall.report.head import head
from squall.report.ledger import ledger
from squall.report.read import RunData
from squall.report.values import whole
from squall.units import count

_MOST_NOTES = 50


def single(run: RunData) -> Document:
    """All of it."""
    metrics, more = charts.metrics(run)
    left = paragraph(f"{count(more)} more metrics stand in records.jsonl.", kind="quiet")
    learning = [charts.loss(run), *metrics, charts.rate(run)]
    if run.minimises:
        learning = [course.value(run), course.passes(run), *metrics, course.gradient(run), course.lengths(run)]
    learned = [*learning, text_block("left", left) if more else None]
    parts: list[tuple[str, str, list[Block | Chart | None]]] = [
        ("learning", "Learning", learned),
        ("minimum", "Minimum", [minimum.ending(run)] if run.minimises else []),
        ("time", "Time", [work.speed(run), work.time(run), tables.time_table(run)]),
        ("ranks", "Ranks", [work.ranks(run), tables.slow_block(run)]),
        ("replicas", "Replicas", _replicas(run) if run.asynchronous else []),
        ("sessions", "Sessions", [work.timeline(run), tables.sessions_table(run), tables.saves_table(run)]),
        ("arithmetic", "Arithmetic", [*arithmetic(run)] if run.started else []),
        ("ledger", "Ledger", [_ledger(run)] if run.started else []),
        ("notes", "Notes", [_notes(run)]),
        ("environment", "Environment", [*tables.environment(run)]),
    ]
    return Document(_title(run), head(run), sections_of(parts), run.state == "running")


def _title(run: RunData) -> str:
    if run.state != "running":
        return f"{run.label}: {run.state}"
    total = whole(run.started.get("epochs"))
    if run.minimises:
        return f"{run.label}: iteration {count(run.steps_done + 1)}"
    return (
        f"{run.label}: epoch {min(len(run.epochs) + 1, total)} of {count(total)}" if total else f"{run.label}: running"
    )


def _ledger(run: RunData) -> Block:
    """What was counted, by those who counted it."""
    if run.minimises:
        return minimum.ledger(run)
    return counts.settled(run) if run.asynchronous else ledger(run)


def _replicas(run: RunData) -> list[Block | Chart | None]:
    """Who was there, how stale their gradients were, who did how much."""
    if run.minimises:
        return [replicas.work(run), replicas.stalls(run), replicas.timeline(run), minimum.replicas(run)]
    plots = [replicas.histogram(run), replicas.pace(run), replicas.work(run), replicas.stalls(run)]
    return [*plots, replicas.timeline(run), counts.replicas(run)]


def _notes(run: RunData) -> Block | None:
    if not run.notes:
        return None
    more = len(run.notes) - _MOST_NOTES
    left = [paragraph(f"{count(more)} more in records.jsonl.", kind="quiet")] if more > 0 else []
    return text_block("notes", *(paragraph(note) for note in run.notes[:_MOST_NOTES]), *left)
