"""How roles travel to their processes: what is pickled, by value or by name, and what is said where that fails."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from torch import nn

import squall
from squall.cluster.program import Plan, Role
from squall.engine.ray.sealed import Sealed, seal
from squall.errors import InputError
from squall.training.engines import defining

TASK = """
import threading
import beside
from torch import nn

scale = 3
lock = threading.Lock()

class Net(nn.Linear):
    def __init__(self):
        super().__init__(2, scale)

def network():
    return Net()

def guarded():
    with lock:
        return Net()
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    """A task's file, loaded by its path, with a module beside it."""
    (tmp_path / "beside.py").write_text("")
    path = tmp_path / "a_task_of_mine.py"
    path.write_text(TASK)
    sys.path.insert(0, str(tmp_path))
    spec = importlib.util.spec_from_file_location("a_task_of_mine", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["a_task_of_mine"] = made
    spec.loader.exec_module(made)
    yield made
    sys.path.remove(str(tmp_path))
    del sys.modules["a_task_of_mine"], sys.modules["beside"]


class Carrier(Role):
    """A role that holds something."""

    def __init__(self, held: Any) -> None:
        self.held = held


def elsewhere(sealed: Sealed, folder: str = "") -> str:
    """What a role holds, as another process that has not loaded the file makes it."""
    script = "import sys, pickle; sys.path.insert(0, sys.argv[1]) if sys.argv[1] else 0\n"
    script += "print(pickle.load(sys.stdin.buffer)().held())"
    import pickle

    done = subprocess.run(
        [sys.executable, "-c", script, folder], input=pickle.dumps(sealed), capture_output=True, check=False
    )
    return done.stdout.decode() or done.stderr.decode()


def test_functions_of_a_tasks_file_travel_by_value(module: ModuleType) -> None:
    assert "Net(in_features=2, out_features=3" in elsewhere(seal(partial(Carrier, module.network), [module]))


def test_where_a_global_cannot_travel_the_file_is_imported_by_name(module: ModuleType, tmp_path: Path) -> None:
    sealed = seal(partial(Carrier, module.guarded), [module])
    assert "Net(in_features=2, out_features=3" in elsewhere(sealed, str(tmp_path))
    assert "No module named 'a_task_of_mine'" in elsewhere(sealed)


def test_what_cannot_be_pickled_is_a_clear_error() -> None:
    with pytest.raises(InputError, match="cannot be sent to the processes of replicas") as raised:
        seal(partial(Carrier, threading.Lock()))
    assert ("found", "TypeError: cannot pickle '_thread.lock' object") in raised.value.rows


def test_a_plan_within_a_role_stays_sealed(module: ModuleType) -> None:
    inner = Plan(partial(Carrier, module.network), "replica", cpus=2.0)
    holder = cast(Carrier, seal(partial(Carrier, inner), [module])())
    assert isinstance(holder.held.make, Sealed)
    assert (holder.held.kind, holder.held.cpus) == ("replica", 2.0)
    assert seal(holder.held.make) is holder.held.make
    made = cast(Carrier, holder.held.make())
    assert isinstance(made.held(), nn.Linear)


def test_the_file_that_defines_a_task_is_found_and_nothing_that_is_installed(module: ModuleType) -> None:
    loss = nn.functional.cross_entropy
    task = squall.Task(model=partial(module.network), loss=loss, train=[(0, 0)])
    assert defining(task) == [module]
    assert defining(squall.Task(model=lambda: nn.Linear(1, 1), loss=loss, train=[(0, 0)])) == []
