"""Every field of a recipe with its type, default and meaning, read off the specs: `squall recipes NAME --fields`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from squall.recipe.check import shown
from squall.recipe.names import is_read
from squall.recipe.resolve import table_of
from squall.recipe.spec import Recipe

_WORDS = {int: "whole number", float: "number", bool: "true | false", str: "text", dict: "table"}


class FieldRow(NamedTuple):
    """One field: full name, type in words, default ("required" where there is none), value in a recipe, meaning."""

    name: str
    type: str
    default: str
    value: str
    meaning: str


def fields_table(recipe: Recipe | None = None) -> list[FieldRow]:
    """All fields in the order of a file.

    Arguments:
        recipe: where given, `value` holds its values; else it is empty.
    """
    return list(_rows(Recipe, "", recipe, recipe))


def _rows(table: type[BaseModel], prefix: str, at: BaseModel | None, recipe: Recipe | None) -> Iterator[FieldRow]:
    """The fields of a table, and of the tables in it."""
    for name, info in table.model_fields.items():
        inner, value = table_of(table, name), getattr(at, name, None)
        if inner is None:
            read = recipe is None or is_read(recipe.strategy, f"{prefix}{name}")
            yield _row(f"{prefix}{name}", info, value if read else None, recipe is not None)
        else:
            yield from _rows(inner, f"{prefix}{name}.", value, recipe)
        if name == "worker_batch_size":
            yield _virtual_workers(recipe)
    for argument, value in (at.model_extra or {} if at is not None else {}).items():
        yield FieldRow(f"{prefix}{argument}", "any", "", shown(value), "argument of the network's factory")


def _virtual_workers(recipe: Recipe | None) -> FieldRow:
    value = "" if recipe is None else str(recipe.virtual_workers) if recipe.global_batch_size else "-"
    meaning = "virtual workers of a minibatch (k); of global_batch_size, worker_batch_size and this give any two"
    return FieldRow("virtual_workers", "whole number", "follows", value, meaning)


def _row(name: str, info: FieldInfo, value: Any, known: bool) -> FieldRow:
    if info.default is PydanticUndefined:
        default = "required"
    else:
        default = "-" if info.default is None else shown(info.default)
    return FieldRow(name, _type(info.annotation), default, _shown(value) if known else "", info.description or "")


def _shown(value: Any) -> str:
    return "-" if value is None else shown(value)


def _type(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inside))
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(_type(kind) for kind in inside if kind is not type(None)))
    if origin is tuple:
        kinds = dict.fromkeys(_type(kind) for kind in inside if kind is not Ellipsis)
        return f"list of {' | '.join(kinds)}"
    if hasattr(annotation, "__metadata__"):
        return _type(inside[0])
    return _WORDS.get(origin or annotation, str(annotation))
