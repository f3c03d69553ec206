"""Who sees which sample: check G4 and the cut of an epoch's last minibatch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squall import rng
from squall.data.order import Order, worker_sizes


def epoch_ids(order: Order, epoch: int) -> list[np.ndarray]:
    """The ids of each step of an epoch, worker by worker."""
    steps = []
    for index in range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch):
        plan = order.step(index)
        steps.append(np.concatenate([order.draw(plan, leaf).ids for leaf in range(plan.num_passes)]))
    return steps


@pytest.mark.parametrize("virtual_workers", [1, 2, 4, 8])
def test_g4_an_epoch_is_one_permutation_cut_into_disjoint_shares(virtual_workers: int) -> None:
    order = Order(num_samples=1000, global_batch_size=64, worker_batch_size=64 // virtual_workers, epochs=2, seed=5)
    seen = np.concatenate(epoch_ids(order, 0))
    assert sorted(seen) == list(range(1000))
    one_worker = Order(num_samples=1000, global_batch_size=64, worker_batch_size=64, epochs=2, seed=5)
    assert np.array_equal(seen, np.concatenate(epoch_ids(one_worker, 0)))


def test_g4_another_epoch_and_another_seed_are_other_orders() -> None:
    first, second = rng.permutation(0, 0, 500), rng.permutation(0, 1, 500)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, rng.permutation(1, 0, 500))
    assert np.array_equal(first, rng.permutation(0, 0, 500))


def test_set_epoch_never_called_cannot_happen() -> None:
    """pytorch#31771, #31232: the order repeats when a call is forgotten. Here the epoch is an argument."""
    order = Order(num_samples=1437, global_batch_size=128, worker_batch_size=16, epochs=3, seed=0)
    epochs = [np.concatenate(epoch_ids(order, epoch)) for epoch in range(3)]
    equal = [(epochs[a] == epochs[b]).mean() for a, b in ((0, 1), (1, 2), (0, 2))]
    assert max(equal) < 0.01


def test_the_order_is_pinned_bit_for_bit() -> None:
    assert rng.mix(1, 2, 3) == int(rng.mix_array(rng.mix(1, 2), np.array([3]))[0])
    assert rng.permutation(0, 0, 10).tolist() == PINNED_ORDER


PINNED_ORDER = [2, 3, 8, 7, 1, 0, 9, 5, 6, 4]


@given(
    st.integers(1, 700),
    st.integers(1, 200),
    st.integers(1, 64),
    st.integers(1, 4),
    st.sampled_from(["short", "drop", "carry"]),
)
@settings(max_examples=200, deadline=None)
def test_every_sample_is_seen_as_often_as_the_policy_says(
    samples: int, batch: int, worker: int, epochs: int, last: str
) -> None:
    worker = min(worker, batch)
    order = Order(samples, batch, worker, epochs, seed=1, fuse=2, last_batch=last)  # type: ignore[arg-type]
    counts = np.zeros(samples, dtype=int)
    for index in range(order.num_steps):
        plan = order.step(index)
        assert all(1 <= size <= worker for size in plan.worker_sizes)
        for leaf in range(plan.num_passes):
            draw = order.draw(plan, leaf)
            assert len(draw) == sum(plan.pass_workers(leaf))
            np.add.at(counts, draw.ids, 1)
    assert counts.sum() == order.samples_seen
    if last == "drop":
        assert counts.max(initial=0) <= epochs
    else:
        assert (counts == epochs).all()


def test_the_last_minibatch_of_imagenet_has_101_workers_of_31_or_32() -> None:
    order = Order(num_samples=1_281_167, global_batch_size=8192, worker_batch_size=32, epochs=90, seed=0)
    plan = order.step(156)
    assert (order.steps_per_epoch, order.num_steps, plan.num_samples) == (157, 14_130, 3215)
    assert (plan.worker_sizes.count(32), plan.worker_sizes.count(31)) == (84, 17)
    assert plan.ends_epoch


def test_sizes_differ_by_at_most_one() -> None:
    for total in range(1, 300):
        sizes = worker_sizes(total, 16)
        assert sum(sizes) == total
        assert len(sizes) == -(-total // 16)
        assert max(sizes) - min(sizes) <= 1


def test_carry_has_only_full_minibatches_until_the_very_last() -> None:
    order = Order(num_samples=100, global_batch_size=64, worker_batch_size=16, epochs=3, seed=0, last_batch="carry")
    sizes = [order.step(index).num_samples for index in range(order.num_steps)]
    assert sizes == [64, 64, 64, 64, 44]
    assert [order.step(index).ends_epoch for index in range(5)] == [False, True, False, True, True]


def test_progress_counts_equal_steps_within_an_epoch() -> None:
    order = Order(num_samples=100, global_batch_size=64, worker_batch_size=16, epochs=3, seed=0)
    assert [order.progress(index) for index in range(5)] == [0.0, 0.5, 1.0, 1.5, 2.0]
