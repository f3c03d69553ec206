"""`squall train`: everything that can be wrong is looked at first, then processes start, then torch.

target -> data set -> processes -> folder -> (launch, or in place) -> squall.train with a sink that prints
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from squall.cli import batch, flags, processes, restarts, sizes, submit
from squall.cli.folders import RUNS, fresh, log_traceback, note_ranks_end
from squall.cli.target import Target, resolve
from squall.errors import UserCodeError
from squall.recipe import to_toml
from squall.run import trackers
from squall.run.folder import check_free, check_open


@dataclass(frozen=True)
class Wish:
    """What the command line asked for, resolved: handed from one step to the next."""

    target: Target
    data_folder: Path
    device: str | None
    quiet: bool
    json: bool
    trackers: tuple[str, ...] = ()
    timeout: float = 300.0
    restarts: int = restarts.DEFAULT
    other_arithmetic: bool = False
    profile: bool = False
    span: processes.Span | None = None

    def started(self) -> dict[str, Any]:
        """How the run was started, for `squall resume`."""
        file = str(Path(self.target.given).resolve()) if self.target.task is not None else None
        return {
            "target": self.target.given,
            "task": file,
            "data": str(self.data_folder),
            "device": self.device,
            "trackers": list(self.trackers),
        }


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
    timeout: flags.TimeoutFlag = 300.0,
    restarts_: flags.RestartsFlag = restarts.DEFAULT,
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
        resolve(target, overrides or []),
        flags.data_folder(data),
        device,
        quiet,
        json_,
        tuple(tracker or ()),
        timeout=timeout,
        restarts=restarts_,
        profile=profile,
        span=processes_,
    )
    trackers.check(wish.trackers)
    sizes.check_files(wish.target, wish.data_folder)
    recipe, num_train = wish.target.recipe, sizes.num_train(wish.target, wish.data_folder)
    passes = sizes.num_passes(recipe, num_train)
    if job is not None and not dry_run:
        return _submit(wish, overrides or [], job, out, passes)
    if place is not None and not dry_run:
        processes.check_passes(place.size, recipe, passes)
        with _taken(out, recipe.name, creates=place.rank == 0) as folder:
            return work(wish, folder)
    with processes.threads_before_torch(recipe.compute.threads):
        started = place or job
        size = started.size if started else processes.number(processes_, recipe, passes, wish.device)
        with _taken(out, recipe.name, creates=not dry_run) as folder:
            (check_open if batch.comes_again(os.environ) else check_free)(folder)
            if dry_run:
                _tell(wish, size, folder)
                return 0
            if size == 1 and not (processes_ and processes_.is_range):
                return work(wish, folder)
            wish.target.forget()
            begin = ["train", wish.target.given, *(overrides or []), f"--out={folder}", *_tracked(wish)]
            return launch(wish, begin, folder, size, passes)


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


def launch(wish: Wish, begin: list[str], folder: Path, size: int, passes: int) -> int:
    """Starts processes that train, and starts them again as long as that is of use.

    Arguments:
        begin: verb and arguments of the first ones; later ones resume the folder.
        size: how many to start with.
        passes: the most that there is work for.
    """
    given = _given(wish)
    job = restarts.Job(
        begin=["-m", "squall", *begin, *given],
        resume=["-m", "squall", "resume", str(folder), *given, *["--other-arithmetic"] * wish.other_arithmetic],
        folder=folder,
        threads=wish.target.recipe.compute.threads,
        span=wish.span,
        passes=passes,
        restarts=wish.restarts,
    )
    made = not folder.exists()
    try:
        return restarts.run(job, size)
    except processes.RanksFailed as failed:
        note_ranks_end(folder, failed.status, failed.message, made=made)
        raise


def _given(wish: Wish) -> list[str]:
    """The flags for the same command in other processes."""
    given = [f"--data={wish.data_folder}", f"--timeout={wish.timeout:g}"]
    given += [f"--device={wish.device}"] if wish.device else []
    return [*given, *["--quiet"] * wish.quiet, *["--json"] * wish.json]


def _tracked(wish: Wish) -> list[str]:
    """Flags of a beginning; who goes on with a run finds them in its folder."""
    return [*(f"--tracker={name}" for name in wish.trackers), *["--profile"] * wish.profile]


def _submit(wish: Wish, overrides: list[str], job: batch.Options, out: Path | None, passes: int) -> int:
    """Hands the same command over as a job; a folder that is given may hold a run to go on with."""
    processes.check_passes(job.size, wish.target.recipe, passes)
    with _taken(out, wish.target.recipe.name, creates=True) as folder:
        check_open(folder)
        done = submit.submit(["train", wish.target.given, *overrides, *_given(wish), *_tracked(wish)], folder, job)
    print(done.to_json() if wish.json else done.text(RUNS))
    return 0


def work(wish: Wish, folder: Path) -> int:
    """Trains on the processes of this job; rank 0 prints."""
    from squall.cli.terminal import Terminal
    from squall.cluster.world import join
    from squall.run.collect import say
    from squall.run.leaving import Interrupted
    from squall.training import compose
    from squall.training import train as train_

    recipe = wish.target.recipe
    world = join(wish.device, wish.timeout)
    try:
        folder = Path(say(world, str(folder)))
        task = wish.target.task or compose(recipe, world, wish.data_folder)
        sink = _sink(wish, task) if world.rank == 0 else None
        try:
            train_(
                task,
                recipe,
                out=folder,
                world=world,
                sinks=(sink,) if sink else (),
                data_root=wish.data_folder,
                trackers=wish.trackers,
                other_arithmetic=wish.other_arithmetic,
                profile=wish.profile,
                started=wish.started(),
            )
        except UserCodeError as error:
            raise log_traceback(error, folder, world.rank) from error.__cause__
        except Interrupted:  # the run is saved and has said so: nobody needs to add that it was Ctrl-C
            raise SystemExit(128 + signal.SIGINT) from None
        finally:
            if isinstance(sink, Terminal):
                sink.close()
    finally:
        world.close()
    return 0


def _sink(wish: Wish, task: Any) -> Any:
    from squall.cli.header import words
    from squall.cli.terminal import Terminal, json_lines
    from squall.version import own_version

    if wish.json:
        return json_lines()
    recipe, given = wish.target.recipe, wish.target.given
    own = wish.target.task is not None
    where = given if own else _origin(wish)
    return Terminal(
        recipe,
        words(task, recipe, where, own=own),
        version=own_version(),
        next_line=next_line(wish.target, task),
        quiet=wish.quiet,
    )


def next_line(target: Target, task: Any) -> str:
    """Commands worth typing after a training."""
    if target.task is None:
        return f"squall report last      squall explain {target.given}      squall train my_task.py"
    measurable = task.val is not None or task.test is not None
    evaluate = [f"squall eval last --task {target.given}"] if measurable else []
    return "      ".join(["squall report last", *evaluate, "squall export last"])


def _origin(wish: Wish) -> str:
    spec = wish.target.recipe.data
    if spec is None or spec.name == "digits":
        return "inside the package"
    return spec.name if ":" in spec.name else str(wish.data_folder / (spec.root or spec.name))


def _tell(wish: Wish, size: int, folder: Path) -> None:
    recipe = wish.target.recipe
    if wish.json:
        fields = {"processes": size, "folder": str(folder), "recipe": recipe.model_dump(mode="json")}
        print(json.dumps(fields))
        return
    print(f"# {wish.target.given}: {size} process{'' if size == 1 else 'es'}, run folder {folder}; nothing was started")
    sys.stdout.write(to_toml(recipe))
