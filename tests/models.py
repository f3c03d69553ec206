"""Small networks that recipes of the tests name as "tests.models:function"."""

from __future__ import annotations

from torch import nn


def conv_with_dropout(num_classes: int = 10, in_channels: int = 3, width: int = 8, dropout: float = 0.2) -> nn.Module:
    """Two normalised convolutions, dropout of channels and of features: everything that draws or keeps statistics."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout2d(dropout),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width, num_classes),
    )
