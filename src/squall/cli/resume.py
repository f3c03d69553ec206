"""`squall resume`: goes on with a run from its newest whole checkpoint, on any number of processes.

The run's folder says everything: recipe.toml what is trained, run.json how the command line was called.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from squall.cli import flags, processes, restarts, sizes
from squall.cli.target import Target, import_from, load_task
from squall.cli.train import Wish, launch, work
from squall.errors import InputError
from squall.recipe import load
from squall.run.folder import RECIPE, RECORDS, STARTED, check_open, outcome


def resume(
    run: flags.RunArgument,
    processes_: flags.ElasticFlag = None,
    data: flags.DataFlag = None,
    device: flags.DeviceFlag = None,
    quiet: flags.QuietFlag = False,
    json_: flags.RecordsFlag = False,
    timeout: flags.TimeoutFlag = 300.0,
    restarts_: flags.RestartsFlag = restarts.DEFAULT,
    other_arithmetic: Annotated[
        bool,
        typer.Option("--other-arithmetic", help="Go on where bits will differ: another processor, torch, precision."),
    ] = False,
) -> int:
    """Go on with a run from its last whole checkpoint, on any number of processes."""
    place = processes.job(processes_)
    folder = find(run)
    ended = outcome(folder)
    if ended == "finished":
        if place is None or place.rank == 0:
            print(json.dumps({"run": str(folder), "outcome": ended}) if json_ else _nothing_to_do(folder))
        return 0
    check_open(folder)
    started = _started(folder)
    data_folder = flags.data_folder(data if data is not None else _path(started.get("data")))
    chosen = device.value if device else started.get("device")
    target = _target(folder, started)
    wish = Wish(
        target,
        data_folder,
        chosen,
        quiet,
        json_,
        trackers=tuple(started.get("trackers", ())),
        timeout=timeout,
        restarts=restarts_,
        other_arithmetic=other_arithmetic,
        span=processes_,
    )
    sizes.check_files(target, data_folder)
    passes = sizes.num_passes(target.recipe, sizes.num_train(target, data_folder))
    if place is not None:
        processes.check_passes(place.size, target.recipe, passes)
        return work(wish, folder)
    with processes.threads_before_torch(target.recipe.compute.threads):
        size = processes.number(processes_, target.recipe, passes, chosen)
        if size == 1 and not (processes_ and processes_.is_range):
            return work(wish, folder)
        target.forget()
        return launch(wish, ["resume", str(folder)], folder, size, passes)


def find(run: str, runs: Path = Path("runs")) -> Path:
    """The folder of a run that may not have come to its end: a path, a name under runs/, or "last" for the newest.

    Raises:
        InputError: there is no such run.
    """
    if run == "last":
        folders = sorted((p.parent for p in runs.glob(f"*/{RECORDS}")), key=lambda p: (p / RECORDS).stat().st_mtime)
        if folders:
            return folders[-1]
        raise InputError(f"there is no run in {runs}/ yet", [("to do", "squall train digits")])
    for path in (Path(run), runs / run):
        if (path / RECORDS).is_file():
            return path
    raise InputError(f"{run} is no run folder", [("found", f"no {RECORDS} in it"), ("to do", "squall runs lists them")])


def _nothing_to_do(folder: Path) -> str:
    return f"{folder} is finished: there is nothing to resume\nnext    squall report {folder}      squall eval {folder}"


def _started(folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / STARTED).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} does not say how its run was started",
            [("found", f"no {STARTED} that can be read"), ("to do", "start the program again with the same folder")],
        ) from error
    if "target" not in values or not (folder / RECIPE).is_file():
        raise InputError(
            f"{folder} is the run of a program of your own",
            [
                ("to do", "run it again; it goes on from its newest checkpoint:"),
                ("", " ".join(values.get("argv", [])) or "(it does not say which)"),
            ],
        )
    return values


def _target(folder: Path, started: dict[str, Any]) -> Target:
    """What the run trains: its resolved recipe, and the task of a .py file."""
    import_from(Path(started.get("folder", ".")))
    import_from(Path.cwd())
    recipe = load(folder / RECIPE)
    file = started.get("task")
    if file is None:
        return Target(started["target"], recipe)
    if not Path(file).is_file():
        raise InputError(f"the task of {folder} is gone", [("found", f"no file {file}")])
    module, task = load_task(file)
    return Target(started["target"], recipe, task, module)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
