"""Downpour SGD as arithmetic: replicas, shards, what travels between them, how stale it will be.

Dean et al. 2012, section 4.1, with n = `worker_batch_size`, R = `replicas`, S = `shards`, n_fetch = `fetch_every`,
n_push = `push_every`, alpha = `local_lr`. Times are left out: the same recipe runs on any machines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from squall.data.order import Order
from squall.explain import rows
from squall.explain.facts import ModelFacts
from squall.explain.rows import FLOAT_BYTES, ending, rough
from squall.explain.shards import each_of, elements, elements_of_shards
from squall.optim.lr import Segment
from squall.recipe import DownpourSpec, Recipe
from squall.units import count

_FEWEST_OF_THE_PAPER = 20
"""The fewest replicas of Dean et al. 2012, Figure 4; all its runs of Downpour began from a warm start."""


def expected_staleness(replicas: int, fetch_every: int, push_every: int) -> float:
    """Pushes that a shard applies between a fetch and the push that it leads to, the mean over pushes.

    Replicas of equal speed, each at its own point of its round, and messages that take no time. A push after minibatch
    t (a multiple of n_push) sums the gradients since the one before; the oldest of them was computed with the weights
    fetched at the last multiple of n_fetch. Between that fetch and this push lie `age` minibatches of time, in which
    each other replica pushes age / n_push times, and this one `own` times: at the multiples of n_push in between::

        staleness = (R - 1) * age / n_push + own            R - 1 where n_fetch = n_push = 1

    Example:
        >>> expected_staleness(20, 1, 1), expected_staleness(20, 4, 1)
        (19.0, 49.0)
    """
    period, found = math.lcm(fetch_every, push_every), []
    for push in range(2 * period, 3 * period, push_every):
        oldest = push - push_every + 1
        fetch = oldest // fetch_every * fetch_every
        own = len(range(-(-fetch // push_every) * push_every, push, push_every))
        found.append((replicas - 1) * (push + 1 - fetch) / push_every + own)
    return sum(found) / len(found)


def topics(recipe: Recipe, facts: ModelFacts, order: Order, segments: tuple[Segment, ...]) -> dict[str, list[str]]:
    """The lines below each label."""
    downpour = _of(recipe)
    return {
        "minibatch": _minibatch(recipe, facts),
        "epoch": [f"{line}, over all replicas" for line in rows.epoch(recipe, order)],
        "replicas": _replicas(recipe, downpour, order),
        "warm start": _warm_start(downpour, order),
        "staleness": _staleness(downpour),
        "traffic": _traffic(downpour, facts),
        "shards": _shards(recipe, downpour, facts),
        "rate": _rate(recipe, segments),
        "decay": rows.decay(recipe, facts, "on the shards, once a minibatch"),
        "checkpoint": _checkpoint(recipe, facts),
    }


def notes(recipe: Recipe, facts: ModelFacts) -> Iterator[str]:
    """What a reader should know."""
    downpour, rule = _of(recipe), recipe.optimizer
    if rule.name == "adagrad":
        yield ("Adagrad's rate (gamma) is about ten times the best fixed rate in Dean et al. 2012, section 4.1.")
        if downpour.push_every > 1:
            yield (
                f"Adagrad squares the sum of a push's {downpour.push_every} gradients: its rate means another thing "
                "than at push_every=1."
            )
    if rule.momentum:
        yield (
            "pushes that come late act as momentum already (Mitliagkas et al. 2016); "
            f"optimizer.momentum={rule.momentum:g} comes on top of it."
        )
    if facts.batch_norms:
        yield (
            f"{count(facts.batch_norms)} layer{ending(facts.batch_norms)} normalise over one replica's minibatch; the "
            "shards keep a running merge of the replicas' statistics, and evaluation uses that."
        )
    if downpour.replicas >= _FEWEST_OF_THE_PAPER and not downpour.warm_minibatches(1_000_000):
        yield (
            f"{count(downpour.replicas)} replicas begin at once; the paper's, {_FEWEST_OF_THE_PAPER} and more, began "
            "from a model that one had trained: downpour.warm_start=1ep."
        )


def warnings(recipe: Recipe, order: Order) -> Iterator[str]:
    """What a reader should change, or know well why not."""
    downpour = _of(recipe)
    expected = expected_staleness(downpour.replicas, downpour.fetch_every, downpour.push_every)
    if downpour.max_staleness is not None and downpour.max_staleness < expected:
        yield (
            f"max_staleness={downpour.max_staleness} is below the {expected:.4g} to expect: many pushes would be "
            "dropped, and their work with them."
        )
    alone = downpour.warm_minibatches(order.steps_per_epoch)
    if downpour.replicas > 1 and alone >= order.num_steps:
        yield (
            f"the warm start of {count(alone)} steps is as long as the run or longer ({count(order.num_steps)}): "
            "one replica computes it all."
        )


def numbers(recipe: Recipe, facts: ModelFacts, order: Order, segments: tuple[Segment, ...]) -> dict[str, Any]:
    """The values behind the text."""
    downpour, size = _of(recipe), elements(facts) * FLOAT_BYTES
    return {
        "name": recipe.name,
        "worker_batch_size": recipe.worker_batch_size,
        "num_samples": order.num_samples,
        "steps_per_epoch": order.steps_per_epoch,
        "num_steps": order.num_steps,
        "peak_lr": recipe.lr.rate().peak(recipe.update_size),
        "rate": [asdict(segment) for segment in segments],
        "model": asdict(facts),
        "replicas": downpour.replicas,
        "warm_start_steps": downpour.warm_minibatches(order.steps_per_epoch),
        "expected_staleness": expected_staleness(downpour.replicas, downpour.fetch_every, downpour.push_every),
        "fetch_bytes": size,
        "push_bytes": size,
        "shard_elements": elements_of_shards(facts, downpour.shards),
        "server_bytes": size + facts.num_trainable * FLOAT_BYTES * rows.num_states(recipe),
        "checkpoint_bytes": rows.checkpoint_bytes(recipe, facts),
    }


def _of(recipe: Recipe) -> DownpourSpec:
    assert recipe.downpour is not None  # of every recipe with this strategy
    return recipe.downpour


def _minibatch(recipe: Recipe, facts: ModelFacts) -> list[str]:
    size, sums = count(recipe.worker_batch_size), _of(recipe).push_every
    update = f"the sum of {sums} gradients is an update" if sums > 1 else "each minibatch is an update of its own"
    text = f"{size} images of one replica, {update}: loss = sum over {size} / {size}"
    return [text + (f"; normalisation over {size}" if facts.batch_norms else "")]


def _replicas(recipe: Recipe, downpour: DownpourSpec, order: Order) -> list[str]:
    """Who computes how much, how often it talks, and what it does on its own."""
    number, each = downpour.replicas, order.num_steps / downpour.replicas
    share = f"{'' if each.is_integer() else 'about '}{count(round(each))} step{ending(round(each))}"
    whole = f"{count(number)}: {share} each where they are equally fast; faster ones compute more"
    first = whole if number > 1 else f"1: all {share}"
    every = f"fetches weights every {_minibatches(downpour.fetch_every)}, pushes gradients every "
    every += _minibatches(downpour.push_every)
    if downpour.push_every > 1:
        every += f" (their sum; the first push holds one): about {count(round(order.num_steps / downpour.push_every))}"
    else:
        every += f": {count(order.num_steps)}"
    every += " pushes to each shard"
    return [first, every, _own_steps(recipe, downpour)]


def _own_steps(recipe: Recipe, downpour: DownpourSpec) -> str:
    local = downpour.local_lr
    if not local:
        return "takes no steps of its own between fetches (local_lr=0)"
    text = f"takes steps of its own between fetches, at {'the rate' if local == 'rate' else f'{local:g}'} (local_lr)"
    return f"{text}; with fetch_every=1 the next fetch undoes each" if downpour.fetch_every == 1 else text


def _warm_start(downpour: DownpourSpec, order: Order) -> list[str]:
    steps = min(downpour.warm_minibatches(order.steps_per_epoch), order.num_steps)
    if downpour.replicas == 1:
        return ["none: there is one replica"]
    if not steps:
        return ["none: all replicas begin at once"]
    return [f"one replica alone for {downpour.warm_start}: steps 0 .. {count(steps)}; then the others begin"]


def _staleness(downpour: DownpourSpec) -> list[str]:
    mean = expected_staleness(downpour.replicas, downpour.fetch_every, downpour.push_every)
    plain = downpour.fetch_every == downpour.push_every == 1
    text = f"{'' if plain else 'about '}{mean:.4g} update{'' if mean == 1 else 's'} between a fetch and its push"
    text += f" where {count(downpour.replicas)} replicas are equally fast" if downpour.replicas > 1 else ""
    text += " (R - 1)" if plain else ""
    cap = downpour.max_staleness
    return [f"{text}; {'no cap' if cap is None else f'above {cap} a push is dropped'}"]


def _traffic(downpour: DownpourSpec, facts: ModelFacts) -> list[str]:
    size = elements(facts) * FLOAT_BYTES
    mean = size / downpour.fetch_every + size / downpour.push_every
    what = "weights and statistics" if facts.batch_norms else "weights"
    text = f"a fetch {rough(size)} of {what}, a push {rough(size)}"
    text += f", 1/{downpour.shards} of it with each shard" if downpour.shards > 1 else ""
    return [f"{text}; {rough(mean)} a minibatch of a replica"]


def _shards(recipe: Recipe, downpour: DownpourSpec, facts: ModelFacts) -> list[str]:
    held = elements(facts) * FLOAT_BYTES + facts.num_trainable * FLOAT_BYTES * rows.num_states(recipe)
    words = " + ".join(["weights", *rows.state_words(recipe)])
    return [f"{each_of(facts, downpour.shards)}; {recipe.optimizer.name} on each; {words} {rough(held)} over all"]


def _rate(recipe: Recipe, segments: tuple[Segment, ...]) -> list[str]:
    head, *course = rows.rate(recipe, segments)
    return [f"{head}; never scaled by replicas", *course]


def _checkpoint(recipe: Recipe, facts: ModelFacts) -> list[str]:
    (text,) = rows.checkpoint(recipe, facts)
    return [text.replace("over all processes", "over all shards")]


def _minibatches(number: int) -> str:
    return "minibatch" if number == 1 else f"{count(number)} minibatches"
