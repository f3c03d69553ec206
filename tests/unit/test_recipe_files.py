"""Recipes by name, from files and back, and overrides."""

import tomllib
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squall.data.sources import NAMES as DATA_NAMES
from squall.errors import InputError
from squall.recipe import Recipe, load, override, parse, read, shipped, source, to_toml
from squall.recipe import names as known
from squall.recipe.toml import literal

SHIPPED = (
    "cifar10",
    "digits",
    "digits-downpour",
    "digits-sandblaster",
    "fashion-acoustic",
    "fashion-mnist",
    "imagenet",
    "photos",
)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_whole(name):
    recipe = load(name)
    assert recipe.name == name
    assert recipe.model is not None
    assert recipe.data is not None
    assert recipe.data.val
    assert shipped()[name]
    assert not shipped()[name].startswith("#")


def test_all_shipped_recipes_are_listed():
    assert tuple(shipped()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_resolved_recipe_loads_back_equal_and_says_everything(name, tmp_path):
    recipe = load(name)
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    again = load(path)
    assert again == recipe
    assert to_toml(again) == to_toml(recipe)
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    assert ("lr" in written) == recipe.has_rate
    if recipe.has_rate:
        assert written["lr"]["scaling"] == ("none" if recipe.optimizer.name == "adagrad" else "linear")
    assert written["eval_batch_size"] == 500


def test_a_recipe_of_a_task_has_no_model_and_loads_back():
    recipe = Recipe(epochs=1, global_batch_size=8, worker_batch_size=4, lr=0.1, name='say "hi"\\\n')
    assert parse(tomllib.loads(to_toml(recipe)), "x") == recipe


VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=("Cs",)), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab-_é. ", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_what_is_written_reads_back(value):
    assert tomllib.loads(f"v = {literal(value)}") == {"v": value}


def test_toml_refuses_what_it_cannot_hold():
    with pytest.raises(TypeError, match="no form for"):
        literal(object())


@pytest.mark.parametrize(
    ("assignment", "get", "value"),
    [
        ("lr.base=0.2", lambda r: r.lr.base, 0.2),
        ("lr=0.2", lambda r: r.lr.base, 0.2),
        ("lr=3e-4", lambda r: r.lr.base, 3e-4),
        ("lr=.5", lambda r: r.lr.base, 0.5),
        ("model.width=16", lambda r: r.model.arguments["width"], 16),
        ("model=resnet20", lambda r: (r.model.name, r.model.arguments["width"]), ("resnet20", 24)),
        ("precision=fp32", lambda r: r.compute.precision, "fp32"),
        ("data.train=[{horizontal_flip=0.5}]", lambda r: r.data.train, ({"horizontal_flip": 0.5},)),
        ("channels_last=false", lambda r: r.compute.channels_last, False),
        ("worker_batch_size=64", lambda r: (r.global_batch_size, r.virtual_workers), (256, 4)),
        ("virtual_workers=16", lambda r: (r.global_batch_size, r.worker_batch_size), (512, 32)),
        ("loss={name='cross_entropy'}", lambda r: r.loss.label_smoothing, 0.0),
        ("data.num_workers=4", lambda r: r.data.num_workers, 4),
        ("clip_grad_norm=1", lambda r: r.clip_grad_norm, 1.0),
    ],
)
def test_overrides(assignment, get, value):
    before = load("cifar10")
    assert get(override(before, [assignment])) == value
    assert get(override(read("cifar10"), [assignment])) == value
    assert before == load("cifar10")


def test_overrides_apply_in_order_and_to_what_was_written():
    recipe = Recipe(epochs=1, global_batch_size=128, worker_batch_size=16, lr=0.1, name="own")
    larger = override(recipe, ["global_batch_size=256", "global_batch_size=512"])
    assert larger.lr.base_batch_size == 512  # nobody wrote 128: the rate stays as written
    assert larger.lr.rate().peak(512) == 0.1
    scaled = override(load("cifar10"), ["global_batch_size=512"])
    assert scaled.lr.rate().peak(512) == pytest.approx(0.4)


def test_overrides_of_a_file_that_gives_virtual_workers():
    mapping = {"epochs": 1, "lr": 0.1, "worker_batch_size": 16, "virtual_workers": 8}
    assert override(mapping, ["global_batch_size=64"]).virtual_workers == 4
    assert override(mapping, ["worker_batch_size=8"]).global_batch_size == 64
    assert override(mapping, ["global_batch_size=64", "virtual_workers=2"]).worker_batch_size == 32
    assert mapping == {"epochs": 1, "lr": 0.1, "worker_batch_size": 16, "virtual_workers": 8}


def test_another_rule_drops_what_it_does_not_read():
    recipe = override(load("cifar10"), ["optimizer=adamw", "lr=1e-3"])
    assert (recipe.optimizer.momentum, recipe.optimizer.nesterov) == (0.0, False)
    assert recipe.optimizer.weight_decay == 5e-4
    assert override(load("cifar10"), ["optimizer=sgd"]).optimizer.momentum == 0.9


def test_none_takes_an_optional_value_away():
    recipe = override(load("cifar10"), ["ema=0.99", "lr.base_batch_size=none", "ema=none", "lr.scaling=none"])
    assert recipe.ema is None
    assert recipe.lr.base_batch_size == recipe.global_batch_size
    assert recipe.lr.scaling == "none"


def test_a_word_without_a_value_is_a_mistake_among_the_others():
    with pytest.raises(InputError) as caught:
        override(load("digits"), ["fast", "epochs=0", ".=3"])
    assert [found for found, _ in caught.value.rows] == ["fast", ".=3", "epochs=0"]


def test_an_unknown_recipe_names_its_neighbours():
    with pytest.raises(InputError) as caught:
        load("cifar")
    assert ("near", "cifar10") in caught.value.rows


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = = 3", encoding="utf-8")
    with pytest.raises(InputError, match="is no TOML"):
        load(str(broken))
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not a text file"):
        load(broken)


def test_the_source_has_its_comments():
    assert "# kn, what the optimizer sees" in source("imagenet")
    assert (resources.files("squall") / "recipes" / "imagenet.toml").read_text(encoding="utf-8") == source("imagenet")


def test_the_names_known_without_torch_are_those_of_the_data_sources():
    assert sorted(DATA_NAMES) == sorted(known.DATA)


def test_the_names_known_without_torch_are_those_of_the_optimizers():
    from squall.optim.build import RULES, names

    assert tuple(names()) == known.OPTIMIZERS
    for field, rules in known.FIELDS_OF_RULES.items():
        assert sorted(rules) == [name for name, rule in sorted(RULES.items()) if rule.takes(field)], field


def test_the_names_known_without_torch_are_those_of_the_networks():
    import torch

    from squall.model import build, names

    assert sorted(names()) == sorted(known.MODELS)
    values = {"num_classes": 10, "in_channels": 3, "width": 16, "zero_init_residual": True, "fc_init_std": 0.01}
    values |= {"in_features": 4, "hidden": [8], "dropout": 0.0, "init_gain": 4.0}
    with torch.device("meta"):
        for name in ("acoustic", "mlp", "resnet8", "resnet18"):
            build(name, {argument: values[argument] for argument in known.MODELS[name]})


@pytest.mark.parametrize(
    ("name", "shape", "rule_class"),
    [
        ("digits", (8, 8, 1), "SGD"),
        ("digits-downpour", (8, 8, 1), "SGD"),
        ("fashion-mnist", (28, 28, 1), "SGD"),
        ("fashion-acoustic", (28, 28, 1), "Adagrad"),
        ("cifar10", (32, 32, 3), "SGD"),
    ],
)
def test_shipped_recipes_are_understood_by_the_parts_they_name(name, shape, rule_class):
    import torch

    from squall.data.augment import compile_ops
    from squall.model import build as build_model
    from squall.optim.build import build as build_optimizer

    recipe = load(name)
    compile_ops(recipe.data.val, shape)
    channels, *size = compile_ops(recipe.data.train, shape).out_shape
    with torch.device("meta"):
        model = build_model(recipe.model.name, recipe.model.arguments)
        assert model(torch.zeros(2, channels, *size)).shape == (2, 10)
    rule = recipe.optimizer.model_dump()
    assert type(build_optimizer(model, lr=recipe.lr.base, **rule)).__name__ == rule_class
