"""One session of work on a run: in the job that is there, in place, or on processes that are started for it.

start -> in place, or restarts -> the same command, P times -> work -> squall.train with a sink that prints
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.cli import restarts
from squall.cli.folders import log_traceback, note_ranks_end
from squall.cli.processes import RanksFailed, Span
from squall.cli.target import Target
from squall.errors import UserCodeError


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the command line asked for, resolved: handed from one step to the next."""

    target: Target
    data_folder: Path
    device: str | None
    trackers: tuple[str, ...]
    quiet: bool
    json: bool
    timeout: float
    restarts: int
    span: Span | None
    profile: bool = False
    other_arithmetic: bool = False

    def flags(self) -> list[str]:
        """The flags that ask other processes for the same."""
        given = [f"--data={self.data_folder}", f"--timeout={self.timeout:g}"]
        given += [f"--device={self.device}"] if self.device else []
        return [*given, *["--quiet"] * self.quiet, *["--json"] * self.json]

    def flags_of_beginning(self) -> list[str]:
        """Those of a beginning, besides; who goes on with a run finds them in its folder, or needs them no more."""
        return [*(f"--tracker={name}" for name in self.trackers), *["--profile"] * self.profile]

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


def start(wish: Wish, begin: Sequence[str], folder: Path, size: int, passes: int) -> int:
    """Works on a run: one process in place; more are started, and started again as long as that is of use.

    Arguments:
        begin: verb and arguments of the first ones; later ones resume the folder.
        size: how many to start with.
        passes: the most that there is work for.
    """
    if size == 1 and not (wish.span and wish.span.is_range):
        return work(wish, folder)
    wish.target.forget()
    job = restarts.Job(
        begin=["-m", "squall", *begin, *wish.flags()],
        resume=["-m", "squall", "resume", str(folder), *wish.flags(), *["--other-arithmetic"] * wish.other_arithmetic],
        folder=folder,
        threads=wish.target.recipe.compute.threads,
        span=wish.span,
        passes=passes,
        restarts=wish.restarts,
    )
    made = not folder.exists()
    try:
        return restarts.run(job, size)
    except RanksFailed as failed:
        note_ranks_end(folder, failed.status, failed.message, made=made)
        raise


def work(wish: Wish, folder: Path) -> int:
    """Trains on the processes of this job; rank 0 prints."""
    from squall.cli.terminal import Terminal
    from squall.cluster.world import join
    from squall.run.collect import say
    from squall.training import compose
    from squall.training import train as train_

    recipe = wish.target.recipe
    world = join(wish.device, wish.timeout)
    try:
        folder = Path(say(world, str(folder)))
        task = wish.target.task or compose(recipe, world, wish.data_folder)
        sink = sink_of(wish, task) if world.rank == 0 else None
        try:
            with leaves():
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
        finally:
            if isinstance(sink, Terminal):
                sink.close()
    finally:
        world.close()
    return 0


@contextmanager
def leaves() -> Iterator[None]:
    """A run that Ctrl-C has ended has said so: nobody needs to add what it was."""
    from squall.run.leaving import words

    try:
        yield
    except KeyboardInterrupt as error:
        if words(error) is None:
            raise
        raise SystemExit(128 + signal.SIGINT) from None


def sink_of(wish: Wish, task: Any) -> Any:
    """What prints a run's records."""
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
        next_line=_next_line(wish.target, task),
        quiet=wish.quiet,
    )


def _next_line(target: Target, task: Any) -> str:
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
