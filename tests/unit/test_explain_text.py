"""The explanation of a recipe: golden texts, every number against a second way to it, and the warnings."""

import math
from pathlib import Path

import pytest

from squall.errors import InputError
from squall.explain import ModelFacts, explain, model_facts
from squall.recipe import OptimizerSpec, Recipe, load, override

GOLDEN = Path(__file__).parents[1] / "golden"
RESNET50 = ModelFacts(
    num_parameters=25_557_032,
    num_trainable=25_557_032,
    decayed={"convolution": 53, "linear weight": 1, "linear bias": 1},
    undecayed={"normalisation": 106},
    batch_norms=53,
    vector=25_610_176,
    buffers=53_120,
)
RESNET8 = ModelFacts(
    num_parameters=77_754,
    num_trainable=77_754,
    decayed={"convolution": 9, "linear weight": 1, "linear bias": 1},
    undecayed={"normalisation": 18},
    batch_norms=9,
    vector=79_488,
)
ACOUSTIC = ModelFacts(
    num_parameters=400_906,
    num_trainable=400_906,
    undecayed={"linear weight": 5, "linear bias": 5},
    vector=400_960,
)
IMAGENET = 1_281_167


def warnings(target, *assignments, samples=IMAGENET, facts=RESNET50):
    return explain(override(load(target), assignments), facts, samples).warnings


@pytest.mark.parametrize(
    ("golden", "target", "assignments", "facts", "samples", "processes"),
    [
        ("explain-imagenet.txt", "imagenet", ["global_batch_size=8192"], RESNET50, IMAGENET, 8),
        ("explain-digits.txt", "digits", [], RESNET8, 1437, 2),
        ("explain-fashion-adamw.txt", "fashion-mnist",
         ["optimizer=adamw", "lr=1e-3", "ema=0.99", "virtual_workers=12", "fuse=2", "last_batch=carry"],
         RESNET8, 60_000, 3),
        ("explain-fashion-acoustic.txt", "fashion-acoustic", [], ACOUSTIC, 60_000, 8),
        ("explain-downpour.txt", "digits-downpour",
         ["downpour.replicas=20", "downpour.shards=7", "downpour.fetch_every=2", "downpour.push_every=4",
          "downpour.max_staleness=9", "momentum=0.5"],
         RESNET8, 1437, 8),
    ],
)  # fmt: skip
def test_golden_texts(golden, target, assignments, facts, samples, processes):
    text = explain(override(load(target), assignments), facts, samples, processes).text()
    assert text + "\n" == (GOLDEN / golden).read_text(encoding="utf-8")


def test_the_numbers_of_imagenet_a_second_way():
    numbers = explain(load("imagenet"), RESNET50, IMAGENET).to_json()
    per_epoch = math.ceil(1_281_167 / 8192)
    assert (numbers["steps_per_epoch"], numbers["num_steps"]) == (157, 14_130) == (per_epoch, per_epoch * 90)
    assert math.ceil((1_281_167 - 156 * 8192) / 32) == 101
    assert numbers["gradient_bytes"] == 4 * 25_557_032
    assert numbers["sent_bytes"] == numbers["received_bytes"] == pytest.approx(2 * 7 / 8 * 4 * 25_557_032, abs=1)
    assert numbers["state_bytes"] == 3 * 4 * 25_557_032
    assert [segment["last_step"] for segment in numbers["rate"]] == [5 * 157, 30 * 157, 60 * 157, 80 * 157, 90 * 157]
    assert numbers["rate"][0]["increment"] == pytest.approx(3.1 / 785)
    assert numbers["max_processes"] == 256


def test_lines_below_a_label_are_indented_and_none_ends_in_a_space():
    lines = explain(load("imagenet"), RESNET50, IMAGENET).text().splitlines()
    assert [line for line in lines if line != line.rstrip()] == []
    assert sum(line.startswith(" " * 12 + "step") for line in lines) == 5


def test_a_good_recipe_has_no_warnings():
    assert warnings("imagenet") == ()
    assert warnings("cifar10", samples=50_000, facts=RESNET8) == ()


def test_a_rate_that_is_not_scaled_is_warned_of():
    (warning,) = warnings("imagenet", "lr.scaling=none")
    assert "0.1 is meant for 256 and used at 8,192" in warning
    assert "makes it 3.2" in warning


def test_a_rate_scaled_without_warm_up_is_warned_of():
    (warning,) = warnings("imagenet", "lr.warmup=none", "lr.warmup_epochs=0")
    assert "scaled 32 times without a warm-up" in warning


def test_a_warm_up_longer_than_the_run_is_warned_of():
    (warning,) = warnings("imagenet", "epochs=4", "lr.schedule=constant", "lr.milestones=[]")
    assert "as long as the run or longer (4)" in warning


def test_a_minibatch_past_the_papers_elbow_is_warned_of():
    (warning,) = warnings("imagenet", "global_batch_size=16384")
    assert "24.79 +- 0.27 %" in warning
    (warning,) = warnings("imagenet", "global_batch_size=40000")
    assert "32,768 gave 27.55 +- 0.28 %" in warning
    assert warnings("imagenet", "global_batch_size=4096") == ()


def test_what_the_paper_found_is_said_of_its_own_recipe_only():
    assert (
        "4,096 safe: 23.56"
        in explain(override(load("imagenet"), ["global_batch_size=4096"]), RESNET50, IMAGENET).notes[0]
    )
    other = override(load("imagenet"), ["model.name=resnet18", "global_batch_size=65536"])
    assert not any("paper" in text for text in (*explain(other, RESNET50, IMAGENET).warnings,))


def test_few_steps_are_warned_of():
    (warning,) = warnings("digits", samples=1437, facts=RESNET8)
    assert "360 steps in all" in warning
    assert warnings("digits", "epochs=42", samples=1437, facts=RESNET8) == ()  # 504 steps


def test_a_void_warm_up_is_noted():
    notes = explain(override(load("imagenet"), ["global_batch_size=256"]), RESNET50, IMAGENET).notes
    assert any("no warm-up" in note for note in notes)


def test_a_set_smaller_than_a_minibatch_that_is_dropped_is_an_error():
    with pytest.raises(InputError, match="not one step"):
        explain(override(load("digits"), ["last_batch=drop"]), RESNET8, 100)


def test_hosting_names_what_fuse_allows():
    text = explain(override(load("imagenet"), ["fuse=8"]), RESNET50, IMAGENET).text()
    assert "processes  1    2    4    8   16   32\n" in text
    assert "any other number up to 32 works too (24: 8 or 16 each)" in text


def test_a_recipe_without_model_and_data_is_explained():
    recipe = Recipe(epochs=20, global_batch_size=512, worker_batch_size=64, optimizer="adamw", lr=3e-4, warmup_epochs=1)
    explanation = explain(recipe, ModelFacts(10, 10), 10_000)
    assert explanation.title == "recipe: 20 epochs"
    assert "normalisation" not in explanation.text()
    assert "two moments" in explanation.text()


def test_facts_are_counted_on_the_meta_device():
    import torch
    from torch import nn

    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2))
    facts = model_facts(model, OptimizerSpec(weight_decay=1e-4))
    assert facts.decayed == {"convolution": 1, "convolution bias": 1, "linear weight": 1, "linear bias": 1}
    assert facts.undecayed == {"normalisation": 4}
    assert (facts.num_parameters, facts.batch_norms) == (3 * 4 * 9 + 4 + 8 + 10 + 4, 1)
    assert model_facts(model, OptimizerSpec(weight_decay=0.0)).decayed == {}


def test_frozen_parameters_have_no_gradient():
    from torch import nn

    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    facts = model_facts(model, OptimizerSpec(weight_decay=0.1, groups=({"match": "1.bias", "weight_decay": 0.0},)))
    assert (facts.num_parameters, facts.num_trainable) == (26, 10)
    assert facts.decayed == {"linear weight": 1}
    assert facts.undecayed == {"linear bias": 1}
    text = explain(load("digits"), facts, 1437).text()
    assert "26 parameters (16 frozen)" in text


def test_resnet50_has_the_papers_tensors():
    import torch

    from squall.model import build

    recipe = load("imagenet")
    with torch.device("meta"):
        model = build(recipe.model.name, recipe.model.arguments)
    assert model_facts(model, recipe.optimizer) == RESNET50
