"""Who is decayed, who has a rate of its own, and patterns that match nothing."""

from typing import Any

import pytest
import torch
from torch import nn

from squall.errors import InputError
from squall.optim.groups import parameter_groups, set_rate


class RootMeanSquareNorm(nn.Module):
    """A normalisation of the user's own, known by its name only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm1 = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Linear(4, 4), RootMeanSquareNorm(4), nn.LayerNorm((4, 4)), nn.GroupNorm(2, 4))
        self.head = nn.Linear(4, 2)


def resnet50_stand_in() -> nn.Module:
    """As many tensors of each kind as ResNet-50 has: 53 convolutions, 53 normalisations, one last layer."""
    layers: list[nn.Module] = []
    for _ in range(53):
        layers += [nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2)]
    return nn.Sequential(*layers, nn.Linear(2, 10)).to("meta")


def names_in(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, list[str]]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: [by_id[id(p)] for p in group["params"]] for group in groups}


def test_decay_excludes_normalisation_55_and_106_tensors_of_resnet50() -> None:
    """G6: decay on 55 tensors (53 convolutions, last weight and bias), none on 106."""
    decayed, rest = parameter_groups(resnet50_stand_in(), weight_decay=1e-4)
    assert (len(decayed["params"]), decayed["weight_decay"], decayed["name"]) == (55, 1e-4, "all")
    assert (len(rest["params"]), rest["weight_decay"], rest["name"]) == (106, 0.0, "all, no decay")


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = Net()
    model.stem.bias.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.1, groups=[{"match": "head.*", "lr_scale": 10}, {"match": "body"}])
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_norm_knows_torchs_layers_and_those_called_norm() -> None:
    model = Net()
    groups = names_in(model, parameter_groups(model, weight_decay=0.1))
    assert groups["all"] == ["stem.weight", "stem.bias", "body.0.weight", "body.0.bias", "head.weight", "head.bias"]
    assert groups["all, no decay"] == ["norm1.weight", "norm1.bias", "body.1.scale", "body.3.weight", "body.3.bias"]
    assert groups["all, no decay, not adapted"] == ["body.2.weight", "body.2.bias"]


def test_bias_is_a_word_too() -> None:
    attention = nn.MultiheadAttention(4, 2)
    groups = names_in(attention, parameter_groups(attention, weight_decay=0.1, no_weight_decay=["norm", "bias"]))
    assert groups == {"all": ["in_proj_weight", "out_proj.weight"], "all, no decay": ["in_proj_bias", "out_proj.bias"]}


def test_a_model_without_normalisation_or_biases_is_no_mistake() -> None:
    (group,) = parameter_groups(nn.Linear(2, 2, bias=False), weight_decay=0.1, no_weight_decay=["norm", "bias"])
    assert group["weight_decay"] == 0.1


def test_a_pattern_is_a_name_a_prefix_or_a_shell_pattern() -> None:
    for pattern, expected in (
        ("head", ["head.weight", "head.bias"]),
        ("head.bias", ["head.bias"]),
        ("*.bias", ["stem.bias", "norm1.bias", "body.0.bias", "body.2.bias", "body.3.bias", "head.bias"]),
        ("body.[01].*", ["body.0.weight", "body.0.bias", "body.1.scale"]),
    ):
        model = Net()
        groups = parameter_groups(model, no_weight_decay=[], groups=[{"match": pattern, "lr_scale": 2.0}])
        chosen = [id(p) for group in groups if group["lr_scale"] == 2.0 for p in group["params"]]
        assert sorted(chosen) == sorted(id(p) for name, p in model.named_parameters() if name in expected)


def test_the_first_group_that_matches_takes_the_parameter() -> None:
    model = Net()
    groups = parameter_groups(
        model, weight_decay=0.1, groups=[{"match": "head.bias", "lr_scale": 5}, {"match": "head", "lr_scale": 2}]
    )
    assert names_in(model, groups)["head.bias"] == ["head.bias"]
    assert names_in(model, groups)["head"] == ["head.weight"]


def test_a_groups_own_decay_holds_but_never_on_normalisation() -> None:
    model = Net()
    groups = parameter_groups(model, weight_decay=0.1, groups=[{"match": "*", "weight_decay": 0.5}])
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "*": 0.5,
        "*, no decay": 0.0,
        "*, no decay, not adapted": 0.0,
    }


def test_tied_parameters_are_once_in_a_group_and_known_by_every_name() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    (group,) = parameter_groups(model, groups=[{"match": "head.weight", "lr_scale": 3.0}])
    assert len(group["params"]) == 1
    assert group["lr_scale"] == 3.0


def test_set_rate_scales_each_group_and_keeps_tensor_rates_in_place() -> None:
    model = Net()
    groups = parameter_groups(model, groups=[{"match": "head", "lr_scale": 10.0}])
    optimizer = torch.optim.SGD(groups, lr=1.0)
    kept = torch.tensor(1.0)
    optimizer.param_groups[0]["lr"] = kept
    set_rate(optimizer, 0.2)
    assert {
        group["name"]: float(group["lr"]) for group in optimizer.param_groups if group["name"] in ("all", "head")
    } == {
        "all": pytest.approx(0.2),
        "head": pytest.approx(2.0),
    }
    assert optimizer.param_groups[0]["lr"] is kept


def test_set_rate_serves_a_users_own_optimiser() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    set_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"no_weight_decay": ["nrom1"]}, "Near: norm1"),
        ({"no_weight_decay": ["xyz"]}, "The model's parts: body, head, norm1, stem"),
        ({"groups": [{"match": "haed.*"}]}, "Near: head.*"),
        ({"groups": [{"match": "head.wieght"}]}, "head.weight"),
        ({"groups": [{"lr_scale": 2.0}]}, "has no match"),
        ({"groups": [{"match": "head", "lr": 2.0}]}, "One of: match lr_scale weight_decay"),
        ({"groups": [{"match": "head", "lr_scale": -1}]}, "lr_scale=-1"),
        ({"groups": [{"match": "head", "weight_decay": True}]}, "weight_decay=True"),
        ({"groups": [{"match": "*"}, {"match": "head"}]}, "put the narrower one first"),
        ({"groups": [{"match": "stem"}]}, "frozen parameters only"),
    ],
)
def test_mistakes_name_what_was_found_and_what_is_near(arguments: dict[str, Any], part: str) -> None:
    model = Net()
    model.stem.requires_grad_(False)
    with pytest.raises(InputError) as caught:
        parameter_groups(model, **arguments)
    assert part in caught.value.text()


def test_all_mistakes_at_once() -> None:
    with pytest.raises(InputError, match="3 mistakes"):
        parameter_groups(Net(), no_weight_decay=["x"], groups=[{"match": "y"}, {"match": "z"}])


def test_a_model_with_nothing_to_train_or_without_shapes_is_refused() -> None:
    with pytest.raises(InputError, match="everything frozen"):
        parameter_groups(Net().requires_grad_(False))
    with pytest.raises(InputError, match="has no shape yet"):
        parameter_groups(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)))
