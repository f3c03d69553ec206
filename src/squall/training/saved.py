"""What a run left behind, read again: its recipe, its model, its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from squall.errors import InputError
from squall.recipe import Recipe, to_toml
from squall.recipe import load as load_recipe
from squall.records import dotted
from squall.run.folder import EMA_WEIGHTS, RECIPE, RECORDS, RESULT, WEIGHTS, write_text

if TYPE_CHECKING:
    from torch import nn

    from squall.run import Run

LAST = "last"

_FREE = ("data.num_workers", "data.root", "name")
"""Fields of a recipe that change no result."""


def find(run: str | Path, runs: Path = Path("runs")) -> Path:
    """The folder of a run: a path, a name under runs/, or "last" for the newest that came to a result.

    Raises:
        InputError: there is no such run; names the newest ones.
    """
    folders = sorted((p.parent for p in runs.glob(f"*/{RESULT}")), key=lambda p: (p / RESULT).stat().st_mtime)
    if str(run) == LAST:
        for folder in reversed(folders):
            if _read(folder).get("outcome") not in ("diverged", "failed") and (folder / WEIGHTS).is_file():
                return folder
        raise InputError(f"no run in {runs}/ has a result yet", [("to do", "squall train digits")])
    for path in (Path(run), runs / run):
        if (path / RESULT).is_file():
            return path
    newest = ", ".join(folder.name for folder in reversed(folders[-3:]))
    raise InputError(f"{run} is no run folder with a {RESULT}", [("newest", newest)] if newest else [])


def result(run: str | Path) -> dict[str, Any]:
    """A run's result.json."""
    return _read(find(run))


def _read(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return values


def weights_of(folder: Path, *, ema: bool | None = None) -> Path:
    """The file of a run's weights.

    Arguments:
        ema: the averaged ones; by default if the run has them.

    Raises:
        InputError: there is none; says how the run ended.
    """
    averaged = (folder / EMA_WEIGHTS).is_file() if ema is None else ema
    path = folder / (EMA_WEIGHTS if averaged else WEIGHTS)
    if path.is_file():
        return path
    ended = _read(folder)
    rows = [("found", f"no {path.name}; the run {ended.get('outcome', 'ended')}")]
    if ended.get("error"):
        rows.append(("it said", str(ended["error"])))
    raise InputError(f"{folder} has no {'averaged ' if averaged else ''}weights", rows)


def recipe_of(folder: Path) -> Recipe:
    """The resolved recipe of a run.

    Raises:
        InputError: the run came from a loop of your own, which has none.
    """
    if not (folder / RECIPE).is_file():
        raise InputError(
            f"{folder} has no {RECIPE}",
            [("found", "a run of your own loop"), ("to do", "build the model yourself and squall.load(run, model)")],
        )
    return load_recipe(folder / RECIPE)


def write_recipe(run: Run, recipe: Recipe) -> None:
    """Writes the resolved recipe into the run's folder; one that is there, of a run that goes on, must be the same.

    Raises:
        InputError: it is another; with every field that differs.
    """
    from squall.run.collect import on_main

    on_main(run.world, lambda: save_recipe(run.path, recipe) if run.path is not None else None)


def save_recipe(folder: Path, recipe: Recipe) -> None:
    """Writes the resolved recipe into a run's folder; as `write_recipe`, on the process that writes."""
    path = folder / RECIPE
    if path.exists() and path.with_name(RECORDS).exists():
        before = load_recipe(path)
        rows = _differences(before, recipe)
        if rows:
            raise InputError(
                f"the run in {folder} was begun by another recipe",
                [
                    *rows,
                    ("rule", "a run is gone on with by the recipe that it began with"),
                    ("to do", f"squall resume {folder}; or another folder for a new run"),
                ],
            )
    write_text(path, to_toml(recipe))


def _differences(before: Recipe, now: Recipe) -> list[tuple[str, str]]:
    """Fields of a recipe that differ and change the result."""
    old, new = (dotted(recipe.model_dump(mode="json")) for recipe in (before, now))
    return [
        (key, f"{old.get(key)!r} there, {new.get(key)!r} here")
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and key not in _FREE and not key.startswith("checkpoint.")
    ]


def load(run: str | Path, model: nn.Module | None = None, *, ema: bool | None = None) -> nn.Module:
    """The trained model of a run, in evaluation mode.

    Arguments:
        run: folder, name under runs/, or "last".
        model: takes the weights; by default the recipe's network is built. Needed for tasks and loops of your own.
        ema: take the averaged weights; by default if the run has them.

    Raises:
        InputError: no such run, or weights that do not fit the model.
    """
    from squall.model import weights

    folder = find(run)
    path = weights_of(folder, ema=ema)
    if model is None:
        from squall.training.parts import model_of

        recipe = recipe_of(folder)
        if recipe.model is None:
            raise InputError(
                f"{folder} trained a task of its own",
                [("to do", "squall.load(run, model) with the model that the task makes")],
            )
        model = model_of(recipe.model.model_copy(update={"weights": None, "weights_skip": ()}))
    weights.load_into(model, path)
    return model.eval()
