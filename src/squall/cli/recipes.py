"""`squall recipes`: the shipped recipes listed, printed, copied, documented, and written out as a script."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from squall.cli import flags
from squall.cli.target import resolve
from squall.errors import InputError
from squall.recipe import fields_table, load, shipped, source

_WIDTH = 120


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A shipped recipe, or a .toml file.", show_default=False)
    ] = None,
    overrides: flags.Overrides = None,
    copy: Annotated[
        Path | None,
        typer.Option("--copy", metavar="FILE", help="Write the recipe into a file, to change it.", show_default=False),
    ] = None,
    fields: Annotated[bool, typer.Option("--fields", help="Document every field.")] = False,
    as_script: Annotated[
        bool, typer.Option("--as-script", help="Print a script: Squall's own loop on this recipe.")
    ] = False,
    json_: flags.JsonFlag = False,
) -> None:
    """List, print or copy a recipe; document its fields; write its loop as a script."""
    if sum((copy is not None, fields, as_script)) > 1:
        raise InputError("more than one of --copy, --fields, --as-script", [("rule", "one at a time")])
    if fields:
        _fields(name, overrides or [], json_)
    elif name is None:
        if copy is not None or as_script:
            raise InputError("which recipe?", [("shipped", " ".join(shipped()))], "squall recipes NAME --copy FILE")
        _list(json_)
    elif as_script:
        from squall.cli.script import script

        print(script(resolve(name, overrides or []).recipe), end="")
    elif copy is not None:
        _copy(name, copy)
    elif json_ or overrides:
        recipe = resolve(name, overrides or []).recipe
        from squall.recipe import to_toml

        print(json.dumps(recipe.model_dump(mode="json")) if json_ else to_toml(recipe), end="\n" if json_ else "")
    else:
        print(_text(name), end="")


def _text(name: str) -> str:
    if not name.endswith(".toml"):
        return source(name)
    load(name)  # a file with mistakes is reported, not printed
    return Path(name).read_text(encoding="utf-8")


def _list(json_: bool) -> None:
    known = shipped()
    if json_:
        print(json.dumps(known))
        return
    width = max(map(len, known))
    for name, about in known.items():
        print(f"{name:<{width}}   {about}")
    print("\nsquall recipes NAME      squall explain NAME      squall train NAME key=value ...")


def _copy(name: str, path: Path) -> None:
    text = _text(name)
    if path.is_dir():
        path = path / f"{name}.toml"
    if path.suffix != ".toml":
        raise InputError(
            f"--copy {path}", [("rule", "a recipe is a .toml file"), ("to do", f"--copy {path.with_suffix('.toml')}")]
        )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path} exists already", [("to do", "choose another name, or remove it")]) from None
    except OSError as error:
        raise InputError(f"{path} cannot be written", [("found", error.strerror or str(error))]) from None
    print(f"wrote {path}      squall train {path}")


def _fields(name: str | None, overrides: list[str], json_: bool) -> None:
    recipe = resolve(name, overrides).recipe if name is not None else None
    rows = fields_table(recipe)
    if json_:
        print(json.dumps([row._asdict() for row in rows]))
        return
    column = max(len(row.name) for row in rows)
    for row in rows:
        value = f" = {row.value}" if row.value else ""
        default = "required" if row.default == "required" else f"default {row.default}" if row.default else ""
        lines = [f"{row.name:<{column}}  {row.meaning}"]
        detail = "; ".join(part for part in (row.type, default) if part)
        below = textwrap.wrap(f"({detail}){value}", _WIDTH - column - 2, break_long_words=False) or [""]
        print("\n".join([*lines, *(f"{'':<{column}}  {line}" for line in below)]))
