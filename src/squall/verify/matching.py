"""What belongs together on different ranks: parameters, and updates.

A rank numbers parameters as it meets them, and knows an update by the backward passes before it. Both are the same on
all ranks, unless one of them does something alone: measures with a network that the others have not, or makes one more
backward pass to look at a gradient. Then its numbers are changed here to those of rank 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from squall.verify.trace import Event, Rank

_OF_PARAMETERS = ("grad", "local", "before", "after")


def matched(ranks: Sequence[Rank]) -> list[Rank]:
    """The same ranks; parameters have the numbers that they have on rank 0, and updates can be told by their keys."""
    found = [ranks[0], *(_renumbered(rank, ranks[0]) for rank in ranks[1:])]
    passes = {len(rank.backwards) for rank in ranks}
    updates = {tuple(sorted(Counter(step["optimizer"] for step in rank.steps).items())) for rank in ranks}
    alone = len(passes) > 1 and len(updates) == 1
    return [replace(rank, in_order=True) for rank in found] if alone else found


def _renumbered(rank: Rank, like: Rank) -> Rank:
    """A rank with another's numbers for the parameters: what has the same place in the same optimiser is the same."""
    theirs, own = _places(like), _places(rank)
    numbers = {own[place]: theirs[place] for place in own if place in theirs}
    if all(number == other for number, other in numbers.items()):
        return rank
    free = iter(range(len(like.parameters), len(like.parameters) + len(rank.parameters)))
    numbers = {number: numbers[number] if number in numbers else next(free) for number in range(len(rank.parameters))}
    table: dict[int, Any] = {numbers[number]: entry for number, entry in enumerate(rank.parameters)}
    about = {**rank.about, "parameters": [table.get(number, _nothing()) for number in range(max(table) + 1)]}
    arrays = {_key(name, numbers): array for name, array in rank.arrays.items()}
    events = [_event(event, numbers) for event in rank.events]
    return replace(rank, about=about, events=events, arrays=arrays)


def _places(rank: Rank) -> dict[tuple[int, int], int]:
    """Each parameter's number by its place: optimiser, and place in its groups."""
    found: dict[tuple[int, int], int] = {}
    for step in rank.steps:
        if (step["optimizer"], 0) not in found:
            found |= {(step["optimizer"], place): int(index) for place, index in enumerate(step["group_of"])}
    return found


def _key(name: str, numbers: Mapping[int, int]) -> str:
    event, _, rest = name.partition(".")
    kind, _, index = rest.rpartition(".")
    return f"{event}.{kind}.{numbers[int(index)]}" if kind in _OF_PARAMETERS else name


def _event(event: Event, numbers: Mapping[int, int]) -> Event:
    changed = dict(event)
    for field in ("from", "group_of", "weights", "dropped"):
        if isinstance(changed.get(field), dict):
            changed[field] = {str(numbers[int(index)]): value for index, value in changed[field].items()}
    if event["event"] == "clip":
        changed["parameters"] = [numbers[index] for index in event["parameters"]]
    return changed


def _nothing() -> dict[str, Any]:
    """A number that the other rank has given, and this one has not."""
    return {"name": "", "shape": [], "trains": False, "gradients": 0, "updates": 0}
