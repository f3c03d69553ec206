"""Recipes by name and from files, and what `key=value` on the command line does to them.

An override acts on the recipe as written: a default that follows from another field (`lr.base_batch_size` from
`global_batch_size`) is worked out again afterwards. Values are TOML literals; a bare word is a string.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from squall.data.sizes import BATCH_FIELDS
from squall.errors import InputError, Mistakes, nearest
from squall.recipe.names import FIELDS_OF_RULES, is_own
from squall.recipe.resolve import PLAIN, keep_two_batch_fields, short_forms
from squall.recipe.spec import Recipe, build
from squall.recipe.strategies import leave_out_foreign_keys

_FOLDER = resources.files("squall") / "recipes"


def shipped() -> dict[str, str]:
    """The recipes inside the package: name -> one line on what it trains (the first comment of its file)."""
    files = {item.name.removesuffix(".toml"): item for item in _FOLDER.iterdir() if item.name.endswith(".toml")}
    return {name: _first_comment(files[name].read_text(encoding="utf-8")) for name in sorted(files)}


def source(name: str) -> str:
    """The text of a shipped recipe, with its comments.

    Raises:
        InputError: no such recipe, with the nearest names.
    """
    known = shipped()
    if name not in known:
        near = nearest(name, list(known))
        rows = [("near", ", ".join(near))] if near else []
        raise InputError(
            f"no recipe called {name}",
            [
                *rows,
                ("shipped", " ".join(known)),
                ("or", "the path of a .toml file, or of a .py file that defines task"),
            ],
        )
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def load(target: str | Path) -> Recipe:
    """The recipe of this name, or in this .toml file.

    Raises:
        InputError: no such recipe or file, no TOML, or mistakes in it, all at once.
    """
    return parse(read(target), str(target))


def read(target: str | Path) -> dict[str, Any]:
    """A recipe's tables as they are written, unchecked: what `override` acts on.

    Raises:
        InputError: no such recipe or file, or no TOML.
    """
    is_file = str(target).endswith(".toml") or isinstance(target, Path)
    try:
        text = Path(target).read_text(encoding="utf-8") if is_file else source(str(target))
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or "not a text file"
        raise InputError(f"cannot read {target}", [("found", reason), ("shipped", " ".join(shipped()))]) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{target} is no TOML", [("found", str(error))]) from None


def parse(mapping: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from its tables; `where` is what errors call it.

    Raises:
        InputError: with all mistakes at once.
    """
    return build(mapping, where, _hint(where))


def override(recipe: Recipe | Mapping[str, Any], assignments: Iterable[str], where: str | None = None) -> Recipe:
    """The recipe with `key=value` assignments applied, in order.

    Arguments:
        recipe: a recipe, or tables as `read` gives them.
        assignments: for example "lr=0.2", "lr.base=0.2", "model.width=24", "optimizer=adamw",
            "data.train=[{horizontal_flip=0.5}]"; "none" takes an optional value away.
        where: what errors call it; the recipe's name unless given.

    Raises:
        InputError: with all mistakes at once, those of the recipe itself included.

    Example:
        >>> override(load("cifar10"), ["virtual_workers=8", "model=resnet20"]).global_batch_size
        256
    """
    values = recipe.model_dump(exclude_unset=True) if isinstance(recipe, Recipe) else _copied(recipe)
    where = where or str(values.get("name", "recipe"))
    mistakes = Mistakes(where, _hint(where))
    overridden: set[str] = set()  # as paths
    strategy = values.get("strategy", "sync")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.strip().split(".")):
            mistakes.add(assignment, "is no key=value")
            continue
        overridden.add(".".join(_assign(values, key.strip().split("."), _value(text.strip()))))
    if values.get("strategy", "sync") != strategy:
        leave_out_foreign_keys(values, overridden, short_forms(Recipe))
    if overridden & set(BATCH_FIELDS):
        keep_two_batch_fields(values, overridden)
    try:
        result = parse(values, where)
    except InputError as error:
        mistakes.rows.extend(error.rows)
    mistakes.raise_if_any()
    return result


def _assign(values: dict[str, Any], path: list[str], value: Any) -> list[str]:
    """Sets one field in place, creating tables on the way; returns its full path."""
    short = short_forms(Recipe)
    if len(path) == 1 and path[0] in short:
        path = [short[path[0]], *path]
    elif len(path) == 1 and path[0] in PLAIN and not isinstance(value, dict):
        path = [*path, PLAIN[path[0]]]
    table = values
    for part in path[:-1]:
        inner = table.get(part)
        if not isinstance(inner, dict):  # a short form such as optimizer = "sgd" becomes a table
            inner = {PLAIN[part]: inner} if part in PLAIN and inner is not None else {}
            table[part] = inner
        table = inner
    if path == ["optimizer", "name"]:
        _leave_out_foreign(table, value)
    if value == "none" and tuple(path) in _OPTIONAL:
        table.pop(path[-1], None)
    else:
        table[path[-1]] = value
    return path


_OPTIONAL = {("ema",), ("clip_grad_norm",), ("model", "weights"), ("data", "root"), ("data", "train_limit")}
_OPTIONAL |= {("data", "test_limit"), ("optimizer", "betas"), ("optimizer", "eps"), ("lr", "base_batch_size")}
_OPTIONAL |= {("downpour", "local_lr"), ("downpour", "max_staleness"), ("sandblaster", "damping")}


def _leave_out_foreign(optimizer: dict[str, Any], name: Any) -> None:
    """Another rule does not read momentum, betas and the like of the one it replaces."""
    if not isinstance(name, str) or name == optimizer.get("name", "sgd"):
        return
    for field, rules in FIELDS_OF_RULES.items():
        if name not in rules and not is_own(name):
            optimizer.pop(field, None)
    optimizer.pop("options", None)


def _value(text: str) -> Any:
    """A TOML literal; a number as Python writes it; else the words themselves."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _copied(value: Any) -> Any:
    """Tables and lists copied, so that nobody's own are changed."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


def _hint(where: str) -> str:
    known = where if not where.endswith(".toml") and (_FOLDER / f"{where}.toml").is_file() else ""
    return f"all fields: squall recipes {known} --fields".replace("  ", " ")


def _first_comment(text: str) -> str:
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
