"""The recipe as arithmetic, from the run's first record and its recipe: minibatch, hosting, steps, rate, network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from squall.report.blocks import Block, pairs, text_block
from squall.report.read import RunData
from squall.report.values import listed, mapping, number, whole
from squall.report.words import NONE, Html, bytes_of, plural, safe, written
from squall.units import count


def arithmetic(run: RunData) -> list[Block]:
    """The recipe as arithmetic, and the recipe itself."""
    blocks = [text_block("arithmetic", pairs(_arithmetic(run)), wide=not run.recipe_text)]
    if run.recipe_text:
        inside = f"<details><summary>recipe.toml</summary><pre>{safe(run.recipe_text)}</pre></details>"
        blocks.append(text_block("recipe", Html(inside), wide=False))
    return blocks


def _arithmetic(run: RunData) -> list[tuple[object, object]]:
    started = run.started
    total, each, samples = (whole(started.get(k)) for k in ("global_batch_size", "worker_batch_size", "num_samples"))
    epochs, steps, per_epoch = (whole(started.get(key)) for key in ("epochs", "num_steps", "steps_per_epoch"))
    rows: list[tuple[object, object]] = []
    if run.minimises:
        return [*_of_batch(run), *_network(run), ("seed", str(started.get("seed", "")))]
    if run.asynchronous:
        rows += _of_replicas(run)
    elif total > 0 and each > 0:
        workers = math.ceil(total / each)
        sizes = str(each) if total % each == 0 else f"{total // workers} or {math.ceil(total / workers)}"
        rows.append(("minibatch", f"{count(total)} = {plural(workers, 'virtual worker')} × {sizes}"))
        hosts = run.processes[-1]
        share = workers // hosts if workers % hosts == 0 else f"{workers // hosts} or {workers // hosts + 1}"
        rows.append(
            ("hosting", f"{plural(hosts, 'process', 'processes')}, {share} of the {count(workers)} workers each")
        )
    if per_epoch > 0 and samples > 0 and total > 0:
        rest = samples % total
        fate = {"drop": "{} left out", "carry": "{} carried into the next"}.get(
            str(run.recipe.get("last_batch", "short")), "the last one of {}"
        )
        words = f"{plural(samples, 'sample')} = {plural(per_epoch, *run.update)}"
        over = ", over all replicas" if run.asynchronous else ""
        rows.append(("epoch", words + (f", {fate.format(count(rest))}" if rest else "") + over))
        rows.append((run.update[1], f"{count(steps)} in {plural(epochs, 'epoch')}"))
    rows.append(("rate", rate_words(mapping(run.recipe.get("lr")), total, epochs)))
    rows.append(("rate used", _rate_used(run)))
    rows += _network(run)
    rows.append(("seed", str(started.get("seed", ""))))
    return rows


def _of_replicas(run: RunData) -> list[tuple[object, object]]:
    """Whose minibatches are updates, how often weights are fetched and gradients pushed, and how it began."""
    started, table = run.started, mapping(run.recipe.get("downpour"))
    size, replicas, shards = (count(whole(started.get(key))) for key in ("worker_batch_size", "replicas", "shards"))
    fetch, push = (max(whole(table.get(key), 1), 1) for key in ("fetch_every", "push_every"))
    update = "each an update of its own" if push == 1 else f"the sum of {count(push)} gradients is an update"
    often = f"fetch every {'minibatch' if fetch == 1 else f'{count(fetch)} minibatches'}"
    often += f", push every {'minibatch' if push == 1 else f'{count(push)} minibatches'}"
    local = table.get("local_lr")
    own = [("own steps", f"at {'the rate' if local == 'rate' else local} between fetches")] if local else []
    warm, cap = str(table.get("warm_start", "")), table.get("max_staleness")
    return [
        ("minibatch", f"{size} of one replica, {update}"),
        ("replicas", f"{replicas}: {often}"),
        ("shards", f"{shards}, each with a slice of the weights"),
        *own,
        ("warm start", f"one replica alone for {warm}" if warm and not warm.startswith("0") else ""),
        ("staleness", "" if cap is None else f"above {cap} a push is dropped"),
    ]


def _of_batch(run: RunData) -> list[tuple[object, object]]:
    """How the batch is cut, who computes and holds what, how long it is searched, and when it is over."""
    started, table = run.started, mapping(run.recipe.get("sandblaster"))
    size, samples, most = (max(whole(started.get(k)), 0) for k in ("worker_batch_size", "num_samples", "num_steps"))
    replicas, shards = (count(whole(started.get(key))) for key in ("replicas", "shards"))
    rows: list[tuple[object, object]] = []
    unit, portions = max(whole(table.get("unit"), 1), 1), -(-samples // size) if size else 0
    if portions:
        rest = f", the last one of {count(samples % size)}" if samples % size else ""
        rows.append(("batch", f"{plural(samples, 'sample')} = {plural(portions, 'portion')} of {count(size)}{rest}"))
        last = f", the last one of {count(portions % unit)}" if portions % unit else ""
        units = f"{plural(-(-portions // unit), 'unit')} of {plural(unit, 'portion')}{last}"
        rows.append(("units", f"{units}: computed by one replica and pushed at once"))
    idle = "compute copies of what takes long" if table.get("backups", True) else "wait"
    history, noise = max(whole(table.get("history")), 0), number(table.get("noise"))
    search = {"strong_wolfe": "strong Wolfe", "armijo": "Armijo"}.get(str(table.get("line_search", "")), "")
    forgives = f", forgives {noise:g} of the loss" if noise > 0 else ""
    damping = number(table.get("damping"))
    damped = f"; damped below {damping:g} of the curvature" if damping > 0 else ""
    tolerances = (("gradient", "the gradient's norm is within {:g}"), ("step", "a step is within {:g} of the weights"))
    found = [(number(table.get(f"tolerance_{key}")), words) for key, words in tolerances]
    ends = [words.format(value) for value, words in found if value > 0] + ["nothing gets better"]
    budget = f"; after {plural(most, 'evaluation')} at the latest" if most else ""
    return [
        *rows,
        ("replicas", f"{replicas}; idle ones {idle}"),
        ("shards", f"{shards}, each with a slice of all vectors"),
        ("history", f"{plural(history, 'pair')} of L-BFGS{damped}" if history else ""),
        ("line search", f"{search}{forgives}: finds the length of each step" if search else ""),
        ("ends", f"where {', or '.join(ends)}{budget}"),
        ("decay", _decay(run)),
    ]


def _decay(run: RunData) -> str:
    decay = number(mapping(run.recipe.get("optimizer")).get("weight_decay"))
    return f"{decay:g} / 2 × the squares of the weights, part of the value" if decay > 0 else ""


def rate_words(lr: Mapping[str, Any], total: int, epochs: int) -> str:
    """ "0.1 at 256, linear: 0.1 × 8,192 / 256 = 3.2; 5 epochs of warm-up; × 0.1 after 30, 60, 80 of 90 epochs"."""
    base, size = number(lr.get("base")), whole(lr.get("base_batch_size"), total)
    if not math.isfinite(base):
        return ""
    scaling = str(lr.get("scaling", "none"))
    if scaling == "none" or size <= 0 or total <= 0 or size == total:
        words = f"{base:g} at {count(total)}" if total else f"{base:g}"
    else:
        factor = total / size if scaling == "linear" else math.sqrt(total / size)
        ratio = f"{count(total)} / {count(size)}"
        scaled = f"{base:g} × {ratio if scaling == 'linear' else f'√({ratio})'} = {base * factor:.5g}"
        words = f"{base:g} at {count(size)}, {scaling}: {scaled}"
    warm = number(lr.get("warmup_epochs"))
    words += f"; {warm:g} epochs of warm-up" if warm > 0 else "; no warm-up"
    schedule = str(lr.get("schedule", ""))
    if schedule == "cosine":
        return f"{words}; cosine to {number(lr.get('final', 0.0)):g} over {plural(epochs, 'epoch')}"
    if schedule == "step":
        at = ", ".join(f"{number(milestone):g}" for milestone in listed(lr.get("milestones"))) or NONE
        return f"{words}; × {number(lr.get('gamma')):g} after {at} of {plural(epochs, 'epoch')}"
    return f"{words}; {schedule}" if schedule else words


def _rate_used(run: RunData) -> str:
    rates = [value for value in run.steps.lr if math.isfinite(value)]
    if not rates:
        return ""
    return f"{written(rates[0])} in the first step, {written(max(rates))} at most, {written(rates[-1])} in the last"


def _network(run: RunData) -> list[tuple[object, object]]:
    parameters = whole(run.started.get("num_parameters"))
    model, optimizer, compute = (mapping(run.recipe.get(key)) for key in ("model", "optimizer", "compute"))
    rows: list[tuple[object, object]] = []
    if parameters:
        name = f"{model.get('name')}, " if model.get("name") else ""
        sent = "unit" if run.minimises else "push" if run.asynchronous else "step"
        rows.append(
            ("network", f"{name}{plural(parameters, 'parameter')}: {bytes_of(4 * parameters)} of gradient a {sent}")
        )
    if optimizer and not run.minimises:
        words = [str(optimizer.get("name", ""))]
        words += [
            f"{key.replace('_', ' ')} {optimizer[key]}" for key in ("momentum", "weight_decay") if key in optimizer
        ]
        rows.append(("optimiser", ", ".join([*words, *["Nesterov"] * bool(optimizer.get("nesterov"))])))
    if compute:
        reduction = "" if run.asynchronous else f", {compute.get('reduction', '')} reduction"
        rows.append(("arithmetic", f"{compute.get('precision', '')}{reduction}"))
    return rows
