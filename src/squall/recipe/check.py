"""Mistakes of a recipe, each as a row: what was found, and the rule it breaks with the nearest valid names.

Two sources: what pydantic finds wrong with single fields (`rows_of` says it in our words), and what only several fields
together can contradict (`contradictions`). Both look at plain values, so that one wrong field hides no other mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from squall.checkpoint.spec import checked
from squall.errors import Row, nearest
from squall.recipe.names import (
    DATA,
    FIELDS_OF_RULES,
    LOSSES,
    MODELS,
    NEEDS_ROOT,
    OPERATIONS,
    OPTIMIZERS,
    STRATEGIES,
    is_own,
    is_read,
)
from squall.recipe.resolve import PLAIN, short_forms, table_of

_LIMITS = {"greater_than": ("gt", "above"), "less_than": ("lt", "below")}
_LIMITS |= {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string_type": "a word or text in quotes",
}
_KINDS |= {"tuple": "a list", "dict": "a table", "model": "a table", "finite": "a finite number"}
_RATES = {("lr", "warmup_from"): "base", ("downpour", "local_lr"): "rate"}  # or a word that means one
_WORKERS = ("worker", "workers", "num_workers", "processes", "num_processes", "gpus")


def rows_of(error: ValidationError, values: Mapping[str, Any], recipe_class: type[BaseModel]) -> Iterator[Row]:
    """Pydantic's findings in our words.

    Arguments:
        error: what pydantic raised.
        values: the tables that were checked, for the values named beside near fields.
        recipe_class: `Recipe`.
    """
    seen: set[str] = set()
    for item in error.errors(include_url=False, include_context=True):
        place = [part for part in item["loc"] if not _is_branch(part)]
        label = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
        if label in seen:
            continue  # one value, several allowed kinds: the first says enough
        seen.add(label)
        kind, value = item["type"], item["input"]
        if kind == "missing":
            yield _missing(label)
        elif kind == "extra_forbidden":
            yield from _unknown(place, value, values, recipe_class)
        else:
            yield f"{label}={shown(value)}", _rule(kind, item)


def _is_branch(part: str | int) -> bool:
    """Whether a part of pydantic's path names a branch of a union and no field."""
    return isinstance(part, str) and (part in ("float", "int", "constrained-float") or "[" in part)


def _missing(label: str) -> Row:
    if label in ("lr", "lr.base"):
        return "lr", "missing: there is no default rate. Write lr=0.1, or lr.base with lr.base_batch_size"
    if label == "epochs":
        return "epochs", "missing: how many passes over the training set, for example epochs=90"
    if label in ("downpour.replicas", "sandblaster.replicas"):
        return label, f"missing: how many copies of the model compute gradients, for example {label}=4"
    return label, "missing"


def _rule(kind: str, item: Mapping[str, Any]) -> str:
    context = item.get("ctx", {})
    if item["loc"][:2] in _RATES:
        return f'must be a rate of at least 0, or "{_RATES[item["loc"][:2]]}"'
    if kind == "value_error":
        return str(context["error"])
    if kind in _LIMITS:
        key, word = _LIMITS[kind]
        return f"must be {word} {context[key]:g}"
    if kind == "literal_error":
        valid = context["expected"].replace("'", "").replace(" or ", " ").replace(",", "")
        return f"not known. One of: {valid}"
    named = next((text for start, text in _KINDS.items() if kind.startswith(start)), "")
    return f"must be {named}" if named else str(item["msg"])[:1].lower() + str(item["msg"])[1:]


def _unknown(
    place: Sequence[str | int], value: Any, values: Mapping[str, Any], recipe_class: type[BaseModel]
) -> Iterator[Row]:
    if isinstance(value, Mapping) and value and len(place) == 1:
        for key, item in value.items():
            yield from _unknown([*place, key], item, values, recipe_class)
        return
    label = ".".join(map(str, place))
    found = f"{label}={shown(value)}"
    if place[-1] in _WORKERS and len(place) == 1:
        near = [_with_value(name, values) for name in ("worker_batch_size", "virtual_workers")]
        data = values.get("data")
        loaders = data.get("num_workers", 0) if isinstance(data, Mapping) else 0
        more = f"loader processes are data.num_workers ({shown(loaders)})"
        yield found, f"no such field. Near: {', '.join(near)}; {more}; processes of a run are the flag --processes"
        return
    near = [_with_value(name, values) for name in _near(label, recipe_class, values.get("strategy"))]
    yield found, "no such field. " + (f"Near: {', '.join(near)}" if near else "None is near")


def _near(label: str, recipe_class: type[BaseModel], strategy: Any) -> list[str]:
    """Fields that a wrong one may have meant, by full name or by its last part; those that are read go first."""
    names = field_names(recipe_class)
    if strategy in STRATEGIES:
        names.sort(key=lambda name: not is_read(strategy, name))
    leaf = label.rpartition(".")[2]
    by_leaf: dict[str, str] = {}
    for name in reversed(names):  # the first of equal leaves wins: a recipe's own field before a table's
        by_leaf[name.rpartition(".")[2]] = name
    if "." in label:
        return nearest(label, names) or [by_leaf[name] for name in nearest(leaf, list(by_leaf))]
    found = [by_leaf[name] for name in nearest(leaf, list(by_leaf))] or nearest(label, names)
    return [name.rpartition(".")[2] if name.rpartition(".")[2] in short_forms(recipe_class) else name for name in found]


def field_names(recipe_class: type[BaseModel]) -> list[str]:
    """Every field by its full name: epochs, lr.base, ..."""
    return ["virtual_workers", *_fields_of(recipe_class)]


def _fields_of(table: type[BaseModel]) -> Iterator[str]:
    for field in table.model_fields:
        inner = table_of(table, field)
        yield from [field] if inner is None else (f"{field}.{leaf}" for leaf in _fields_of(inner))


def _with_value(name: str, values: Mapping[str, Any]) -> str:
    """`name (32)` where the recipe has a value for it."""
    if name == "virtual_workers":
        total, each = values.get("global_batch_size"), values.get("worker_batch_size")
        known = isinstance(total, int) and isinstance(each, int) and each > 0
        return f"{name} ({-(-total // each)})" if known else name  # type: ignore[operator]
    at: Any = values
    for part in name.split("."):
        at = at.get(part) if isinstance(at, Mapping) else None
    return name if at is None else f"{name} ({shown(at)})"


def shown(value: Any) -> str:
    """A value as a person would write it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {shown(item)}" for key, item in value.items()) + "}"
    return str(value)


def contradictions(values: Mapping[str, Any]) -> Iterator[Row]:
    """What fields say together that cannot be, on values whose single checks may have failed."""
    tables = {key: values[key] if isinstance(values.get(key), Mapping) else {} for key in PLAIN}
    compute = values["compute"] if isinstance(values.get("compute"), Mapping) else {}
    strategy = values.get("strategy", "sync")
    if strategy not in STRATEGIES:
        yield f"strategy={shown(strategy)}", f"not known. One of: {' '.join(STRATEGIES)}"
    yield from _name("loss.name", tables["loss"].get("name"), LOSSES, '"package.module:function"')
    yield from _model(tables["model"])
    yield from _data(tables["data"])
    yield from _optimizer(tables["optimizer"])
    yield from _rate(tables["lr"], values.get("epochs"))
    for found, rule in checked(tables["checkpoint"]):
        yield f"checkpoint.{found}", rule
    if tables["loss"].get("label_smoothing") and tables["loss"].get("name", LOSSES[0]) not in LOSSES:
        yield f"loss.label_smoothing={shown(tables['loss']['label_smoothing'])}", "belongs to cross_entropy only"
    if values.get("loss_over") == "worker" and compute.get("fuse", 1) != 1:
        yield (
            f"compute.fuse={shown(compute['fuse'])}",
            'must be 1 with loss_over = "worker": each worker needs its own loss',
        )


def _name(label: str, name: Any, valid: Sequence[str], own: str) -> Iterator[Row]:
    if isinstance(name, str) and name not in valid and not is_own(name):
        yield f"{label}={name}", f"not known. One of: {' '.join(valid)}, or {own}"


def _model(model: Mapping[str, Any]) -> Iterator[Row]:
    name = model.get("name")
    if model.get("weights_skip") and not model.get("weights"):
        yield f"model.weights_skip={shown(model['weights_skip'])}", "needs model.weights: a file or a run to start from"
    if not isinstance(name, str):
        return
    if name not in MODELS and not is_own(name):
        near = nearest(name, list(MODELS), most=4) or list(MODELS)
        yield f"model.name={name}", f'not known. Near: {" ".join(near)}, or "package.module:function"'
    if name not in MODELS:
        return
    valid = list(MODELS[name])
    for key in model:
        if key not in ("name", "weights", "weights_skip", "freeze", *valid):
            near = nearest(key, valid) or valid
            yield f"model.{key}={shown(model[key])}", f"no such argument of {name}. Near: {', '.join(near)}"


def _data(data: Mapping[str, Any]) -> Iterator[Row]:
    yield from _name("data.name", data.get("name"), DATA, '"package.module:function"')
    if data.get("name") in NEEDS_ROOT and not data.get("root"):
        yield (
            "data.root",
            f'missing: {data["name"]} needs the folder of the set below --data, for example root = "photos"',
        )
    for list_name in ("train", "val"):
        ops = data.get(list_name)
        for index, op in enumerate(ops if isinstance(ops, list | tuple) else ()):
            if isinstance(op, Mapping) and not any(key in OPERATIONS for key in op):
                near = nearest(str(next(iter(op), "")), OPERATIONS) or OPERATIONS
                yield f"data.{list_name}[{index}]={shown(op)}", f"no such operation. Near: {', '.join(near)}"


def _optimizer(optimizer: Mapping[str, Any]) -> Iterator[Row]:
    name = optimizer.get("name", "sgd")
    yield from _name("optimizer.name", name, OPTIMIZERS, '"package.module:Class"')
    if name in OPTIMIZERS:
        for field, rules in FIELDS_OF_RULES.items():
            if optimizer.get(field) and name not in rules:
                yield f"optimizer.{field}={shown(optimizer[field])}", f"{name} has none. Read by: {' '.join(rules)}"
    if optimizer.get("nesterov") is True and not optimizer.get("momentum"):
        yield "optimizer.nesterov=true", "needs optimizer.momentum, for example 0.9"
    groups = optimizer.get("groups")
    for index, group in enumerate(groups if isinstance(groups, list | tuple) else ()):
        yield from _group(f"optimizer.groups[{index}]", group)


def _group(label: str, group: Any) -> Iterator[Row]:
    if not isinstance(group, Mapping):
        return
    valid = ("match", "lr_scale", "weight_decay")
    if not isinstance(group.get("match"), str):
        yield label, 'match is missing: a name or pattern, for example match = "head.*"'
    for key, value in group.items():
        if key not in valid:
            yield f"{label}.{key}={shown(value)}", f"no such field. One of: {' '.join(valid)}"
        elif key != "match" and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            yield f"{label}.{key}={shown(value)}", "must be a number of at least 0"


def _rate(lr: Mapping[str, Any], epochs: Any) -> Iterator[Row]:
    given = lr.get("milestones")
    milestones = [m for m in given if isinstance(m, int | float)] if isinstance(given, list | tuple) else []
    schedule = lr.get("schedule")
    if milestones and schedule in ("constant", "cosine"):
        yield (
            f"lr.milestones={shown(given)}",
            f"not read with schedule={schedule}; write schedule=step, or leave them out",
        )
    if schedule == "step" and not milestones and not isinstance(given, str):
        yield "lr.schedule=step", "needs milestones in epochs, for example milestones=[30, 60, 80]"
    if milestones != sorted(set(milestones)):
        yield f"lr.milestones={shown(given)}", "must rise"
    if isinstance(epochs, int | float) and any(m >= epochs for m in milestones):
        late = shown([m for m in milestones if m >= epochs])
        yield (
            f"lr.milestones={shown(given)}",
            f"{late} not before the end: the run has {epochs} epochs, epochs={epochs}",
        )
    if lr.get("warmup") in ("gradual", "constant") and not lr.get("warmup_epochs"):
        yield f"lr.warmup={lr['warmup']}", "needs warmup_epochs, for example 5"
    if lr.get("warmup") == "none" and lr.get("warmup_epochs"):
        yield f"lr.warmup_epochs={shown(lr['warmup_epochs'])}", "contradicts warmup=none"
