"""A multi-layer perceptron: linear layers with ReLU between, dropout after each hidden layer.

The smallest network with every property that a test of training needs: no normalisation (so that virtual workers must
not matter) and, with dropout, random numbers in the forward pass. Hidden weights start as in He et al. 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from squall.errors import InputError


class MLP(nn.Module):
    """Linear layers with ReLU between; use `mlp` to build one."""

    def __init__(self, in_features: int, hidden: Sequence[int], num_classes: int, dropout: float) -> None:
        super().__init__()
        sizes = [in_features, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.fc = nn.Linear(sizes[-1], num_classes)
        self.dropout = dropout
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.kaiming_normal_(self.fc.weight, nonlinearity="linear")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of inputs (N, ...) with in_features values each."""
        x = x.flatten(1)
        for layer in self.layers:
            x = torch.relu_(layer(x))
            if self.dropout:
                x = F.dropout(x, self.dropout, self.training)
        logits: torch.Tensor = self.fc(x)
        return logits


def mlp(in_features: int, num_classes: int, hidden: Sequence[int] = (), dropout: float = 0.0) -> MLP:
    """Builds an `MLP`.

    Arguments:
        in_features: values of one input (an image of 28x28: 784); inputs of any shape are flattened.
        num_classes: width of the last layer.
        hidden: widths of the hidden layers; none gives a linear classifier.
        dropout: probability that a hidden value is dropped in training, below 1.

    Raises:
        InputError: `dropout` is not in [0, 1).
    """
    if not 0.0 <= dropout < 1.0:
        raise InputError("1 mistake in the model mlp", [(f"model.dropout={dropout}", "must be at least 0 and below 1")])
    return MLP(in_features, hidden, num_classes, dropout)
