"""A model as one flat vector that servers own in slices: where everything lies, and where it is cut.

::

    vector   | fc.weight | fc.bias | ... | running_mean | running_var | ...      every tensor padded to 64 elements
             |<---------- parameters --------->|<------- buffers ------->|
    shards   |<--- shard 0 --->|<--- shard 1 --->|<------ shard 2 ------->|      cuts at multiples of 64

The cuts ignore tensors' borders, so that shards are of equal size; a tensor that lies in two is two pieces, each with
the rate and the decay of its parameter. Parameters get gradients and a rule; the floating-point buffers behind them
(running statistics) are merged (`squall.server.shard`). Integer buffers are counters: they travel beside the vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from squall.errors import InputError
from squall.optim.groups import parameter_groups
from squall.reduce.flat import ALIGN, Place, place
from squall.run.buffers import is_whole, owners


@dataclass(frozen=True)
class Decay:
    """How a parameter is treated: the factor on its rate, and its weight decay."""

    lr_scale: float = 1.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Piece:
    """What of one parameter lies in a slice: elements start .. stop - 1 of the slice."""

    parameter: int
    start: int
    stop: int
    treated: Decay


@dataclass(frozen=True)
class Slice:
    """What a shard owns of the vector.

    Attributes:
        index: number of the shard.
        start, stop: elements of the vector.
        pieces: of parameters, in order.
        buffers: first element of the slice that belongs to buffers; the length of the slice where none does.
    """

    index: int
    start: int
    stop: int
    pieces: tuple[Piece, ...]
    buffers: int

    @property
    def size(self) -> int:
        """Elements of it."""
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """Where a model's tensors lie in the vector.

    Attributes:
        parameters: the trainable ones, in the model's order.
        treated: rate and decay of each.
        buffers: floating-point buffers, by their first names.
        counters: names of the integer buffers of one element, which may change.
        dtype: of the vector.
    """

    parameters: tuple[Place, ...]
    treated: tuple[Decay, ...]
    buffers: tuple[Place, ...]
    counters: tuple[str, ...]
    dtype: torch.dtype

    @property
    def parameters_end(self) -> int:
        """Where the buffers begin."""
        return self.parameters[-1].end

    @property
    def size(self) -> int:
        """Elements of the vector."""
        return self.buffers[-1].end if self.buffers else self.parameters_end

    @staticmethod
    def of(
        model: nn.Module,
        *,
        weight_decay: float = 0.0,
        no_weight_decay: tuple[str, ...] = ("norm",),
        groups: tuple[dict[str, object], ...] = (),
    ) -> Layout:
        """Lays a model out.

        Arguments:
            model: in the memory format in which it is trained.
            weight_decay, no_weight_decay, groups: as of `squall.optim.groups.parameter_groups`.

        Raises:
            InputError: parameters or buffers of several types.
        """
        cut = parameter_groups(model, weight_decay=weight_decay, no_weight_decay=no_weight_decay, groups=groups)
        treated = {
            id(parameter): Decay(float(group["lr_scale"]), float(group["weight_decay"]))
            for group in cut
            for parameter in group["params"]
        }
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        held = owners(model, torch.Tensor.is_floating_point)
        buffers = [(name, held_buffer(slots[0])) for name, slots in held.items()]
        _check_types([*named, *buffers])
        parameters = place(named)
        return Layout(
            tuple(parameters),
            tuple(treated[id(p)] for _, p in named),
            tuple(place(buffers, parameters[-1].end)),
            tuple(name for name, slots in owners(model, is_whole).items() if held_buffer(slots[0]).numel() == 1),
            named[0][1].dtype,
        )

    def slices(self, shards: int) -> tuple[Slice, ...]:
        """Cuts the vector into so many slices of nearly equal size.

        Raises:
            InputError: more shards than blocks of 64 elements.
        """
        blocks = self.size // ALIGN
        if shards > blocks:
            raise InputError(
                f"downpour.shards={shards} are more than the model can be cut into",
                [
                    ("found", f"{self.size} elements, cut at multiples of {ALIGN}"),
                    ("to do", f"at most {blocks} shards"),
                ],
            )
        borders = [blocks * index // shards * ALIGN for index in range(shards + 1)]
        return tuple(self._slice(index, *borders[index : index + 2]) for index in range(shards))

    def _slice(self, index: int, start: int, stop: int) -> Slice:
        pieces = []
        for number, (place_, treated) in enumerate(zip(self.parameters, self.treated, strict=True)):
            first, last = max(place_.offset, start), min(place_.end, stop)
            if first < last:
                pieces.append(Piece(number, first - start, last - start, treated))
        return Slice(index, start, stop, tuple(pieces), min(max(self.parameters_end, start), stop) - start)

    def vector(self, model: nn.Module) -> torch.Tensor:
        """A model's parameters and buffers as one vector, a copy in main memory."""
        vector = torch.zeros(self.size, dtype=self.dtype)
        tensors = dict(model.named_parameters())
        for place_ in self.parameters:
            place_.view(vector).copy_(tensors[place_.name].detach())
        held = owners(model, torch.Tensor.is_floating_point)
        for place_ in self.buffers:
            place_.view(vector).copy_(held_buffer(held[place_.name][0]))
        return vector


def held_buffer(slot: tuple[nn.Module, str]) -> torch.Tensor:
    """The buffer that a module holds under a name."""
    module, name = slot
    buffer = module._buffers[name]
    assert buffer is not None
    return buffer


def _check_types(named: list[tuple[str, torch.Tensor]]) -> None:
    first = named[0][1].dtype
    for name, tensor in named:
        if tensor.dtype != first:
            raise InputError(
                f"{name} is {tensor.dtype}, and {named[0][0]} is {first}",
                [
                    ("rule", "a parameter server keeps all weights and buffers in one vector, of one type"),
                    ("to do", f"model.to({first}), or strategy=sync"),
                ],
            )
