"""The first lines of a page: what a run is, how it ended or how far it is, and the numbers that one asks for first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from squall.report.blocks import code, paragraph
from squall.report.pushes import staleness
from squall.report.read import SPLITS, RunData
from squall.report.sessions import sessions
from squall.report.values import mapping, number, whole
from squall.report.words import NONE, Html, duration, join, plural, safe, shares, written
from squall.units import count

_OUTCOMES = ("finished", "running", "submitted", "stopped", "killed", "diverged", "failed")


class Fact(NamedTuple):
    """A number that is worth a large letter: what it is, the number, and what must be known with it."""

    label: str
    value: str
    note: str = ""


def head(run: RunData) -> Html:
    """All of it."""
    done = ""
    total = whole(run.started.get("num_steps"))
    if run.state == "running" and total:
        reached, called = (run.evaluations, "evaluations") if run.minimises else (run.steps_done, "steps")
        done = Html(f'<progress max="{total}" value="{reached}" aria-label="{called} done"></progress>')
    folder = str(run.folder.resolve())
    return join(
        [title(run.label, folder, run.name), state(run), done, facts([score(run), *_numbers(run)]), weights(run)]
    )


def title(name: str, below: str, kicker: str) -> Html:
    """The heading of a page."""
    lines = f'<p class="kicker">{safe(kicker)}</p><h1>{safe(name)}</h1><p class="folder">{safe(below)}</p>'
    return Html(lines)


def badge(outcome: str) -> Html:
    """How a run ended, in a word of its colour."""
    known = outcome if outcome in _OUTCOMES else "stopped"
    return Html(f'<span class="badge {known}">{safe(outcome)}</span>')


def facts(found: Sequence[Fact]) -> Html:
    """Numbers beside each other."""
    inside = []
    for fact in found:
        note = f'<dd class="note">{safe(fact.note)}</dd>' if fact.note else ""
        inside.append(f"<div><dt>{safe(fact.label)}</dt><dd>{safe(fact.value)}</dd>{note}</div>")
    return Html(f'<dl class="facts">{"".join(inside)}</dl>')


def state(run: RunData) -> Html:
    """How the run ended or how far it is, in a sentence, and what to do."""
    outcome, done, total = run.state, run.steps_done, whole(run.started.get("num_steps"))
    of = f"{count(done)} of {plural(total, *run.update)}" if total else plural(done, *run.update)
    if run.minimises:
        of, done = f"{plural(done, *run.update)}, {_evaluations(run)}", run.evaluations
    lines = [paragraph(badge(outcome), " ", _sentence(run, outcome, of), kind="state")]
    end = mapping(run.result.get("minimum"))
    ended = ": ".join(str(end[key]) for key in ("outcome", "why") if end.get(key))
    ended = "; ".join(filter(None, [ended, str(end.get("advice") or "")]))
    why = [session.why for session in sessions(run)[-1:] if outcome not in ("running", "finished")]
    said = [str(text) for text in (run.result.get("error"), *why, run.ended.get("advice"), ended) if text]
    said = list(dict.fromkeys(said))
    if said:
        lines.append(paragraph(" ".join(f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in said), kind="said"))
    if outcome in ("killed", "stopped") and done < total:
        lines.append(paragraph("To go on: ", code(f"squall resume {run.folder}"), kind="said"))
    if run.torn and outcome != "running":
        lines.append(paragraph("The last line of its records is cut short and left out.", kind="said"))
    if run.damaged:
        lines.append(paragraph(f"{plural(run.damaged, 'line')} of its records cannot be read; left out.", kind="said"))
    return join(lines, "")


def _evaluations(run: RunData) -> str:
    """ "40 of at most 80 evaluations"."""
    total = whole(run.started.get("num_steps"))
    if total <= 0:
        return plural(run.evaluations, "evaluation")
    return f"{count(run.evaluations)} of at most {plural(total, 'evaluation')}"


def _sentence(run: RunData, outcome: str, of: str) -> str:
    at = f"{run.update[0]} {count(whole(run.result.get(f'{outcome}_at_step'), run.steps_done))}"
    hosts, (one, many) = run.processes, run.worker
    on = f"on {' → '.join(map(count, hosts[-6:]))} {one if hosts == (1,) else many}"
    if run.asynchronous:
        on += f" and {plural(whole(run.started.get('shards')), 'shard')}{' in simulated time' * run.simulated}"
    if outcome == "running":
        left = seconds_left(run)
        about = "at most" if run.minimises else "about"
        return f"{of}{f', {about} {duration(left)} left' if math.isfinite(left) else ''}; {on}"
    if outcome == "finished" and run.minimises:
        return f"{of}, {on}"
    if outcome == "finished":
        epochs = plural(len(run.epochs) or whole(run.started.get("epochs")), "epoch")
        return f"{epochs}, {plural(whole(run.started.get('num_steps')) or run.steps_done, *run.update)}, {on}"
    if outcome == "submitted":
        return "waits for its turn; nothing is trained yet"
    if outcome == "killed":
        return f"after {of}: its records have no end, and no process works on it; {on}"
    if outcome in ("diverged", "failed"):
        return f"in {at}, after {of}; {on}"
    return f"after {of}; {on}"


def seconds_left(run: RunData) -> float:
    """How long a run will take still, by the pace of its last two hundred steps."""
    total, steps = whole(run.started.get("num_steps")), run.steps
    if run.minimises:
        reached = run.evaluations
        return run.seconds / reached * (total - reached) if reached > 0 and total > reached else math.nan
    if len(steps) < 3 or not total:
        return math.nan
    back = min(len(steps) - 1, 200)
    each = (steps.seconds[-1] - steps.seconds[-1 - back]) / back
    return each * (total - run.steps_done) if each > 0 else math.nan


def score(run: RunData) -> Fact:
    """What the run is judged by: test before validation, error before other metrics, else the training loss."""
    one, many = run.period
    epoch = f"after {one} {len(run.epochs)}" if run.epochs and run.state != "finished" else ""
    for split in ("test", "val"):
        accuracy = run.measured(split, "accuracy")
        if math.isfinite(accuracy):
            last = number(run.result.get(f"{split}_error_median_last5"))
            median = math.isfinite(last) and len(run.epochs) > 1
            notes = [f"median of last {min(len(run.epochs), 5)} {many} {shares(last)}"] if median else []
            notes += [f"accuracy {shares(accuracy)}", epoch]
            return Fact(f"{SPLITS[split]} error", shares(1 - accuracy), ", ".join(filter(None, notes)))
    for split in ("test", "val"):
        for name in sorted(mapping(run.epochs[-1].get(split)) if run.epochs else ()):
            value = run.measured(split, name)
            if math.isfinite(value):
                return Fact(f"{SPLITS[split]} {name}", written(value), epoch)
    losses = [number(e.get("train_loss")) for e in run.epochs[-1:]] or list(run.steps.loss[-1:]) or [math.nan]
    return Fact(
        "training loss",
        written(losses[0]),
        epoch or (f"of the last {'push' if run.asynchronous else 'step'}" if not run.epochs else ""),
    )


def _numbers(run: RunData) -> list[Fact]:
    epochs, evaluation = run.epochs, [number(epoch.get("evaluation")) for epoch in run.epochs]
    measuring = sum(value for value in evaluation if math.isfinite(value))
    beside = f"{duration(measuring)} of it evaluation" if measuring > 0 and not run.minimises else ""
    processes = run.processes[-1]
    speed = run.speed
    each = f"{written(speed / processes)} a {run.worker[0]}" if math.isfinite(speed) and processes > 1 else ""
    found = [
        Fact("simulated time" if run.simulated else "time", duration(run.seconds), beside),
        Fact(f"samples a {run.second}", f"{speed:,.0f}" if math.isfinite(speed) else NONE, each),
        *(_of_course(run) if run.minimises else _of_pushes(run)),
    ]
    total = whole(run.started.get("epochs"))
    if run.minimises:
        return found
    if run.state != "finished" and total:
        found.append(Fact("epochs", f"{len(epochs)} of {total}"))
    return found


def _of_pushes(run: RunData) -> list[Fact]:
    """What is asked first of an asynchronous run: how stale its gradients are, and who is there."""
    found = staleness(run)
    facts_ = [Fact("staleness", written(found.mean, 3), f"{count(max(found.counts))} at most")] if found.known else []
    if run.state == "running" and run.pushes.alive:
        began = whole(run.started.get("replicas"))
        facts_.append(Fact("replicas", count(run.pushes.alive[-1]), f"of {count(began)} at the beginning"))
    return facts_


def _of_course(run: RunData) -> list[Fact]:
    """What is asked first of a minimisation: how small the gradient is, and what it cost."""
    norms = [mapping(epoch.get("train")).get("gradient_norm") for epoch in run.epochs[-1:]]
    norm = number(next(iter(norms), run.result.get("gradient_norm")))
    total = whole(run.started.get("num_steps"))
    of = f"of at most {count(total)}" if total else ""
    found = [Fact("gradient's norm", written(norm))] if math.isfinite(norm) else []
    return [*found, Fact("evaluations", count(run.evaluations), of), Fact("iterations", count(run.steps_done))]


def weights(run: RunData) -> Html:
    """The hash of the weights, whole, or that there are none."""
    digest = run.result.get("weights_sha256")
    if not digest:
        return Html("")
    return paragraph("weights sha256 ", code(digest), kind="weights")
