"""Which parameters there are, and the gradient that this rank alone has computed for each.

A hook on a parameter sees what its own backward pass sends it, before anything is added to `.grad` and before any
reduction over processes, which wait for the finished `.grad`. Summed since `.grad` was last empty, that is what this
rank puts into the step::

    backward 1   hook: g1    .grad None -> sum begins          contributions [1]
    backward 2   hook: g2    .grad has numbers -> g1 + g2      contributions [1, 2]
    (the reduction over processes changes .grad, not the sum)
    optimizer.step()         .grad against the sums of all ranks

A sum that is thrown away, because `.grad` was emptied and no optimiser had stepped, is noted.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import unserializable_hook

from squall.verify.observe.blind import watching
from squall.verify.observe.recorder import Recorder, elements, positions

_HASHED = 8  # parameters that tell whether weights have changed

Array = numpy.ndarray[Any, Any]


class Parameters:
    """The parameters of one rank in the order in which they were met, each with its number."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.known: list[Tensor] = []
        self.names: dict[int, str] = {}
        self._at: dict[int, Tensor] = {}
        self._index: dict[int, int] = {}
        self._gathered: list[Tensor] = []  # forms of parameters that are spread over processes: kept, as are their ids
        self._hooked: set[int] = set()
        self._sums: dict[int, Array] = {}
        self._from: dict[int, list[int]] = {}
        self._used: set[int] = set()
        self._nonzero: dict[int, bool] = {}  # whether anything but zeros has arrived since
        self._held_back: set[int] = set()
        self._windows = False  # whether a framework says where an update's window begins
        self._arrivals: dict[int, int] = {}
        self._updates: dict[int, int] = {}
        self.backward: dict[str, Any] | None = None  # the one that is running

    def index(self, parameter: Tensor) -> int:
        """Its number; a new one is added."""
        found = self._index.get(id(parameter))
        if found is None:
            found = self._index[id(parameter)] = len(self.known)
            self.known.append(parameter)
        return found

    @watching(None)
    def gathered(self, whole: Tensor, spread: Tensor) -> None:
        """A parameter that is spread over processes has been put together in another tensor: the same parameter."""
        if id(whole) not in self._index:
            self._gathered.append(whole)
        self._index[id(whole)] = self.index(spread)

    def add_model(self, model: nn.Module, prefix: str = "") -> None:
        """Notes the parameters of a model under their names."""
        for name, parameter in model.named_parameters():
            if not is_lazy(parameter):  # it has no shape yet
                self.names.setdefault(self.index(parameter), prefix + name)

    def watch(self) -> None:
        """Puts hooks on those that came, or came to need gradients, since last time."""
        for index, parameter in enumerate(self.known):
            if index not in self._hooked and parameter.requires_grad and parameter.is_leaf and not is_lazy(parameter):
                parameter.register_hook(self._arrival(index))  # type: ignore[no-untyped-call]
                self._hooked.add(index)

    def _arrival(self, index: int) -> Any:
        @unserializable_hook  # type: ignore[untyped-decorator]
        def hook(gradient: Tensor) -> None:
            if self.recorder.here and self.recorder.observing:
                self.arrived(index, gradient)

        return hook

    @watching(None)
    def arrived(self, index: int, gradient: Tensor) -> None:
        """Adds what one backward pass of this rank has computed for a parameter."""
        self._arrivals[index] = self._arrivals.get(index, 0) + 1
        if not self._windows and index not in self._held_back:
            self._look(index)
        self._held_back.discard(index)
        if not self._nonzero.get(index):
            self._nonzero[index] = _any(gradient)
        part = self.elements(index, gradient)
        if self.backward is not None and not numpy.isfinite(part).all():
            self.backward["finite"] = False
        before = self._sums.get(index)
        self._sums[index] = part if before is None or before.shape != part.shape else before + part
        self._contributed(index)

    @watching(None)
    def held_back(self, index: int) -> None:
        """A backward pass has computed a gradient that a framework keeps to itself until a later one reduces both."""
        if index not in self._held_back:
            self._look(index)
        self._held_back.add(index)
        self._contributed(index)

    def _contributed(self, index: int) -> None:
        number = self.backward["n"] if self.backward is not None else -1
        contributions = self._from.setdefault(index, [])
        if number not in contributions:
            contributions.append(number)

    def _look(self, index: int) -> None:
        """Begins a new sum if the parameter's `.grad` was emptied.

        One that holds only zeros was emptied, unless nothing else can be expected: nothing but zeros has arrived, or
        it is this process's part of a gradient and what has arrived lies in the others'.
        """
        held = self.known[index].grad
        if held is None:
            self._begin(index)
        elif not _any(held):
            whole = not hasattr(held, "to_local")
            if index in self._used or (whole and self._nonzero.get(index)):
                self._begin(index)

    def begin_window(self) -> None:
        """All sums begin anew, as the framework says; from now on it is not looked at `.grad`."""
        self._windows = True
        self._sums.clear()
        self._from.clear()
        self._used.clear()
        self._nonzero.clear()

    def _begin(self, index: int) -> None:
        """The parameter's `.grad` is empty: a new sum."""
        number = self.backward["n"] if self.backward is not None else -1
        if self._from.get(index, [None])[-1] == number:
            return  # another part of the same backward pass
        if index in self._sums and index not in self._used and self.backward is not None:
            self.backward.setdefault("dropped", {}).setdefault(str(index), self._from[index])
        self._sums.pop(index, None)
        self._nonzero.pop(index, None)
        self._from[index] = []
        self._used.discard(index)

    def contributions(self, index: int) -> list[int]:
        """The backward passes that its gradient came from."""
        return list(self._from.get(index, []))

    def use(self, indices: list[int]) -> None:
        """An optimiser has applied the gradients of these."""
        self._used.update(indices)
        for index in indices:
            self._updates[index] = self._updates.get(index, 0) + 1

    def hashes(self) -> dict[str, int]:
        """Hashes of the largest parameters' kept elements, by number: other weights, another hash."""
        plain = [index for index, one in enumerate(self.known) if one.requires_grad and _is_plain(one)]
        largest = sorted(plain, key=lambda index: -self.known[index].numel())[:_HASHED]
        return {str(index): zlib.crc32(self.elements(index, self.known[index]).tobytes()) for index in largest}

    def local(self, index: int) -> Array | None:
        """The kept elements of this rank's own gradient, summed since `.grad` was empty."""
        return self._sums.get(index)

    def elements(self, index: int, tensor: Tensor) -> Array:
        """The kept elements of a tensor of this parameter's shape."""
        at = self._at.get(index)
        if at is None or tensor.numel() <= int(at[-1:].sum()):  # a new one, or it has become smaller
            at = self._at[index] = positions(tensor.numel())
        return elements(tensor, at)

    def table(self) -> list[dict[str, Any]]:
        """Name, shape, whether it needs a gradient, and how often it got one and was updated, by number."""
        return [
            {
                "name": self.names.get(index, f"parameter {index}"),
                "shape": [] if is_lazy(parameter) else list(parameter.shape),
                "trains": parameter.requires_grad,
                "gradients": self._arrivals.get(index, 0),
                "updates": self._updates.get(index, 0),
            }
            for index, parameter in enumerate(self.known)
        ]


def _is_plain(parameter: Tensor) -> bool:
    """Whether all its numbers are here."""
    return not is_lazy(parameter) and not hasattr(parameter, "to_local")


def _any(tensor: Any) -> bool:
    """Whether anything in (this process's part of) a tensor is not zero."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return bool((local._values() if local.is_sparse else local).any())
