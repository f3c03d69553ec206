"""A hundred of the seeded fault schedules (`make chaos` runs a thousand): whatever dies, is late, lost or repeated,
each push is accounted for, every run ends, and the same seed takes the same course."""

from __future__ import annotations

import pytest

from tests import schedules


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_every_push_is_accounted_for(first: int) -> None:
    for seed in range(first, first + 10):
        assert schedules.run(seed) == schedules.run(seed)
