"""Fixtures that every ring of tests may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from squall.engine.machine import has_gpu
from tests import leaks


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that need a GPU where there is none."""
    if has_gpu():
        return
    config.hook.pytest_deselected(items=[item for item in items if "gpu" in item.keywords])
    items[:] = [item for item in items if "gpu" not in item.keywords]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: SQUALL_TEST_DATA, else ../shared/data beside the checkout; missing is a failure."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SQUALL_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.fail(
            f"no test data in {folder}: set SQUALL_TEST_DATA to the folder that holds cifar10, fashion-mnist, ..."
        )
    return folder


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A process, a thread, a changed environment or a changed switch of torch that a test leaves behind fails it."""
    before = leaks.state()
    yield
    leaks.join_new_threads(before)
    after = leaks.state()
    assert {name: value for name, value in after.items() if value != before.get(name)} == {}
