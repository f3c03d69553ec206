"""Rate: does the schedule move as often as it was made for, and drive the optimiser that steps?

A schedule has a horizon, the number of steps it was made for, in its own unit: updates, batches or epochs. It is
stepped at some place of the loop, in some unit. Where the training was seen to its end, both are known, and they have
to agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.trace import Event, Rank

_NEAR = 2  # steps by which a horizon may miss the end: schedules count from 0 or from 1


@dataclass(frozen=True)
class Schedule:
    """One schedule of one rank, and what it drives."""

    rank: Rank
    made: Event

    @cached_property
    def steps(self) -> list[Event]:
        """When it was stepped."""
        return [
            event
            for event in self.rank.of("schedule")
            if event["schedule"] == self.made["schedule"] and event["what"] == "step"
        ]

    @cached_property
    def updates(self) -> list[Event]:
        """The updates of its optimiser since it was made."""
        return [
            event
            for event in self.rank.of("step")
            if event["optimizer"] == self.made["optimizer"] and event["n"] > self.made["n"]
        ]

    @cached_property
    def horizon(self) -> Event | None:
        """How it would go on."""
        found = [event for event in self.rank.of("horizon") if event["schedule"] == self.made["schedule"]]
        return found[0] if found and found[0]["end"] is not None else None

    @cached_property
    def epochs(self) -> int:
        """Passes over the training data since it was made."""
        data = self.rank.training_data[:1]
        passes = self.rank.passes(data[0], training=True) if data else []
        later = [event for event in passes if event["n"] > self.made["n"]]
        return len(later)

    @cached_property
    def an_update(self) -> float:
        """How often it was stepped between two updates, usually."""
        marks = sorted([(event["n"], "u") for event in self.updates] + [(event["n"], "s") for event in self.steps])
        counts, since = [], None
        for _, mark in marks:
            if mark == "u":
                if since is not None:
                    counts.append(since)
                since = 0
            elif since is not None:
                since += 1
        return sorted(counts)[len(counts) // 2] if counts else 0

    @property
    def whole(self) -> bool:
        """Whether the training was seen to its end."""
        return self.rank.about.get("ended") == "finished"

    def ends_at(self, steps: float) -> bool:
        """Whether its horizon is a number of steps."""
        return self.horizon is not None and abs(self.horizon["end"] - steps) <= _NEAR


def rate(training: Training) -> Finding:
    """Does the schedule move as often as it was made for, and drive the optimiser that steps?"""
    for run in training.several or training.runs:
        rates = [[group["lr"] for step in rank.of("step") for group in step["groups"]] for rank in run.ranks]
        shortest = min(len(one) for one in rates)
        if any(one[:shortest] != rates[0][:shortest] for one in rates[1:]):
            return Finding(
                check="rate",
                outcome="FAIL",
                says="ranks have different rates",
                place=training.place(run.first.of("step")[0]),
                expected="one rate on all ranks",
                found=f"with {run.processes} processes the ranks' rates differ",
                effect="weights drift apart between ranks",
                change="compute the rate from what all ranks know",
            )
        for schedule in _schedules(run.first):
            finding = (
                _idle(training, schedule)
                or _too_often(training, schedule, run.processes)
                or _too_seldom(training, schedule)
                or _epochs_as_updates(training, schedule)
            )
            if finding is not None:
                return finding
    return _for_one_process(training) or _fine(training)


def _for_one_process(training: Training) -> Finding | None:
    """A schedule made for the updates of one process: with P of them it ends at 1/P of its way."""
    found = []
    for run in training.several:
        for schedule in _schedules(run.first):
            horizon, updates = schedule.horizon, len(schedule.updates)
            if horizon is None or not horizon["smooth"] or not schedule.whole or round(schedule.an_update) != 1:
                continue
            if abs(horizon["end"] - run.processes * updates) <= run.processes * schedule.epochs + _NEAR:
                found.append((run, schedule))
    if not training.varied or len({run.processes for run, _ in found}) < len(
        {run.processes for run in training.several}
    ):
        return None
    run, schedule = found[-1]
    updates, ends = len(schedule.updates), schedule.horizon["end"] if schedule.horizon else 0
    return Finding(
        check="rate",
        outcome="FAIL",
        says=f"made for {ends} updates, those of one process; {run.processes} make {updates}",
        place=training.place(schedule.made),
        expected=f"a schedule of {updates} updates with {run.processes} processes",
        found=f"its horizon is {run.processes} times the updates of the training, with each number of processes",
        effect=f"the training ends after 1/{run.processes} of the schedule: in its warm-up, or at a high rate",
        change="take the length of the rank's own loader: len(loader) after it was given its share",
    )


def _schedules(rank: Rank) -> list[Schedule]:
    return [Schedule(rank, event) for event in rank.of("schedule") if event["what"] == "made"]


def _idle(training: Training, schedule: Schedule) -> Finding | None:
    """A schedule that goes on while its optimiser has been replaced."""
    rank = schedule.rank
    scheduled = {event["optimizer"] for event in rank.of("schedule") if event["what"] == "made"}
    idle = []
    steps = rank.of("step")
    for before, after in pairwise([schedule.made, *schedule.steps]):
        between = {event["optimizer"] for event in steps if before["n"] < event["n"] < after["n"]}
        if between and schedule.made["optimizer"] not in between and not between & scheduled:
            idle.append((after, between))
    if len(idle) < 3:
        return None
    event, others = idle[0]
    return Finding(
        check="rate",
        outcome="FAIL",
        says=f"the schedule drives an optimiser that no longer steps, in {len(idle)} of {len(schedule.steps)} steps",
        place=training.place(event),
        expected="the schedule of the optimiser that makes the updates",
        found=f"optimiser {min(others)} makes them since update {_before(steps, event)}; the schedule was made for "
        f"optimiser {schedule.made['optimizer']}, which has stopped",
        effect="the rate of the new optimiser never changes",
        change="make a new schedule where the new optimiser is made",
        known=("pytorch-gradual-warmup-lr#27",),
    )


def _before(steps: Sequence[Event], event: Event) -> int:
    return len([step for step in steps if step["n"] < event["n"]]) - 1


def _too_often(training: Training, schedule: Schedule, processes: int) -> Finding | None:
    """Stepped several times an update, though it was not made for that."""
    often = round(schedule.an_update)
    if often < 2 or schedule.ends_at(len(schedule.steps)) or schedule.horizon is None:
        return None
    ends = schedule.horizon["end"]
    if not schedule.horizon["smooth"]:
        return None
    if not schedule.whole:  # it may have been made for batches: only its end would tell
        return None
    if ends / often >= len(schedule.updates) - schedule.epochs - 1:  # an epoch may add or drop one by rounding
        return None
    who = "processes" if often == processes and "Accelerate" in schedule.rank.about.get("frameworks", ()) else "batches"
    return Finding(
        check="rate",
        outcome="FAIL",
        says=f"moves {often} times an update: its {ends} steps are over after {max(1, round(ends / often))} of "
        f"{count(len(schedule.updates), 'update')}",
        place=training.place(schedule.steps[0]),
        expected=f"a schedule of {ends} steps moves once an update",
        found=f"it is stepped {len(schedule.steps)} times in {len(schedule.updates)} updates"
        + (
            ": a prepared schedule moves once for each process"
            if who == "processes"
            else ": once for each batch of an accumulated update"
        ),
        effect=f"warm-up and decay go by {often} times too fast; the rest of the training has the last rate "
        f"({schedule.horizon['last']:.3g})",
        change="count the schedule's steps before the loader is prepared, or prepare both together"
        if who == "processes"
        else "step the schedule where the optimiser steps",
        known=("accelerate#1382",) if who == "processes" else (),
    )


def _too_seldom(training: Training, schedule: Schedule) -> Finding | None:
    """Made for updates and stepped once an epoch."""
    updates, epochs = len(schedule.updates), schedule.epochs
    if schedule.horizon is None or not schedule.horizon["smooth"] or not schedule.whole or epochs < 1:
        return None
    if not epochs - 1 <= len(schedule.steps) <= epochs or updates <= 3 * epochs or not schedule.ends_at(updates):
        return None
    return Finding(
        check="rate",
        outcome="FAIL",
        says=f"made for {schedule.horizon['end']} updates and stepped {len(schedule.steps)} times, once an epoch",
        place=training.place(schedule.steps[0]) or training.place(schedule.made),
        expected=f"{schedule.horizon['end']} steps: one an update",
        found=f"{len(schedule.steps)} steps in {updates} updates; the rate goes from {schedule.horizon['first']:.3g} "
        f"to {schedule.steps[-1]['rates'][0]:.3g} instead of {schedule.horizon['last']:.3g}",
        effect="the rate hardly moves: the training ends at its peak, or still in its warm-up",
        change="step the schedule after each update"
        + (' ("interval": "step")' if "Lightning" in schedule.rank.about.get("frameworks", ()) else ""),
    )


def _epochs_as_updates(training: Training, schedule: Schedule) -> Finding | None:
    """Made for epochs and stepped at every update."""
    epochs, updates = schedule.epochs, len(schedule.updates)
    horizon = schedule.horizon
    if horizon is None or not horizon["smooth"] or not schedule.whole or epochs < 3 or updates < 4 * epochs:
        return None
    if round(schedule.an_update) != 1 or horizon["end"] != epochs or horizon["last"] >= horizon["first"]:
        return None
    return Finding(
        check="rate",
        outcome="FAIL",
        says=f"made for {epochs} epochs and stepped {len(schedule.steps)} times, once an update",
        place=training.place(schedule.steps[0]),
        expected=f"{epochs} steps: one an epoch",
        found=f"{len(schedule.steps)} steps: its end is reached after {epochs} of {updates} updates",
        effect="the rate is at its end almost from the start, or swings up and down",
        change="step the schedule once an epoch, or make it for the number of updates",
    )


def _fine(training: Training) -> Finding:
    rank = training.runs[0].first
    rates = [float(group["lr"]) for step in rank.of("step") for group in step["groups"][:1]]
    if not rates:
        return Finding(check="rate", outcome="--", says="no update")
    last = len(rates) - 1
    if len(set(rates)) == 1:
        said = f"{rates[0]:.3g} in " + (f"all {len(rates)} updates" if last else "the only update")
    else:
        said = f"from {rates[0]:.3g} to {rates[-1]:.3g} in updates 0 .. {last}"
        low, high = min(rates), max(rates)
        if low < 0.999 * min(rates[0], rates[-1]) or high > 1.001 * max(rates[0], rates[-1]):
            said += f", between {low:.3g} and {high:.3g}"
    schedules = [schedule for schedule in _schedules(rank) if schedule.steps]
    if not schedules:
        return Finding(check="rate", outcome="ok", says=said)
    one = schedules[-1]
    if one.an_update >= 1:
        often = round(one.an_update)
        moves = "once an update" if often == 1 else f"{often} times an update"
    elif abs(len(one.steps) - one.epochs) <= 1:
        moves = "once an epoch"
    else:
        moves = f"{count(len(one.steps), 'time')} in {count(len(one.updates), 'update')}"
    return Finding(check="rate", outcome="ok", says=f"{said}; {one.made['kind']} moves {moves}")
