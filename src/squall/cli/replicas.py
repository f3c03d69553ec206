"""What the terminal says of a run of Downpour: lines of the header, columns of the table, the last block.

Pure: from the recipe and records to text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from squall.cli.summary import score
from squall.cli.wording import Column, many, stalled
from squall.recipe import DownpourSpec, Recipe
from squall.records import EpochEnded, Pushed, Started
from squall.units import count, duration


def rows(recipe: Recipe, started: Started) -> dict[str, str]:
    """Lines of the header by label: who fetches and pushes when, the shards."""
    downpour = recipe.downpour
    assert downpour is not None  # of every recipe with this strategy
    cap = downpour.max_staleness
    fate = "a push is applied however stale" if cap is None else f"a push more than {cap} updates stale is dropped"
    return {
        "replicas": f"{count(downpour.replicas)}: {_often(downpour)}{_beginning(downpour, started)}",
        "shards": f"{count(downpour.shards)}: {recipe.optimizer.name} on each; {fate}",
    }


def clock(recipe: Recipe, started: Started) -> dict[str, str]:
    """The line on simulated time, where it is."""
    if started.engine != "simulated" or (simulated := recipe.simulated) is None:
        return {}
    network = f"{simulated.network.latency} a message, {simulated.network.bandwidth} a link"
    faults = f", {many(len(simulated.faults), 'fault')}" if simulated.faults else ""
    piece = "portion" if recipe.strategy == "sandblaster" else "minibatch"
    seconds = f"{simulated.compute.mean} a {piece}"
    return {"time": f"simulated, and so are all seconds below: {seconds}, {network}{faults}"}


def _often(downpour: DownpourSpec) -> str:
    text = f"fetch every {_minibatches(downpour.fetch_every)}, push every {_minibatches(downpour.push_every)}"
    if downpour.fetch_every > 1 and downpour.local_lr:
        at = "the rate" if downpour.local_lr == "rate" else f"{downpour.local_lr:g}"
        text += f", own steps at {at} in between"
    return text


def _beginning(downpour: DownpourSpec, started: Started) -> str:
    if downpour.replicas == 1:
        return ""
    alone = min(downpour.warm_minibatches(started.steps_per_epoch), started.num_steps)
    return f"; one alone for {_minibatches(alone, True)}, then the others" if alone else "; all begin at once"


@dataclass
class _Epoch:
    """Sums over the pushes of an epoch."""

    stale: int = 0
    known: int = 0
    fewest: int = 0
    most: int = 0

    def add(self, record: Pushed) -> None:
        """Takes a push in."""
        told = [value for value in record.staleness if value >= 0]
        self.stale, self.known = self.stale + sum(told), self.known + len(told)
        self.fewest = min(self.fewest or record.alive, record.alive)
        self.most = max(self.most, record.alive)


class Epochs:
    """What the records of epochs do not say: staleness and replicas, from the pushes.

    An epoch's record follows its evaluation, when pushes of the next one have come already.
    """

    def __init__(self) -> None:
        self._epochs: dict[int, _Epoch] = {}

    def add(self, record: Pushed, per_epoch: int) -> None:
        """Notes a push in the epoch in which its first minibatch was settled."""
        epoch = (record.settled - record.minibatches) // max(per_epoch, 1)
        self._epochs.setdefault(epoch, _Epoch()).add(record)

    def columns(self) -> Sequence[Column]:
        """Replicas that took part, their pushes' mean staleness, the share of their time that they stood still."""
        return (("replicas", 8, self._alive), ("staleness", 9, self._staleness), ("stalled", 7, stalled))

    def _alive(self, epoch: EpochEnded) -> str:
        found = self._epochs.get(epoch.epoch, _Epoch())
        return str(found.most or "-") if found.fewest == found.most else f"{found.fewest}-{found.most}"

    def _staleness(self, epoch: EpochEnded) -> str:
        found = self._epochs.pop(epoch.epoch, _Epoch())
        return f"{found.stale / found.known:.1f}" if found.known else "-"


def summary(result: Mapping[str, Any], num_epochs: int, *, simulated: bool, next_line: str) -> list[str]:
    """The last lines of a training.

    Arguments:
        result: what result.json holds.
        num_epochs: epochs that were trained.
        simulated: its seconds are virtual.
        next_line: commands worth typing now.
    """
    took = f"{duration(float(result['seconds']))}{' of simulated time' if simulated else ''}"
    again = "  the same whenever it is simulated again" if simulated else ""
    return [
        f"{score(result, num_epochs)} in {took}",
        f"pushes  {_pushes(result)}",
        f"ledger  {_ledger(result)}",
        f"weights sha256 {str(result['weights_sha256'])[:12]}...{again}",
        f"next    {next_line}",
    ]


def _pushes(result: Mapping[str, Any]) -> str:
    pushes, staleness = result["pushes"], result["staleness"]
    text = f"{count(pushes['computed'])} computed"
    if pushes["repeated"]:
        text += f", {count(pushes['repeated'])} of them of minibatches that another replica settled first"
    if staleness["mean"] is not None:
        text += f"; staleness {staleness['mean']:.1f} on average, {count(staleness['most'])} at most"
    return text


def _ledger(result: Mapping[str, Any]) -> str:
    """Each minibatch on each shard: applied, dropped or lost."""
    shards, settled = result["minibatches"]["shards"], result["minibatches"]["settled"]
    sums = {fate: sum(shard[fate] for shard in shards) for fate in ("applied", "dropped", "lost")}
    text = f"{_minibatches(settled, True)}, {count(result['samples'])} samples"
    where = "on the shard" if len(shards) == 1 else f"on each of {len(shards)} shards"
    if sums["applied"] == settled * len(shards):
        return f"{text}: each applied once {where}"
    named = {"applied": "applied", "dropped": "dropped as too stale", "lost": "lost with a shard"}
    fates = " + ".join(f"{count(sums[fate])} {word}" for fate, word in named.items() if sums[fate])
    times = f"on {len(shards)} shards {count(settled * len(shards))}" if len(shards) > 1 else "on the shard"
    return f"{text}; {times} = {fates}"


def _minibatches(number: int, always: bool = False) -> str:
    return "minibatch" if number == 1 and not always else many(number, "minibatch", "es")
