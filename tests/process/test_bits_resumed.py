"""A run that was stopped and went on, on another number of processes, ends with the bits of one that was not."""

from __future__ import annotations

import os
import signal
from functools import cache
from pathlib import Path

import pytest

import squall
from squall.cluster.world import World
from squall.records import Record, Stepped
from tests.jobs import run_job
from tests.process.bits import RECIPES, Outcome, by_recipe, cifar_task, outcome_of

_STOP_AT = {name: number % 2 for number, name in enumerate(RECIPES)}
"""Steps: some runs leave in the middle of an epoch, some in the evaluation after it."""


def stop_all(out: Path, data: Path, world: World) -> list[str]:
    """Trains every recipe until rank 0, and no other, gets SIGTERM: all ranks must save after one step, and leave."""
    ended = []
    for name in RECIPES:
        recipe = squall.Recipe(name=name, **RECIPES[name])
        task = cifar_task(recipe, data) if name.startswith("cifar") else None

        def ask(record: Record, at: int = _STOP_AT[name]) -> None:
            if isinstance(record, Stepped) and record.step == at:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            squall.train(task, recipe, out=out / name, world=world, sinks=(ask,), data_root=data)
            ended.append("finished")
        except SystemExit as left:
            ended.append(str(left.code))
    return ended


def go_on(out: Path, data: Path, world: World | None = None) -> dict[str, Outcome]:
    found = {}
    for name in RECIPES:
        recipe = squall.Recipe(name=name, **RECIPES[name])
        task = cifar_task(recipe, data) if name.startswith("cifar") else None
        records: list[Record] = []
        result = squall.train(task, recipe, out=out / name, world=world, sinks=(records.append,), data_root=data)
        found[name] = outcome_of(result, records)
    return found


@cache
def undisturbed(data: Path, out: Path) -> dict[str, Outcome]:
    return {name: by_recipe(name, out / f"whole-{name}", None, data) for name in RECIPES}


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1), (1, 2)])
def test_stopped_and_gone_on_in_another_number(
    before: int, after: int, real_data: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = undisturbed(real_data, tmp_path_factory.getbasetemp())
    for ended in run_job(stop_all, before, tmp_path, real_data):
        assert set(ended) == {"143"}
    found = run_job(go_on, after, tmp_path, real_data)
    for name in RECIPES:
        for rank in found:
            assert rank[name].weights == expected[name].weights, name
            assert rank[name].ledger == expected[name].ledger, name
            assert rank[name].averages == expected[name].averages, name
        assert found[0][name].files == expected[name].files, name
        assert found[0][name].losses == expected[name].losses[-len(found[0][name].losses) :], name
        assert 0 < len(found[0][name].losses) < len(expected[name].losses), name
