"""What a strategy reads of a recipe: which keys are its own, and what becomes of those that another one reads.

A key that the chosen strategy does not read is a mistake: it would say something of the training that is not so. An
override of the strategy takes such keys out, unless it gives them itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from squall.errors import Mistakes, Row
from squall.recipe.check import shown
from squall.recipe.names import KEYS_OF_STRATEGIES, NO_RULE, STRATEGIES, foreign_to, is_read

_BATCH = ("global_batch_size", "virtual_workers")
_TABLES = ("downpour", "sandblaster")
_MINIBATCH = {
    "downpour": "samples of one replica's minibatch, for example 100",
    "sandblaster": "samples of a portion of the batch, one forward and backward pass, for example 256",
}

_OWN_UPDATES = "there is none: each replica's minibatch is its own update; worker_batch_size is n"
_WHOLE_SET = "there is none: the batch is the whole training set; worker_batch_size is a portion of it"
_WHY_NOT = {("downpour", key): _OWN_UPDATES for key in _BATCH} | {("sandblaster", key): _WHOLE_SET for key in _BATCH}
_WHY_NOT["sandblaster", "lr"] = "there is none: a line search finds the length of each step; leave it out"
_NO_RULE = "there is none: L-BFGS finds direction and step; of the optimizer it reads weight_decay. Leave it out"


def foreign_keys(values: dict[str, Any]) -> Iterator[Row]:
    """Takes out the keys that belong to other strategies than the one chosen, each a mistake; in place."""
    strategy = values.get("strategy", "sync")
    if strategy not in STRATEGIES:
        return
    for key in foreign_to(strategy):
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
    optimizer = values.get("optimizer")
    if isinstance(optimizer, dict):
        for field in [field for field in NO_RULE.get(strategy, ()) if field in optimizer]:
            yield f"optimizer.{field}={shown(optimizer.pop(field))}", _NO_RULE


def leave_out_foreign_keys(values: dict[str, Any], overridden: Collection[str], short: Mapping[str, str]) -> None:
    """After an override chose another strategy, drops what the recipe says for the former one alone; in place.

    A minibatch of all workers stays where nothing else says a replica's: then its mistake names what is missing.

    Arguments:
        overridden: what was given beside, as paths: "epochs", "optimizer.momentum".
        short: fields that may stand without their table, each with that table.
    """
    strategy = values.get("strategy", "sync")
    if strategy not in STRATEGIES:
        return
    tops = {path.partition(".")[0] for path in overridden}
    stay = {*tops, *(() if "worker_batch_size" in values or has_global_batch(values) else _BATCH)}
    gone = {key for key in foreign_to(strategy) if key not in stay}
    if "optimizer" not in overridden:
        gone |= {path for field in NO_RULE.get(strategy, ()) if (path := f"optimizer.{field}") not in overridden}
    for key in [*values]:
        table = short.get(key)
        if key in gone or table in gone or f"{table}.{key}" in gone:
            del values[key]
    optimizer = values.get("optimizer")
    if isinstance(optimizer, dict):
        values["optimizer"] = {key: value for key, value in optimizer.items() if f"optimizer.{key}" not in gone}
    elif "optimizer.name" in gone:  # the rule's name alone
        values.pop("optimizer", None)


def only_read(strategy: str, values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values without those that stand in for what the strategy does not read."""
    foreign, rule = foreign_to(strategy), NO_RULE.get(strategy, ())
    found = {key: value for key, value in values.items() if value is None or key not in foreign}
    if rule and "optimizer" in found:
        found["optimizer"] = {key: value for key, value in found["optimizer"].items() if key not in rule}
    return found


def has_global_batch(values: Mapping[str, Any]) -> bool:
    """Whether an update is of several workers' samples."""
    strategy = values.get("strategy", "sync")
    if strategy not in STRATEGIES:  # a misspelt one: what else is written tells
        return any(values.get(key) is not None for key in _BATCH)
    return "global_batch_size" in KEYS_OF_STRATEGIES[strategy]


def ask_for_rate(values: dict[str, Any]) -> None:
    """Makes sure that a rate is asked for where the strategy has one; in place."""
    strategy = values.get("strategy", "sync")
    meant = strategy if strategy in STRATEGIES else "sandblaster" if values.get("sandblaster") is not None else "sync"
    if is_read(meant, "lr"):
        values.setdefault("lr", {})  # lacks what has no default: the check of all fields says so


def own_minibatches(values: dict[str, Any], mistakes: Mistakes) -> None:
    """Makes sure that a replica's minibatch has a size, and that the strategy's table is looked at; in place."""
    strategy = values.get("strategy")
    if strategy in _TABLES and values.get(strategy) is None:
        values[strategy] = {}  # lacks what has no default: the check of all fields says so
    if values.get("worker_batch_size") is None:
        mistakes.add("worker_batch_size", f"missing: {_MINIBATCH.get(str(strategy), _MINIBATCH['downpour'])}")
        values["worker_batch_size"] = 1  # stands in, so that one mistake is not reported as two
