"""Ranks that do something alone: their parameters and updates still belong to those of the others."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from torch import nn
from torch.optim import SGD

from squall.verify.matching import matched
from squall.verify.trace import Rank, Run
from squall.verify.update import updates
from tests.unit.observing import observed


def rank(folder: Path, number: int, *, measures: bool = False, looks_at: int = -1, clips: bool = False) -> Rank:
    """One rank of a training of two networks, three updates of each.

    Arguments:
        measures: with another network, before it begins.
        looks_at: an update before which it makes a backward pass and throws its gradients away.
    """
    folder.mkdir()
    torch.manual_seed(number)
    first, second = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Linear(3, 2)
    with observed(folder) as watched:
        if measures:
            nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 1))(torch.randn(4, 3))
        optimizers = [SGD(first.parameters(), 0.1), SGD(second.parameters(), 0.1)]
        for step in range(3):
            if step == looks_at:
                first(torch.randn(4, 3)).square().mean().backward()
                optimizers[0].zero_grad()
            for net, optimizer in zip((first, second), optimizers, strict=True):
                net(torch.randn(4, 3)).square().mean().backward()
                if clips:
                    nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
                optimizer.step()
                optimizer.zero_grad()
        return watched.trace()


def shapes(one: Rank) -> list[list[int]]:
    return [list(parameter["shape"]) for parameter in one.parameters]


def test_parameters_have_the_numbers_that_they_have_on_rank_0(tmp_path: Path) -> None:
    ranks = [rank(tmp_path / "0", 0, clips=True), rank(tmp_path / "1", 1, measures=True, clips=True)]
    assert shapes(ranks[0]) != shapes(ranks[1])
    found = matched(ranks)
    own = shapes(found[0])
    assert shapes(found[1])[: len(own)] == own
    for before, after in zip(ranks[1].steps, found[1].steps, strict=True):
        assert list(after["from"]) == list(after["group_of"])
        for index, other in zip(before["group_of"], after["group_of"], strict=True):
            for name in ("before", "grad", "local", "after"):
                one, same = ranks[1].array(before, f"{name}.{index}"), found[1].array(after, f"{name}.{other}")
                assert one is not None
                assert numpy.array_equal(one, same)
    assert [event["parameters"] for event in found[1].of("clip")] == [
        event["parameters"] for event in found[0].of("clip")
    ]
    run = Run(2, found)
    assert [update.indices for update in updates(run)] == [(0, 1, 2, 3), (4, 5)] * 3
    assert all(numpy.isfinite(update.total[0]).all() for update in updates(run))


def test_ranks_that_agree_are_left_as_they_are(tmp_path: Path) -> None:
    ranks = [rank(tmp_path / "0", 0), rank(tmp_path / "1", 1)]
    assert all(one is other for one, other in zip(matched(ranks), ranks, strict=True))


def test_updates_keep_their_places_where_a_rank_looks_at_a_gradient(tmp_path: Path) -> None:
    ranks = [rank(tmp_path / "0", 0, looks_at=1), rank(tmp_path / "1", 1)]
    pairs = [[step["n"] for step in steps] for _, steps in Run(2, matched(ranks)).whole()]
    assert pairs == [[one["n"], other["n"]] for one, other in zip(ranks[0].steps, ranks[1].steps, strict=True)]
    assert len(pairs) == 6
