"""What a strategy can do nothing with, each with its reason: fields that all recipes have.

Synchronous SGD has one minibatch of kn samples an update. In Downpour each replica's n samples are an update of their
own, made on shards that see slices of one gradient at a time: whatever needs all workers' gradients together, or the
whole vector after each update, has no meaning there. Sandblaster minimises one function, the mean over all samples:
whatever changes that function from one evaluation to the next, or a step that was found, has none there.

The checks look at plain values, whose single checks may have failed, so that one mistake hides no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from squall.errors import Row
from squall.recipe.check import shown
from squall.recipe.faults import fault_rows
from squall.recipe.names import OPTIMIZERS, SHARD_RULES, is_own
from squall.units import Duration


def refused(values: Mapping[str, Any]) -> Iterator[Row]:
    """What a recipe of replicas and shards cannot say."""
    strategy = values.get("strategy")
    if strategy == "downpour":
        yield from _of_roles(values, "downpour", "minibatch")
        yield from _of_downpour(values)
    elif strategy == "sandblaster":
        yield from _of_roles(values, "sandblaster", "portion")
        yield from _of_sandblaster(values)


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _of_roles(values: Mapping[str, Any], strategy: str, pass_: str) -> Iterator[Row]:
    """What replicas cannot do, whatever their gradients are for."""
    compute, roles = _table(values, "compute"), _table(values, strategy)
    if (loaders := _table(values, "data").get("num_workers", 0)) != 0:
        yield (
            f"data.num_workers={shown(loaders)}",
            f"not with strategy={strategy}: a replica reads its {pass_}s itself; more replicas read more",
        )
    fuse = compute.get("fuse", 1)
    if fuse != 1:
        yield f"compute.fuse={shown(fuse)}", f"must be 1 with strategy={strategy}: a replica's {pass_} is one pass"
    if compute.get("compile"):
        yield (
            "compute.compile=true",
            f"not with strategy={strategy}: a network's weights are views of memory that changes place; leave it out",
        )
    numbers = {"replica": roles.get("replicas"), "shard": roles.get("shards", 1)}
    faults = _table(values, "simulated").get("faults")
    for index, fault in enumerate(faults if isinstance(faults, list | tuple) else ()):
        if isinstance(fault, Mapping):
            yield from fault_rows(f"simulated.faults[{index}]", fault, numbers, strategy)


def _of_downpour(values: Mapping[str, Any]) -> Iterator[Row]:
    if (best := _table(values, "checkpoint").get("keep_best")) is not None:
        yield (
            f"checkpoint.keep_best={shown(best)}",
            "not with strategy=downpour: no snapshot holds the weights that an epoch is measured with; leave it out",
        )
    yield from _rule(_table(values, "optimizer"))
    if _table(values, "compute").get("precision") == "fp16":
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
    yield from _warm_start(_table(values, "downpour"), values.get("epochs"))


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


def _of_sandblaster(values: Mapping[str, Any]) -> Iterator[Row]:
    if (best := _table(values, "checkpoint").get("keep_best")) is not None:
        yield (
            f"checkpoint.keep_best={shown(best)}",
            "not with strategy=sandblaster: a point is measured beside the work, after it was saved; leave it out",
        )
    for index, group in enumerate(_groups(values)):
        if isinstance(group, Mapping) and "lr_scale" in group:
            found = f"optimizer.groups[{index}].lr_scale={shown(group['lr_scale'])}"
            yield found, "there is no rate to scale: a group says its weight_decay alone"
    if _table(values, "compute").get("precision") == "fp16":
        yield (
            "compute.precision=fp16",
            "not with strategy=sandblaster: loss scaling skips updates, a line search needs each; precision=fp32",
        )
    if values.get("ema") is not None:
        yield (
            f"ema={shown(values['ema'])}",
            "not with strategy=sandblaster: a minimisation ends at its best point, not around one; leave it out",
        )
    if (norm := values.get("clip_grad_norm")) is not None:
        yield (
            f"clip_grad_norm={shown(norm)}",
            "not with strategy=sandblaster: a clipped gradient is not the function's; leave it out",
        )
    if (last := values.get("last_batch")) in ("drop", "carry"):
        yield (
            f"last_batch={last}",
            "not with strategy=sandblaster: each sample counts once in the batch; last_batch=short",
        )
    if values.get("loss_over") == "worker":
        yield (
            "loss_over=worker",
            "not with strategy=sandblaster: the batch is one sum over samples, however it is cut; loss_over=sample",
        )


def _groups(values: Mapping[str, Any]) -> list[Any]:
    groups = _table(values, "optimizer").get("groups")
    return list(groups) if isinstance(groups, list | tuple) else []
