"""The promise: the number of processes does not touch a recipe's result, bit for bit (issue, "what it must show" 4)."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.process.bits import RECIPES, Case, assert_equal, by_recipe, outcomes


def cases() -> dict[str, Case]:
    return {name: partial(by_recipe, name) for name in RECIPES}


@pytest.mark.parametrize("processes", [2, 3, 4, 6])
@pytest.mark.parametrize("name", RECIPES)
def test_processes_do_not_touch_the_bits(name: str, processes: int, real_data: Path) -> None:
    """Weights, running statistics, averaged weights, losses, metrics, ledger."""
    expected = assert_equal(cases, name, processes, real_data)
    wanted = {"weights.safetensors", "ema.safetensors"} if "ema" in RECIPES[name] else {"weights.safetensors"}
    assert {file for file, _ in expected.files} == wanted
    assert len(expected.losses) > 3
    assert set(json.loads(expected.averages)["test"]) == {"loss", "accuracy"}


def test_the_cases_are_different_trainings(real_data: Path) -> None:
    """Equal hashes mean something only if every property of a case reaches the weights."""
    found = outcomes(cases, 1, real_data)[0]
    assert len({outcome.weights for outcome in found.values()}) == len(RECIPES)
