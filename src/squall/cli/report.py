"""`squall report`: one self-contained page of a run or of several side by side, as a file or following a job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from squall.cli import flags, states
from squall.cli.folders import RUNS, whole
from squall.errors import InputError

if TYPE_CHECKING:
    from squall.report import Reader

PAGE = "report.html"


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs' folders, their names under runs/, or last.", show_default=False),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FILE",
            help="By default report.html in the run's folder; of several runs, here.",
            show_default=False,
        ),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Serve the page on this machine and follow the job.")] = False,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, metavar="N", help="With --live.", show_default=False)
    ] = None,
    json_: flags.JsonFlag = False,
) -> int:
    """Make one page of a run, or of several side by side: curves, time, ranks, sessions, arithmetic, ledger."""
    if live and to is not None:
        raise InputError("--live and --to", [("rule", "a page is served or written: one at a time")])
    if port is not None and not live:
        raise InputError(f"--port {port}", [("rule", "only a page that is served has a port"), ("to do", "add --live")])
    from squall.report import Reader

    folders: dict[Path, Path] = {}
    for run in runs:
        folder = states.find(run, RUNS)
        folders.setdefault(folder.resolve(), folder)
    readers = [Reader(folder, label) for folder, label in zip(folders.values(), labels(list(folders)), strict=True)]
    if live:
        return _serve(readers, port, json_)
    return _write(readers, to or (readers[0].folder / PAGE if len(readers) == 1 else Path(PAGE)), json_)


def labels(folders: Sequence[Path]) -> list[str]:
    """Short names of folders that tell them apart: as many of their last parts as that takes.

    Arguments:
        folders: absolute, all different.
    """
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _write(readers: Sequence[Reader], path: Path, json_: bool) -> int:
    from squall.report import document, html

    if path.suffix not in (".html", ".htm"):
        raise InputError(
            f"--to {path}", [("rule", "a page is a .html file"), ("to do", f"--to {path.with_suffix('.html')}")]
        )
    page = html(document([reader.read() for reader in readers]))
    try:
        with whole(path) as file:
            file.write(page)
    except OSError as error:
        rows = [("found", error.strerror or str(error)), ("to do", "another file with --to FILE")]
        raise InputError(f"{path} cannot be written", rows) from error
    folders = [str(reader.folder) for reader in readers]
    if json_:
        print(json.dumps({"runs": folders, "file": str(path), "bytes": path.stat().st_size}))
        return 0
    print(f"run     {folders[0]}" if len(folders) == 1 else f"runs    {len(folders)}: {' '.join(folders)}")
    print(f"wrote   {path}: one page, {path.stat().st_size / 1e6:.1f} MB, opens in any browser, without a network")
    return 0


def _serve(readers: Sequence[Reader], port: int | None, json_: bool) -> int:
    from squall.report import Live

    server = Live(readers, port)
    folders = [str(reader.folder) for reader in readers]
    if json_:
        print(json.dumps({"runs": folders, "url": server.url}), flush=True)
    else:
        print(f"follows {' '.join(folders)}\nopen    {server.url}   (on this machine only; Ctrl-C ends it)", flush=True)
    try:
        server.serve()
    except KeyboardInterrupt:  # how a server is meant to end
        if not json_:
            print()
    return 0
