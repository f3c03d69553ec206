"""What belongs to lock-step training alone: the ranks of a job, and flags and arguments that speak of them.

A run of roles has one driver, and an engine starts the rest. Whatever else is given would change nothing, so it is
refused with its reason. No torch: the command line asks before it starts anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from squall.cluster.place import find
from squall.errors import InputError
from squall.recipe import Recipe

_NUMBERS = "replicas and shards are numbers of the recipe; the engine starts their processes"
_RULES = {
    "processes": _NUMBERS,
    "submit": _NUMBERS,
    "world": _NUMBERS,
    "device": "replicas compute on the CPU",
    "profile": "a profile is that of a rank; a replica writes none",
    "timeout": "nobody waits for a dead replica; {strategy}.lease_timeout says when what it had is handed out again",
    "restarts": "the engine starts a role again that has died, as often as it is of use",
    "other_arithmetic": "a run of replicas goes on in whatever arithmetic there is",
}


def refuse(recipe: Recipe, given: Sequence[str]) -> None:
    """Refuses for a run of roles what would be ignored.

    Arguments:
        recipe: with an asynchronous strategy.
        given: as it was written, without its value: "--processes", "world=".

    Raises:
        InputError: something was given, or several processes are about to drive the same run.
    """
    roles, key = recipe.roles, f"{recipe.strategy}.replicas"
    assert roles is not None  # of every recipe with such a strategy
    if given:
        rules = {text: _RULES[text.strip("-=").replace("-", "_")] for text in given}
        rows = [(text, rule.format(strategy=recipe.strategy)) for text, rule in rules.items()]
        to_do = f"leave {'it' if len(rows) == 1 else 'them'} away; {key}={roles.replicas}"
        raise InputError(f"{', '.join(given)} with strategy={recipe.strategy}", [*rows, ("to do", to_do)])
    ranks = find(os.environ).size
    if ranks > 1:
        raise InputError(
            f"strategy={recipe.strategy} on ranks of torchrun or SLURM",
            [
                ("found", f"this process is one of {ranks}: each would train the whole run"),
                ("rule", "Squall starts replicas and shards itself"),
                ("to do", f"start it once, with {key}={ranks}"),
            ],
        )
