"""What `squall.train` prints in a script: a line an epoch, plain, on rank 0. `sinks=()` keeps it quiet."""

from __future__ import annotations

import sys
from typing import TextIO

from squall.events import Changes, resumed, save_failed, slow
from squall.records import Ended, EpochEnded, Noted, Record, SaveFailed, Slow, Started
from squall.stdout import mute
from squall.units import count, percent


class Progress:
    """A sink that writes lines of text.

    Arguments:
        stream: standard output by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._changes = Changes()
        self._epoch = "epoch"

    def __call__(self, record: Record) -> None:
        """Prints the events that a person follows; steps are left out."""
        line = self._line(record)
        if line:
            try:
                print(line, file=self._stream or sys.stdout, flush=True)
            except BrokenPipeError:
                mute()

    def _line(self, record: Record) -> str:
        if news := self._changes(record):
            return f"note: {news}"
        if isinstance(record, Started) and record.start_step:
            return f"{record.name} {resumed(record)}"
        if isinstance(record, SaveFailed):
            return f"note: {save_failed(record)}"
        if isinstance(record, Slow):
            return f"note: {slow(record)}"
        if isinstance(record, Ended) and record.outcome == "stopped":
            return f"{record.result['error']}; {record.advice}"
        if isinstance(record, Started):
            return self._begun(record)
        if isinstance(record, EpochEnded):
            found = [f"{self._epoch} {record.epoch + 1:>3}", f"train loss {record.train_loss:.4f}"]
            for split in ("val", "test"):
                values = getattr(record, split)
                name = next((n for n in ("accuracy", *values) if n in values), None)
                if name is not None:
                    value = percent(values[name]) if name == "accuracy" else f"{values[name]:.4f}"
                    found.append(f"{split} {name} {value}")
            return "   ".join([*found, f"{record.samples_per_second:,.0f} samples/s"])
        if isinstance(record, Noted):
            return f"note: {record.text}"
        if isinstance(record, Ended):
            sha256 = str(record.result.get("weights_sha256", ""))[:12]
            return f"{record.outcome} in {record.seconds:.1f} s" + (f", weights sha256 {sha256}..." if sha256 else "")
        return ""

    def _begun(self, record: Started) -> str:
        size, steps = f"{record.processes} process{'' if record.processes == 1 else 'es'}", "steps"
        if record.replicas:
            one = "replica" if record.replicas == 1 else "replicas"
            size = f"{record.replicas} {one}, {record.shards} shard{'s' * (record.shards != 1)}"
            size += ", simulated time" * (record.engine == "simulated")
            steps = "minibatches"
        if record.strategy == "sandblaster":
            self._epoch, steps = "iteration", "evaluations at most"
        return (
            f"{record.name}: {count(record.num_parameters)} parameters, {count(record.num_samples)} samples, "
            f"{count(record.num_steps)} {steps} of {record.global_batch_size}, {size}"
        )
