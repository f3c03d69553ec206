"""A scripted fault of a simulated cluster: one table that reads as a sentence.

    { kill = "replica 3", at = "40s", restart = "10s" }      dies at 40 s, is started again at 50 s
    { kill = "shard 0", at = "40s" }                         started again after the engine's own time
    { kill = "replica 3", at = "40s", restart = "never" }    dies for good
    { slow = "replica 1", at = "10s", by = 5.0, for = "20s" }      works five times slower for 20 s
    { drop = "replica 2", at = "10s", for = "5s" }           messages from and to it are lost
    { delay = "replica 2", at = "10s", for = "5s", by = "1s" }     ... come a second late
    { duplicate = "replica 2", at = "10s", for = "5s" }      ... come twice

Without `for` it stays so. The checks look at plain values, so that one wrong fault hides no other mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import inf, isfinite
from typing import Any, Literal

from squall.cluster.fault import Fault, FaultKind
from squall.errors import Row, nearest
from squall.recipe.base import quantity_rule
from squall.units import to_seconds

NEVER = "never"
_ROLE = re.compile(r"\s*(replica|shard)[ -](\d+)\s*")

# kind -> the keys that it takes besides itself and `at`
_KEYS: Mapping[FaultKind, tuple[str, ...]] = {
    "kill": ("restart",),
    "slow": ("by", "for"),
    "drop": ("for",),
    "delay": ("by", "for"),
    "duplicate": ("for",),
}
_NEEDED = {"slow": ("at", "by"), "delay": ("at", "by")}


def fault_of(table: Mapping[str, Any]) -> Fault:
    """The fault that a checked table means."""
    kind = next(kind for kind in _KEYS if kind in table)
    match = _ROLE.fullmatch(table[kind])
    assert match is not None
    role, at = f"{match[1]}-{int(match[2])}", to_seconds(table["at"])
    if kind == "kill":
        restart = table.get("restart")
        lasts = None if restart is None else inf if restart == NEVER else to_seconds(restart)
        return Fault(kind, role, at, lasts)
    lasts = to_seconds(table["for"]) if "for" in table else inf
    if kind == "slow":
        return Fault(kind, role, at, lasts, float(table["by"]))
    return Fault(kind, role, at, lasts, to_seconds(table["by"])) if kind == "delay" else Fault(kind, role, at, lasts)


def fault_rows(label: str, table: Mapping[str, Any], numbers: Mapping[str, Any], strategy: str) -> Iterator[Row]:
    """The mistakes of one fault.

    Arguments:
        label: what it is called: "simulated.faults[0]".
        table: as written.
        numbers: how many roles there are of a kind: {"replica": 4, "shard": 1}; one that is no whole number is a
            mistake of its own and says nothing here.
        strategy: whose roles they are.
    """
    kinds = [kind for kind in _KEYS if kind in table]
    if len(kinds) != 1:
        said = f"{' and '.join(kinds)} are two faults" if kinds else "does nothing"
        yield label, f'{said}. One of {", ".join(_KEYS)} a fault, such as {{ kill = "replica 0", at = "40s" }}'
        return
    kind = kinds[0]
    yield from _role_rows(f"{label}.{kind}", table[kind], numbers, strategy)
    valid = (kind, "at", *_KEYS[kind])
    for key, value in table.items():
        if key not in valid:
            near = nearest(key, valid) or valid
            yield f"{label}.{key}={value}", f"no such key of {kind}. Near: {', '.join(near)}"
        elif key != kind and (rule := _value_rule(kind, key, value)):
            yield f"{label}.{key}={value}", rule
    for key in _NEEDED.get(kind, ("at",)):
        if key not in table:
            yield f"{label}.{key}", f"missing: {_MISSING[kind if key == 'by' else 'at']}"


_MISSING = {
    "at": 'when it begins, for example at = "40s"',
    "slow": "how many times slower, for example by = 5.0",
    "delay": 'how late messages come, for example by = "1s"',
}


def _role_rows(label: str, role: Any, numbers: Mapping[str, Any], strategy: str) -> Iterator[Row]:
    match = _ROLE.fullmatch(role) if isinstance(role, str) else None
    if match is None:
        yield f"{label}={role}", 'whom it strikes: "replica 3", "shard 0"'
        return
    kind: Literal["replica", "shard"] = "replica" if match[1] == "replica" else "shard"
    number = numbers.get(kind)
    if isinstance(number, int) and int(match[2]) >= number >= 1:
        there = f"is {kind} 0 alone" if number == 1 else f"are {kind}s 0 to {number - 1}"
        yield f"{label}={role}", f"there {there}: {strategy}.{kind}s={number}"


def _value_rule(kind: str, key: str, value: Any) -> str:
    """What is wrong with a value, or nothing."""
    if kind == "slow" and key == "by":
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
        return "" if number > 0 and isfinite(number) else "how many times slower: a number above 0"
    if key == "restart" and value == NEVER:
        return ""
    return quantity_rule(value, to_seconds, zero=key in ("at", "restart"))
