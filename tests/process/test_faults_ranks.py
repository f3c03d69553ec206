"""Faults that peers have had between ranks, looked for on three real processes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.cluster.world import World
from squall.errors import RunError
from squall.model import weights
from squall.records import Record, Stepped
from tests.jobs import run_job

PROCESSES = 3
FIELDS: dict[str, Any] = {"epochs": 2, "global_batch_size": 20, "worker_batch_size": 4, "eval_batch_size": 3}


class Sometimes(nn.Module):
    """A layer with statistics, and a part that only samples with a positive first number reach."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.BatchNorm1d(5)
        self.always = nn.Linear(5, 3)
        self.rarely = nn.Linear(5, 3)
        self.never = nn.Linear(5, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.always(self.norm(inputs))
        if bool((inputs[:, 0] > 1.2).any()):
            outputs = outputs + self.rarely(inputs)
        return outputs


def rows(num_samples: int) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(11)
    return [(torch.randn(5, generator=generator), i % 3) for i in range(num_samples)]


def trained(start: int = 0, world: World | None = None) -> dict[str, Any]:
    """One training: 47 samples, five workers of four, the last minibatch of two workers (fewer than ranks)."""
    rank = world.rank if world else 0
    seen: list[Record] = []
    run = squall.Run(None, world=world, sinks=(seen.append,), **FIELDS)
    model = Sometimes(seed=start + rank)  # as in scripts that never seed
    with torch.no_grad():
        model.norm.running_mean += rank
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    schedule = squall.lr(base=0.1, base_batch_size=10, schedule="cosine", warmup_epochs=1)
    run.setup(model, optimizer, lr=schedule)
    rates, calls = [], 0
    for step in run.steps(rows(47)):
        for inputs, targets in step:
            step.backward(F.cross_entropy(model(inputs), targets, reduction="sum"))
            calls += 1
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    numbers = run.evaluate(model, [(row, i) for i, (row, _) in enumerate(rows(10))], lambda out, i: i)
    hits = run.evaluate(model, rows(10), lambda out, labels: out.argmax(1) == labels)
    result = run.finish()
    return {
        "weights": result.values["weights_sha256"],
        "buffers": weights.sha256(model.named_buffers()),
        "rates": rates,
        "losses": [event.loss for event in seen if isinstance(event, Stepped)],
        "evaluated": numbers.values.tolist(),
        "accuracy": hits.mean(),
        "never": float(model.never.weight.detach().abs().sum()),
        "passes": calls,
        "samples": result.values["ledger"]["samples"],
    }


@cache
def alone() -> dict[str, Any]:
    return trained()


@cache
def together() -> list[dict[str, Any]]:
    return run_job(trained, PROCESSES)


def test_ranks_that_never_seed_train_different_models() -> None:
    """Each rank builds other weights here; rank 0's are everybody's before the first step."""
    assert {rank["weights"] for rank in together()} == {alone()["weights"]}
    assert alone()["weights"] != trained(start=1)["weights"]


def test_running_means_differ_between_ranks() -> None:
    """pytorch#13711, mmdetection#4582: every rank evaluates and saves the same statistics, from the first step on."""
    assert {rank["buffers"] for rank in together()} == {alone()["buffers"]}


def test_unequal_shares_are_averaged_by_rank() -> None:
    """pytorch#37359, #67253, #36516, fairchem#269: 2, 2 and 1 passes a step, then 1, 1 and 0."""
    assert sorted({rank["passes"] for rank in together()}) != [alone()["passes"] // PROCESSES]
    assert sum(rank["passes"] for rank in together()) == alone()["passes"]
    assert together()[0]["losses"] == alone()["losses"]


def test_a_parameter_that_only_one_rank_uses_hangs_the_others_or_is_decayed() -> None:
    """DDP needs find_unused_parameters; a flat vector of zeros would be decayed."""
    torch.manual_seed(0)
    assert alone()["never"] == float(Sometimes(0).never.weight.detach().abs().sum())
    assert {rank["never"] for rank in together()} == {alone()["never"]}


def test_the_scheduler_steps_once_a_process() -> None:
    """accelerate#1382, transformers#24088: the rate of each step, however many processes there are."""
    assert len(set(alone()["rates"])) > 3
    for rank in together():
        assert rank["rates"] == alone()["rates"]


def test_padded_validation_gives_a_wrong_accuracy() -> None:
    """pytorch#25162, #22584, AReaL#1096: ten samples in ragged batches on three ranks are ten samples, in order."""
    for rank in together():
        assert rank["evaluated"] == list(range(10))
        assert rank["accuracy"] == alone()["accuracy"]


def test_samples_are_padded_or_dropped_to_a_multiple_of_the_ranks() -> None:
    """DistributedSampler pads 47 samples to 48 on three ranks."""
    assert {rank["samples"] for rank in together()} == {2 * 47}


def another_model(world: World) -> str:
    """Ranks whose factories give other layers."""
    run = squall.Run(None, world=world, **FIELDS)
    model = nn.Linear(5, 3 + (world.rank == 2))
    try:
        run.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    except RunError as error:
        return str(error)
    finally:
        run.close()
    return ""


def test_ranks_that_build_different_models_hang_in_a_collective() -> None:
    """The rank that differs is named instead."""
    ranks = run_job(another_model, PROCESSES)
    assert all("rank 2 built another model than rank 0" in rank for rank in ranks)


def drifting(world: World) -> str:
    """A loop that does something of its own on one rank."""
    run = squall.Run(None, world=world, **FIELDS)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.setup(model, optimizer)
    for step in run.steps(rows(40)):
        for inputs, targets in step:
            step.backward(F.cross_entropy(model(inputs), targets, reduction="sum"))
        if world.rank == 1:
            model.weight.grad.mul_(1.0001)
        optimizer.step()
    try:
        run.finish()
    except RunError as error:
        return str(error)
    finally:
        run.close()
    return ""


def test_ranks_drift_apart_and_nobody_notices() -> None:
    """The weights of all ranks are compared at the end."""
    ranks = run_job(drifting, PROCESSES)
    assert all("rank 1 ends with other weights than rank 0" in rank for rank in ranks)


@pytest.mark.parametrize("processes", [6])
def test_more_ranks_than_passes_leave_some_idle_or_hanging(processes: int) -> None:
    with pytest.raises(AssertionError, match="6 processes for 5 passes"):
        run_job(trained, processes)


def unseeded_data(world: World) -> str:
    torch.manual_seed(world.rank)
    data = [(torch.randn(5), index % 3) for index in range(20)]
    model = nn.Linear(5, 3)
    run = squall.Run(None, world=world, **FIELDS)
    try:
        run.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
        next(run.steps(data))
    except RunError as error:
        return str(error)
    finally:
        run.close()
    return "trained"


def test_ranks_that_make_their_own_data_train_on_different_sets() -> None:
    """Indices are dealt out: a set made without a seed is another one in every process, and no ledger sees it."""
    found = run_job(unseeded_data, PROCESSES)
    assert all("rank 1 has another training set than rank 0" in text for text in found), found
