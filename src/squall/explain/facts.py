"""What explaining needs to know of a network: how large it is, and which of its tensors are decayed.

Counted on a network whose parameters may lie on torch's meta device: no weight is made. Torch is loaded by the count,
not by this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from squall.recipe import OptimizerSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelFacts:
    """What explaining needs to know of a network.

    Attributes:
        num_parameters: all of them, frozen ones too.
        num_trainable: those that get a gradient.
        decayed: tensors under weight decay by kind: "convolution", "linear weight", "linear bias", ...
        undecayed: trainable tensors without it, by kind: "normalisation", ...
        batch_norms: layers that normalise over the samples of a virtual worker.
        vector: elements of the flat vector that parameter servers own: trainable parameters and floating-point buffers,
            each padded; 0 where nobody counted.
        buffers: those of them that belong to buffers.
    """

    num_parameters: int
    num_trainable: int
    decayed: Mapping[str, int] = field(default_factory=dict)
    undecayed: Mapping[str, int] = field(default_factory=dict)
    batch_norms: int = 0
    vector: int = 0
    buffers: int = 0


def model_facts(model: nn.Module, optimizer: OptimizerSpec) -> ModelFacts:
    """Counts what a network consists of; its parameters may lie on the meta device.

    Arguments:
        model: the network.
        optimizer: says which parameters are decayed.

    Raises:
        InputError: a pattern of the optimizer's groups matches no parameter.
    """
    from torch import Tensor, nn

    from squall.optim.groups import named, parameter_groups
    from squall.reduce.flat import aligned

    groups = parameter_groups(
        model,
        weight_decay=optimizer.weight_decay,
        no_weight_decay=optimizer.no_weight_decay,
        groups=optimizer.groups,
    )
    owner = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    norms = {id(entry.parameter) for entry in named(model) if entry.is_norm}
    tallies: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for group in groups:
        tally = tallies[0 if group["weight_decay"] else 1]
        for parameter in group["params"]:
            kind = "normalisation" if id(parameter) in norms else _kind(owner[id(parameter)], parameter.ndim)
            tally[kind] = tally.get(kind, 0) + 1
    buffers = sum(aligned(tensor.numel()) for tensor in filter(Tensor.is_floating_point, model.buffers()))
    return ModelFacts(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trainable=sum(p.numel() for group in groups for p in group["params"]),
        decayed=tallies[0],
        undecayed=tallies[1],
        batch_norms=sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()),
        vector=sum(aligned(p.numel()) for p in model.parameters() if p.requires_grad) + buffers,
        buffers=buffers,
    )


def _kind(module: nn.Module, ndim: int) -> str:
    name = type(module).__name__
    if name.startswith(("Conv", "LazyConv")):
        return "convolution" if ndim > 1 else "convolution bias"
    if name.endswith("Linear"):
        return "linear weight" if ndim > 1 else "linear bias"
    return "other weight"
