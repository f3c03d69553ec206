"""`squall train`: everything that can be wrong is looked at first, then processes start, then torch.

target -> data set -> processes -> folder -> session (or, with --submit, a job of SLURM)
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from squall.cli import batch, engines, flags, processes, restarts, sizes, submit
from squall.cli.folders import RUNS, fresh
from squall.cli.session import Wish, start, work
from squall.cli.target import resolve
from squall.recipe import to_toml
from squall.run import trackers
from squall.run.folder import check_free, check_open


def train(
    target: flags.TargetArgument,
    overrides: flags.Overrides = None,
    processes_: flags.ElasticFlag = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The run's folder; by default runs/NAME-TIME.", show_default=False),
    ] = None,
    data: flags.DataFlag = None,
    device: flags.DeviceFlag = None,
    quiet: flags.QuietFlag = False,
    json_: flags.RecordsFlag = False,
    tracker: flags.TrackerFlag = None,
    profile: flags.ProfileFlag = False,
    timeout: flags.TimeoutFlag = flags.TIMEOUT_S,
    restarts_: flags.RestartsFlag = restarts.DEFAULT,
    engine: engines.EngineFlag = None,
    cluster: engines.ClusterFlag = None,
    trust_cluster: engines.TrustFlag = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the resolved recipe, start nothing.")
    ] = False,
    submit_: submit.SubmitFlag = None,
    nodes: submit.NodesFlag = None,
    gpus_per_node: submit.GpusFlag = None,
    cpus_per_process: submit.CpusFlag = None,
    time: submit.TimeFlag = None,
    partition: submit.PartitionFlag = None,
    sbatch: submit.SbatchFlag = None,
) -> int:
    """Train a recipe, a .toml file or a task's .py file."""
    job = submit.wanted(
        submit_,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        processes=processes_,
        cpus_per_process=cpus_per_process,
        time=time,
        partition=partition,
        sbatch=sbatch,
    )
    place = None if job else processes.job(processes_)
    wish = Wish(
        target=resolve(target, overrides or []),
        data_folder=flags.data_folder(data),
        device=device,
        trackers=tuple(tracker or ()),
        quiet=quiet,
        json=json_,
        timeout=timeout,
        restarts=restarts_,
        span=processes_,
        profile=profile,
    )
    trackers.check(wish.trackers)
    sizes.check_files(wish.target, wish.data_folder)
    foreign = engines.foreign(
        device=device, timeout=timeout, restarts=restarts_, processes=processes_, submit=job, profile=profile
    )
    if engines.check(wish, engine, cluster, trust_cluster, foreign):
        with _taken(out, wish.target.recipe.name, creates=not dry_run) as folder:
            check_free(folder)
            if dry_run:
                _tell(wish, 1, folder)
                return 0
            with processes.threads_before_torch(wish.target.recipe.compute.threads):
                return engines.work(wish, folder, engine, cluster, trust_cluster)
    recipe, num_train = wish.target.recipe, sizes.num_train(wish.target, wish.data_folder)
    passes = sizes.num_passes(recipe, num_train)
    there = place or job
    if there is not None:
        processes.check_passes(there.size, recipe, passes)
    begin = ["train", wish.target.given, *(overrides or []), *wish.flags_of_beginning()]
    if job is not None and not dry_run:
        return _submit(wish, begin, job, out)
    if place is not None and not dry_run:
        with _taken(out, recipe.name, creates=place.rank == 0) as folder:
            return work(wish, folder)
    with processes.threads_before_torch(recipe.compute.threads):
        size = there.size if there is not None else processes.number(processes_, recipe, passes, wish.device)
        with _taken(out, recipe.name, creates=not dry_run) as folder:
            (check_open if there is not None or batch.comes_again(os.environ) else check_free)(folder)
            if dry_run:
                _tell(wish, size, folder)
                return 0
            return start(wish, [*begin, f"--out={folder}"], folder, size, passes)


@contextmanager
def _taken(out: Path | None, name: str, creates: bool) -> Iterator[Path]:
    """The run's folder: the given one, or a fresh one that no run started in the same minute gets too."""
    folder = out or fresh(name, create=creates)
    try:
        yield folder
    finally:
        if out is None and creates:
            with suppress(OSError):  # a run that never began leaves nothing
                folder.rmdir()
                folder.parent.rmdir()


def _submit(wish: Wish, begin: list[str], job: batch.Options, out: Path | None) -> int:
    """Hands the same command over as a job; a folder that is given may hold a run to go on with."""
    with _taken(out, wish.target.recipe.name, creates=True) as folder:
        check_open(folder)
        done = submit.submit([*begin, *wish.flags()], folder, job)
    print(done.to_json() if wish.json else done.text(RUNS))
    return 0


def _tell(wish: Wish, size: int, folder: Path) -> None:
    recipe = wish.target.recipe
    if wish.json:
        fields = {"processes": size, "folder": str(folder), "recipe": recipe.model_dump(mode="json")}
        print(json.dumps(fields))
        return
    print(f"# {wish.target.given}: {size} process{'' if size == 1 else 'es'}, run folder {folder}; nothing was started")
    sys.stdout.write(to_toml(recipe))
