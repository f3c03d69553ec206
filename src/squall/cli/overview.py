"""Runs as lines of text and as JSON: all of them as a table, one in detail.

Pure: from states and records to text; the time of day is given.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from squall.cli.folders import RUNS
from squall.cli.states import Saved, State
from squall.cli.tails import Values, number, whole
from squall.units import count, duration, megabytes, percent

_GAP = "   "
_LONG_ERROR = 160

Column = tuple[str, str, Callable[[State, float], str]]  # title, alignment, cell

_COLUMNS: tuple[Column, ...] = (
    ("run", "<", lambda run, _: run.folder.name),
    ("state", "<", lambda run, _: _state(run)),
    ("epoch", ">", lambda run, _: _of(*_passes(run))),
    ("step", ">", lambda run, _: _of(run.step, run.steps)),
    ("reached", "<", lambda run, _: _score(run) or "-"),
    ("processes", ">", lambda run, _: _hosts(run)),
    ("samples/s", ">", lambda run, _: _rate(run.samples_per_second)),
    ("begun", ">", lambda run, now: "-" if run.began is None else ago(now - run.began)),
    ("took", ">", lambda run, _: "-" if run.seconds is None else duration(run.seconds)),
)
_DROPPED = ("samples/s", "processes", "took", "epoch", "begun")  # where the terminal is narrow, in this order


def table(runs: Sequence[State], now: float, width: int | None = None) -> list[str]:
    """The lines of a list of runs.

    Arguments:
        now: seconds since 1970.
        width: of the terminal; None: whatever is needed.
    """
    columns = {title: [title, *(cell(run, now) for run in runs)] for title, _, cell in _COLUMNS}
    widths = {title: max(map(len, cells)) for title, cells in columns.items()}
    for title in _DROPPED:
        if width is not None and sum(widths.values()) + len(_GAP) * (len(widths) - 1) > width:
            del widths[title]
    sides = {title: side for title, side, _ in _COLUMNS}
    return [
        _GAP.join(f"{columns[title][row]:{sides[title]}{widths[title]}}" for title in widths).rstrip()
        for row in range(len(runs) + 1)
    ]


def detail(run: State, runs: Path, sessions: Iterable[Values], saved: Iterable[Saved], now: float) -> list[str]:
    """The lines about one run.

    Arguments:
        runs: the folder of runs that it was looked for in.
        sessions: what sessions.jsonl holds.
        saved: its checkpoints, the newest first.
        now: seconds since 1970.
    """
    sessions = list(sessions)
    rows = [("run", str(run.folder)), ("state", _state_line(run, runs))]
    if run.steps is not None or run.budget is not None or run.step:
        epoch = f"epoch {_of(run.epoch, run.epochs, ' of ')}, " if run.epoch is not None else ""
        rows.append(("reached", f"{epoch}{progress(run)}"))
    if reached := _score(run):
        rows.append(("result" if run.state == "finished" else "so far", reached))
    if run.processes is not None:
        speed = "" if run.samples_per_second is None else f", {_rate(run.samples_per_second)} samples/s"
        shards = "" if not run.shards else f" and {count(run.shards)} shard{'' if run.shards == 1 else 's'}"
        label = "replicas" if run.replicated else "processes"
        rows.append((label, count(run.processes) + shards + speed))
    if run.began is not None:
        took = "" if run.seconds is None else f"; {duration(run.seconds)} of work"
        rows.append(("begun", f"{_clock(run.began)}, {ago(now - run.began)}{took}"))
    if run.job:
        rows.append(("job", f"{run.job}      squeue --job {run.job}"))
    rows += _labelled("sessions", _session_lines(run, sessions, now))
    rows += _labelled("notable", _notable(sessions, update(run)))
    rows += _labelled("checkpoints", [_checkpoint_line(each, run) for each in saved])
    width = max(len(label) for label, _ in rows)
    return [f"{label:<{width}}{_GAP}{text}".rstrip() for label, text in rows]


def fields(run: State) -> dict[str, Any]:
    """A run as JSON has it."""
    values = asdict(run) | {"run": run.folder.name, "folder": str(run.folder), "resumable": run.resumable}
    values["score"] = None if run.score is None else dict([run.score])
    return values


def progress(run: State) -> str:
    """How far it is: step 240 of 360; iteration 12, 15 of 40 evaluations."""
    evaluations = f", {_of(run.evaluations, run.budget, ' of ')} evaluations" if run.evaluations is not None else ""
    return f"{update(run)} {_of(run.step, run.steps, ' of ')}{evaluations}"


def update(run: State) -> str:
    """What its steps are called."""
    return {"downpour": "minibatch", "sandblaster": "iteration"}.get(run.strategy, "step")


def was(run: State) -> str:
    """The state in the past: was killed, finished."""
    return {"killed": "was killed", "running": "still ran", "submitted": "was submitted"}.get(run.state, run.state)


def word(folder: Path, runs: Path) -> str:
    """What other verbs take as RUN for a folder: its name, if it lies where they look."""
    return folder.name if folder.parent == runs == RUNS else str(folder)


def ago(seconds: float) -> str:
    """A stretch of time until now, in its largest unit: 12 s ago, 3 min ago, 5 h ago, 2 days ago."""
    seconds = max(seconds, 0.0)
    for unit, size, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < size * most:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds / 86400:.0f} days ago"


def _state(run: State) -> str:
    """The state, and whether the run can go on, or does so by itself."""
    if run.job and not run.running and run.state != "submitted":
        return f"{run.state}, job {run.job}"
    return f"{run.state}, resume" if run.resumable else run.state


def _score(run: State) -> str:
    """What it reached: an accuracy as a percentage, other numbers as they are."""
    if run.score is None:
        return ""
    name, value = run.score
    return f"{name} {percent(value)}" if name.endswith("accuracy") else f"{name} {value:.4f}"


def _hosts(run: State) -> str:
    """Who works on it: processes, or replicas by their name."""
    if run.processes is None:
        return "-"
    return _many(run.processes, run) if run.replicated else count(run.processes)


def _many(number_: int, run: State) -> str:
    if run.replicated:
        return f"{count(number_)} replica{'' if number_ == 1 else 's'}"
    return f"{count(number_)} process{'' if number_ == 1 else 'es'}"


def _passes(run: State) -> tuple[int | None, int | None]:
    """Over the training set, and of how many: an evaluation of the batch is one, as an epoch is."""
    return (run.epoch, run.epochs) if run.evaluations is None else (run.evaluations, run.budget)


def _state_line(run: State, runs: Path) -> str:
    lines = [_ended(run.state, run.why)]
    if run.resumable and not run.job:
        lines.append(f"squall resume {word(run.folder, runs)}")
    return "      ".join(lines)


def _session_lines(run: State, sessions: Sequence[Values], now: float) -> list[str]:
    """A line for each time that processes came to work on the run."""
    lines: list[str] = []
    starts = [place for place, record in enumerate(sessions) if record["kind"] == "session"]
    for start, stop in itertools.pairwise([*starts, len(sessions)]):
        record, own = sessions[start], sessions[start + 1 : stop]
        ended = next((other for other in reversed(own) if other["kind"] == "session_ended"), None)
        saves = [other for other in own if other["kind"] == "saved"]
        processes = whole(record.get("processes")) or 0
        parts = [
            _clock(number(record.get("time"))),
            f"{record.get('host', '?')} pid {record.get('pid', '?')}",
            _many(processes, run),
            f"from {update(run)} {count(whole(record.get('start_step')) or 0)}",
        ]
        if saves:
            parts.append(f"{len(saves)} save{'' if len(saves) == 1 else 's'}")
        state = run.state if stop == len(sessions) else "killed"
        parts.append(_end(ended, state, number(record.get("time")), now, update(run)))
        lines.append(_GAP.join(parts))
    return lines


def _end(ended: Values | None, state: str, began: float | None, now: float, update: str) -> str:
    if ended is None:
        return f"at work for {duration(max(now - (began or now), 0))}" if state == "running" else state
    if ended.get("why"):
        return _ended(str(ended.get("outcome", "?")), str(ended["why"]))
    return f"{ended.get('outcome', '?')} at {update} {count(whole(ended.get('step')) or 0)}"


def _ended(outcome: str, why: str) -> str:
    """An outcome and its reason, which may begin with the same word: stopped by SIGTERM after step 12."""
    return _short(why) if why.startswith(outcome) else f"{outcome}: {_short(why)}" if why else outcome


def _notable(sessions: Sequence[Values], word: str) -> list[str]:
    """Checkpoints that could not be written, ranks that were slow: the last few."""
    lines = []
    for record in sessions:
        if record["kind"] == "save_failed":
            lines.append(f"{word} {record.get('step')} could not be saved: {_short(str(record.get('error', '')))}")
        elif record["kind"] == "slow" and (ratio := number(record.get("ratio"))) is not None:
            epoch = (whole(record.get("epoch")) or 0) + 1
            lines.append(f"rank {record.get('rank')} took {ratio:.1f} times the median in epoch {epoch}")
    return lines[-5:]


def _checkpoint_line(saved: Saved, run: State) -> str:
    return f"{update(run)} {count(saved.step)}{_GAP}{megabytes(saved.num_bytes)}{_GAP}{_clock(saved.time)}"


def _labelled(label: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    return [(label if not place else "", line) for place, line in enumerate(lines)]


def _of(done: int | None, total: int | None, between: str = "/") -> str:
    if done is None:
        return "-"
    return count(done) if total is None else f"{count(done)}{between}{count(total)}"


def _rate(speed: float | None) -> str:
    return "-" if speed is None else f"{speed:,.0f}"


def _clock(time: float | None) -> str:
    try:
        return "?" if time is None else f"{datetime.fromtimestamp(time):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OSError, OverflowError):
        return "?"


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= _LONG_ERROR else f"{line[: _LONG_ERROR - 3]}..."
