"""Parameters, batch statistics and weights: what the ranks hold, and whether it is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from squall.verify.checks.gradient import averages_weights, emptied
from squall.verify.checks.mode import training_calls
from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding, Place
from squall.verify.trace import Array, Event, Rank, Run

_EQUAL = 1e-6


def parameters(training: Training) -> Finding:
    """Is every parameter that gets a gradient updated, and the other way round?"""
    rank = training.runs[0].first
    table = rank.parameters
    if emptied(training.runs[0]) is not None:
        return Finding(
            check="parameters", outcome="--", says="the gradients are emptied before the update: see gradient"
        )
    left = [one for one in table if one["trains"] and one["gradients"] and not one["updates"]]
    if left and not any(one["updates"] for one in table):
        return _another(training, rank, len(left))
    apart = set() if _holds_idle(rank) else _apart_from_all(table)
    forgotten = [one for one in left if _network(one) not in apart]
    if forgotten:
        named, number = _named(forgotten), len(forgotten)
        return Finding(
            check="parameters",
            outcome="FAIL",
            says=f"{number} of {count(len(table), 'tensor')} {'gets' if number == 1 else 'get'} gradients and no "
            f"update: {named}",
            place=_optimizer(training, rank),
            expected="every parameter that needs a gradient is in a group of an optimiser",
            found=f"{named}: gradients in {forgotten[0]['gradients']} backward passes, in no group of an optimiser",
            effect="these layers stay as they were initialised, while everything around them adapts to that",
            change="add them to a group, or set requires_grad_(False) if they are meant to stay",
            known=("HVPNeT#5",),
        )
    if left:
        return Finding(
            check="parameters",
            outcome="note",
            says=f"no tensor of {_kind(rank, _network(left[0]))} is updated, though {len(left)} get gradients: right "
            "if it is meant to stay as it is",
            place=_optimizer(training, rank),
        )
    updated = [one for one in table if one["updates"]]
    unused = [
        one for one in table if one["trains"] and not one["gradients"] and not one["name"].startswith("parameter ")
    ]
    frozen = sum(not one["trains"] for one in table)
    said = f"{count(len(updated), 'tensor')} {'gets' if len(updated) == 1 else 'get'} gradients, and each is updated"
    if frozen:
        said += f"; {frozen} frozen"
    if unused:
        return Finding(
            check="parameters",
            outcome="note",
            says=f"{said}; {len(unused)} never {'gets' if len(unused) == 1 else 'get'} a gradient, {unused[0]['name']} "
            "first",
        )
    return Finding(
        check="parameters", outcome="ok" if updated else "--", says=said if updated else "no update was seen"
    )


def _network(parameter: Mapping[str, Any]) -> int:
    """The number of the network that a parameter was met in; -1 for one that is in none that was called."""
    name = str(parameter["name"])
    if name.startswith("parameter "):
        return -1
    return int(name[6 : name.index(":")]) if name.startswith("model ") else 0


def _apart_from_all(table: Sequence[Mapping[str, Any]]) -> set[int]:
    """The networks of which no tensor is updated: those that were meant to stay, and those forgotten whole."""
    return {_network(one) for one in table} - {_network(one) for one in table if one["updates"]} - {-1}


def _holds_idle(rank: Rank) -> bool:
    """Whether an optimiser holds tensors of a part that is gone: no network holds them, no gradient reaches them."""
    held = {int(index) for step in rank.steps for index in step["group_of"]}
    idle = [rank.parameters[index] for index in held if index < len(rank.parameters)]
    return any(_network(one) == -1 and not one["gradients"] for one in idle)


def _named(some: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(one["name"]) for one in some[:3]) + (", ..." if len(some) > 3 else "")


def _kind(rank: Rank, network: int) -> str:
    """A network's class."""
    return next((str(event["kind"]) for event in rank.of("forward") if event["model"] == network), "a network")


def _optimizer(training: Training, rank: Rank) -> Place | None:
    steps = rank.of("step")
    return training.place(steps[0]) if steps else None


def _another(training: Training, rank: Rank, trained: int) -> Finding:
    return Finding(
        check="parameters",
        outcome="FAIL",
        says=f"the optimiser holds other parameters than those that are trained: none of {trained} ever changes",
        place=_optimizer(training, rank),
        expected="the optimiser is made of the parameters of the network that is called",
        found=f"{trained} tensors of the network get gradients, and no optimiser holds them; those it holds get none",
        effect="nothing is learned; the loss moves only with the batches",
        change="make the optimiser from the parameters of the very module that is trained, after copies and wrappers",
    )


def batch_statistics(training: Training) -> Finding:
    """Over what are normalisation statistics taken, and do all ranks end with the same?"""
    per_rank, synchronised = 0, False
    for run in training.runs:
        for event in training_calls(run.first):
            if event["norms"]:
                per_rank = max(per_rank, event["size"])
            synchronised = synchronised or event["sync_norms"] > 0
        if run.processes > 1:
            finding = _apart(training, run)
            if finding is not None:
                return finding
    if per_rank:
        return Finding(
            check="batch statistics",
            outcome="note",
            says=f"over {per_rank} samples a rank: another batch a rank would be another objective",
        )
    if synchronised:
        return Finding(check="batch statistics", outcome="ok", says="SyncBatchNorm: over the batches of all ranks")
    return Finding(check="batch statistics", outcome="--", says="no batch normalisation")


def _apart(training: Training, run: Run) -> Finding | None:
    """Whether the ranks keep running statistics of their own, and evaluate or end with them."""
    starts = _starts(run)
    own = [events for events in starts[1:] if _differ(run, events) > _EQUAL]
    if len(own) <= 0.5 * len(starts):
        return None
    kinds = ("left",) if run.first.about.get("lockstep") else ("forward", "left")
    looks = [
        [event for event in rank.of(*kinds) if event.get("buffers") and not event.get("grad", False)]
        for rank in run.ranks
    ]
    for events in zip(*looks, strict=False):
        difference = _differ(run, events)
        if difference > 1e-4:
            evaluated = events[0]["event"] == "forward"
            return Finding(
                check="batch statistics",
                outcome="FAIL",
                says=f"each rank has running statistics of its own, {_share(difference)} apart "
                + ("when it is evaluated" if evaluated else "at the end"),
                place=training.place(events[0]) or training.place(starts[0][0]),
                expected="one set of running statistics: broadcast, averaged or synchronised before it is used",
                found=f"with {run.processes} processes buffers differ between ranks in {len(own)} of {len(starts)} "
                "training steps, and nobody brings them together",
                effect="as many networks are evaluated as there are ranks; the one that is saved has seen the "
                "statistics of rank 0's share",
                change="leave broadcast_buffers on, average the buffers before evaluating, or use SyncBatchNorm",
                known=("pytorch#13711",),
            )
    return None


def _starts(run: Run) -> list[tuple[Event, ...]]:
    """The calls with which training steps begin, those of all ranks together."""
    if not run.first.about.get("lockstep"):
        calls = [[call for call in training_calls(rank) if call.get("buffers")] for rank in run.ranks]
        return list(zip(*calls, strict=False))
    found = []
    for _, steps in run.whole():  # ranks may make different numbers of passes in a step
        first = [rank.contributing(step)[:1] for rank, step in zip(run.ranks, steps, strict=True)]
        if all(first):
            found.append(tuple(rank.events[one[0]["forward"]] for rank, one in zip(run.ranks, first, strict=True)))
    return [events for events in found if all(event.get("buffers") for event in events)]


def _differ(run: Run, events: Sequence[Event]) -> float:
    """The largest relative difference of any buffer between ranks."""
    worst = 0.0
    for place in range(len(events[0].get("buffers") or ())):
        arrays = [rank.array(event, f"buffer.{place}") for rank, event in zip(run.ranks, events, strict=True)]
        found = [one for one in arrays if one is not None]
        if len(found) == len(arrays) and len({one.shape for one in found}) == 1:
            worst = max(worst, _relative(found))
    return worst


def _relative(arrays: Sequence[Array]) -> float:
    first = arrays[0]
    size = float(numpy.abs(first).max(initial=0.0)) or 1.0
    return max((float(numpy.abs(one - first).max(initial=0.0)) / size for one in arrays[1:]), default=0.0)


def _share(difference: float) -> str:
    """ "12.3%", "2e-06"."""
    return f"{difference:.1%}" if difference >= 1e-3 else f"{difference:.0e}"


def weights(training: Training) -> Finding:
    """Do all ranks hold the same weights, from the first update to the last?"""
    runs = [run for run in training.several if not run.sharded]
    if not runs:
        says = "spread over ranks: there is one copy" if training.several else "one process"
        return Finding(check="weights", outcome="--", says=says)
    looked = 0
    for run in runs:
        for place, (_, steps) in enumerate(run.whole()):
            looked += 1
            for index in steps[0]["group_of"]:
                arrays = [rank.array(step, f"before.{index}") for rank, step in zip(run.ranks, steps, strict=True)]
                found = [one for one in arrays if one is not None]
                if len(found) != len(arrays) or not all(numpy.isfinite(one).all() for one in found):
                    continue
                difference = _relative(found)
                if difference > _EQUAL and averages_weights(run):
                    return Finding(check="weights", outcome="note", says="averaged over ranks now and then: local SGD")
                if difference > _EQUAL:
                    return _differs(training, run, place, steps[0], int(index), difference)
    if not looked:
        return Finding(check="weights", outcome="--", says="no update that all ranks made")
    return Finding(check="weights", outcome="ok", says=f"equal on all ranks before each of {count(looked, 'update')}")


def _differs(training: Training, run: Run, place: int, step: Event, index: int, difference: float) -> Finding:
    name = run.first.name(index)
    begin = place == 0
    return Finding(
        check="weights",
        outcome="FAIL",
        says=f"differ between ranks from {'the start' if begin else f'update {place}'} on: "
        f"{_share(difference)} in {name}",
        place=training.place(step),
        expected="the same weights on all ranks, always",
        found=f"with {run.processes} processes {name} differs "
        + ("before the first update: nobody broadcast it" if begin else f"before update {place}, and was equal before"),
        effect="the ranks compute with different networks, of which one is saved",
        change="seed all ranks alike before the network is made, or broadcast rank 0's weights (DDP does)"
        if begin
        else "look at what that update did on one rank and not on the others",
        known=("Li et al. 2020, PyTorch Distributed",) if begin else (),
    )
