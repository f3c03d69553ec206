"""`squall verify`: runs a training script, observes it, and says whether it computes what it should.

Mistakes in flags are found before anything starts; the files are written, whole, before the verdict is printed. What
runs and checks the script is `squall.verify.examining`; it is imported last, since it loads torch.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from squall.cli import flags, voices
from squall.cli.folders import whole
from squall.errors import InputError, Mistakes
from squall.recipe import read
from squall.units import Duration
from squall.verify import words
from squall.verify.catalogue import CHECKS, chosen
from squall.verify.masking import masked

if TYPE_CHECKING:
    from squall.verify.finding import Outcome, Verdict

PAGE, JSON, JUNIT = "verify.html", "verify.json", "verify.xml"

_OURS = {PAGE: 'name="generator" content="squall ', JSON: '"squall": "', JUNIT: 'name="squall verify '}
"""What stands near the begin of those that were written here: no other file of that name is written over."""

_BEGIN = 4096

_MOST_PROCESSES = 64
_WIDEST = 120
_COLOURS = {"ok": "32", "note": "33", "FAIL": "1;31", "--": "2"}


def verify(
    script: Annotated[
        str | None,
        typer.Argument(
            metavar="SCRIPT|TARGET", help="A script that trains, or what squall train takes.", show_default=False
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- ARGUMENT",
            help="What the script is given; {folder} in it is a new folder for each run.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        str, typer.Option("--processes", "-P", metavar="P,P", help="How many, one run of the script for each.")
    ] = "2,4",
    epochs: Annotated[int, typer.Option("--epochs", min=2, metavar="N", help="Epochs that are observed.")] = 2,
    steps: Annotated[
        int, typer.Option("--steps", min=2, metavar="N", help="Updates of each epoch that are run at least.")
    ] = 24,
    limit: Annotated[
        str, typer.Option("--limit", metavar="T", help="Time for each run of the script: 90s, 10min, 1h.")
    ] = "10min",
    checks: Annotated[
        str | None, typer.Option("--checks", metavar="NAME,NAME", help="Only these.", show_default=False)
    ] = None,
    resumes: Annotated[
        bool, typer.Option("--resume", help="Also kill it after a checkpoint, and start it again; see {folder}.")
    ] = False,
    resume_with: Annotated[
        str | None,
        typer.Option("--resume-with", metavar="ARGUMENTS", help="More arguments to go on with.", show_default=False),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Say what is checked, and where it was described.")] = False,
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="The folder of verify.html, verify.json and verify.xml.")
    ] = Path(),
    json_: flags.JsonFlag = False,
) -> int:
    """Prove that a training script (DDP, FSDP2, Accelerate, Lightning, Squall) computes what it should."""
    if list_:
        _list(json_)
        return 0
    if script is None:
        raise InputError("verify what?", [("to do", "squall verify SCRIPT|TARGET [-- ARGUMENT...]")])
    mistakes = Mistakes("what verify was given", hint="all flags: squall verify --help")
    numbers, limit_s = _processes(processes, mistakes), _seconds(limit, mistakes)
    only = None if checks is None else chosen([word.strip() for word in checks.split(",")], mistakes, "--checks")
    more = _split(resume_with or "", mistakes)
    _check_folder(to, mistakes)
    _check_files(to, mistakes)
    mistakes.raise_if_any()
    _check_script(script)
    if voices.job() is not None:
        raise InputError(
            "squall verify inside a job of several processes", [("rule", "it starts its own: run it alone")]
        )
    from squall.verify import devices
    from squall.verify.examining import examine

    numbers, left_out = devices.fitting(numbers, devices.count())
    with _progress() as progress, _ended_by_request():
        verdict = examine(
            script,
            tuple(arguments or ()),
            processes=numbers,
            epochs=epochs,
            steps=steps,
            limit_s=limit_s,
            checks=only,
            resumes=resumes or resume_with is not None,
            resume_with=more,
            progress=progress,
        )
    verdict = replace(verdict, arguments=tuple(masked(verdict.arguments)), troubles=(*left_out, *verdict.troubles))
    _tell(verdict, to, json_)
    return 0 if verdict.ok else 1


@contextmanager
def _ended_by_request() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does: ranks are ended, and the user's files put back."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _list(json_: bool) -> None:
    if json_:
        print(json.dumps([{"name": check.name, "asks": check.asks, "known": check.known} for check in CHECKS]))
        return
    column = max(len(check.name) for check in CHECKS)
    for check in CHECKS:
        below = textwrap.wrap(words.sources(check.known), _WIDEST - column - 3, break_on_hyphens=False)
        print(f"{check.name:<{column}}   {check.asks}", *(f"{'':<{column}}   {line}" for line in below), sep="\n")


def _processes(text: str, mistakes: Mistakes) -> tuple[int, ...]:
    """Different numbers, in the order in which they were written."""
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(1 <= number <= _MOST_PROCESSES for number in found) or len(set(found)) < len(found):
        mistakes.add(f"--processes {text}", f"different numbers from 1 to {_MOST_PROCESSES} with commas between: 2,4")
    return found


def _seconds(text: str, mistakes: Mistakes) -> float:
    try:
        found = Duration.parse(text)
    except ValueError:
        found = Duration(0, "step")
    if found.unit != "second" or found.amount < 1:
        mistakes.add(f"--limit {text}", "no stretch of time of a second or more: 90s, 10min, 1h")
    return found.amount


def _split(text: str, mistakes: Mistakes) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        mistakes.add(f"--resume-with {text}", f"words as a shell reads them: {error}")
        return ()


def _check_folder(folder: Path, mistakes: Mistakes) -> None:
    """It is looked at before minutes are spent on what cannot be written then."""
    there = next((place for place in (folder, *folder.absolute().parents) if os.path.lexists(place)), folder)
    if not there.is_dir():
        mistakes.add(f"--to {folder}", f"{there} is no folder")
    elif not os.access(there, os.W_OK | os.X_OK):
        mistakes.add(f"--to {folder}", f"{there} cannot be written")


def _check_files(folder: Path, mistakes: Mistakes) -> None:
    """They take the place of older verdicts only."""
    for name, ours in _OURS.items():
        path = folder / name
        if not path.is_file() or not os.access(path, os.R_OK):
            continue  # nothing that could be lost
        with path.open(encoding="utf-8", errors="replace") as file:
            begin = file.read(_BEGIN)
        if begin and ours not in begin:
            mistakes.add(f"--to {folder}", f"{path} was not written by squall verify: move it, or --to another folder")


def _check_script(script: str) -> None:
    """A script is a .py file that is there; anything else must be a recipe."""
    path = Path(script)
    if script.endswith(".py"):
        if not path.is_file():
            raise InputError(f"cannot read {script}", [("found", "a folder" if path.is_dir() else "no such file")])
    elif path.exists() and not script.endswith(".toml"):
        found = "a folder" if path.is_dir() else "another file"
        raise InputError(
            f"{script} is no training", [("found", found), ("rule", "a script is a .py file, a recipe a .toml file")]
        )
    else:
        read(script)


@contextmanager
def _progress() -> Iterator[Callable[[str], None] | None]:
    """One line on a terminal's standard error that says how far it is, and is gone at the end."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        yield lambda text: live.update(Text(words.plain(text), no_wrap=True, overflow="ellipsis"), refresh=True)


def _tell(verdict: Verdict, folder: Path, json_: bool) -> None:
    """Writes the files, then prints: the verdict is said even where they cannot be written."""
    from squall.verify.junit import junit
    from squall.verify.page import page
    from squall.verify.values import to_json

    values = to_json(verdict)
    texts = {PAGE: page(verdict), JSON: json.dumps(values, indent=2) + "\n", JUNIT: junit(verdict)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with whole(folder / name) as file:
                file.write(text)
    except OSError as error:
        print(json.dumps(values) if json_ else _text(verdict, []))
        rows = [("found", error.strerror or str(error)), ("to do", "another folder with --to DIR")]
        raise InputError(f"{error.filename or folder} cannot be written", rows) from error
    print(json.dumps(values) if json_ else _text(verdict, [str(folder / name) for name in texts]))


def _text(verdict: Verdict, files: list[str]) -> str:
    """As wide as the terminal, but no wider than one reads, with colours for outcomes where it shows any."""
    from rich.console import Console

    from squall.verify.text import WIDTH, text

    console = Console(file=sys.stdout)
    if not console.is_terminal:
        return text(verdict, WIDTH, files)
    width = min(console.width, _WIDEST)
    if console.no_color or not console.color_system:
        return text(verdict, width, files)
    return text(verdict, width, files, _painted)


def _painted(outcome: Outcome, word: str) -> str:
    return f"\x1b[{_COLOURS[outcome]}m{word}\x1b[0m"
