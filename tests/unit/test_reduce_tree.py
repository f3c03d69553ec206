"""The reduction tree: the bracketing depends on the number of leaves and on nothing else."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from squall.reduce import tree


def textbook_sum(leaves: list[np.float32]) -> np.float32:
    """Halves, the odd leaf to the left, straight from the definition."""
    if len(leaves) == 1:
        return leaves[0]
    middle = (len(leaves) + 1) // 2
    return np.float32(textbook_sum(leaves[:middle]) + textbook_sum(leaves[middle:]))


def hosted_sum(leaves: list[np.float32], num_processes: int) -> tuple[np.float32, int]:
    """The same sum, formed by `num_processes` hosts as the schedule says; and the most buffers any of them held."""
    frontier: list[tree.Node] = []
    values: list[np.float32] = []
    most = 0
    for rank in range(num_processes):
        lo, hi = tree.share(len(leaves), num_processes, rank)
        plan = tree.local_sums(len(leaves), lo, hi)
        slots = [np.float32(0)] * plan.num_slots
        for leaf, step in zip(range(lo, hi), plan.steps, strict=True):
            slots[step.slot] = np.float32(slots[step.slot] + leaves[leaf]) if step.accumulate else leaves[leaf]
            for target, source in step.merges:
                slots[target] = np.float32(slots[target] + slots[source])
        frontier += plan.cover
        values += slots[: len(plan.cover)]
        most = max(most, plan.num_slots)
    for target, source in tree.root_sum(tuple(frontier)):
        values[target] = np.float32(values[target] + values[source])
    return values[0], most


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_any_number_of_hosts_forms_the_same_bits(num_leaves: int, num_processes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    leaves = list(
        (generator.standard_normal(num_leaves) * 10.0 ** generator.integers(-6, 6, num_leaves)).astype(np.float32)
    )
    total, _ = hosted_sum(leaves, num_processes)
    assert total.tobytes() == textbook_sum(leaves).tobytes()


def test_another_bracketing_gives_other_bits() -> None:
    generator = np.random.default_rng(0)
    leaves = list(generator.standard_normal(64).astype(np.float32))
    running = np.float32(0)
    for leaf in leaves:
        running = np.float32(running + leaf)
    assert running.tobytes() != textbook_sum(leaves).tobytes()


@given(st.integers(1, 1000), st.integers(1, 64))
@settings(max_examples=200, deadline=None)
def test_shares_are_contiguous_complete_and_even(num_leaves: int, num_processes: int) -> None:
    shares = [tree.share(num_leaves, num_processes, rank) for rank in range(num_processes)]
    assert shares[0][0] == 0
    assert shares[-1][1] == num_leaves
    assert all(a[1] == b[0] for a, b in itertools.pairwise(shares))
    sizes = [hi - lo for lo, hi in shares]
    assert max(sizes) == -(-num_leaves // num_processes)  # nobody slower than an even deal
    assert min(sizes) >= (1 if num_processes <= num_leaves else 0)


def test_shares_are_whole_subtrees_where_that_costs_nothing() -> None:
    assert [tree.share(101, 8, rank) for rank in range(8)] == [
        tree.cover(101, *tree.share(101, 8, rank))[0] for rank in range(8)
    ]
    assert {hi - lo for lo, hi in (tree.share(256, 24, rank) for rank in range(24))} == {10, 11}


@given(st.integers(1, 500), st.data())
@settings(max_examples=200, deadline=None)
def test_a_cover_holds_its_leaves_and_only_maximal_nodes(num_leaves: int, data: st.DataObject) -> None:
    lo = data.draw(st.integers(0, num_leaves - 1))
    hi = data.draw(st.integers(lo + 1, num_leaves))
    cover = tree.cover(num_leaves, lo, hi)
    assert [leaf for a, b in cover for leaf in range(a, b)] == list(range(lo, hi))
    assert cover == list(tree.local_sums(num_leaves, lo, hi).cover)
    assert len(cover) <= 2 * max(1, num_leaves).bit_length()


@given(st.integers(1, 4096))
@settings(max_examples=100, deadline=None)
def test_buffers_held_grow_with_the_logarithm(num_leaves: int) -> None:
    plan = tree.local_sums(num_leaves, 0, num_leaves)
    assert plan.num_slots <= (num_leaves - 1).bit_length() + 1
    assert plan.cover == ((0, num_leaves),)


def test_twelve_passes_on_two_processes_send_one_node_each() -> None:
    assert tree.cover(12, 0, 6) == [(0, 6)]
    assert tree.cover(12, 6, 12) == [(6, 12)]


def test_messages_stay_few_for_ragged_counts() -> None:
    for num_leaves in (7, 8, 12, 101, 256):
        for num_processes in (2, 3, 4, 5, 7):
            for rank in range(num_processes):
                assert (
                    len(tree.cover(num_leaves, *tree.share(num_leaves, num_processes, rank)))
                    <= 2 * num_leaves.bit_length()
                )
