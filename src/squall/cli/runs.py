"""`squall runs`: lists runs with their state and result, shows one, asks one to stop or to change its processes.

All of it is read from the runs' folders, and asked through them: it works for a run on another machine, under any
launcher. What stops or resizes a run is the run itself; see `squall.run.requests`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from squall.cli import asking, flags, overview, resizing, states, tails
from squall.cli.folders import RUNS
from squall.errors import InputError
from squall.run.folder import SESSIONS

app = typer.Typer(help="List runs with their state and result; show, stop or resize one.")

InFlag = Annotated[Path, typer.Option("--in", metavar="DIR", help="The folder of the runs.")]
LimitFlag = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Only the newest; by default 30, all with --json.", show_default=False),
]
NoWaitFlag = Annotated[bool, typer.Option("--no-wait", help="Leave the request and return.")]
TimeoutFlag = Annotated[float, typer.Option("--timeout", metavar="S", min=1, help="Seconds to wait at most.")]

_MOST = 30


@app.callback(invoke_without_command=True)
def _runs(context: typer.Context, in_: InFlag = RUNS, limit: LimitFlag = None, json_: flags.JsonFlag = False) -> None:
    if context.invoked_subcommand is None:
        list_(in_, limit, json_)


@app.command("list")
def list_(in_: InFlag = RUNS, limit: LimitFlag = None, json_: flags.JsonFlag = False) -> None:
    """List the runs, those that moved last first: state, how far, what they reached."""
    if in_ != RUNS and not in_.is_dir():
        raise InputError(f"{in_} is no folder", [("to do", "squall runs --in DIR")])
    folders = states.found_in(in_)
    shown = folders[: limit or (len(folders) if json_ else _MOST)]
    runs = [states.look(folder) for folder in shown]
    if json_:
        print(json.dumps([overview.fields(run) for run in runs]))
        return
    if not runs:
        print(f"no runs in {in_}/ yet      squall train digits")
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(overview.table(runs, time.time(), width)))
    if more := len(folders) - len(runs):
        print(f"and {more:,} older: --limit {len(folders)}")
    following = [f"squall runs show {overview.word(runs[0].folder, in_)}"]
    if waiting := [run for run in runs if run.resumable and not run.job]:
        following.append(f"squall resume {overview.word(waiting[0].folder, in_)}")
    print("\n" + "      ".join(following))


@app.command("show")
def show(run: flags.RunArgument, in_: InFlag = RUNS, json_: flags.JsonFlag = False) -> None:
    """Show one run: sessions, checkpoints, what ended it."""
    folder = states.find(run, in_)
    state, saved = states.look(folder), list(states.checkpoints(folder))
    sessions = list(tails.every(folder / SESSIONS))
    if json_:
        checkpoints = [asdict(checkpoint) for checkpoint in saved]
        print(json.dumps({**overview.fields(state), "sessions": sessions, "checkpoints": checkpoints}))
        return
    print("\n".join(overview.detail(state, in_, sessions, saved, time.time())))


@app.command("stop")
def stop(
    run: flags.RunArgument,
    in_: InFlag = RUNS,
    no_wait: NoWaitFlag = False,
    timeout: TimeoutFlag = 600.0,
    json_: flags.JsonFlag = False,
) -> None:
    """Ask a run to save and stop, and wait until it has."""
    _answer(asking.stop(states.find(run, in_), in_, wait_s=None if no_wait else timeout), json_)


@app.command("resize")
def resize(
    run: flags.RunArgument,
    processes: Annotated[
        int | None, typer.Option("--processes", "-P", min=1, help="To go on with.", show_default=False)
    ] = None,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, help="Of a run of replicas, to go on with.", show_default=False)
    ] = None,
    in_: InFlag = RUNS,
    no_wait: NoWaitFlag = False,
    timeout: TimeoutFlag = 600.0,
    json_: flags.JsonFlag = False,
) -> None:
    """Ask a run to go on with other processes (the result stays the same) or replicas (that of Downpour does not)."""
    if (processes is None) == (replicas is None):
        raise InputError(
            "resize to what?" if processes is None else "--processes and --replicas",
            [("rule", "--processes N of a synchronous run, or --replicas N of one with an asynchronous strategy")],
        )
    folder, wait_s = states.find(run, in_), None if no_wait else timeout
    if replicas is not None:
        _answer(resizing.replicas(folder, in_, replicas, wait_s=wait_s), json_)
    elif processes is not None:
        _answer(asking.resize(folder, in_, processes, wait_s=wait_s), json_)


def _answer(answer: asking.Answer, json_: bool) -> None:
    print(json.dumps(overview.fields(answer.run)) if json_ else answer.text)
