"""How many processes a command takes, and how it gets them.

RANK, SLURM's variables  ->  join that job: nothing is launched
one process              ->  in place, with the recipe's threads set before torch starts
P processes              ->  the same command again, P times, by `squall.engine.spmd`; `restarts` for what may go on
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import typer

from squall.cli import voices
from squall.cluster.place import Place, find
from squall.errors import InputError
from squall.recipe import Recipe

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Span:
    """The numbers of processes that are allowed: one, or a range.

    Example:
        >>> Span.parse("2:4")
        Span(least=2, most=4)
    """

    least: int
    most: int

    @staticmethod
    def parse(text: str) -> Span:
        """Reads ``"3"`` or ``"2:4"``.

        Raises:
            typer.BadParameter: it is neither.
        """
        least, colon, most = text.partition(":")
        try:
            found = Span(int(least), int(most if colon else least))
        except ValueError:
            raise typer.BadParameter(f"{text!r} is neither a number nor a range like 2:4") from None
        if not 1 <= found.least <= found.most:
            raise typer.BadParameter(f"{text!r}: numbers from 1, the smaller one first")
        return found

    @staticmethod
    def of(flag: int | Span) -> Span:
        """A single number as a span too."""
        return Span(flag, flag) if isinstance(flag, int) else flag

    @property
    def is_range(self) -> bool:
        """Whether there is anything to choose."""
        return self.least < self.most

    def __contains__(self, number: int) -> bool:
        return self.least <= number <= self.most

    def __str__(self) -> str:
        return f"{self.least}:{self.most}" if self.is_range else str(self.least)


def job(flag: int | Span | None) -> Place | None:
    """This process's place in a job that something else started, or None.

    Raises:
        InputError: half an environment of a job, or --processes with another number than the job has.
    """
    place = find(os.environ)
    if place.master is None:
        return None
    if flag is not None and place.size not in Span.of(flag):
        raise InputError(
            f"--processes {flag}, but this process is one of a job of {place.size}",
            [("rule", "under torchrun or srun the job is joined as it is"), ("to do", "leave --processes away")],
        )
    return place


def number(flag: int | Span | None, recipe: Recipe, num_passes: int, device: str | None) -> int:
    """The processes to start with: the flag's, else this machine's cores or GPUs, at most one a pass; within a range
    as near to those as it allows.

    Raises:
        InputError: more processes were asked for than a step has passes.
    """
    span = Span.of(flag) if flag is not None else Span(1, num_passes)
    check_passes(span.least, recipe, num_passes)
    if flag is not None and not span.is_range:
        return span.least
    from squall.engine.machine import cores, default_processes

    there = cores() if device == "cpu" else default_processes()
    return min(max(there, span.least), span.most, num_passes)


def check_passes(processes: int, recipe: Recipe, num_passes: int) -> None:
    """Refuses more processes than a step has passes.

    Raises:
        InputError: saying where the number of passes comes from.
    """
    if processes <= num_passes:
        return
    workers, fuse = recipe.virtual_workers, recipe.compute.fuse
    plural = "" if workers == 1 else "s"
    cut = f"{recipe.update_size} = {workers} virtual worker{plural} x {recipe.worker_batch_size}"
    smaller = (
        "a smaller compute.fuse" if fuse > 1 else "a smaller worker_batch_size (it changes what normalisation sees)"
    )
    raise InputError(
        f"{processes} processes are more than the {num_passes} pass{'' if num_passes == 1 else 'es'} of a step",
        [
            ("found", f"{cut}; {fuse} worker{'' if fuse == 1 else 's'} a pass"),
            ("to do", f"--processes {num_passes}, or {smaller}"),
        ],
    )


class RanksFailed(Exception):  # noqa: N818 - no error of ours: an end that was reported already
    """The ranks ended with a status other than 0, and their launcher has said why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


def again(arguments: Sequence[str], processes: int, threads: int) -> int:
    """Runs a `squall` command in ranks; returns 0.

    Raises:
        RanksFailed: they ended otherwise.
    """
    from squall.engine.spmd import run_ranks

    outcome = run_ranks(["-m", "squall", *arguments], processes, threads=threads)
    if outcome.message:
        voices.tell(outcome.message)
    if outcome.status:
        raise RanksFailed(outcome.status, outcome.message)
    return 0


@contextmanager
def threads_before_torch(threads: int) -> Iterator[None]:
    """Sets the number of threads that torch takes when it starts; puts the environment back."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update({name: str(threads) for name in _THREADS})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
