"""A network of ten million parameters and a set that it can fit, for batch optimisers: the same for all contenders."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.utils.data import TensorDataset

INPUTS, HIDDEN, CLASSES = 784, (2800, 2700), 10


def network() -> nn.Module:
    """9,787,410 parameters, the same first weights each time."""
    torch.manual_seed(0)
    sizes = (INPUTS, *HIDDEN, CLASSES)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def samples(number: int) -> TensorDataset:
    """Inputs, and labels that a linear teacher gives them."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(number, INPUTS, generator=generator)
    teacher = torch.randn(INPUTS, CLASSES, generator=generator)
    return TensorDataset(inputs, (inputs @ teacher).argmax(1))
