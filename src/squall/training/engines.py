"""Engines by name: simulated time, or Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from squall.cluster.program import Engine
from squall.errors import InputError
from squall.recipe import Recipe
from squall.run.folder import LOGS
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

        @contextmanager
        def on_ray(seconds: float) -> Iterator[Engine]:
            from squall.engine.ray.cluster import joined, local
            from squall.engine.ray.engine import OnRay

            assert recipe.downpour is not None
            there = (
                joined(cluster, trusted=trust_cluster)
                if cluster
                else local(cpus=recipe.downpour.replicas, folder=folder or Path())
            )
            with there as ray:
                yield OnRay(ray, folder / LOGS if folder else None, seconds, recipe.compute.threads)

        return on_ray, False
    raise InputError(f"engine={name} is not known", [("one of", " ".join(ENGINES))])
