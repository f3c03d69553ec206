"""Engines by name: simulated time, or Ray."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from squall.cluster.program import Engine
from squall.errors import InputError
from squall.recipe import Recipe
from squall.run.folder import LOGS
from squall.task import Task
from squall.training.asynchronous import EngineAt

ENGINES = ("ray", "simulated")

_INSTALLED = tuple(str(Path(path).resolve()) for path in dict.fromkeys(sysconfig.get_paths().values()))
_SQUALL = str(Path(__file__).resolve().parents[1])


def engine_of(
    name: str, recipe: Recipe, task: Task | None, folder: Path | None, cluster: str | None, trust_cluster: bool
) -> tuple[EngineAt, bool]:
    """What gives the engine of that name, and whether its roles share this process.

    Arguments:
        task: of the user's own; the file that defines it travels to the roles' processes.
        folder: the run's, for what roles write to standard error.

    Raises:
        InputError: no such engine, or a cluster for the simulated one.
    """
    if name == "simulated":
        if cluster or trust_cluster:
            given = "cluster=" if cluster else "trust_cluster="
            raise InputError(f"{given} with engine=simulated", [("rule", "simulated time needs no cluster")])

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

            roles = recipe.downpour or recipe.sandblaster
            assert roles is not None
            logs, threads = folder / LOGS if folder else None, recipe.compute.threads
            files = defining(task) if task is not None else []
            if cluster:
                with joined(cluster, trusted=trust_cluster) as ray:
                    yield OnRay(ray, logs, seconds, threads, files)
            else:  # Ray makes as many processes ready as it is told processors: one for each role but the evaluator
                processes = roles.replicas + roles.shards + 1
                with local(cpus=processes, folder=folder or Path()) as ray:
                    yield OnRay(ray, logs, seconds, threads, files, own=True)

        return on_ray, False
    raise InputError(f"engine={name} is not known", [("one of", " ".join(ENGINES))])


def defining(task: Task) -> list[ModuleType]:
    """The modules that define a task: single files of the user's, neither installed nor part of a package.

    Other processes may not find such a file under its name, or would make its data sets anew.
    """
    found: dict[str, ModuleType] = {}
    for value in vars(task).values():
        for each in _functions(value):
            name = getattr(each, "__module__", None) or ""
            module = sys.modules.get(name)
            file = getattr(module, "__file__", None)
            if module is None or file is None or name == "__main__" or getattr(module, "__package__", ""):
                continue
            if not str(Path(file).resolve()).startswith((*_INSTALLED, _SQUALL)):
                found[name] = module
    return list(found.values())


def _functions(value: Any) -> Iterator[Any]:
    """What a value of a task is made of, as far as it has a module: functions, and the classes of objects."""
    if isinstance(value, partial):
        yield from _functions(value.func)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _functions(item)
    elif callable(value) and hasattr(value, "__qualname__"):
        yield value
    elif value is not None:
        yield type(value)
