"""`squall data`: gets public sets, lists them, and reads every file of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from squall.cli import flags
from squall.data.catalogue import CATALOGUE, find
from squall.errors import InputError
from squall.units import megabytes

app = typer.Typer(help="Get public data sets, list them, check one.", no_args_is_help=False)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A set of squall data list.", show_default=False)]
Progress = Callable[[str, int, int], None]


@app.callback(invoke_without_command=True)
def _data(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("fetch")
def fetch(
    name: NameArgument,
    data: flags.DataFlag = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="Another place with the same files.", show_default=False)
    ] = None,
    json_: flags.JsonFlag = False,
) -> None:
    """Get a public set: goes on where a line was cut, and checks every byte by sha256."""
    from squall.data import fetch as fetching

    public, folder = find(name), flags.data_folder(data) / name
    if not json_:
        print(f"{public.about}; {megabytes(public.download_bytes)}; licence: {public.licence}", file=sys.stderr)
    base_url = f"{source.rstrip('/')}/" if source else None
    with _progress(shown=not json_, as_bytes=True) as progress:
        paths = fetching.fetch(name, folder, base_url=base_url, progress=progress)
    if json_:
        print(json.dumps({"name": name, "folder": str(folder), "files": [path.name for path in paths]}))
    else:
        print(f"{len(paths)} files in {folder}, sha256 checked      squall data check {name} --data {folder.parent}")


@app.command("list")
def list_(data: flags.DataFlag = None, json_: flags.JsonFlag = False) -> None:
    """List the sets that Squall knows by name, and where they are."""
    root = flags.data_folder(data)
    rows = [("digits", "1,797 grey images of handwritten digits of 8x8, 10 classes", "-", "inside the package")]
    rows += [
        (public.name, public.about, megabytes(public.download_bytes), _where(public.reader, root / public.name))
        for public in CATALOGUE.values()
    ]
    if json_:
        keys = ("name", "about", "download", "where")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
        return
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, about, size, where in rows:
        print(f"{name:<{widths[0]}}   {about:<{widths[1]}}   {size:>{widths[2]}}   {where}")
    print(f"\nsquall data fetch NAME --data {root}")


@app.command("check")
def check(name: NameArgument, data: flags.DataFlag = None, json_: flags.JsonFlag = False) -> int:
    """Read every file of a set: count, unpack, decode, compare sums, find images that occur twice."""
    from dataclasses import asdict

    from squall.data.audit import check as audit
    from squall.data.sources import NAMES

    root = flags.data_folder(data)
    folder = None if name == "digits" else root / name
    reader = name
    if name not in CATALOGUE and name not in NAMES and folder is not None:
        reader = _reader_of(name, folder)
    with _progress(shown=not json_, as_bytes=False) as progress:
        found = audit(reader, folder, progress)
    print(json.dumps({**asdict(found), "ok": found.ok}) if json_ else found.text())
    return 0 if found.ok else 1


def _reader_of(name: str, folder: Path) -> str:
    """How a folder of one's own is read: by what is in it."""
    if (folder / "train").is_dir():
        return "imagefolder"
    if folder.is_dir() and any("idx3-ubyte" in entry.name for entry in folder.iterdir()):
        return "idx"
    if folder.is_dir() and any(entry.name.startswith("data_batch_1.bin") for entry in folder.iterdir()):
        return "cifar10"
    if folder.is_dir():
        raise InputError(
            f"{folder} holds no set that is known",
            [("needed", "train/<class>/* and val/<class>/*, four IDX files, or CIFAR-10's .bin files")],
        )
    return name  # unknown altogether: the audit says so, with the names that are


def _where(reader: str, folder: Path) -> str:
    from squall.data.sources import check as quick_check

    try:
        quick_check(reader, folder)
    except InputError as error:
        return "not here" if not folder.is_dir() else f"{folder}: {error.headline}"
    return str(folder)


@contextmanager
def _progress(*, shown: bool, as_bytes: bool) -> Iterator[Progress | None]:
    """A bar a file on standard error; nothing where that is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield None
        return
    from rich import progress as bars

    columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}"), bars.BarColumn()]
    columns += [bars.DownloadColumn(), bars.TransferSpeedColumn()] if as_bytes else [bars.MofNCompleteColumn()]
    with bars.Progress(*columns, bars.TimeRemainingColumn(), console=console) as bar:
        tasks: dict[str, bars.TaskID] = {}

        def tell(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        yield tell
