"""The contract of every strategy, with synchronous SGD: equal to the textbook, on one process and on several.

Checks G1 and G2 of the paper's list; every later strategy joins `STRATEGIES` and passes the same suite.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.data.order import Order
from tests.jobs import run_job

CLASSES = 4


def make_data(num_samples: int = 96, dtype: torch.dtype = torch.float64) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(num_samples, 2, 6, 6, generator=generator, dtype=dtype)
    labels = torch.randint(CLASSES, (num_samples,), generator=generator)
    return [(image, int(label)) for image, label in zip(images, labels, strict=True)]


def make_model(normalised: bool = True, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3, padding=1)]
    if normalised:
        layers.append(nn.BatchNorm2d(4))
    layers += [nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, CLASSES)]
    return nn.Sequential(*layers).to(dtype)


@dataclass(frozen=True)
class Setting:
    epochs: int = 2
    batch: int = 24
    worker: int = 4
    lr: float = 0.05
    decay: float = 0.01
    momentum: float = 0.9
    normalised: bool = True
    fuse: int = 1
    loss_factor: float = 1.0
    reduction: str = "exact"


def textbook(setting: Setting) -> nn.Module:
    """One process that accumulates k chunks of n, from the definitions: sum over kn / kn; statistics averaged."""
    model, data = make_model(setting.normalised), make_data()
    optimizer = torch.optim.SGD(
        model.parameters(), setting.lr, setting.momentum, weight_decay=setting.decay, nesterov=setting.momentum > 0
    )
    order = Order(len(data), setting.batch, setting.worker, setting.epochs, seed=0)
    for index in range(order.num_steps):
        plan = order.step(index)
        start = {name: buffer.clone() for name, buffer in model.named_buffers()}
        change = {name: torch.zeros_like(buffer, dtype=torch.float64) for name, buffer in start.items()}
        optimizer.zero_grad()
        for leaf in range(plan.num_passes):
            ids = order.draw(plan, leaf).ids.tolist()
            images = torch.stack([data[i][0] for i in ids])
            labels = torch.tensor([data[i][1] for i in ids])
            loss = F.cross_entropy(model(images), labels, reduction="sum") * setting.loss_factor / plan.num_samples
            loss.backward()
            for name, buffer in model.named_buffers():
                change[name] += (buffer.double() - start[name].double()) * len(ids) / plan.num_samples
                buffer.copy_(start[name])
        optimizer.step()
        for name, buffer in model.named_buffers():
            value = start[name].double() + change[name]
            buffer.copy_(value if buffer.is_floating_point() else value.round())
    return model


def with_squall(setting: Setting, world: object = None) -> dict[str, torch.Tensor]:
    """The same training through the own-loop door."""
    run = squall.Run(
        None,
        world=world,
        epochs=setting.epochs,
        global_batch_size=setting.batch,
        worker_batch_size=setting.worker,
        fuse=setting.fuse,
        reduction=setting.reduction,
    )
    model = make_model(setting.normalised)
    optimizer = torch.optim.SGD(
        model.parameters(), setting.lr, setting.momentum, weight_decay=setting.decay, nesterov=setting.momentum > 0
    )
    model, optimizer = run.setup(model, optimizer)
    for step in run.steps(make_data()):
        for images, labels in step:
            step.backward(F.cross_entropy(model(images), labels, reduction="sum") * setting.loss_factor)
        optimizer.step()
        optimizer.zero_grad()
    run.finish()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_close(found: dict[str, torch.Tensor], expected: nn.Module) -> None:
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-11, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


def distance(found: dict[str, torch.Tensor], expected: nn.Module) -> float:
    return max(float((found[name] - p.detach()).abs().max()) for name, p in expected.named_parameters())


def test_g1_k_workers_equal_one_process_that_accumulates_k_chunks() -> None:
    setting = Setting(epochs=3)  # 12 steps with decay and Nesterov
    assert_close(with_squall(setting), textbook(setting))


def test_g1_one_chunk_of_kn_is_another_objective_with_normalisation() -> None:
    assert distance(with_squall(Setting()), textbook(Setting(worker=24))) > 1e-4


def test_g1_one_chunk_of_kn_agrees_without_normalisation() -> None:
    assert_close(with_squall(Setting(normalised=False)), textbook(Setting(normalised=False, worker=24)))


@pytest.mark.parametrize("batch", [20, 36])
def test_a_short_last_minibatch_of_unequal_workers_weighs_by_samples(batch: int) -> None:
    """pytorch#42577, fairchem#269: a mean of means is wrong with unequal sizes."""
    setting = Setting(batch=batch, worker=8)
    assert_close(with_squall(setting), textbook(setting))


@pytest.mark.parametrize("fuse", [2, 3, 6])
def test_fused_workers_keep_their_own_statistics(fuse: int) -> None:
    assert_close(with_squall(Setting(fuse=fuse)), textbook(Setting()))


def test_g2_without_decay_scaling_the_loss_is_scaling_the_rate() -> None:
    scaled_loss = with_squall(Setting(decay=0.0, loss_factor=4.0, momentum=0.0))
    scaled_rate = textbook(Setting(decay=0.0, lr=0.2, momentum=0.0))
    assert_close(scaled_loss, scaled_rate)


def test_g2_with_decay_they_differ() -> None:
    scaled_loss = with_squall(Setting(decay=0.1, loss_factor=4.0, momentum=0.0))
    assert distance(scaled_loss, textbook(Setting(decay=0.1, lr=0.2, momentum=0.0))) > 1e-4


@pytest.mark.parametrize("reduction", ["exact", "fast"])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_do_not_change_what_is_computed(processes: int, reduction: str) -> None:
    setting = Setting(batch=28, worker=4, reduction=reduction)  # 7 passes; a short last minibatch of 12
    alone = with_squall(setting)
    for found in run_job(with_squall, processes, setting):
        for name, tensor in alone.items():
            if reduction == "exact":
                assert torch.equal(found[name], tensor), name
            else:
                torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-10)


def test_averaging_twice_is_impossible() -> None:
    """fairseq#494, sparseml#135, kubeflow/pytorch-operator#122: nobody multiplies or divides by the processes."""
    setting = Setting(momentum=0.0, decay=0.0)
    expected = textbook(setting)
    for found in run_job(with_squall, 2, setting):
        assert distance(found, expected) < 1e-11
