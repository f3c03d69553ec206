"""Engines by name: simulated time, or Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from squall.cluster.program import Engine
from squall.errors import InputError
from squall.recipe import Recipe
from squall.training.asynchronous import EngineAt

ENGINES = ("ray", "simulated")


def engine_of(
    name: str, recipe: Recipe, folder: Path | None, cluster: str | None, trust_cluster: bool
) -> tuple[EngineAt, bool]:
    """What gives the engine of that name, and whether its roles share this process.

    Arguments:
        folder: the run's, for what roles write to standard error.

    Raises:
        InputError: no such engine.
    """
    if name == "simulated":

        @contextmanager
        def simulated(seconds: float) -> Iterator[Engine]:
            from squall.engine.simulated import Simulated

            assert recipe.simulated is not None
            costs, faults = recipe.simulated.numbers(), recipe.simulated.planned()
            yield Simulated(costs, faults, recipe.seed, began=seconds)

        return simulated, True
    if name == "ray":
        raise InputError("engine=ray is not there yet", [("to do", "engine=simulated")])
    raise InputError(f"engine={name} is not known", [("one of", " ".join(ENGINES))])
