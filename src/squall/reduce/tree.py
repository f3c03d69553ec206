"""The reduction tree: which partial sums exist, who forms them, in which order they are added.

Floating-point addition is not associative, so a sum's bits depend on how it is bracketed. Squall brackets it by one
binary tree over the passes of a minibatch, and that tree depends on nothing but their number: a node over leaves
[lo, hi) splits in half, and the odd leaf goes left. Twelve passes on two processes, and on five::

                        [0,12)                                          [0,12)
              [0,6)                [6,12)                     [0,6)                  [6,12)
          [0,3)   [3,6)        [6,9)   [9,12)             [0,3)   [3,6)         [6,9)      [9,12)
                                                                             [6,8)   8
         rank 0 sends [0,6)   rank 1 sends [6,12)         rank 0  rank 1     rank 2  3     rank 4

A process hosts a contiguous run of leaves. Inside it, it may form every node whose leaves it holds all (the *cover*:
the maximal ones); the owner of a slice of the vector adds the covers of all processes up to the root. Whoever does
which addition, the bracketing is the same, and so are the bits.

Everything here is arithmetic on integers; `exact.py` moves the numbers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

Node = tuple[int, int]
"""A node of the tree by the range of leaves below it: (first, one after the last)."""


def split(node: Node) -> tuple[Node, Node]:
    """The two children of a node of two leaves or more: halves, the odd leaf goes left."""
    lo, hi = node
    middle = lo + (hi - lo + 1) // 2
    return (lo, middle), (middle, hi)


def share(num_leaves: int, num_processes: int, rank: int) -> tuple[int, int]:
    """The contiguous run of leaves that a process hosts: (first, one after the last).

    Where it makes no process slower, each hosts one whole subtree, so that it has one node to send; otherwise runs
    differ by at most one leaf.
    """
    cuts = _cuts(num_leaves, num_processes)
    return cuts[rank], cuts[rank + 1]


@lru_cache(maxsize=256)
def _cuts(num_leaves: int, num_processes: int) -> tuple[int, ...]:
    most = -(-num_leaves // num_processes)

    def needs(node: Node) -> int:
        return 1 if node[1] - node[0] <= most else sum(needs(child) for child in split(node))

    def deal(node: Node, processes: int) -> list[int]:
        if processes == 1:
            return [node[0]]
        left, right = split(node)
        even = round(processes * (left[1] - left[0]) / (node[1] - node[0]))
        first = min(max(even, needs(left), 1), processes - needs(right), left[1] - left[0])
        return deal(left, first) + deal(right, processes - first)

    if num_processes <= num_leaves and needs((0, num_leaves)) <= num_processes:
        cuts = (*deal((0, num_leaves), num_processes), num_leaves)
        if max(b - a for a, b in itertools.pairwise(cuts)) <= most:
            return cuts
    return tuple(rank * num_leaves // num_processes for rank in range(num_processes + 1))


def cover(num_leaves: int, lo: int, hi: int) -> list[Node]:
    """The maximal nodes of the tree over `num_leaves` whose leaves all lie in [lo, hi), from left to right.

    Example:
        >>> cover(12, 0, 6), cover(12, 2, 4)
        ([(0, 6)], [(2, 3), (3, 4)])
    """
    found: list[Node] = []

    def visit(node: Node) -> None:
        if node[1] <= lo or hi <= node[0]:
            return
        if lo <= node[0] and node[1] <= hi:
            found.append(node)
            return
        for child in split(node):
            visit(child)

    if lo < hi:
        visit((0, num_leaves))
    return found


@dataclass(frozen=True)
class LeafStep:
    """What a process does with one leaf.

    Attributes:
        slot: the buffer that takes the leaf.
        accumulate: add to what the buffer holds (its left sibling), instead of overwriting it.
        merges: afterwards, (target, source) pairs of buffers: target += source, in this order.
    """

    slot: int
    accumulate: bool
    merges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class LocalSums:
    """How a process forms its cover.

    Attributes:
        steps: one for each hosted leaf, in order.
        cover: its nodes, left to right; the sum of node i ends up in buffer i.
        num_slots: buffers needed at the most, about log2(leaves) + 1.
    """

    steps: tuple[LeafStep, ...]
    cover: tuple[Node, ...]
    num_slots: int


@lru_cache(maxsize=256)
def local_sums(num_leaves: int, lo: int, hi: int) -> LocalSums:
    """Orders the additions of the leaves [lo, hi) so that as few buffers as possible are held.

    Leaves come one after the other; the buffers form a stack of nodes not yet merged. A leaf whose left sibling is
    complete on top of the stack is added to it in place; then the two topmost nodes merge as long as they are
    siblings.
    """
    siblings = _left_siblings(num_leaves)
    stack: list[Node] = []
    steps: list[LeafStep] = []
    num_slots = 0
    for leaf in range(lo, hi):
        node: Node = (leaf, leaf + 1)
        accumulate = bool(stack) and siblings.get(node) == stack[-1]
        if accumulate:
            stack[-1] = node = (stack[-1][0], node[1])
        else:
            stack.append(node)
        slot = len(stack) - 1
        num_slots = max(num_slots, len(stack))
        merges = []
        while len(stack) > 1 and siblings.get(stack[-1]) == stack[-2]:
            right = stack.pop()
            stack[-1] = (stack[-1][0], right[1])
            merges.append((len(stack) - 1, len(stack)))
        steps.append(LeafStep(slot, accumulate, tuple(merges)))
    return LocalSums(tuple(steps), tuple(stack), num_slots)


@lru_cache(maxsize=256)
def root_sum(frontier: tuple[Node, ...]) -> tuple[tuple[int, int], ...]:
    """The additions that turn a frontier (covers of all processes, left to right) into the root.

    Returns:
        (target, source) pairs of positions in the frontier, in order; the root ends up at position 0.
    """
    position = {node: index for index, node in enumerate(frontier)}
    additions: list[tuple[int, int]] = []

    def visit(node: Node) -> int:
        if node in position:
            return position[node]
        left, right = split(node)
        target, source = visit(left), visit(right)
        additions.append((target, source))
        return target

    if frontier:
        visit((0, frontier[-1][1]))
    return tuple(additions)


@lru_cache(maxsize=256)
def _left_siblings(num_leaves: int) -> dict[Node, Node]:
    siblings: dict[Node, Node] = {}

    def visit(node: Node) -> None:
        if node[1] - node[0] > 1:
            left, right = split(node)
            siblings[right] = left
            visit(left)
            visit(right)

    if num_leaves:
        visit((0, num_leaves))
    return siblings
