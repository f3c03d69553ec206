"""The model's buffers over one step: every pass starts from the step's values, the step ends with their mean.

Batch normalisation's running statistics are updated by each forward pass. With k workers in one process that would be
k updates one after the other, with k processes one each: the result would depend on hosting. Here each
pass starts from the buffers as they were before the step; the step's value is::

    buffer + sum over passes of n_pass * (buffer after the pass - buffer) / sum of n_pass

summed along the same tree as the gradient: for batch normalisation one update by the mean of the workers' statistics.
Taking the mean of the changes, not of the values, leaves a buffer that no pass touched exactly as it was. Integer
buffers (`num_batches_tracked`) have no mean: all passes must change them alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from squall.errors import RunError
from squall.reduce.flat import place

_Slot = tuple[nn.Module, str]


class _Rebased:
    """Buffers of one kind as views of one vector, so that saving and restoring them is one copy.

    Buffers that a module replaces by a new tensor are copied in. Ones of another dtype than the vector's stay where
    they are, and the vector holds their change since the step's start: float64 in a float32 vector keeps its bits.
    Modules that share a buffer go on sharing it, also when one of them replaces it.

    Arguments:
        held_by: of every buffer by its first name, all the modules that hold it and their names for it.
    """

    def __init__(self, held_by: dict[str, list[_Slot]], dtype: torch.dtype, device: torch.device) -> None:
        self._slots = list(held_by.values())
        self._held = [_of(*slots[0]) for slots in self._slots]
        self._same = [buffer.dtype == dtype for buffer in self._held]
        self.places = place(zip(held_by, self._held, strict=True))
        self.size = self.places[-1].end if self.places else 0
        self.now = torch.zeros(self.size, dtype=dtype, device=device)
        self.before = torch.zeros_like(self.now)
        self._views = [p.view(self.now) for p in self.places]
        self._kept: dict[int, torch.Tensor] = {}
        for index, same in enumerate(self._same):
            if same:
                self._held[index] = self._views[index].copy_(self._held[index])
                self._hand_out(index)
        self._watch()

    def open(self) -> None:
        """Notes the values that the step starts from."""
        self._take_in()
        for index, same in enumerate(self._same):
            if not same:
                self._kept[index] = self._held[index].clone()
        self.pull()
        self.before.copy_(self.now)

    def pull(self) -> None:
        """Takes in values that do not live in the vector."""
        self._take_in()
        for index, (view, buffer) in enumerate(zip(self._views, self._held, strict=True)):
            if not self._same[index]:
                kept = self._kept[index]
                wide = torch.promote_types(view.dtype, buffer.dtype)
                view.copy_((buffer.to(wide) - kept.to(wide)).masked_fill_(buffer.eq(kept), 0))

    def push(self) -> None:
        """Hands the vector's values to buffers that do not live in it."""
        for index, (view, buffer) in enumerate(zip(self._views, self._held, strict=True)):
            if not self._same[index]:
                kept = self._kept[index]
                moved = kept.to(torch.promote_types(view.dtype, kept.dtype)) + view
                buffer.copy_(torch.where(view == 0, kept, moved.to(kept.dtype)))

    def _take_in(self) -> None:
        """Looks for tensors that a module has put in the place of its buffer."""
        for held, buffers, name in self._watched:
            if buffers[name] is not held:
                break
        else:
            return
        for index, slots in enumerate(self._slots):
            held = self._held[index]
            new = [buffer for buffer in (_of(*slot) for slot in slots) if buffer is not held]
            if new:
                self._held[index] = held.copy_(new[-1]) if self._same[index] else new[-1]
                self._hand_out(index)
        self._watch()

    def _hand_out(self, index: int) -> None:
        for module, name in self._slots[index]:
            module._buffers[name] = self._held[index]

    def _watch(self) -> None:
        self._watched = [
            (held, module._buffers, name)
            for held, slots in zip(self._held, self._slots, strict=True)
            for module, name in slots
        ]


class Buffers:
    """All buffers of a model over the steps of a run.

    Arguments:
        model: on its device, in its memory format.
        offset: where the floating-point buffers' section begins in the step's vector, a multiple of `ALIGN`.
        dtype: of the step's vector.
    """

    def __init__(self, model: nn.Module, offset: int, dtype: torch.dtype, device: torch.device) -> None:
        self._floats = _Rebased(owners(model, torch.Tensor.is_floating_point), dtype, device)
        self._integers = _Rebased(owners(model, is_whole), torch.int64, device)
        self.start, self.stop = offset, offset + self._floats.size
        self.num_integers = self._integers.size
        self._change: torch.Tensor | None = None
        self._checks = True  # comparing waits for the device, so that a GPU does it in the first step only

    def open(self) -> None:
        """Notes the values that every pass of the step starts from."""
        for kind in (self._floats, self._integers):
            kind.open()
        self._change = None

    def end_pass(self, vector: torch.Tensor, num_samples: int, accumulate: bool) -> None:
        """Writes (or adds) the pass's weighted change into the vector's section and puts the start values back.

        Raises:
            RunError: two passes change an integer buffer differently.
        """
        if self._floats.size:
            self._floats.pull()
            now, before = self._floats.now, self._floats.before
            untouched = now.eq(before)  # infinities too (a mask of -inf): their difference would be no number
            change = torch.sub(before, now, out=now).masked_fill_(untouched, 0.0).mul_(num_samples)
            section = vector[self.start : self.stop]
            if accumulate:
                section.add_(change)
            else:
                section.copy_(change)
            self._reset(self._floats)
        if self._integers.size:
            self._integers.pull()
            change = self._integers.now - self._integers.before
            if self._change is None:
                self._change = change
            elif self._checks and not torch.equal(change, self._change):
                self._disagree(change != self._change)
            self._reset(self._integers)

    def last_change(self) -> torch.Tensor:
        """How one pass changed the integer buffers (all of this process's passes alike), int64, (num_integers,)."""
        if self._change is None:
            return torch.zeros_like(self._integers.now)
        return self._change

    def close(self, vector: torch.Tensor, num_samples: torch.Tensor, integer_mean: torch.Tensor) -> None:
        """Sets the step's values: start plus the weighted mean of the changes.

        Arguments:
            vector: the finished sum over all passes of all processes.
            num_samples: samples of the minibatch, a scalar on the vector's device.
            integer_mean: mean over all passes of the integer changes, float64; whole numbers if all agree.
        """
        if self._floats.size:
            # minus, since -0.0 minus 0.0 is -0.0: an untouched buffer keeps every bit
            torch.sub(self._floats.before, vector[self.start : self.stop].div_(num_samples), out=self._floats.now)
            self._floats.push()
        if self._integers.size:
            whole = integer_mean.round()
            if self._checks and not torch.equal(whole, integer_mean):
                self._disagree(whole != integer_mean)
            self._checks = self._checks and not whole.is_cuda
            torch.add(self._integers.before, whole.to(self._integers.now), out=self._integers.now)
            self._integers.push()

    def _reset(self, kind: _Rebased) -> None:
        kind.now.copy_(kind.before)
        kind.push()

    def _disagree(self, where: torch.Tensor) -> None:
        position = int(where.nonzero()[0])
        names = [p.name for p in self._integers.places if p.offset <= position < p.end]
        raise RunError(
            f"the integer buffer {names[0]} changes differently in two passes of one step",
            [("rule", "integer buffers have no mean: every virtual worker must change them alike")],
        )


def is_whole(buffer: torch.Tensor) -> bool:
    """Integers and truth values; complex tables are left alone, as no layer's pass changes them."""
    return not buffer.is_floating_point() and not buffer.is_complex()


def owners(model: nn.Module, kind: Callable[[torch.Tensor], bool]) -> dict[str, list[_Slot]]:
    """The buffers of a kind by their first names; of each all the modules that hold it, with their names for it."""
    found: dict[int, tuple[str, list[_Slot]]] = {}
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.numel() and kind(buffer):
                found.setdefault(id(buffer), (f"{prefix}.{name}".lstrip("."), []))[1].append((module, name))
    return dict(found.values())


def _of(module: nn.Module, name: str) -> torch.Tensor:
    buffer = module._buffers[name]
    assert buffer is not None
    return buffer
