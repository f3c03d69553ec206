"""What a strategy asks of a recipe: which keys are its own, and which other fields it can do nothing with.

Synchronous SGD has one minibatch of kn samples an update. In Downpour each replica's n samples are an update of their
own, made on shards that see slices of one gradient at a time: whatever needs all workers' gradients together, or the
whole vector after each update, has no meaning there and is a mistake with its reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from squall.errors import Mistakes, Row
from squall.recipe.check import shown
from squall.recipe.faults import fault_rows
from squall.recipe.names import KEYS_OF_STRATEGIES, OPTIMIZERS, SHARD_RULES, STRATEGIES, is_own
from squall.units import Duration

_NO_GLOBAL_BATCH = "there is none: each replica's minibatch is its own update; worker_batch_size is n"
_WHY_NOT = {("downpour", key): _NO_GLOBAL_BATCH for key in ("global_batch_size", "virtual_workers")}


def foreign_keys(values: dict[str, Any]) -> Iterator[Row]:
    """Takes out the keys that belong to other strategies than the one chosen, each a mistake; in place."""
    strategy = values.get("strategy", "sync")
    if strategy not in STRATEGIES:
        return
    for key in _foreign(strategy):
        value = values.pop(key, None)
        if value is None:
            continue
        owners = " or ".join(f"strategy={name}" for name, keys in KEYS_OF_STRATEGIES.items() if key in keys)
        rule = f"not read by strategy={strategy}. Write {owners}, or leave it out"
        found = f"{key}={shown(value)}"
        if isinstance(value, Mapping) and len(value) == 1:  # as it was written on a command line
            ((inner, at),) = value.items()
            found = f"{key}.{inner}={shown(at)}"
        yield found, _WHY_NOT.get((strategy, key), rule)


def leave_out_foreign_keys(values: dict[str, Any], overridden: Collection[str]) -> None:
    """After an override chose another strategy, drops what the recipe says for the former one alone; in place.

    A minibatch of all workers stays where nothing else says a replica's: then its mistake names what is missing.
    """
    strategy = values.get("strategy", "sync")
    if strategy not in STRATEGIES or (not has_global_batch(values) and "worker_batch_size" not in values):
        return
    for key in _foreign(strategy):
        if key not in overridden:
            values.pop(key, None)


def _foreign(strategy: str) -> list[str]:
    own = KEYS_OF_STRATEGIES[strategy]
    return sorted({key for keys in KEYS_OF_STRATEGIES.values() for key in keys if key not in own})


def has_global_batch(values: Mapping[str, Any]) -> bool:
    """Whether an update is of several workers' samples."""
    strategy = values.get("strategy", "sync")
    if strategy not in STRATEGIES:  # a misspelt one: what else is written tells
        return any(values.get(key) is not None for key in KEYS_OF_STRATEGIES["sync"])
    return "global_batch_size" in KEYS_OF_STRATEGIES[strategy]


def own_minibatches(values: dict[str, Any], mistakes: Mistakes) -> None:
    """Makes sure that a replica's minibatch has a size, and that the strategy's table is looked at; in place."""
    if values.get("strategy") == "downpour" and values.get("downpour") is None:
        values["downpour"] = {}  # lacks what has no default: the check of all fields says so
    if values.get("worker_batch_size") is None:
        mistakes.add("worker_batch_size", "missing: samples of one replica's minibatch, for example 100")
        values["worker_batch_size"] = 1  # stands in, so that one mistake is not reported as two


def of_downpour(values: Mapping[str, Any]) -> Iterator[Row]:
    """What a recipe of Downpour cannot say, on values whose single checks may have failed."""
    if values.get("strategy") != "downpour":
        return
    optimizer, compute, checkpoint, downpour, simulated = (
        _table(values, key) for key in ("optimizer", "compute", "checkpoint", "downpour", "simulated")
    )
    if (loaders := _table(values, "data").get("num_workers", 0)) != 0:
        yield (
            f"data.num_workers={shown(loaders)}",
            "not with strategy=downpour: a replica reads its minibatches itself; more replicas read more",
        )
    if (best := checkpoint.get("keep_best")) is not None:
        yield (
            f"checkpoint.keep_best={shown(best)}",
            "not with strategy=downpour: no snapshot holds the weights that an epoch is measured with; leave it out",
        )
    yield from _rule(optimizer)
    yield from _arithmetic(values, compute)
    yield from _warm_start(downpour, values.get("epochs"))
    numbers = {"replica": downpour.get("replicas"), "shard": downpour.get("shards", 1)}
    faults = simulated.get("faults")
    for index, fault in enumerate(faults if isinstance(faults, list | tuple) else ()):
        if isinstance(fault, Mapping):
            yield from fault_rows(f"simulated.faults[{index}]", fault, numbers)


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _rule(optimizer: Mapping[str, Any]) -> Iterator[Row]:
    name = optimizer.get("name", "sgd")
    if isinstance(name, str) and name not in SHARD_RULES and (name in OPTIMIZERS or is_own(name)):
        yield (
            f"optimizer.name={name}",
            f"the update lives on the shards, each with a slice of the weights. One of: {' '.join(SHARD_RULES)}",
        )
    if optimizer.get("nesterov"):
        yield (
            f"optimizer.nesterov={shown(optimizer['nesterov'])}",
            "not with strategy=downpour: it looks ahead along a momentum that stale pushes bend; nesterov=false",
        )
    if optimizer.get("options"):
        yield f"optimizer.options={shown(optimizer['options'])}", "not read by the shards' rules; leave it out"


def _arithmetic(values: Mapping[str, Any], compute: Mapping[str, Any]) -> Iterator[Row]:
    fuse = compute.get("fuse", 1)
    if fuse != 1:
        yield f"compute.fuse={shown(fuse)}", "must be 1 with strategy=downpour: a replica's minibatch is one pass"
    if compute.get("compile"):
        yield (
            "compute.compile=true",
            "not with strategy=downpour: a network's weights are views of memory that changes place; leave it out",
        )
    if compute.get("precision") == "fp16":
        yield (
            "compute.precision=fp16",
            "not with strategy=downpour: loss scaling skips whole updates, a shard sees slices; precision=bf16 or fp32",
        )
    if values.get("ema") is not None:
        yield (
            f"ema={shown(values['ema'])}",
            "not with strategy=downpour: no process sees all weights after each update to average them; leave it out",
        )
    if values.get("last_batch") == "carry":
        yield (
            "last_batch=carry",
            "not with strategy=downpour: minibatches are handed out epoch by epoch; last_batch=short or drop",
        )


def _warm_start(downpour: Mapping[str, Any], epochs: Any) -> Iterator[Row]:
    text = downpour.get("warm_start")
    try:
        duration = Duration.parse(text) if isinstance(text, str) else None
    except ValueError:
        return  # the field's own mistake
    if duration and duration.unit == "epoch" and isinstance(epochs, int | float) and duration.amount >= epochs:
        yield (
            f"downpour.warm_start={text}",
            f"not before the end: the run has {epochs} epochs, and the other replicas would never begin",
        )
