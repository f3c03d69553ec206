"""Determinism: is the training the same when it is run again?"""

from __future__ import annotations

import numpy

from squall.verify.checks.passes import training_passes
from squall.verify.checks.training import Training, count, numbers
from squall.verify.finding import Finding
from squall.verify.trace import Run


def determinism(training: Training) -> Finding:
    """Do two runs with the same number of processes read the same samples and end with the same weights?"""
    again = training.again
    if again is None:
        return Finding(check="determinism", outcome="--", says="not run twice")
    first = next(run for run in training.runs if run.processes == again.processes)
    said = f"two runs with {count(first.processes, 'process')}"
    one, other = training_passes(first), training_passes(again)
    for place, (before, after) in enumerate(zip(one, other, strict=False)):
        same = all(numpy.array_equal(a, b) for a, b in zip(before.orders, after.orders, strict=True))
        if same:
            continue
        if before.split_apart:
            return Finding(
                check="determinism",
                outcome="note",
                says=f"{said} split the data set differently: see epoch coverage",
                place=training.place(before.events[0]),
            )
        if before.run.processes > 1 and before.missing and before.repeated > before.run.processes * 2:
            return Finding(
                check="determinism",
                outcome="FAIL",
                says=f"{said} read other samples, and each rank shuffles for itself",
                place=training.place(before.events[0]),
                expected="one order, dealt out to the ranks; the same in each run",
                found=f"{before.sampler} draws from a generator that nobody has seeded: orders differ between runs in "
                f"epoch {place + 1}, and between ranks",
                effect="no run can be repeated; and since the ranks' orders differ, some samples are read twice",
                change="seed the order by (seed, epoch), alike on all ranks",
                known=("Qwen3-VL#1971",),
            )
        return Finding(
            check="determinism",
            outcome="note",
            says=f"{said} read the samples in other orders: nothing seeds them",
            place=training.place(before.events[0]),
        )
    differs = _weights(first, again)
    if differs is not None:
        place, name = differs
        begin = "the first update on" if not place else f"update {place} on"
        return Finding(
            check="determinism", outcome="note", says=f"{said} differ from {begin}, in {name}: not seeded, or not exact"
        )
    if first.first.about.get("lockstep"):
        for run in training.runs:
            apart = _weights(first, run)
            if apart is not None:
                return _depends(training, first, run, *apart)
        if len(training.runs) > 1:
            said = (
                f"two runs with {count(first.processes, 'process')}, and runs with {numbers(_others(training, first))},"
            )
    updates = min(len(first.keys), len(again.keys))
    return Finding(
        check="determinism",
        outcome="ok" if updates else "--",
        says=f"{said} are equal, bit for bit, in {count(updates, 'update')}",
    )


def _others(training: Training, first: Run) -> list[int]:
    return [run.processes for run in training.runs if run is not first]


def _depends(training: Training, first: Run, run: Run, place: int, name: str) -> Finding:
    return Finding(
        check="determinism",
        outcome="FAIL",
        says=f"{first.processes} and {run.processes} processes differ from update {place} on, in {name}",
        place=training.place(first.first.steps[0]),
        expected="the same bits with any number of processes",
        found=f"the weights before update {place} differ",
        effect="a result depends on the machines",
        change='reduction = "exact", the default; otherwise report it',
    )


def _weights(first: Run, again: Run) -> tuple[int, str] | None:
    """The first update before which weights of rank 0 differ between two runs."""
    for place, key in enumerate(first.keys):
        one, other = first.first.by_key.get(key), again.first.by_key.get(key)
        if one is None or other is None:
            continue
        for index in one["group_of"]:
            a, b = first.first.array(one, f"before.{index}"), again.first.array(other, f"before.{index}")
            if a is not None and b is not None and not numpy.array_equal(a, b, equal_nan=True):
                return place, first.first.name(int(index))
    return None
