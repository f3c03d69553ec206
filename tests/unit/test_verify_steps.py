"""Steps as optimisers really make them: nested, fused, compiled, failing; and losses that are handed over otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR
from torch.utils.checkpoint import checkpoint

from tests.unit.observing import Observed, observed


class Fails(SGD):
    """Raises in its second step, as where memory is short."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("out of memory")
        return super().step(closure)


class Outer(SGD):
    """An optimiser that has another do it."""

    inner: SGD

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


def backward(net: nn.Module) -> Tensor:
    loss = net(torch.randn(4, 3)).square().mean()
    loss.backward()
    return loss


def test_a_step_that_raises_is_no_update_and_hides_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    with observed(tmp_path) as watched:
        failing, sound = Fails(net.parameters(), 0.1), SGD(other.parameters(), 0.1)
        for number in range(3):
            backward(net)
            backward(other)
            if number == 1:
                with pytest.raises(RuntimeError, match="memory"):
                    failing.step()
            else:
                failing.step()
            sound.step()
            failing.zero_grad()
            sound.zero_grad()
        rank = watched.trace()
    assert [step["optimizer"] for step in rank.steps] == [0, 1, 1, 0, 1]
    assert len(rank.of("failed step")) == 1
    assert [one["updates"] for one in rank.parameters] == [2, 2, 3, 3]
    for step in rank.steps:  # what stands after it is what followed from what stood before it
        index = next(iter(step["from"]))
        before, gradient, after = (rank.array(step, f"{name}.{index}") for name in ("before", "grad", "after"))
        assert before is not None
        assert gradient is not None
        assert after is not None
        numpy.testing.assert_allclose(after, before - 0.1 * gradient, rtol=1e-5, atol=1e-7)


def test_the_inner_of_two_optimisers_is_part_of_the_outer(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    with observed(tmp_path) as watched:
        optimizer = Outer(net.parameters(), 0.1)
        optimizer.inner = SGD(net.parameters(), 0.1)
        for _ in range(3):
            backward(net)
            optimizer.step()
            optimizer.zero_grad()
        assert [event["optimizer"] for event in watched.events("step")] == [0, 0, 0]
        assert watched.updates.steps == 3


def scaled(watched: Observed, fused: bool, *, infinite: int = -1) -> None:
    net = nn.Linear(3, 2)
    optimizer = Adam(net.parameters(), 0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in range(3):
        loss = net(torch.randn(4, 3)).square().mean()
        scaler.scale(loss * (float("inf") if number == infinite else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
def test_a_fused_optimiser_takes_the_scale_out_as_others_do(tmp_path: Path, fused: bool) -> None:
    torch.manual_seed(0)
    with observed(tmp_path) as watched:
        scaled(watched, fused)
        rank = watched.trace()
    assert len(rank.steps) == 3
    for step in rank.steps:
        gradient, local = rank.array(step, "grad.0"), rank.array(step, "local.0")
        assert gradient is not None
        assert local is not None
        numpy.testing.assert_allclose(gradient * 1024.0, local, rtol=1e-5)
    assert [event["what"] for event in rank.of("scaler")] == ["scale", "step", "unscale", "update"] * 3


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_leaves_out_is_no_update(tmp_path: Path, fused: bool) -> None:
    with observed(tmp_path) as watched:
        scaled(watched, fused, infinite=1)
        rank = watched.trace()
    assert len(rank.steps) == 2
    assert sum(event["what"] == "skipped" for event in rank.of("scaler")) == 1
    assert [event["finite"] for event in rank.backwards] == [True, False, True]


def test_several_losses_at_once_are_all_read(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    with observed(tmp_path) as watched:
        out = net(torch.randn(4, 3))
        losses = [out.square().mean(), 0.5 * out.abs().sum()]
        torch.autograd.backward(loss for loss in losses)  # type: ignore[arg-type]
        (event,) = watched.events("backward")
    assert [(term["how"], term["factor"]) for term in event["terms"]] == [("mean", 1.0), ("sum", 0.5)]


def test_an_edge_of_the_graph_is_opaque_and_no_error(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    with observed(tmp_path) as watched:
        loss = net(torch.randn(4, 3)).square().mean()
        edge = torch.autograd.graph.get_gradient_edge(loss)
        torch.autograd.backward(edge, torch.ones(()))  # type: ignore[arg-type]
        (event,) = watched.events("backward")
    assert event["terms"][0]["how"] == "opaque"
    assert net.weight.grad is not None
    assert watched.events("blind") == []


def test_parameters_without_a_shape_may_be_in_an_optimiser(tmp_path: Path) -> None:
    net = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(2))
    with observed(tmp_path) as watched:
        optimizer = SGD(net.parameters(), 0.1)
        schedule = StepLR(optimizer, 1)
        net(torch.randn(4, 3))
        for _ in range(2):
            backward(net)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        rank = watched.trace()
    assert [one["shape"] for one in rank.parameters] == [[5, 3], [5], [2, 5], [2]]
    assert [one["updates"] for one in rank.parameters] == [2] * 4


def test_a_parameter_may_become_smaller(tmp_path: Path) -> None:
    net = nn.Linear(3, 40)
    with observed(tmp_path) as watched:
        optimizer = SGD(net.parameters(), 0.1)
        for _ in range(2):
            backward(net)
            optimizer.step()
            optimizer.zero_grad()
            net.weight.data, net.bias.data = net.weight.data[:7].clone(), net.bias.data[:7].clone()
        rank = watched.trace()
    sizes = [[len(rank.arrays[f"{step['n']}.{name}.0"]) for name in ("before", "grad", "local")] for step in rank.steps]
    assert sizes == [[120] * 3, [21] * 3]


def test_what_checkpointing_computes_again_is_no_call(tmp_path: Path) -> None:
    block, head = nn.Sequential(nn.Linear(3, 3), nn.Dropout()), nn.Linear(3, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = block, head

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(checkpoint(self.block, x, use_reentrant=False))
            return out

    net = Net()
    with observed(tmp_path) as watched:
        for _ in range(2):
            backward(net)
        assert [event["model"] for event in watched.events("forward")] == [0, 0]
        assert len(watched.models.known) == 1


def test_a_network_that_is_compiled_whole_is_left_whole(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    graphs = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with observed(tmp_path) as watched:
        compiled = torch.compile(net, fullgraph=True, backend=keep)
        optimizer = SGD(net.parameters(), 0.1)
        for _ in range(2):
            backward(compiled)  # type: ignore[arg-type]
            optimizer.step()
            optimizer.zero_grad()
        rank = watched.trace()
    torch._dynamo.reset()
    assert len(graphs) == 1
    assert len(rank.steps) == 2


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_a_step_that_is_compiled_is_seen_all_the_same(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    with observed(tmp_path) as watched:
        optimizer = SGD(net.parameters(), 0.1)

        @torch.compile(backend="eager")
        def update() -> None:
            optimizer.step()

        for _ in range(3):
            backward(net)
            update()
            optimizer.zero_grad()
        rank = watched.trace()
    torch._dynamo.reset()
    assert len(rank.steps) == 3
    assert not numpy.array_equal(
        rank.arrays[f"{rank.steps[0]['n']}.before.0"], rank.arrays[f"{rank.steps[0]['n']}.after.0"]
    )


def test_a_hook_of_ours_that_fails_is_noted_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Linear(3, 2)
    with observed(tmp_path) as watched:

        def broken(*args: Any) -> Any:
            raise KeyError("ours")

        monkeypatch.setattr(watched.parameters, "elements", broken)
        optimizer = SGD(net.parameters(), 0.1)
        for _ in range(3):
            backward(net)
            optimizer.step()
            optimizer.zero_grad()
        blind = watched.events("blind")
    assert {event["hook"] for event in blind} >= {"Parameters.arrived", "Updates._note_step"}
    assert all(event["error"] == "KeyError: 'ours'" and event["times"] >= 3 for event in blind)
