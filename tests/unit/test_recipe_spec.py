"""A recipe's tables: short forms mean the same as long ones, two batch sizes give the third, defaults follow."""

import copy
import pickle
import subprocess
import sys

import pytest
from pydantic import ValidationError

from squall.errors import InputError
from squall.optim.lr import Rate
from squall.recipe import LrSpec, OptimizerSpec, Recipe, fields_table, load

SIZES = {"epochs": 20, "global_batch_size": 512, "worker_batch_size": 64}


def test_short_forms_equal_tables():
    short = Recipe(
        **SIZES, optimizer="adamw", lr=3e-4, weight_decay=0.05, schedule="cosine", warmup_epochs=1, precision="bf16",
        model="resnet20", data="digits", loss="cross_entropy", label_smoothing=0.1, fuse=2,
    )  # fmt: skip
    long = Recipe(
        **SIZES,
        optimizer={"name": "adamw", "weight_decay": 0.05},
        lr={"base": 3e-4, "schedule": "cosine", "warmup_epochs": 1},
        compute={"precision": "bf16", "fuse": 2},
        model={"name": "resnet20"},
        data={"name": "digits"},
        loss={"name": "cross_entropy", "label_smoothing": 0.1},
    )
    assert short == long
    assert short.optimizer.weight_decay == 0.05
    assert short.compute.fuse == 2


def test_specs_and_rates_may_stand_for_tables():
    recipe = Recipe(
        **SIZES, optimizer=OptimizerSpec(name="sgd", momentum=0.9), lr=LrSpec(base=0.1, base_batch_size=256)
    )
    assert recipe.optimizer.momentum == 0.9
    assert recipe.lr.rate().peak(512) == pytest.approx(0.2)
    rate = Rate(base=0.1, base_batch_size=256, schedule="step", milestones=(5, 10), warmup_epochs=1)
    assert Recipe(**SIZES, lr=rate).lr.rate() == rate
    assert Recipe(**SIZES, lr=Rate(base=0.1)).lr.warmup == "none"


def test_a_spec_that_was_handed_in_is_not_changed():
    spec = LrSpec(base=0.1)
    Recipe(**SIZES, lr=spec)
    assert spec.scaling is None
    assert spec.base_batch_size is None


@pytest.mark.parametrize(
    "given",
    [
        {"global_batch_size": 512, "worker_batch_size": 64},
        {"global_batch_size": 512, "virtual_workers": 8},
        {"worker_batch_size": 64, "virtual_workers": 8},
        {"global_batch_size": 512, "worker_batch_size": 64, "virtual_workers": 8},
    ],
)
def test_any_two_batch_sizes_give_the_third(given):
    recipe = Recipe(epochs=1, lr=0.1, **given)
    assert (recipe.global_batch_size, recipe.worker_batch_size, recipe.virtual_workers) == (512, 64, 8)


def test_a_last_worker_may_be_smaller():
    assert Recipe(epochs=1, lr=0.1, global_batch_size=100, worker_batch_size=32).virtual_workers == 4


@pytest.mark.parametrize(
    ("rule", "scaling"), [("sgd", "linear"), ("lars", "linear"), ("adamw", "none"), ("adagrad", "none")]
)
def test_the_rate_follows_the_size_with_sgd_only(rule, scaling):
    assert Recipe(**SIZES, optimizer=rule, lr=0.1).lr.scaling == scaling


def test_a_rate_without_a_size_is_meant_for_the_recipes_own():
    recipe = Recipe(**SIZES, lr=0.1)
    assert recipe.lr.base_batch_size == 512
    assert recipe.lr.rate().peak(512) == 0.1


def test_a_warm_up_of_an_unscaled_rate_starts_at_zero_and_of_a_scaled_one_at_base():
    unscaled = Recipe(**SIZES, optimizer="adamw", lr=3e-4, warmup_epochs=1).lr.rate()
    scaled = Recipe(**SIZES, lr={"base": 0.1, "base_batch_size": 256, "warmup_epochs": 1}).lr.rate()
    assert unscaled.at(0.0, global_batch_size=512, epochs=20) == 0.0
    assert unscaled.at(0.5, global_batch_size=512, epochs=20) == pytest.approx(1.5e-4)
    assert scaled.at(0.0, global_batch_size=512, epochs=20) == pytest.approx(0.1)
    assert scaled.at(0.5, global_batch_size=512, epochs=20) == pytest.approx(0.15)


def test_a_ramp_from_base_that_is_the_peak_starts_at_zero_as_in_squall_lr():
    recipe = Recipe(**SIZES, lr=0.1, warmup_epochs=1, warmup_from="base")
    own = Rate(base=0.1, warmup_epochs=1, warmup_from="base")
    for progress in (0.0, 0.25, 1.0):
        at = recipe.lr.rate().at(progress, global_batch_size=512, epochs=20)
        assert at == own.at(progress, global_batch_size=512, epochs=20)


def test_milestones_mean_steps_and_nothing_means_constant():
    assert Recipe(**SIZES, lr=0.1, milestones=[10]).lr.schedule == "step"
    assert Recipe(**SIZES, lr=0.1).lr.schedule == "constant"
    assert Recipe(**SIZES, lr=0.1).lr.warmup == "none"


def test_goyals_imagenet_has_the_papers_rate():
    recipe = load("imagenet")
    rate = recipe.lr.rate()
    found = [rate.at(e, global_batch_size=8192, epochs=90) for e in (0, 2.5, 5, 30, 60, 80)]
    assert found == pytest.approx([0.1, 1.65, 3.2, 0.32, 0.032, 0.0032])
    assert rate.warmup_length(256) == 0  # the paper warms up only above 256
    assert recipe.virtual_workers == 256


def test_a_networks_arguments_are_the_keys_that_are_no_fields():
    recipe = Recipe(**SIZES, lr=0.1, model={"name": "resnet8", "width": 24, "freeze": ["stem"]})
    assert recipe.model.arguments == {"width": 24}
    assert recipe.model.freeze == ("stem",)


def test_recipes_are_frozen_and_travel():
    recipe = load("cifar10")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.epochs = 3
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert copy.deepcopy(recipe) == recipe


def test_every_field_says_what_it_means():
    rows = {row.name: row for row in fields_table(load("cifar10"))}
    assert rows["worker_batch_size"].value == "32"
    assert rows["virtual_workers"].value == "8"
    assert rows["lr.base"].default == "required"
    assert rows["optimizer.no_weight_decay"].type == "list of text"
    assert rows["lr.warmup_from"].type == "base | number"
    assert rows["model.width"].value == "24"
    assert [name for name, row in rows.items() if not row.meaning] == []
    assert [name for name, row in rows.items() if "typing" in row.type or "class" in row.type] == []


def test_a_wrong_table_alone_is_a_value_error():
    with pytest.raises(ValueError):
        LrSpec(base=-1.0)


def test_a_recipe_without_mistakes_raises_none_and_with_one_names_its_place():
    with pytest.raises(InputError) as caught:
        Recipe(**SIZES, lr=0.1, optimizer={"name": "sgd", "groups": [{"match": "head.*", "lr_scale": -1}]})
    assert caught.value.rows == (("optimizer.groups[0].lr_scale=-1", "must be a number of at least 0"),)


def test_recipes_load_without_torch():
    code = "import sys, squall.recipe, squall.explain; squall.recipe.load('digits'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
