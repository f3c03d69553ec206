"""A recipe as TOML text that loads back to an equal recipe.

The standard library reads TOML and does not write it. A recipe needs only a little of the format: scalars, lists,
inline tables, and one level of tables. Everything is written, defaults too: the file in a run's folder says all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from squall.recipe.spec import Recipe

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_INLINE = ("loss",)


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML; fields that are unset by nature (no EMA, no clipping) are left out.

    Example:
        >>> recipe = Recipe(epochs=1, global_batch_size=8, worker_batch_size=4, lr=0.1)
        >>> to_toml(recipe).splitlines()[:3]
        ['name = "recipe"', 'seed = 0', 'epochs = 1']
    """
    tables = {name for name, value in recipe if isinstance(value, BaseModel) and name not in _INLINE}
    values = recipe.model_dump(exclude_none=True)
    lines = [f"{key(name)} = {literal(value)}" for name, value in values.items() if name not in tables]
    for name in [name for name in values if name in tables]:
        lines += ["", f"[{key(name)}]"]
        lines += [f"{key(field)} = {literal(value)}" for field, value in values[name].items() if value is not None]
    return "\n".join(lines) + "\n"


def literal(value: Any) -> str:
    """One value as TOML.

    Raises:
        TypeError: a value that TOML has no form for.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # repr of a float is the shortest text that reads back to the same bits
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key(str(name))} = {literal(item)}" for name, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    raise TypeError(f"TOML has no form for {type(value).__name__}: {value!r}")


def key(name: str) -> str:
    """A key as TOML: bare where it may be."""
    return name if _BARE.fullmatch(name) else literal(name)
