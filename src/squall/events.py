"""What happens to a run's processes, in a person's words: the same in the terminal and in a script's output."""

from __future__ import annotations

from squall.records import SaveFailed, Slow, Started
from squall.units import count


def resumed(record: Started) -> str:
    """That a run goes on, and from where."""
    epoch = record.start_step // max(record.steps_per_epoch, 1) + 1
    return f"goes on    from step {count(record.start_step)} of {count(record.num_steps)}, in epoch {epoch}"


def save_failed(record: SaveFailed) -> str:
    """That a checkpoint could not be written, and what is still there."""
    kept = "no checkpoint is whole yet" if record.kept is None else f"that of step {count(record.kept)} is whole"
    return f"step {count(record.step)} could not be saved ({record.error}); training goes on; {kept}"


def slow(record: Slow) -> str:
    """Which rank the others wait for."""
    return f"rank {record.rank} is slow: {record.ratio:.1f} times the median of all ranks in epoch {record.epoch + 1}"
