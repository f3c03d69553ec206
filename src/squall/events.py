"""What happens to a run's processes, in a person's words: the same in the terminal and in a script's output."""

from __future__ import annotations

from squall.records import Record, RoleChanged, SaveFailed, Slow, Started
from squall.units import count, duration


def resumed(record: Started) -> str:
    """That a run goes on, and from where."""
    if record.strategy == "sandblaster":
        return f"goes on    from iteration {count(record.start_step)}"
    epoch = record.start_step // max(record.steps_per_epoch, 1) + 1
    word = "minibatch" if record.strategy == "downpour" else "step"
    return f"goes on    from {word} {count(record.start_step)} of {count(record.num_steps)}, in epoch {epoch}"


def save_failed(record: SaveFailed) -> str:
    """That a checkpoint could not be written, and what is still there."""
    kept = "no checkpoint is whole yet" if record.kept is None else f"that of step {count(record.kept)} is whole"
    return f"step {count(record.step)} could not be saved ({record.error}); training goes on; {kept}"


def slow(record: Slow) -> str:
    """Which rank the others wait for."""
    return f"rank {record.rank} is slow: {record.ratio:.1f} times the median of all ranks in epoch {record.epoch + 1}"


class Changes:
    """Tells of the roles of an asynchronous run what is news; that those joined with which it begins is none."""

    def __init__(self) -> None:
        self._expected: set[str] = set()

    def __call__(self, record: Record) -> str:
        """What a record says of a role, in a person's words; "" where it says nothing."""
        if isinstance(record, Started):
            self._expected = {f"replica-{index}" for index in range(record.replicas)}
        if not isinstance(record, RoleChanged):
            return ""
        expected = record.role in self._expected
        self._expected.discard(record.role)
        return "" if expected and record.change == "joined" else f"at {duration(record.seconds)}: {_changed(record)}"


def _changed(record: RoleChanged) -> str:
    role, again = record.role, "what it had in hand is handed out again"
    if record.change == "restarted" and role.startswith("shard-"):
        lost = f"{count(record.lost)} minibatch{'' if record.lost == 1 else 'es'}" if record.lost else "nothing"
        return f"{role} came back from its snapshot: {lost} lost"
    if record.change == "restarted":
        return f"{role} came back; {again}"
    return f"{role} is silent; {again}" if record.change == "silent" else f"{role} {record.change}"
