"""Claim D4 on real Ray: whatever replicas compute is applied as they computed it, once, however they race."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def noted(folder: Path, pattern: str) -> Counter[tuple[object, ...]]:
    """(shard, first minibatch, minibatches, replica, hash of the gradients) as often as it was noted."""
    lines = [line for path in folder.glob(pattern) for line in path.read_text().splitlines()]
    return Counter(tuple(json.loads(line).values()) for line in lines)


@pytest.mark.parametrize(("replicas", "shards"), [(6, 3)])
def test_d4_what_was_computed_is_what_is_applied(
    tmp_path: Path, mark: Callable[[], list[int]], replicas: int, shards: int
) -> None:
    command = [sys.executable, "-m", "tests.process.racing_roles", str(tmp_path), str(replicas), str(shards)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    computed, applied = noted(tmp_path, "*.computed"), noted(tmp_path, "*.applied")
    assert not applied - computed  # nothing that no replica computed, nothing twice
    for shard in range(shards):
        here = [found for found in applied.elements() if found[0] == shard]
        minibatches = Counter(m for _, first, count, *_ in here for m in range(first, first + count))
        assert minibatches == Counter(range(values["steps"]))
    assert computed.total() == shards * values["pushes"]["computed"]
    assert (computed - applied).total() == shards * values["pushes"]["repeated"]
    assert {found[3] for found in applied} == {f"replica-{index}" for index in range(replicas)}  # all of them raced
    assert values["staleness"]["most"] > 0
    assert mark() == []
