"""Reads the samples of each draw and makes them batches, in the order of the draws, ahead of time.

What a batch holds depends on its draw and the seed only. Before each sample is read (and before the samples are joined)
the generators of Python, NumPy and torch are seeded by (seed, epoch, sample); it is read with one thread; the caller's
generators and threads are put back afterwards. So it makes no difference which process reads, how many there are, or
what was read before::

    draws       d0  d1  d2  d3 ...      asked for one by one, up to two ahead of each loader process
    process 0   [ d0 ]  [ d2 ]
    process 1     [ d1 ]    [ d3 ]
    read()      d0  d1  d2  d3 ...      handed back in the same order

The loader processes are torch's `DataLoader`. A data set needs `__len__` and `__getitem__`, no more; two richer forms
are recognised by the names of their arguments: `batch(draw, seed, device)` makes whole batches in this process, their
tensors' first dimension counting the samples (`squall.data.images`); `read(index, epoch, seed)` draws its own random
numbers and may leave a sample out by None (`squall.data.imagefolder`).
"""

from __future__ import annotations

import inspect
import os
import random
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset, default_collate, get_worker_info

from squall.data.nested import describe, each_tensor, move, num_bytes
from squall.data.order import Draw
from squall.data.usercode import alone_command, user_code_error
from squall.errors import InputError, RunError, SquallError, UserCodeError
from squall.rng import seed_sample
from squall.units import megabytes

Collate = Callable[[list[Any]], Any]
Finish = Callable[[Any, Draw], Any]
_AHEAD = 2  # batches a loader process works ahead
_OUTLASTS_S = 15
_AT_ONCE = 256  # samples that a set which makes whole batches is asked for at once


@dataclass(frozen=True)
class Inspected:
    """A way to join samples whose batches are looked at before they go to a device: a look there would wait for it.

    Arguments:
        collate: joins a list of samples; None: torch's `default_collate`.
        look: called with each joined batch, its draw and the set's name, in the process that reads; may raise.
    """

    collate: Collate | None
    look: Callable[[Any, Draw, str], None]

    def __call__(self, samples: list[Any]) -> Any:
        """The joined samples, as a collate of one's own gives them."""
        return (self.collate or default_collate)(samples)


class MapStyle(Protocol):
    """A data set by index: torchvision's, Hugging Face's, one's own."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def read(
    data: MapStyle,
    draws: Iterable[Draw],
    *,
    seed: int,
    device: torch.device,
    collate: Collate | None = None,
    num_workers: int = 0,
    finish: Finish | None = None,
    name: str = "train",
) -> Iterator[tuple[Draw, Any]]:
    """Yields (draw, batch) for each draw, in order; the same values for any `num_workers`.

    Arguments:
        data: the data set.
        draws: what to read; asked for ahead of time by up to two draws per loader process.
        seed: the recipe's seed.
        device: where the batch goes (nested lists, tuples and mappings of tensors).
        collate: joins a list of samples to a batch; by default torch's `default_collate`. May be `Inspected`.
        num_workers: loader processes; 0 reads in this one. A set that makes whole batches itself needs none.
        finish: called with the batch on its device and the draw; its result takes the batch's place.
        name: what errors call the data set.

    Yields:
        The draw as delivered (samples that the data set left out are missing from it) and the batch; None in place of
        a batch of no samples. Tensors are new, 64-byte aligned and the reader's own.

    Raises:
        UserCodeError: an exception in the data set or in `collate`, with the user's frames.
        InputError: as raised by the data set; or shared memory that cannot hold a batch.
        RunError: a loader process died.
    """
    whole = batch_of(data)
    if whole is not None:
        source = _whole(whole, draws, seed, device)
    else:
        reader = _Reader(data, seed, collate, name)
        source = _ahead(reader, draws, num_workers) if num_workers else _inline(reader, draws)
    return _finished(source, device, finish)


_Delivered = Generator[tuple[Draw, Any], None, None]


def _finished(source: _Delivered, device: torch.device, finish: Finish | None) -> _Delivered:
    with closing(source):
        for draw, batch in source:
            moved = move(batch, device)
            yield draw, finish(moved, draw) if finish is not None and len(draw) else moved


def _whole(made_by: Callable[..., Any], draws: Iterable[Draw], seed: int, device: torch.device) -> _Delivered:
    """Makes the batches of several draws at once and cuts them apart: one gather of 256 images beats eight."""
    for group in _grouped(draws):
        if len(group) == 1:
            yield group[0], made_by(group[0], seed, device)
            continue
        joined = Draw(np.concatenate([draw.ids for draw in group]), np.concatenate([draw.epochs for draw in group]))
        whole = made_by(joined, seed, device)
        stop = 0
        for draw in group:
            start, stop = stop, stop + len(draw)
            yield draw, each_tensor(lambda tensor, a=start, b=stop: tensor[a:b], whole)  # type: ignore[misc]


def _grouped(draws: Iterable[Draw]) -> Iterator[list[Draw]]:
    group: list[Draw] = []
    for draw in draws:
        group.append(draw)
        if sum(map(len, group)) >= _AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _inline(reader: _Reader, draws: Iterable[Draw]) -> _Delivered:
    for draw in draws:
        with _aside():
            delivered = reader.deliver(draw)
        yield delivered


def _ahead(reader: _Reader, draws: Iterable[Draw], num_workers: int) -> _Delivered:
    loader = DataLoader(
        cast(Any, reader),
        batch_sampler=cast(Any, draws),
        num_workers=num_workers,
        collate_fn=_as_it_is,
        prefetch_factor=_AHEAD,
        multiprocessing_context="fork",  # data sets hold lambdas, and the set in memory is not copied
        generator=torch.Generator(),  # else the loader draws from the caller's
        worker_init_fn=_outlast,
    )
    batches: Any = iter(loader)
    try:
        while True:
            try:
                draw, batch, error = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise _loader_died(str(error)) from None
            if error is not None:
                raise error
            yield draw, batch
    finally:
        batches._shutdown_workers()  # now, not when the garbage collector finds a cycle


def _outlast(_: int) -> None:
    """A loader process lives on when its whole group is asked to leave: the rank needs it to come to where it saves.

    SIGTERM is also how a loader that hangs is ended, so that it ends this one after some seconds.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_OUTLASTS_S))


def _as_it_is(payload: Any) -> Any:
    return payload


class _Reader:
    """Makes the batch of one draw, here or in a loader process (where it poses as torch's data set)."""

    def __init__(self, data: MapStyle, seed: int, collate: Collate | None, name: str) -> None:
        self.data = data
        self.seed = seed
        inspected = collate if isinstance(collate, Inspected) else None
        self.collate = inspected.collate if inspected else collate
        self.look = inspected.look if inspected else None
        self.name = name
        self.read_of = read_of(data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, draw: Draw) -> tuple[Draw, Any, SquallError | None]:
        """In a loader process: an error is handed over whole (torch would make a text of it)."""
        try:
            return (*self.deliver(draw), None)
        except SquallError as error:
            return draw, None, error

    def deliver(self, draw: Draw) -> tuple[Draw, Any]:
        """Reads and joins one draw's samples."""
        samples, kept = [], []
        for place, (index, epoch) in enumerate(zip(draw.ids.tolist(), draw.epochs.tolist(), strict=True)):
            sample = self._sample(index, epoch)
            if sample is not None or self.read_of is None:
                samples.append(sample)
                kept.append(place)
        if len(kept) < len(draw):
            draw = Draw(draw.ids[kept], draw.epochs[kept])
        if not samples:
            return draw, None
        if get_worker_info() is not None:
            _check_shared_memory(samples)
        seed_sample(self.seed, int(draw.epochs[0]), ~int(draw.ids[0]))
        batch = self._joined(samples, draw)
        if self.look is not None:
            self.look(batch, draw, self.name)
        return draw, batch

    def _sample(self, index: int, epoch: int) -> Any:
        seed_sample(self.seed, epoch, index)
        try:
            return self.data[index] if self.read_of is None else self.read_of(index, epoch, self.seed)
        except SquallError:
            raise
        except Exception as error:
            at = f"{self.name}[{index}]"
            raise user_code_error(error, at, alone=alone_command(self.data, index)) from error

    def _joined(self, samples: list[Any], draw: Draw) -> Any:
        if self.collate is None:
            try:
                # in a loader process torch stacks to contiguous memory whatever the samples' layout; so do we always
                return each_tensor(torch.Tensor.contiguous, default_collate(samples))
            except Exception as error:
                raise _unequal(samples, draw, self.name, error) from error
        try:
            joined = self.collate(samples)
        except SquallError:
            raise
        except Exception as error:
            raise user_code_error(error, f"collate of {_some(draw, self.name)}") from error
        return each_tensor(torch.Tensor.clone, joined)  # it may hold the data set's own memory


@contextmanager
def _aside() -> Iterator[None]:
    """Puts the global generators and the number of threads back, and runs with one thread as loader processes do."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
        if threads != 1:
            torch.set_num_threads(threads)


def _speaks(data: object, name: str, *arguments: str) -> Callable[..., Any] | None:
    """The method of that name if its arguments have these names: others' `batch` and `read` mean other things."""
    method = getattr(data, name, None)
    try:
        found = tuple(inspect.signature(method).parameters) if callable(method) else ()
    except (TypeError, ValueError):
        return None
    return method if found == arguments else None


def batch_of(data: object) -> Callable[..., Any] | None:
    """The set's own `batch(draw, seed, device)`, also through torch's `Subset`; None where it has none."""
    if isinstance(data, Subset):
        inner, indices = batch_of(data.dataset), np.asarray(data.indices, dtype=np.int64)
        return inner and (lambda draw, seed, device: inner(Draw(indices[draw.ids], draw.epochs), seed, device))
    return _speaks(data, "batch", "draw", "seed", "device")


def read_of(data: object) -> Callable[..., Any] | None:
    """The set's own `read(index, epoch, seed)`, also through torch's `Subset`; None where it has none."""
    if isinstance(data, Subset):
        inner, indices = read_of(data.dataset), data.indices
        return inner and (lambda index, epoch, seed: inner(int(indices[index]), epoch, seed))
    return _speaks(data, "read", "index", "epoch", "seed")


def finish_of(data: object) -> Callable[..., Any] | None:
    """The set's own `finish(batch, draw, seed)`, also through torch's `Subset`; None where it has none."""
    if isinstance(data, Subset):
        inner, indices = finish_of(data.dataset), np.asarray(data.indices, dtype=np.int64)
        return inner and (lambda batch, draw, seed: inner(batch, Draw(indices[draw.ids], draw.epochs), seed))
    return _speaks(data, "finish", "batch", "draw", "seed")


def _check_shared_memory(samples: list[Any]) -> None:
    """Raises where a batch does not fit in /dev/shm: writing to it would kill the process without a word."""
    needed, shm = num_bytes(samples), os.statvfs("/dev/shm")
    free = shm.f_bavail * shm.f_frsize
    if needed > free:
        raise _shm_too_small(f"{megabytes(free)} free, and a batch of {len(samples)} samples takes {megabytes(needed)}")


def _shm_too_small(found: str) -> InputError:
    return InputError(
        "the shared memory /dev/shm is too small for loader processes",
        [("found", found), ("to do", "in a container: docker run --shm-size=8g; or data.num_workers=0, or fewer")],
    )


def _loader_died(message: str) -> SquallError:
    if "Bus error" in message or "shared memory" in message:
        return _shm_too_small(message.splitlines()[0])
    return RunError(
        "a loader process died",
        [("found", message.splitlines()[0]), ("to do", "data.num_workers=0 reads in this process and shows more")],
    )


def _unequal(samples: list[Any], draw: Draw, name: str, error: Exception) -> UserCodeError:
    """Why `default_collate` could not join samples: the first one and the first that differs from it."""
    shapes = [describe(sample) for sample in samples]
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    rows = [(f"{name}[{draw.ids[i]}]", shapes[i]) for i in (0, other) if i is not None]
    rows.append((type(error).__name__, str(error)[:400]))
    rows.append(("to do", "return tensors, arrays or numbers of equal shapes, or give your own collate="))
    out = UserCodeError(f"the samples of {name} do not join to a batch", rows)
    out.traceback = "".join(traceback.format_exception(error))
    return out


def _some(draw: Draw, name: str) -> str:
    more = "" if len(draw) <= 2 else f" and {len(draw) - 2} more"
    return f"{name}[{', '.join(map(str, draw.ids[:2].tolist()))}]{more}"
