"""How a network's vector is cut into shards: the elements of each, in numbers and words."""

from __future__ import annotations

from itertools import pairwise

from squall.explain.facts import ModelFacts
from squall.units import count


def elements(facts: ModelFacts) -> int:
    """Of the vector that the shards own and that travels."""
    return max(facts.vector, facts.num_trainable)


def elements_of_shards(facts: ModelFacts, shards: int) -> list[int]:
    """Of each shard's slice."""
    from squall.reduce.flat import ALIGN

    blocks = -(-elements(facts) // ALIGN)
    return [ALIGN * (stop - start) for start, stop in pairwise(blocks * i // shards for i in range(shards + 1))]


def each_of(facts: ModelFacts, shards: int) -> str:
    """As a row begins: "2 with 39,744 elements each (of 77,754 parameters; cuts at multiples of 64)"."""
    sizes = elements_of_shards(facts, shards)
    low, high = min(sizes), max(sizes)
    each = f"{count(high)} elements" if low == high else f"{count(low)} or {count(high)} elements"
    return (
        f"{count(shards)} with {each}{' each' if shards > 1 else ''}"
        f" (of {count(facts.num_trainable)} parameters; cuts at multiples of 64)"
    )
