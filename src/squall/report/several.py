"""The page of several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from squall.report import together
from squall.report.blocks import Block, Chart, Document, code, pairs, paragraph, sections_of, table, text_block
from squall.report.groups import (
    LEAST,
    Group,
    differences,
    groups,
    mean_and_std,
    same_weights,
    scaling,
    seed_of,
    split_used,
)
from squall.report.head import Fact, badge, facts, score, title
from squall.report.pushes import staleness
from squall.report.read import SPLITS, RunData
from squall.report.single import single
from squall.report.tables import told
from squall.report.values import mapping, number, whole
from squall.report.words import NONE, Html, duration, join, plural, safe, shares, shortly, written
from squall.units import count

_MOST_KEYS = 40


def document(runs: Sequence[RunData]) -> Document:
    """The page of these runs, one or several."""
    if len(runs) == 1:
        return single(runs[0])
    grouped = groups(runs)
    parts: list[tuple[str, str, list[Block | Chart | None]]] = [
        ("runs", "Runs", [_table(runs), _bits(runs), _differences(runs)]),
        ("seeds", "Over seeds", [_over_seeds(grouped, split_used(runs))]),
        ("learning", "Learning", [together.loss(runs), together.error(runs, grouped), together.rate(runs)]),
        ("time", "Time", [together.speed(runs), together.time(runs)]),
        ("scaling", "Scaling", _scaling(grouped)),
        ("environment", "Environment", [_environment(runs)]),
    ]
    running = any(run.state == "running" for run in runs)
    return Document(f"{len(runs)} runs of {_names(runs)}", _head(runs, grouped), sections_of(parts), running)


def _names(runs: Sequence[RunData]) -> str:
    names = list(dict.fromkeys(run.name for run in runs))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _head(runs: Sequence[RunData], grouped: Sequence[Group]) -> Html:
    states = list(dict.fromkeys(run.state for run in runs))
    counts = [join([badge(state), f" {count(sum(run.state == state for run in runs))}"], "") for state in states]
    found = [Fact("runs", count(len(runs)), plural(len(grouped), "recipe") + " but for the seed")]
    split = split_used(runs)
    reached = [run for run in runs if run.state == "finished"] or runs
    errors = [100 * (1 - run.measured(split, "accuracy")) for run in reached] if split else []
    errors = [error for error in errors if math.isfinite(error)]
    if errors:
        ends = dict.fromkeys(f"{error:.2f}" for error in (min(errors), max(errors)))
        note = "of those that finished" if len(reached) < len(runs) else ""
        found.append(Fact(f"{SPLITS[split]} error", f"{' – '.join(ends)}\u00a0%", note))
    virtual = sum(run.simulated for run in runs)
    told = "of all runs" + (", some of it simulated" if virtual < len(runs) else ", simulated") * bool(virtual)
    found.append(Fact("time", duration(sum(run.seconds for run in runs if math.isfinite(run.seconds))), told))
    fastest = max((run for run in runs if math.isfinite(run.speed)), key=lambda run: run.speed, default=None)
    if fastest is not None:
        found.append(Fact(f"samples a {fastest.second}", f"{fastest.speed:,.0f}", "the fastest"))
    return join(
        [title(f"{len(runs)} runs", _names(runs), "squall report"), paragraph(*counts, kind="state"), facts(found)]
    )


def _table(runs: Sequence[RunData]) -> Block:
    split = split_used(runs)
    result = f"{SPLITS[split]} error" if split else "result"
    mixed, stale = any(run.asynchronous for run in runs), any(run.asynchronous and not run.minimises for run in runs)
    own = ["strategy"] * mixed + ["staleness"] * stale
    head = ["run", "", result, "time", "samples/s", "processes", "seed", "minibatch", "epochs", *own, "weights"]
    rows = [
        (
            Html(f'<span class="swatch {together.colour(at).lstrip("$")}"></span>{safe(run.label)}'),
            badge(run.state),
            shares(1 - run.measured(split, "accuracy")) if split else f"{score(run).value} {score(run).label}",
            duration(run.seconds) + " simulated" * run.simulated,
            f"{run.speed:,.0f}" if math.isfinite(run.speed) else NONE,
            " → ".join(map(count, run.processes)) + " replicas" * run.asynchronous,
            seed_of(run) or NONE,
            count(whole(run.started.get("global_batch_size"))),
            count(run.evaluations if run.minimises else len(run.epochs)),
            *[str(run.started.get("strategy", NONE))] * mixed,
            *[_stale(run)] * stale,
            code(shortly(run.result["weights_sha256"], 8)) if run.result.get("weights_sha256") else NONE,
        )
        for at, run in enumerate(runs)
    ]
    told = paragraph("An epoch of a sandblaster run is an evaluation of its batch.", kind="quiet")
    some = any(run.minimises for run in runs)
    return text_block("runs", table("Runs", head, rows, words=(0, 1)), *[told] * some)


def _stale(run: RunData) -> str:
    """The mean staleness of a run that has one."""
    return written(staleness(run).mean, 3) if run.asynchronous else NONE


def _bits(runs: Sequence[RunData]) -> Block | None:
    """Which runs ended with the same bits."""
    lines = []
    for some in same_weights(runs):
        digest = code(shortly(some[0].result["weights_sha256"]))
        hosts = sorted({processes for run in some for processes in run.processes})
        on = f", on {', '.join(map(str, hosts))} {some[0].worker[1]}" if len(hosts) > 1 else ""
        lines.append(
            paragraph("Bit for bit the same weights ", digest, f"{on}: {', '.join(run.label for run in some)}.")
        )
    return text_block("bits", *lines) if lines else None


def _differences(runs: Sequence[RunData]) -> Block | None:
    found = differences(runs)
    if not found:
        return text_block("differences", paragraph("All runs have the same recipe, seed included."))
    rows = [(key, *(_shown(value) for value in values)) for key, values in list(found.items())[:_MOST_KEYS]]
    head = ["differs in", *(run.label for run in runs)]
    return text_block("differences", table("Where the recipes differ", head, rows))


def _shown(value: str) -> str:
    """A value of a recipe, shortened; a dash where a recipe lacks it."""
    return f"{value[:47]}…" if len(value) > 48 else value or NONE


def _over_seeds(grouped: Sequence[Group], split: str) -> Block | None:
    rows = []
    for group in grouped:
        runs = group.seeds
        if len(runs) < LEAST:
            continue
        hosts = sorted({processes for run in runs for processes in run.processes})
        errors = mean_and_std([100 * (1 - run.measured(split, "accuracy")) for run in runs]) if split else None
        medians = mean_and_std([100 * number(run.result.get(f"{split}_error_median_last5")) for run in runs])
        losses = mean_and_std([number(run.result.get("train_loss")) for run in runs])
        times = mean_and_std([run.seconds for run in runs])
        cells = (_spread(errors, ".2f", " %"), _spread(medians, ".2f", " %"), _spread(losses, ".4f"))
        rows.append((group.label, ", ".join(map(str, hosts)), str(len(runs)), *cells, _spread(times, ".1f", " s")))
    if not rows:
        return None
    called = f"{SPLITS[split]} error" if split else "error"
    head = ["recipe", "processes", "n", called, "median of last 5", "training loss", "time"]
    words = paragraph(
        "Finished runs that differ in seed only, one a seed: mean ± sample standard deviation (n − 1).",
        kind="quiet",
    )
    return text_block("seeds", table("Over seeds", head, rows), words)


def _spread(found: tuple[float, float] | None, form: str, unit: str = "") -> str:
    return f"{found[0]:{form}} ± {found[1]:{form}}{unit}" if found else NONE


def _scaling(grouped: Sequence[Group]) -> list[Block | Chart | None]:
    found = [(group, rows) for group in grouped if (rows := scaling(group))]
    if not found:
        return []
    blocks: list[Block | Chart | None] = list(together.scaling_charts(found))
    head = ["recipe", "processes", "samples/s", "ideal", "efficiency"]
    listed: list[tuple[object, ...]] = []
    for group, points in found:
        least, first, _ = points[0]
        for at, (processes, speed, share) in enumerate(points):
            numbers = (f"{speed:,.0f}", f"{first * processes / least:,.0f}", f"{100 * share:.1f} %")
            listed.append((group.label if at == 0 else "", count(processes), *numbers))
    words = paragraph(
        "Efficiency: samples/s over P, against the same at the least P. A run whose P changed does not count.",
        kind="quiet",
    )
    return [*blocks, text_block("scaling-table", table("Scaling", head, listed), words)]


def _environment(runs: Sequence[RunData]) -> Block:
    """What is the same in all runs that tell it (one that was killed tells no versions), and what is not."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        prints = mapping(run.result.get("fingerprint") or run.started.get("fingerprint"))
        found = {**prints, **mapping(run.result.get("versions")), "commit": run.result.get("commit")}
        for key, value in found.items():
            if text := told(value):
                values.setdefault(key.replace("_", " "), {})[text] = None
    rows = [(key, _one_or_all(list(some))) for key, some in values.items()]
    return text_block("environment", pairs(rows), wide=False)


def _one_or_all(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"differs: {'; '.join(values[:6])}"
