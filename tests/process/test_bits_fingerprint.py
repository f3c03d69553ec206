"""Equal bits are promised for equal arithmetic; another one is recognised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import squall
from squall.cluster.world import World
from squall.errors import RunError
from tests.jobs import run_job

DATA = [(torch.full((3,), float(i)), torch.tensor([1.0])) for i in range(16)]


def trained(world: World | None = None, **fields: Any) -> dict[str, Any]:
    """The values of a small run's result; of the error where the set-up is refused."""
    run = squall.Run(None, world=world, epochs=1, global_batch_size=8, worker_batch_size=2, **fields)
    try:
        torch.manual_seed(1)
        model = nn.Linear(3, 1)
        model, optimizer = run.setup(model, torch.optim.SGD(model.parameters(), lr=0.01))
        for step in run.steps(DATA):
            for inputs, targets in step:
                step.backward((model(inputs) - targets).square().sum())
            optimizer.step()
        return dict(run.finish().values)
    finally:
        run.close()


def threads_by_rank(reduction: str, world: World) -> Any:
    """Ranks that disagree on their threads: the result, or why there is none."""
    try:
        return trained(world, reduction=reduction, threads=1 + (world.rank == 2))
    except RunError as error:
        return str(error)


def test_two_threads_are_recognised_as_another_arithmetic() -> None:
    one, two, again = trained(threads=1), trained(threads=2), trained(threads=1)
    assert one["fingerprint_sha256"] == again["fingerprint_sha256"]
    assert one["fingerprint_sha256"] != two["fingerprint_sha256"]
    assert [key for key in one["fingerprint"] if one["fingerprint"][key] != two["fingerprint"][key]] == ["threads"]


@pytest.mark.parametrize("field", [{"precision": "bf16"}, {"fuse": 2}, {"channels_last": True}])
def test_each_number_of_the_arithmetic_is_in_the_fingerprint(field: dict[str, Any]) -> None:
    plain, other = trained(), trained(**field)
    assert plain["fingerprint_sha256"] != other["fingerprint_sha256"]
    assert other["fingerprint"] == {**plain["fingerprint"], **field}


def test_ranks_of_different_arithmetic_refuse_exact_and_name_the_field() -> None:
    ranks = run_job(threads_by_rank, 3, "exact")
    assert len(set(ranks)) == 1  # all ranks stop for one reason, none waits for another
    assert "rank 2 computes with another arithmetic than rank 0" in ranks[0]
    assert "threads   1 on rank 0, 2 on rank 2" in ranks[0]
    assert "reduction=fast" in ranks[0]


def test_fast_accepts_ranks_of_different_arithmetic() -> None:
    ranks = run_job(threads_by_rank, 3, "fast")
    assert len({rank["weights_sha256"] for rank in ranks}) == 1


def test_the_threads_of_the_caller_are_given_back() -> None:
    before = torch.get_num_threads()
    trained(threads=2)
    assert torch.get_num_threads() == before
