"""Shards that cannot save: the run goes on, and says so; one whose last state cannot be saved has failed."""

from __future__ import annotations

import pytest

from squall.errors import RunError
from squall.records import Saved, SaveFailed
from squall.server.shard import Snapshot
from tests.downpours import Job


def full(job: Job, *numbers: int) -> None:
    """Lets shard 1 fail to save sets of these numbers."""
    save = job.snapshots.save

    def failing(shard: int, snapshot: Snapshot) -> int:
        if shard == 1 and snapshot.number in numbers:
            raise RunError("shard 1 cannot save its snapshot", [("found", "No space left on device")])
        return save(shard, snapshot)

    job.snapshots.save = failing  # type: ignore[method-assign]


def test_a_full_disk_is_a_note_and_not_the_end() -> None:
    job = Job(replicas=2, shards=2, epochs=4, checkpoint="10step")
    full(job, 2, 3)
    assert job.run().outcome == "finished"
    saved = [record for record in job.records if isinstance(record, Saved)]
    failed = [record for record in job.records if isinstance(record, SaveFailed)]
    assert [record.number for record in saved] == [1, 4, 5]
    assert [record.kept for record in failed] == [saved[0].step] * 2
    assert "No space left on device" in failed[0].error
    assert saved[-1].step == job.order.num_steps


def test_a_last_state_that_cannot_be_saved_is_a_failed_run() -> None:
    job = Job(replicas=2, shards=2, epochs=1)
    full(job, 1)
    with pytest.raises(RunError, match="shard 1 cannot save its snapshot"):
        job.run()
