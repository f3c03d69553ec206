"""From what a person writes to complete fields: short forms, the third batch size, defaults that depend on others.

Three small rewritings, in this order: `flatten` (short forms become tables), `solve_batches` of `squall.data.sizes`
(two of kn, n, k give the third), and, once the recipe is built, `fill` (a default that follows from another field).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from squall.errors import Mistakes
from squall.recipe.names import LINEARLY_SCALED
from squall.recipe.simulated import SimulatedSpec

if TYPE_CHECKING:
    from squall.recipe.spec import Recipe

# table -> its field that a plain value means: optimizer="adamw" is optimizer.name, lr=0.1 is lr.base
PLAIN = {"model": "name", "data": "name", "optimizer": "name", "loss": "name", "lr": "base", "checkpoint": "every"}
# tables whose name may be left out before a field: weight_decay is optimizer.weight_decay
_OMITTED = ("optimizer", "lr", "loss", "compute")


def table_of(recipe_class: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The class of a table field of the recipe, or None where the field is no table."""
    info = recipe_class.model_fields.get(field)
    kinds = (info.annotation, *get_args(info.annotation)) if info else ()
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


@cache
def short_forms(recipe_class: type[BaseModel]) -> dict[str, str]:
    """Fields that may stand without their table, each with that table: {"weight_decay": "optimizer", ...}."""
    found: dict[str, str] = {}
    for table in _OMITTED:
        spec = table_of(recipe_class, table)
        assert spec is not None
        found.update({field: table for field in spec.model_fields if field != "name"})
    return {field: table for field, table in found.items() if field not in recipe_class.model_fields}


def flatten(given: Mapping[str, Any], recipe_class: type[BaseModel], mistakes: Mistakes) -> dict[str, Any]:
    """Turns short forms and specs into plain tables; a field given in two forms is a mistake."""
    values: dict[str, Any] = {}
    short = short_forms(recipe_class)
    for key, value in given.items():
        if key not in short:
            values[key] = _plain(key, value)
    for key in [key for key in given if key in short]:
        table = values.setdefault(short[key], {})
        if not isinstance(table, dict):
            continue  # a mistake that the table's check reports
        if key in table:
            mistakes.add(f"{key}={given[key]!r}", f"given twice: also as {short[key]}.{key}={table[key]!r}")
        table[key] = given[key]
    return values


def _plain(key: str, value: Any) -> Any:
    """A table as a new dict, whatever form it came in."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: item for name, item in dataclasses.asdict(value).items() if item is not None}
        if not fields.get("warmup_epochs"):
            fields.pop("warmup", None)  # a `Rate` without a warm-up names its kind all the same
        return fields
    if isinstance(value, Mapping):
        return dict(value)
    if key in PLAIN and value is not None:
        return {PLAIN[key]: value}
    return value


def keep_two_batch_fields(values: dict[str, Any], overridden: set[str]) -> None:
    """After an override, drops the batch field it replaces: n stays before kn, and kn before k; in place."""
    kept = [key for key in ("worker_batch_size", "global_batch_size", "virtual_workers") if key in values]
    kept.sort(key=lambda key: key not in overridden)  # stable: overridden ones first
    for key in kept[2:]:
        if key not in overridden:
            del values[key]


def fill(recipe: Recipe) -> None:
    """Fills the defaults that follow from other fields: the rate's, and those of the strategy's own tables; in place.

    Goes past pydantic on purpose: `model_fields_set` keeps telling what was written. An override of the minibatch's
    size then moves a base size that nobody wrote along with it.
    """
    lr, rule = recipe.lr, recipe.optimizer.name
    filled: dict[str, Any] = {
        "base_batch_size": lr.base_batch_size or recipe.update_size,
        "scaling": lr.scaling or ("linear" if rule in LINEARLY_SCALED else "none"),
        "schedule": lr.schedule or ("step" if lr.milestones else "constant"),
        "warmup": lr.warmup or ("gradual" if lr.warmup_epochs else "none"),
    }
    rises = filled["scaling"] != "none" and recipe.update_size > filled["base_batch_size"]
    start = lr.warmup_from
    if start is None or (
        start == "base" and lr.base_batch_size is None
    ):  # from a base that is the peak no ramp could rise
        start = "base" if rises else 0.0
    filled["warmup_from"] = start
    lr.__dict__.update(filled)
    if recipe.downpour is not None and recipe.downpour.local_lr is None:
        # what a step of Adagrad is worth, only the shards know
        recipe.downpour.__dict__["local_lr"] = "rate" if rule == "sgd" else 0.0
    if recipe.sandblaster is not None:
        recipe.sandblaster.__dict__["damping"] = recipe.sandblaster.own_damping
        if "every" not in recipe.checkpoint.model_fields_set:
            recipe.__dict__["checkpoint"] = own = recipe.checkpoint.model_copy()  # the default's is everybody's
            own.__dict__["every"] = "1step"  # an iteration; what an epoch is, only a line search knows
    if recipe.roles is not None and recipe.simulated is None:
        recipe.__dict__["simulated"] = SimulatedSpec()
