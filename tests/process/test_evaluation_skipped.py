"""A set that leaves samples out, a model that draws in evaluation: the same numbers on any number of processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.cluster.world import World
from squall.errors import InputError
from tests.jobs import run_job
from tests.unit.runs import CLASSES, FIELDS, make_data, make_model

SETS = {
    "one file": frozenset({5}),
    "a whole batch": frozenset({4, 5, 6, 7}),
    "all of the first rank": frozenset(range(8)),
    "all of the last rank": frozenset(range(8, 14)),
    "all": frozenset(range(14)),
}


class Gappy:
    """14 rows, of which some cannot be read: four batches of 4, 4, 4 and 2 planned samples."""

    def __init__(self, skipped: frozenset[int]) -> None:
        self.rows, self.skipped = make_data(14), skipped

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.read(index, 0, 0)

    def read(self, index: int, epoch: int, seed: int) -> Any:
        return None if index in self.skipped else (self.rows[index][0] + torch.randn(5), index)


class NoisyHead(nn.Module):
    """Draws in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_model()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(inputs)
        return out + torch.randn_like(out)


def step_of(model: nn.Module, batch: Any) -> Any:
    inputs, ids = batch
    scores, labels = model(inputs), ids % CLASSES
    metrics = {
        "accuracy": squall.mean(scores.argmax(1) == labels),
        "ids": squall.gather(ids, lambda found: float((found * torch.arange(1, 1 + len(found))).sum())),
        "some": squall.gather(ids[ids % 5 == 0], lambda found: float(found.sum())),
        "none": squall.gather(ids[:0], lambda found: float(len(found))),
    }
    return squall.Loss(F.cross_entropy(scores, labels, reduction="sum"), len(labels)), metrics


def measured(world: World | None = None) -> dict[str, Any]:
    """The averages and the values of all sets, and the state that the caller's generator is left in."""
    run = squall.Run(None, world=world, **{**FIELDS, "eval_batch_size": 4})
    try:
        model = NoisyHead()
        run.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
        torch.manual_seed(9)
        found: dict[str, Any] = {}
        for name, skipped in SETS.items():
            try:
                values = run.evaluate(model, Gappy(skipped), lambda out, ids: torch.stack([ids.float(), out[:, 0]], 1))
                found[name] = values.values.tolist(), run.averages(model, Gappy(skipped), step_of)
            except InputError as error:
                found[name] = error.text()
        return {**found, "drawn": torch.rand(2).tolist()}
    finally:
        run.close()


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return measured()


def test_values_are_those_of_the_samples_that_were_read(alone: dict[str, Any]) -> None:
    for name, skipped in SETS.items():
        if name != "all":
            values, averages = alone[name]
            kept = [index for index in range(14) if index not in skipped]
            assert [row[0] for row in values] == kept
            assert averages["ids"] == sum(place * index for place, index in enumerate(kept, 1))
            assert averages["some"] == sum(index for index in kept if index % 5 == 0)
            assert averages["none"] == 0


def test_a_set_that_cannot_be_read_at_all_is_named(alone: dict[str, Any]) -> None:
    assert alone["all"].splitlines()[0] == "all samples of the data set were skipped"


def test_an_evaluation_leaves_the_callers_generator_alone(alone: dict[str, Any]) -> None:
    torch.manual_seed(9)
    assert alone["drawn"] == torch.rand(2).tolist()


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same(alone: dict[str, Any], processes: int) -> None:
    assert run_job(measured, processes) == [alone] * processes
