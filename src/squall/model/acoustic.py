"""The acoustic model of Dean et al. 2012, section 5: fully connected sigmoid layers, softmax outputs.

The paper's network classifies the middle one of 11 frames of 40 log-energies each: 440 inputs, four hidden layers of
2,560 sigmoid units, 8,192 states, 41,777,152 parameters in all. Every size is an argument, so the same network trains
on a laptop.

Sigmoid units have a slope of at most 1/4: weights that keep a layer's variance under a linear unit shrink it to almost
nothing after four layers of these, and the network stays at chance for epochs. So the uniform weights of Glorot and
Bengio 2010 start four times as large here, in every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from squall.errors import InputError


class Acoustic(nn.Module):
    """Linear layers with sigmoids between; use `acoustic` to build one."""

    def __init__(self, in_features: int, hidden: Sequence[int], num_classes: int, init_gain: float) -> None:
        super().__init__()
        sizes = [in_features, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.fc = nn.Linear(sizes[-1], num_classes)
        for layer in (*self.layers, self.fc):
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight, gain=init_gain)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes), the softmax left to the loss, of inputs (N, ...) with in_features values each."""
        x = x.flatten(1)
        for layer in self.layers:
            x = torch.sigmoid_(layer(x))
        logits: torch.Tensor = self.fc(x)
        return logits


def acoustic(
    in_features: int,
    num_classes: int,
    hidden: Sequence[int] = (256, 256, 256, 256),
    init_gain: float = 4.0,
) -> Acoustic:
    """Builds an `Acoustic`.

    Arguments:
        in_features: values of one input (an image of 28x28: 784; the paper's 11 frames: 440); inputs of any shape are
            flattened.
        num_classes: width of the last layer (the paper: 8,192).
        hidden: widths of the hidden layers (the paper: four of 2,560).
        init_gain: factor on the uniform first weights of Glorot and Bengio 2010; biases start at 0.

    Raises:
        InputError: `init_gain` is 0: all units of a layer would stay equal.

    Example:
        >>> sum(p.numel() for p in acoustic(784, 10).parameters())
        400906
    """
    if not init_gain > 0:
        raise InputError("1 mistake in the model acoustic", [(f"model.init_gain={init_gain}", "must be above 0")])
    return Acoustic(in_features, hidden, num_classes, init_gain)
