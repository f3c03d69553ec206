"""Downpour against its definitions, in simulated time: the checks D1 to D7 of the papers' list."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import squall
from squall.cluster.fault import Fault
from squall.optim.rules import RuleSpec
from squall.records import Pushed, RoleChanged
from tests.downpours import Job, network


def sequential(job: Job) -> torch.Tensor:
    """Plain SGD by torch, one minibatch after the other."""
    model = network(job.normalised)
    optimizer = torch.optim.SGD(model.parameters(), job.lr, weight_decay=job.decay)
    for index in range(job.order.num_steps):
        ids = job.order.draw(job.order.step(index), 0).ids.tolist()
        inputs = torch.stack([job.data[i][0] for i in ids])
        labels = torch.tensor([job.data[i][1] for i in ids])
        optimizer.zero_grad()
        (F.cross_entropy(model(inputs), labels, reduction="sum")).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.div_(len(ids))
        optimizer.step()
    return job.layout.vector(model)


@pytest.mark.parametrize("shards", [1, 2, 7])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_d1_d2_one_replica_is_sequential_sgd_to_the_last_bit(shards: int, decay: float) -> None:
    job = Job(shards=shards, decay=decay)
    job.run()
    assert torch.equal(job.weights(), sequential(job))


def test_d1_with_rmsprop_and_adagrad_and_clipping_shards_do_not_matter() -> None:
    for rule in (RuleSpec("adagrad"), RuleSpec("rmsprop"), RuleSpec("sgd", momentum=0.9)):
        found = []
        for shards in (1, 2, 7):
            job = Job(shards=shards, rule=rule, clip=0.1)
            job.run()
            found.append(job.weights())
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


def test_d3_the_servers_adagrad_is_the_formula() -> None:
    job = Job(replicas=3, shards=2, rule=RuleSpec("adagrad"), lr=0.01, epochs=3)
    job.run()
    for shard, part in enumerate(job.slices):
        weights = job.initial()[part.start : part.stop].double()
        sums = torch.zeros_like(weights)
        for number, (_, gradient) in enumerate(job.applied[shard]):
            g = gradient.double()
            sums += g * g
            change = torch.where(sums > 0, 0.01 * g / sums.sqrt(), torch.zeros_like(g))
            if not number:
                assert set(change.abs()[g != 0].unique().tolist()) <= {0.01} or torch.allclose(
                    change.abs()[g != 0], torch.tensor(0.01, dtype=torch.float64), rtol=1e-12
                )
            weights -= change
        torch.testing.assert_close(job.weights()[part.start : part.stop].double(), weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("push_every", [1, 3])
def test_d4_everything_applied_is_everything_computed(push_every: int) -> None:
    job = Job(replicas=8, shards=3, push_every=push_every, epochs=4)
    job.run()
    assert sorted(job.computed) == list(range(job.order.num_steps))
    for shard, part in enumerate(job.slices):
        applied = [push.unit for push, _ in job.applied[shard]]
        assert sorted(m for unit in applied for m in unit.minibatches) == list(range(job.order.num_steps))
        for push, gradient in job.applied[shard]:
            total = torch.zeros(job.layout.parameters_end)
            for number, minibatch in enumerate(push.unit.minibatches):
                (computed,) = job.computed[minibatch]
                total = computed if not number else total + computed
            assert torch.equal(gradient, total[part.start : part.stop])


def test_d5_the_trace_of_three_and_three() -> None:
    """n_fetch = n_push = 3, alpha = 0.05: pushes of minibatches {0}, {1 2 3}, {4 5 6}, ..., and by hand what each
    gradient was computed with; a fetch takes less than a minibatch here, so it is taken before the next one."""
    job = Job(fetch_every=3, push_every=3, local_lr=0.05, lr=0.1, epochs=1)
    job.run()
    units = [list(push.unit.minibatches) for push, _ in job.applied[0]]
    assert units == [[0], [1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11]]

    ours = job.layout.parameters_end
    server = job.initial()[:ours]
    local, coming = server.clone(), None
    accumulated: list[torch.Tensor] = []
    gradients = Job(epochs=1)  # another network, for gradients by hand
    for minibatch in range(job.order.num_steps):
        if coming is not None:
            local, coming = coming, None
        if minibatch and minibatch % 3 == 0:
            coming = server.clone()  # asked for now, there when this gradient is done
        into = torch.zeros(job.layout.size)
        gradients._gradients.compute(minibatch, local, [], into)
        assert torch.equal(into[:ours], job.computed[minibatch][0])
        accumulated.append(into[:ours].clone())
        local = local.add(into[:ours], alpha=-0.05)
        if minibatch % 3 == 0 or minibatch == job.order.num_steps - 1:
            total = accumulated[0]
            for each in accumulated[1:]:
                total = total + each
            server = server.add(total, alpha=-0.1)
            accumulated = []
    assert torch.equal(job.weights()[:ours], server)


def test_d6_a_killed_replica_delays_nobody_and_comes_back_without_overwriting_the_server() -> None:
    job = Job(replicas=3, shards=2, epochs=10)
    job.run(faults=[Fault("kill", "replica-1", at=1.05, lasts=1.0)])
    pushes = [record for record in job.records if isinstance(record, Pushed)]
    meanwhile = [push for push in pushes if 1.2 < push.seconds < 2.0]
    assert {push.replica for push in meanwhile} == {"replica-0", "replica-2"}
    assert len(meanwhile) > 10
    changes = [(r.role, r.change) for r in job.records if isinstance(r, RoleChanged)]
    assert ("replica-1", "restarted") in changes
    assert any(push.replica == "replica-1" and push.seconds > 2.1 for push in pushes)
    for shard in range(2):  # nothing but pushes has changed the server: their gradients give its weights
        weights = job.initial()[job.slices[shard].start : job.slices[shard].stop]
        for _, gradient in job.applied[shard]:
            weights = weights.add(gradient, alpha=-job.lr)
        assert torch.equal(weights, job.snapshots.newest(shard).tensors["weights"])


def test_d6_a_replica_that_stays_dead_is_not_waited_for() -> None:
    job = Job(replicas=2, epochs=5)
    summary = job.run(faults=[Fault("kill", "replica-0", at=0.35, lasts=float("inf"))])
    assert summary.outcome == "finished"
    assert sorted(m for push, _ in job.applied[0] for m in push.unit.minibatches) == list(range(job.order.num_steps))


@pytest.mark.parametrize("replicas", [1, 4, 20])
def test_d7_equal_replicas_are_behind_by_all_the_others(replicas: int) -> None:
    job = Job(replicas=replicas, num_samples=400, epochs=4)
    summary = job.run()
    assert summary.values["staleness"]["mean"] == pytest.approx(replicas - 1, abs=max(0.06 * replicas, 1e-9))


def test_one_replica_with_batch_normalisation_gives_the_bits_of_synchronous_training() -> None:
    job = Job(normalised=True, shards=3, decay=0.01, num_samples=46)
    job.run()
    run = squall.Run(None, epochs=job.epochs, global_batch_size=job.batch, worker_batch_size=job.batch)
    model = network(normalised=True)
    optimizer = torch.optim.SGD(
        [
            {"params": [p for n, p in model.named_parameters() if not n.startswith("1.")], "weight_decay": 0.01},
            {"params": [p for n, p in model.named_parameters() if n.startswith("1.")], "weight_decay": 0.0},
        ],
        lr=job.lr,
        fused=True,
    )
    model, optimizer = run.setup(model, optimizer)
    for step in run.steps(job.data):
        for inputs, labels in step:
            step.backward(F.cross_entropy(model(inputs), labels, reduction="sum"))
        optimizer.step()
        optimizer.zero_grad()
    run.finish()
    assert torch.equal(job.weights(), job.layout.vector(model))
    counted = model.state_dict()["1.num_batches_tracked"]
    assert job.snapshots.newest(0).tensors["counters"].tolist() == [int(counted)] == [job.order.num_steps]


def test_a_block_a_shard_down_to_shards_of_buffers_only() -> None:
    found = []
    for shards in (1, 16):
        job = Job(normalised=True, shards=shards, rule=RuleSpec("adagrad"))
        job.run()
        found.append(job.weights())
    assert job.layout.size == 16 * 64
    assert torch.equal(found[0], found[1])


def test_the_same_seed_gives_the_same_records() -> None:
    found = []
    for _ in range(2):
        job = Job(replicas=5, shards=2, epochs=3)
        job.run(seed=11)
        found.append(([record.to_json() for record in job.records], job.engine.digest, job.weights()))
    assert found[0][:2] == found[1][:2]
    assert torch.equal(found[0][2], found[1][2])
