"""Small trainings in this process, each function of them one rank, and what a check says of what was seen of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from squall.verify.checks import BY_NAME
from squall.verify.checks.training import Training
from squall.verify.finding import Finding
from squall.verify.trace import Run
from tests.unit.observing import observed

Train = Callable[[], None]

torch.manual_seed(0)
DATA = TensorDataset(torch.randn(64, 8), torch.randint(0, 3, (64,)))


class Judge:
    """Says what a check finds in a training; each training is observed in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, 0

    def __call__(self, check: str, *ranks: Train) -> Finding:
        found = []
        for number, train in enumerate(ranks):
            self.made += 1
            folder = self.folder / str(self.made)
            folder.mkdir()
            torch.manual_seed(0)
            with observed(folder) as watched:
                train()
                one = watched.trace()
            found.append(replace(one, number=number, about={**one.about, "backend": "gloo"}))
        return BY_NAME[check](Training([Run(len(found), found)]))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 3))


def loader(data: Dataset[Any] = DATA, **more: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=8, **{"shuffle": "sampler" not in more, **more})


def twice() -> Iterator[Any]:
    return itertools.chain(loader(), loader())


def loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, update: Callable[[Any], None] | None = None, **more: Any
) -> None:
    """Two epochs; `update` stands for the backward pass and the step."""
    batches = more.get("batches") or loader()
    for _ in range(2):
        for x, y in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if update is not None:
                update(loss)
            else:
                loss.backward()
                optimizer.step()
        for step in more.get("after", ()):
            step()
