"""Vector algebra for vectors that may live elsewhere: two commands, and numbers that come back.

An optimiser of whole vectors needs no element of them. It combines vectors and takes inner products; both are done
where the vectors are, slice by slice, and only numbers travel. So L-BFGS is written once (`squall.optim.lbfgs`), for a
vector in this process and for one that is cut over many servers (Dean et al. 2012, section 4.2)::

    Combine("d", (("g", -1.0), ("s0", 0.3)))      d <- -g + 0.3 s0       axpy, scale, copy and difference alike
    Dots(("s0", "y0"), ("s0", "y0", "g"))         a 2 x 3 matrix of inner products
    Swap("x", "trial")                            what was called x is called trial, and the other way round

The commands that are given at once are carried out in order, block of elements by block: a vector that is read by
several of them is read from memory once. Inner products are added up in float64 over blocks and over slices.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch

_LARGE = 1 << 22  # bytes

BLOCK = 1 << 16
"""Elements of a block: two dozen vectors' blocks of float32 fit into a processor's last cache."""


@dataclass(frozen=True)
class Combine:
    """into <- the sum of factor * vector over all terms, in their order. No vector is in two; `into` may be in one."""

    into: str
    terms: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Dots:
    """The inner products of all rows with all columns; no column is named twice."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Swap:
    """Two vectors change their names; nothing is copied."""

    one: str
    other: str


Command = Combine | Dots | Swap
Matrix = tuple[tuple[float, ...], ...]


def changed(commands: Iterable[Command]) -> Iterator[str]:
    """The names of vectors that are not what they were."""
    for command in commands:
        if isinstance(command, Combine):
            yield command.into
        elif isinstance(command, Swap):
            yield from (command.one, command.other)


class Space(Protocol):
    """Where vectors with names are."""

    async def do(self, *commands: Command) -> list[Matrix]:
        """Carries out commands, in order and in one round trip; returns the matrices of the `Dots` among them."""


class Vectors:
    """Vectors in this process: all of a problem's, or one slice of each.

    Arguments:
        names: of the vectors; those that are used together should follow each other, as they then are one matrix.
        size: elements of each.
        dtype: float32 or float64.
        device: where they are.
    """

    def __init__(self, names: Sequence[str], size: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self._rows = {name: row for row, name in enumerate(names)}
        self._all = _zeros(len(names), size, dtype, torch.device(device))
        self.size, self.dtype = size, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        """The vector of a name, (size,); changes of it are seen by the next command."""
        return self._all[self._rows[name]]

    def do(self, *commands: Command) -> list[Matrix]:
        """As `Space.do`."""
        works: list[Callable[[int, int], None]] = []
        totals: list[torch.Tensor] = []
        for command in commands:
            if isinstance(command, Swap):
                rows = self._rows
                rows[command.one], rows[command.other] = rows[command.other], rows[command.one]
            elif isinstance(command, Combine):
                works.append(self._combining(command))
            else:
                totals.append(self._all.new_zeros(len(command.rows), len(command.columns), dtype=torch.float64))
                works.append(self._multiplying(command, totals[-1]))
        if works:
            for start in range(0, self.size, BLOCK):
                for work in works:
                    work(start, min(start + BLOCK, self.size))
        return [tuple(map(tuple, total.tolist())) for total in totals]

    def _combining(self, command: Combine) -> Callable[[int, int], None]:
        vectors, into = self._all, self._all[self._rows[command.into]]
        factors = {self._rows[name]: factor for name, factor in command.terms}
        runs = [(run, self._numbers([factors[row] for row in run])) for run in _runs(factors)]
        total = self._all.new_empty(min(BLOCK, self.size))

        def work(start: int, stop: int) -> None:
            # into[start:stop] <- (rows of a run, stop - start)^T @ (rows of a run,), added up over runs
            here = total[: stop - start]
            first = True
            for run, numbers in runs:
                part = vectors[run.start : run.stop, start:stop]
                if len(run) > 1:
                    here.addmv_(part.T, numbers, beta=0.0 if first else 1.0)
                elif first:
                    torch.mul(part[0], numbers[0], out=here)
                else:
                    here.add_(part[0], alpha=factors[run.start])
                first = False
            into[start:stop].copy_(here) if runs else into[start:stop].zero_()

        return work

    def _multiplying(self, command: Dots, total: torch.Tensor) -> Callable[[int, int], None]:
        vectors, rows = self._all, [self._rows[name] for name in command.rows]
        found = vectors.new_empty(len(rows), len(command.columns))
        parts: list[tuple[int, range, torch.Tensor]] = []  # a row's products with a run of columns
        for index, row in enumerate(rows):
            first = 0
            for run in _runs(self._rows[name] for name in command.columns):
                parts.append((row, run, found[index, first : first + len(run)]))
                first += len(run)

        def work(start: int, stop: int) -> None:
            for row, run, into in parts:
                # (columns of a run, stop - start) @ (stop - start,)
                torch.mv(vectors[run.start : run.stop, start:stop], vectors[row, start:stop], out=into)
            total.add_(found)

        return work

    def _numbers(self, values: list[float]) -> torch.Tensor:
        return self._all.new_tensor(values)


def _zeros(rows: int, size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A matrix of zeros; a large one in main memory lies on large pages where the system has them.

    Two dozen rows are read side by side, each from its own place: with pages of 4 kB they are too many to be known to a
    processor at once.
    """
    num_bytes = rows * size * dtype.itemsize
    if device.type != "cpu" or num_bytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(rows, size, dtype=dtype, device=device)
    memory = mmap.mmap(-1, num_bytes)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(rows, size)


def _runs(rows: Iterable[int]) -> Iterator[range]:
    """Rows as ranges of those that follow each other, in the given order."""
    for _, group in groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):
        found = [row for _, row in group]
        yield range(found[0], found[-1] + 1)
