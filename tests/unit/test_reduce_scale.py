"""The factor on the loss of float16 runs is out of every gradient, also of parameters of another dtype."""

import pytest
import torch
from torch import nn

from squall.cluster.world import World
from squall.run.passes import Passes


@pytest.mark.parametrize("other", [torch.float16, torch.bfloat16, torch.float64])
def test_a_scaled_loss_gives_the_gradients_of_the_loss(other: torch.dtype) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Parameter(torch.ones(3))
            self.other = nn.Parameter(torch.ones(3, dtype=other))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.plain * self.other.float()).sum()

    found: list[list[torch.Tensor | None]] = []
    for scale in (1.0, 1024.0):
        net = Two()
        passes = Passes(net, World(0, 1, 0, 1, torch.device("cpu"), None, None), exact=True)
        for leaf in passes.open(2):
            passes.begin_pass(leaf)
            loss = net(torch.arange(1.0, 4.0))
            passes.backward(loss * scale)
            passes.end_pass(loss, 4, 4, {})
        passes.finish(scale=scale)
        found.append([p.grad for p in net.parameters()])
    for plain, scaled in zip(*found, strict=True):
        assert plain is not None
        assert scaled is not None
        assert torch.equal(plain, torch.arange(1.0, 4.0).to(plain.dtype) / 4)
        assert torch.equal(scaled, plain)
