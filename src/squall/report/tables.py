"""What stands in words and tables on the page of one run: time, slow ranks, sessions, checkpoints, environment."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from squall.report.blocks import Block, pairs, paragraph, table, text_block
from squall.report.read import RunData
from squall.report.series import median
from squall.report.sessions import Save, SessionData, sessions, slow_ranks
from squall.report.values import mapping, number
from squall.report.words import NONE, Html, bytes_of, duration, plural, safe, when
from squall.report.work import part_name, split_of_epochs, whose
from squall.units import count

_MEANING = {
    "data": "reading batches",
    "compute": "forward, backward, update",
    "communication": "sums under way",
    "wait": "for slower ranks",
    "save": "copying the state: for a checkpoint, before an epoch's last step",
    "evaluation": "between epochs, on validation and test data",
}
_OF_REPLICAS = {
    "compute": "forward, backward, reading batches: the sum over replicas",
    "communication": "computing stood still for fetches, pushes and minibatches",
    "evaluation": "the server's weights on validation and test data, beside the training",
}
_OF_PORTIONS = {
    "communication": "computing stood still for fetches, pushes and portions",
    "evaluation": "copies of the points on validation and test data, beside the iterations",
}
_MOST_SLOW = 20


def time_table(run: RunData) -> Block | None:
    """Seconds and shares of each part over all epochs."""
    _, parts = split_of_epochs(run)
    totals = {name: sum(values) for name, values in parts.items()}
    whole_time = sum(totals.values())
    if not whole_time:
        return None
    epochs = len(run.epochs)
    rows = [
        (_part(name, run), f"{100 * seconds / whole_time:.1f} %", duration(seconds), duration(seconds / epochs))
        for name, seconds in totals.items()
        if seconds or not run.asynchronous
    ]
    head = ["part", "share", "in all", f"an {run.period[0]}"]
    return text_block("time-table", table(f"Where the time goes, {whose(run)}", head, rows))


def _part(name: str, run: RunData) -> Html:
    meanings = _MEANING | (_OF_REPLICAS if run.asynchronous else {}) | (_OF_PORTIONS if run.minimises else {})
    return Html(f"{safe(part_name(run, name))}<small>{safe(meanings[name])}</small>")


def slow_block(run: RunData) -> Block | None:
    """The ranks that were found slow while the run went on."""
    found = slow_ranks(run)
    if not found:
        return None
    rows = [(count(rank), count(epoch), f"{ratio:.2f}") for epoch, rank, ratio in found[-_MOST_SLOW:]]
    listed = table("Slow ranks", ["rank", "epoch", "times the median"], rows, words=())
    return text_block("slow", paragraph("Named as slow while it ran:"), listed, wide=False)


def sessions_table(run: RunData) -> Block | None:
    """Who worked on the run, and when."""
    found = sessions(run)
    if not found:
        return None
    head = ["", "began", "worked", "host", run.update[1], run.worker[1], "checkpoints", "ended"]
    rows = [_session(session) for session in found]
    listed = table("Sessions", head, rows, words=(0, 1, 3, 7), tall=len(rows) > 12)
    return text_block("sessions-table", listed)


def _session(session: SessionData) -> tuple[object, ...]:
    saved, failed = (sum(bool(save.error) is wrong for save in session.saves) for wrong in (False, True))
    checkpoints = f"{count(saved)}, {count(failed)} failed" if failed else count(saved)
    ended = f"{session.outcome}: {session.why}" if session.why else session.outcome
    steps = f"{count(session.first_step)} – {count(session.last_step)}"
    host = f"{session.host}, {session.pid}" if session.pid else session.host
    about = (f"{session.number}", when(session.began), duration(session.seconds), host)
    return (*about, steps, count(session.processes), checkpoints, ended)


def saves_table(run: RunData) -> Block | None:
    """Each checkpoint: how long training stood still for it and how long it was written."""
    saves = [save for session in sessions(run) for save in session.saves]
    if not saves:
        return None
    good = [save for save in saves if not save.error]
    lines = []
    if good:
        blocked = [save.blocked for save in good]
        step = 0.0 if run.asynchronous else _step_seconds(run)
        against = f", {max(blocked) / step:.2f} of a step at most" if step > 0 else ""
        who = "The slowest shard" if run.asynchronous else "Training"
        lines.append(
            f"{plural(len(good), 'checkpoint')} saved. {who} stood still for {duration(sum(blocked))} in all "
            f"(median {duration(median(blocked))}, most {duration(max(blocked))}{against}); "
            f"writing took {duration(median([save.seconds for save in good]))} beside it (median)."
        )
    if len(saves) > len(good):
        lines.append(f"{plural(len(saves) - len(good), 'checkpoint')} could not be written.")
    head = [run.update[0], "session", "blocked", "written in", "size", "MB/s", ""]
    columns = len(head) if len(saves) > len(good) else len(head) - 1
    rows = [_save(save)[:columns] for save in saves]
    listed = table("Checkpoints", head[:columns], rows, words=(6,), tall=len(saves) > 8)
    return text_block("saves", paragraph(" ".join(lines)), listed)


def _save(save: Save) -> tuple[object, ...]:
    rate = f"{save.num_bytes / save.seconds / 1e6:,.0f}" if save.seconds > 0 and save.num_bytes > 0 else NONE
    error = Html(f'<span class="bad">{safe(save.error)}</span>') if save.error else ""
    sizes = (duration(save.blocked), duration(save.seconds), bytes_of(save.num_bytes), rate)
    return (count(save.step), str(save.session), *sizes, error)


def _step_seconds(run: RunData) -> float:
    seconds = run.steps.seconds
    return median([b - a for a, b in pairwise(seconds)])


def environment(run: RunData) -> list[Block]:
    """The arithmetic's fingerprint, versions, and how the run was started."""
    prints = mapping(run.result.get("fingerprint") or run.started.get("fingerprint"))
    rows: list[tuple[object, object]] = [(key.replace("_", " "), told(value)) for key, value in prints.items()]
    digest = run.result.get("fingerprint_sha256")
    first = text_block(
        "fingerprint", Html("<h3>Fingerprint</h3>"), pairs([*rows, ("sha256", digest or "")]), wide=False
    )
    versions = [(name, text) for name, text in mapping(run.result.get("versions")).items()]
    memory = number(run.result.get("peak_rss_bytes"))
    others: list[tuple[object, object]] = [
        *versions,
        ("commit", run.result.get("commit") or ""),
        (
            f"memory of {'the driver' if run.asynchronous else 'rank 0'}",
            f"{bytes_of(memory)} at most" if math.isfinite(memory) else "",
        ),
        *_launch(run),
    ]
    second = text_block("versions", Html("<h3>Versions and start</h3>"), pairs(others), wide=False)
    return [block for block, some in ((first, rows), (second, others)) if any(text for _, text in some)]


def _launch(run: RunData) -> list[tuple[object, object]]:
    """How the run was started; what its recipe says already is left out."""
    rows: list[tuple[object, object]] = []
    for key, value in run.launch.items():
        if not isinstance(value, Mapping):
            rows.append((key, told(value)))
        elif not run.recipe:
            rows += [(name, told(item)) for name, item in value.items()]
    return rows


def told(value: Any) -> str:
    """A value of a JSON file as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return "" if value in (None, {}, []) else json.dumps(value)
