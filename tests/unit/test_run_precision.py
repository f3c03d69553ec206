"""Autocast on a model's instance stays with the instance; the loss scale starts where a sum over a pass fits."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from squall.model.ghostnorm import split_normalisation
from squall.run.precision import LossScale, wrap_forward
from squall.run.stepper import Stepper
from tests.unit.runs import make_model, start

CPU = torch.device("cpu")
INPUTS = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))


class Scaled(nn.Module):
    """A forward with arguments and a text of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = make_model()

    def forward(self, inputs: torch.Tensor, *, factor: float = 2.0) -> dict[str, torch.Tensor]:
        """Scores, times a factor."""
        return {"scores": self.layer(inputs) * factor}


def in_bfloat16(layer: nn.Module, inputs: torch.Tensor = INPUTS, part: Any = lambda out: out) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return part(layer(inputs)).float()


def test_a_copy_of_the_model_computes_with_its_own_weights() -> None:
    model = make_model()
    unwrap = wrap_forward(model, "bf16", CPU)
    before = model(INPUTS)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(INPUTS), before)
    with torch.no_grad():
        twin.weight.zero_()
        twin.bias.fill_(1.0)
    assert torch.equal(twin(INPUTS), torch.ones(4, 3))
    assert torch.equal(model(INPUTS), before)
    unwrap()
    assert torch.equal(model(INPUTS), F.linear(INPUTS, model.weight, model.bias))
    assert "forward" not in model.__dict__


def test_a_copy_of_a_model_in_a_run_and_one_that_was_pickled_follow_their_weights() -> None:
    model = make_model(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    run = start(model, precision="bf16")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(INPUTS), model(INPUTS))
        twin.load_state_dict({name: torch.zeros_like(value) for name, value in twin.state_dict().items()})
        assert torch.equal(twin(INPUTS), torch.zeros(4, 3))
    run.close()


def test_the_signature_and_the_text_are_those_of_the_models_own_forward() -> None:
    model = Scaled()
    own = inspect.signature(model.forward)
    wrap_forward(model, "bf16", CPU)
    assert inspect.signature(model.forward) == own
    assert inspect.getdoc(model.forward) == "Scores, times a factor."
    scores = model(INPUTS, factor=3.0)["scores"]
    assert scores.dtype == torch.float32
    assert torch.equal(scores, (in_bfloat16(model.layer).bfloat16() * 3.0).float())


def test_a_forward_that_the_instance_held_before_is_used_and_given_back() -> None:
    model: Any = nn.BatchNorm1d(5)
    groups = split_normalisation(model)
    held = model.forward
    unwrap = wrap_forward(model, "bf16", CPU)
    groups.sizes = (2, 2)
    twin = copy.deepcopy(model)
    assert torch.equal(model(INPUTS), torch.cat([nn.BatchNorm1d(5)(part) for part in INPUTS.split(2)]))
    assert not twin.running_mean.any()
    twin(INPUTS)
    assert torch.equal(twin.running_mean, model.running_mean)
    unwrap()
    assert model.forward is held


def test_a_compiled_model_stays_under_autocast() -> None:
    model = make_model()
    expected = in_bfloat16(model)
    wrap_forward(model, "bf16", CPU)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model.compile(backend=backend, fullgraph=True)
    found = model(INPUTS)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert len(graphs) == 1


class Outputs(OrderedDict[str, torch.Tensor]):
    """Like transformers': fields are items and attributes, and the class cannot be made without them."""

    def __init__(self, *, scores: torch.Tensor) -> None:
        super().__init__(scores=scores)
        self.scores = scores

    def to_tuple(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.values())


Pair = namedtuple("Pair", "scores name")


@pytest.mark.parametrize(
    ("nested", "scores"),
    [
        (lambda y: Outputs(scores=y), lambda out: out.scores),
        (lambda y: {"all": [Outputs(scores=y)]}, lambda out: out["all"][0]["scores"]),
        (lambda y: Pair(y, "a name"), lambda out: out.scores),
        (lambda y: (None, [y]), lambda out: out[1][0]),
        (lambda y: nn.utils.rnn.PackedSequence(y, torch.tensor([4])), lambda out: out.data),
    ],
    ids=["outputs", "outputs inside", "named tuple", "tuple", "PackedSequence"],
)
def test_nested_outputs_keep_their_class_and_become_float32(nested: Any, scores: Any) -> None:
    class Nests(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> Any:
            return nested(super().forward(inputs))

    model = Nests(5, 3)
    expected = in_bfloat16(model, INPUTS, scores)
    wrap_forward(model, "bf16", CPU)
    found = model(INPUTS)
    assert type(found) is type(nested(INPUTS))
    assert scores(found).dtype == torch.float32
    assert torch.equal(scores(found), expected)


@pytest.mark.parametrize(
    ("num_samples", "factor"), [(1, 65536), (2, 32768), (96, 512), (128, 512), (65536, 1), (10**6, 1)]
)
def test_the_loss_scale_starts_at_what_a_mean_would_have(num_samples: int, factor: float) -> None:
    assert LossScale("fp16", num_samples).factor == factor
    assert LossScale("bf16", num_samples).factor == 1


def test_a_runs_loss_scale_knows_the_samples_of_a_pass() -> None:
    run = start(make_model(), worker_batch_size=2, fuse=2)
    stepper = Stepper(replace(run.spec, precision="fp16"), run.world, make_model())  # a run of it needs a GPU
    assert stepper.scale.factor == 65536 / 4
    stepper.release()
    run.close()
