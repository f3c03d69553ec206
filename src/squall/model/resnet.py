"""Residual networks: the CIFAR family and the ImageNet family of He et al. 2016 ("Deep residual learning", sections
4.1 and 4.2), initialised as in Goyal et al. 2017, section 5.1.

    x ---- conv - BN - ReLU - conv - BN ---(+)--- ReLU ---          basic block
      \\                                    /
       `------- (1x1 conv - BN) -----------'                        only where the shape changes

Three choices of Goyal's matter at large minibatches: the last normalisation of each block starts with scale 0, so that
every block starts as relu(shortcut(x)); the last layer's weights start as N(0, 0.01^2); the stride of a bottleneck is
on its 3x3 convolution. Module names are torchvision's and timm's, so that published weights load by name.
"""

from __future__ import annotations

import torch
from torch import nn

_BOTTLENECK_EXPANSION = 4


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, in_channels, H, W) -> (N, channels, H/stride, W/stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _projection(in_channels, channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        # In place: no layer's backward pass needs a normalisation's output.
        out += x if self.downsample is None else self.downsample(x)
        return torch.relu_(out)


class _Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the channels, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * _BOTTLENECK_EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu_(self.bn1(self.conv1(x)))
        out = torch.relu_(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return torch.relu_(out)


class ResNet(nn.Module):
    """A stem, stages of residual blocks, a mean over the image, one linear layer.

    Arguments:
        block: basic block or bottleneck.
        blocks: number of blocks of each stage; each stage doubles the width, all but the first halve the image.
        image_stem: a 7x7 convolution of stride 2 and a pooling of stride 2 (ImageNet); otherwise one 3x3 (CIFAR).
        num_classes, in_channels, width: of the last layer, the image, the first stage.
        zero_init_residual: the scale of each block's last normalisation starts at 0.
        fc_init_std: standard deviation of the last layer's first weights.
    """

    def __init__(
        self,
        block: type[_BasicBlock] | type[_Bottleneck],
        blocks: tuple[int, ...],
        *,
        image_stem: bool,
        num_classes: int,
        in_channels: int,
        width: int,
        zero_init_residual: bool,
        fc_init_std: float,
    ) -> None:
        super().__init__()
        expansion = _BOTTLENECK_EXPANSION if block is _Bottleneck else 1
        if image_stem:
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module | None = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = _conv3x3(in_channels, width)
            self.maxpool = None
        self.bn1 = nn.BatchNorm2d(width)
        features = width
        stages = []
        for index, num_blocks in enumerate(blocks):
            stage = []
            for position in range(num_blocks):
                stage.append(block(features, width << index, stride=2 if index and not position else 1))
                features = (width << index) * expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*stage))
            stages.append(f"layer{index + 1}")
        self._stages = tuple(stages)
        self.fc = nn.Linear(features, num_classes)
        self._initialise(zero_init_residual, fc_init_std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = torch.relu_(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for stage in self._stages:
            x = self._modules[stage](x)  # type: ignore[misc]
        # (N, C, H, W) -> (N, C)
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits

    def _initialise(self, zero_init_residual: bool, fc_init_std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _BasicBlock | _Bottleneck) and zero_init_residual:
                nn.init.zeros_(module.last_norm.weight)
        nn.init.normal_(self.fc.weight, std=fc_init_std)
        nn.init.zeros_(self.fc.bias)


def cifar(
    depth: int,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    zero_init_residual: bool = True,
    fc_init_std: float = 0.01,
) -> ResNet:
    """The family for small images: three stages of (depth - 2) / 6 basic blocks; `depth` 8, 20, 32, 44, 56 or 110.

    Shortcuts that change the shape are 1x1 convolutions with normalisation (He's option B).
    """
    return ResNet(
        _BasicBlock,
        ((depth - 2) // 6,) * 3,
        image_stem=False,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        zero_init_residual=zero_init_residual,
        fc_init_std=fc_init_std,
    )


_IMAGENET_STAGES: dict[int, tuple[type[_BasicBlock] | type[_Bottleneck], tuple[int, ...]]] = {
    18: (_BasicBlock, (2, 2, 2, 2)),
    34: (_BasicBlock, (3, 4, 6, 3)),
    50: (_Bottleneck, (3, 4, 6, 3)),
    101: (_Bottleneck, (3, 4, 23, 3)),
    152: (_Bottleneck, (3, 8, 36, 3)),
}


def imagenet(
    depth: int,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 64,
    zero_init_residual: bool = True,
    fc_init_std: float = 0.01,
) -> ResNet:
    """The family for photographs: four stages; `depth` 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks)."""
    block, blocks = _IMAGENET_STAGES[depth]
    return ResNet(
        block,
        blocks,
        image_stem=True,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        zero_init_residual=zero_init_residual,
        fc_init_std=fc_init_std,
    )


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )
