"""Observes what a test does as a rank of `squall verify` is, in this process, and takes every hook away again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules import module as modules
from torch.nn.utils import clip_grad
from torch.optim import lr_scheduler
from torch.optim import optimizer as optimizers
from torch.utils.data import DataLoader, dataloader
from torch.utils.data._utils import fetch

from squall.verify.observe import streams
from squall.verify.observe.rank import Observer
from squall.verify.observe.recorder import Recorder
from squall.verify.trace import Rank, read

_OWNERS: list[Any] = [
    *(
        random,
        random.Random,
        numpy.random,
        torch,
        torch.Tensor,
        torch.autograd,
        saved_tensors_hooks,
        torch.amp.GradScaler,
    ),
    *(clip_grad, nn.utils, dist, dist.distributed_c10d, DataLoader, dataloader._BaseDataLoaderIter),
    *(fetch._MapDatasetFetcher, *(one for one in vars(lr_scheduler).values() if isinstance(one, type))),
]
_HOOKS: list[dict[Any, Any]] = [
    *(modules._global_forward_pre_hooks, modules._global_forward_hooks, modules._global_forward_hooks_always_called),
    *(optimizers._global_optimizer_pre_hooks, optimizers._global_optimizer_post_hooks),
]


class Observed(Observer):
    """An observer, and what it has noted."""

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for kind in kinds for event in self.recorder.events(kind)]

    def array(self, event: dict[str, Any], name: str) -> Any:
        return self.recorder._arrays.get(f"{event['n']}.{name}")

    def trace(self) -> Rank:
        """All of it, written and read back."""
        self.end("finished")
        assert self.events("blind") == []
        return read(self.recorder.folder, self.recorder.processes).ranks[0]


@contextmanager
def observed(folder: Path, *, processes: int = 1, epochs: int = 2, steps: int = 24) -> Iterator[Observed]:
    """Inside, everything is watched."""
    owners = [owner for number, owner in enumerate(_OWNERS) if owner not in _OWNERS[:number]]
    before = [dict(vars(owner)) for owner in owners]
    hooks = [dict(one) for one in _HOOKS]
    recorder = Recorder(folder, 0, processes, epochs=epochs, steps=steps)
    observer = Observed(recorder, 60.0)
    try:
        for part in (observer.loaders, observer.models, observer.updates, observer.exchanges):
            part.install()
        yield observer
    finally:
        for owner, values in zip(owners, before, strict=True):
            for name, value in values.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)
            if isinstance(owner, type):
                for name in set(vars(owner)) - set(values):
                    delattr(owner, name)
        for one, values in zip(_HOOKS, hooks, strict=True):
            one.clear()
            one.update(values)
        streams.SEEDS = streams.Seeds()
