"""Fixtures that every ring of tests may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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
