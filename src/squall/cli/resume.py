"""`squall resume`: goes on with a run from its newest whole checkpoint, on any number of processes.

The run's folder says everything: recipe.toml what is trained, run.json how the command line was called.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from squall.cli import engines, flags, processes, restarts, sizes, states
from squall.cli.folders import RUNS
from squall.cli.session import Wish, start, work
from squall.cli.target import Target, import_from, load_task
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
    timeout: flags.TimeoutFlag = flags.TIMEOUT_S,
    restarts_: flags.RestartsFlag = restarts.DEFAULT,
    other_arithmetic: Annotated[
        bool,
        typer.Option("--other-arithmetic", help="Go on where bits will differ: another processor, torch, precision."),
    ] = False,
    cluster: engines.ClusterFlag = None,
    trust_cluster: engines.TrustFlag = False,
) -> int:
    """Go on with a run from its last whole checkpoint, on any number of processes."""
    place = processes.job(processes_)
    folder = _find(run)
    ended = outcome(folder)
    if ended == "finished":
        if place is None or place.rank == 0:
            print(json.dumps({"run": str(folder), "outcome": ended}) if json_ else _nothing_to_do(folder))
        return 0
    check_open(folder)
    started = _started(folder)
    wish = Wish(
        target=_target(folder, started),
        data_folder=flags.data_folder(data or _data_of(started)),
        device=device or started.get("device"),
        trackers=tuple(started.get("trackers", ())),
        quiet=quiet,
        json=json_,
        timeout=timeout,
        restarts=restarts_,
        span=processes_,
        other_arithmetic=other_arithmetic,
    )
    sizes.check_files(wish.target, wish.data_folder)
    name = engines.EngineName(started.get("engine", "ray"))
    simulated = name if name is engines.EngineName.simulated and wish.target.recipe.strategy != "sync" else None
    foreign = engines.foreign(
        device=device,
        timeout=timeout,
        restarts=restarts_,
        processes=processes_,
        other_arithmetic=other_arithmetic,
    )
    address = cluster or started.get("cluster")
    if engines.check(wish, simulated, address, trust_cluster, foreign):
        trusted = trust_cluster or bool(started.get("trust_cluster"))
        with processes.threads_before_torch(wish.target.recipe.compute.threads):
            return engines.work(wish, folder, name, address, trusted)
    recipe, num_train = wish.target.recipe, sizes.num_train(wish.target, wish.data_folder)
    passes = sizes.num_passes(recipe, num_train)
    if place is not None:
        processes.check_passes(place.size, recipe, passes)
        return work(wish, folder)
    with processes.threads_before_torch(recipe.compute.threads):
        size = processes.number(processes_, recipe, passes, wish.device)
        return start(wish, ["resume", str(folder)], folder, size, passes)


def _find(run: str) -> Path:
    """The folder of a run that may not have come to its end.

    Raises:
        InputError: there is no such run, or it has not begun.
    """
    folder = states.find(run, RUNS)
    if not (folder / RECORDS).is_file():
        found, to_do = f"no {RECORDS} in it", f"squall runs show {folder} says what became of it"
        raise InputError(f"{folder} holds no training to go on with", [("found", found), ("to do", to_do)])
    return folder


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
                ("", shlex.join(values.get("argv", [])) or "(it does not say which)"),
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
        raise InputError(
            f"the task of {folder} is gone",
            [("found", f"no file {file}"), ("to do", f"put it back, or change its path in {folder / STARTED}")],
        )
    module, task = load_task(file)
    return Target(started["target"], recipe, task, module)


def _data_of(started: dict[str, Any]) -> Path | None:
    """The folder of the data sets, also where the run was started from another folder than this one."""
    return Path(started.get("folder", "."), started["data"]) if started.get("data") else None
