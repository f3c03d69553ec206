"""Recipes of Sandblaster: what follows from what is written, overrides between strategies, and every mistake."""

import pickle
import tomllib

import pytest

from squall.cluster.fault import Fault
from squall.errors import InputError
from squall.optim.lbfgs import LbfgsSpec
from squall.optim.linesearch import SEARCHES
from squall.recipe import Recipe, SandblasterSpec, fields_table, load, override, parse, read, shipped, to_toml
from squall.recipe import names as known
from squall.recipe.fields import table_of
from squall.training.spec import run_spec

GOOD = {
    "epochs": 40,
    "strategy": "sandblaster",
    "worker_batch_size": 100,
    "weight_decay": 1e-4,
    "sandblaster": {"replicas": 20, "shards": 4},
}
OURS = [name for name in shipped() if load(name).strategy == "sandblaster"]
NO_RULE = "there is none: L-BFGS finds direction and step; of the optimizer it reads weight_decay. Leave it out"
NO_RATE = "there is none: a line search finds the length of each step; leave it out"


def mistakes(given):
    with pytest.raises(InputError) as caught:
        Recipe(**given)
    return dict(caught.value.rows)


def of(**changed):
    return mistakes({**GOOD, **changed})


def table(**fields):
    return {"replicas": 20, "shards": 4, **fields}


def overridden(target, *assignments):
    with pytest.raises(InputError) as caught:
        override(read(target), assignments, where=target)
    return dict(caught.value.rows)


# -- what follows --------------------------------------------------------------------------------------------------


def test_a_minibatch_is_a_portion_of_the_batch():
    recipe = Recipe(**GOOD)
    assert (recipe.update_size, recipe.global_batch_size, recipe.virtual_workers) == (100, None, 1)
    assert run_spec(recipe)["global_batch_size"] == 100


def test_defaults_are_those_of_the_optimiser():
    spec, optimiser = Recipe(**{**GOOD, "sandblaster": {"replicas": 2}}).sandblaster, LbfgsSpec()
    assert (spec.shards, spec.unit, spec.backups, spec.lease_seconds) == (1, 4, True, 60.0)
    for name in ("history", "line_search", "damping", "tolerance_gradient", "tolerance_step"):
        assert getattr(spec, name) == getattr(optimiser, name), name


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_each_line_search_is_known(name):
    assert Recipe(**{**GOOD, "sandblaster": table(line_search=name)}).sandblaster.line_search == name


def test_damping_follows_the_line_search_and_is_shown():
    recipe = Recipe(**GOOD)
    assert (recipe.sandblaster.damping, recipe.sandblaster.own_damping) == (0.0, 0.0)
    armijo = override(recipe, ["sandblaster.line_search=armijo"])  # nobody wrote damping: it follows
    assert (armijo.sandblaster.damping, armijo.sandblaster.own_damping) == (0.2, 0.2)
    assert tomllib.loads(to_toml(armijo))["sandblaster"]["damping"] == 0.2
    bare = override(armijo, ["sandblaster.damping=0"])
    assert bare.sandblaster.own_damping == 0.0
    assert override(bare, ["sandblaster.damping=none"]).sandblaster.own_damping == 0.2
    assert SandblasterSpec(replicas=1, line_search="armijo").own_damping == 0.2


def test_it_is_saved_after_each_iteration_unless_somebody_says_otherwise():
    assert Recipe(**GOOD).checkpoint.every == "1step"
    assert Recipe(**{**GOOD, "checkpoint": {"keep": 5}}).checkpoint.every == "1step"
    assert Recipe(**{**GOOD, "checkpoint": "10min"}).checkpoint.every == "10min"
    assert Recipe(epochs=1, global_batch_size=8, worker_batch_size=4, lr=0.1).checkpoint.every == "1ep"


def test_there_is_no_rate_and_none_is_written():
    recipe = Recipe(**GOOD)
    assert not recipe.has_rate
    assert "lr" not in recipe.model_dump()
    assert "lr" not in recipe.model_dump(mode="json")
    assert recipe.model_dump()["optimizer"] == {"weight_decay": 1e-4, "no_weight_decay": ("norm",), "groups": ()}
    assert recipe.lr.rate().peak(100) == 1.0  # stands in
    assert load("digits").has_rate
    assert load("digits-downpour").has_rate


@pytest.mark.parametrize(("name", "replicas"), [("digits", None), ("digits-downpour", 2), ("digits-sandblaster", 2)])
def test_replicas_and_shards_are_found_in_one_place(name, replicas):
    roles = load(name).roles
    assert (roles and roles.replicas) == replicas


def test_specs_are_taken_pickled_and_frozen():
    recipe = Recipe(**{**GOOD, "sandblaster": SandblasterSpec(replicas=3)})
    assert recipe.sandblaster.replicas == 3
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.sandblaster.replicas = 4


@pytest.mark.parametrize("name", OURS)
def test_a_resolved_recipe_holds_every_number_and_loads_back(name):
    recipe = load(name)
    written = tomllib.loads(to_toml(recipe))
    assert parse(written, "x") == recipe
    assert {"lr", "global_batch_size", "downpour"} & set(written) == set()
    assert set(written["optimizer"]) == {"weight_decay", "no_weight_decay", "groups"}
    assert set(written["sandblaster"]) == set(SandblasterSpec.model_fields)
    assert written["simulated"]["compute"]["mean"] == "120ms"


def test_the_shipped_recipe_has_two_replicas_and_no_normalisation():
    assert OURS == ["digits-sandblaster"]
    recipe = load("digits-sandblaster")
    assert (recipe.sandblaster.replicas, recipe.sandblaster.shards, recipe.model.name) == (2, 1, "mlp")


def test_every_field_is_documented_and_what_is_not_read_has_no_value():
    rows = {row.name: row for row in fields_table(load("digits-sandblaster"))}
    assert (rows["sandblaster.replicas"].default, rows["sandblaster.replicas"].value) == ("required", "2")
    assert rows["sandblaster.line_search"].type == "strong_wolfe | armijo"
    assert rows["optimizer.weight_decay"].value == "0.0001"
    unread = ("lr.base", "lr.schedule", "optimizer.name", "optimizer.momentum", "virtual_workers", "downpour.replicas")
    assert {rows[name].value for name in unread} == {"-"}
    assert [row.name for row in rows.values() if not row.meaning or "class" in row.type] == []


def test_what_is_not_read_are_fields():
    for strategy, fields in known.NO_RULE.items():
        assert strategy in known.STRATEGIES
        assert set(fields) < set(table_of(Recipe, "optimizer").model_fields)
    keys = {key for own in known.KEYS_OF_STRATEGIES.values() for key in own}
    assert keys - {"virtual_workers"} < set(Recipe.model_fields)


# -- a simulated cluster -------------------------------------------------------------------------------------------


def test_faults_name_replicas_and_shards():
    faults = [{"kill": "replica 19", "at": "40s"}, {"slow": "shard 3", "at": "0s", "by": 2.0}]
    assert Recipe(**{**GOOD, "simulated": {"faults": faults}}).simulated.planned()[0] == Fault("kill", "replica-19", 40)
    found = of(simulated={"faults": [{"kill": "replica 20", "at": "1s"}, {"kill": "shard 4", "at": "1s"}]})
    assert found == {
        "simulated.faults[0].kill=replica 20": "there are replicas 0 to 19: sandblaster.replicas=20",
        "simulated.faults[1].kill=shard 4": "there are shards 0 to 3: sandblaster.shards=4",
    }


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["global_batch_size", "virtual_workers"])
def test_the_batch_is_the_whole_training_set(key):
    rule = "there is none: the batch is the whole training set; worker_batch_size is a portion of it"
    assert of(**{key: 8}) == {f"{key}=8": rule}


def test_a_portion_and_the_number_of_replicas_are_asked_for_and_no_rate():
    found = mistakes({"epochs": 1, "strategy": "sandblaster"})
    assert list(found) == ["worker_batch_size", "sandblaster.replicas"]
    assert "samples of a portion" in found["worker_batch_size"]
    assert "sandblaster.replicas=4" in found["sandblaster.replicas"]


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ({"lr": 0.1}, "lr.base=0.1"),
        ({"schedule": "cosine"}, "lr.schedule=cosine"),
        ({"lr": {"base": 0.1, "warmup_epochs": 5}}, "lr={base = 0.1, warmup_epochs = 5}"),
    ],
)
def test_a_rate_is_refused(given, label):
    assert of(**given) == {label: NO_RATE}


@pytest.mark.parametrize("name", [*known.OPTIMIZERS, "mine.rules:Rule", "adamx"])
def test_a_rule_is_refused(name):
    assert of(optimizer=name) == {f"optimizer.name={name}": NO_RULE}


@pytest.mark.parametrize(
    ("field", "value"),
    [("momentum", 0.9), ("nesterov", True), ("betas", [0.9, 0.99]), ("eps", 1e-8), ("options", {"maximize": True})],
)
def test_what_belongs_to_a_rule_is_refused(field, value):
    (found,) = of(optimizer={field: value}).items()
    assert found[0].startswith(f"optimizer.{field}=")
    assert found[1] == NO_RULE


def test_decay_is_a_part_of_the_function():
    rule = {"weight_decay": 1e-3, "no_weight_decay": ["bias"], "groups": [{"match": "fc.*", "weight_decay": 0.0}]}
    recipe = Recipe(**{key: value for key, value in GOOD.items() if key != "weight_decay"}, optimizer=rule)
    assert recipe.optimizer.weight_decay == 1e-3
    assert parse(tomllib.loads(to_toml(recipe)), "x") == recipe
    found = of(groups=[{"match": "fc.*", "weight_decay": 0.0, "lr_scale": 2.0}])
    assert found == {
        "optimizer.groups[0].lr_scale=2.0": "there is no rate to scale: a group says its weight_decay alone"
    }


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("replicas", 0, "at least 1"),
        ("replicas", 1.5, "a whole number"),
        ("shards", 0, "at least 1"),
        ("unit", 0, "at least 1"),
        ("history", 0, "at least 1"),
        ("line_search", "wolfe", "not known. One of: strong_wolfe armijo"),
        ("damping", 1, "below 1"),
        ("damping", -0.1, "at least 0"),
        ("noise", -1, "at least 0"),
        ("tolerance_gradient", -1, "at least 0"),
        ("tolerance_step", "small", "a number"),
        ("backups", 1, "true or false"),
        ("lease_timeout", 60, "must be a number and its unit"),
        ("lease_timeout", "0s", "above 0"),
        ("replcas", 3, "Near: sandblaster.replicas (20)"),
        ("lin_search", "armijo", "sandblaster.line_search"),
    ],
)
def test_mistakes_in_the_table(field, value, rule):
    found = of(sandblaster=table(**{field: value}))
    (label,) = found
    assert label.startswith(f"sandblaster.{field}=")
    assert rule in found[label]


def test_a_bare_key_means_the_strategys_own_table():
    assert "Near: sandblaster.replicas (20)" in of(replicas=4)["replicas=4"]


@pytest.mark.parametrize(
    ("given", "label", "reason"),
    [
        ({"compute": {"fuse": 2}}, "compute.fuse=2", "a replica's portion is one pass"),
        ({"compute": {"precision": "fp16"}}, "compute.precision=fp16", "precision=fp32"),
        ({"compute": {"compile": True}}, "compute.compile=true", "leave it out"),
        ({"data": {"name": "digits", "num_workers": 2}}, "data.num_workers=2", "more replicas read more"),
        ({"ema": 0.99}, "ema=0.99", "leave it out"),
        ({"clip_grad_norm": 1.0}, "clip_grad_norm=1.0", "is not the function's"),
        ({"checkpoint": {"keep_best": "val/accuracy"}}, "checkpoint.keep_best=val/accuracy", "leave it out"),
        ({"last_batch": "carry"}, "last_batch=carry", "each sample counts once in the batch; last_batch=short"),
        ({"last_batch": "drop"}, "last_batch=drop", "each sample counts once in the batch; last_batch=short"),
        ({"loss_over": "worker"}, "loss_over=worker", "one sum over samples"),
        ({"downpour": {"replicas": 2}}, "downpour.replicas=2", "Write strategy=downpour"),
    ],
)
def test_what_has_no_meaning_for_one_function(given, label, reason):
    found = of(**given)
    assert list(found) == [label]
    assert reason in found[label]


def test_nothing_hides_another_mistake():
    found = of(
        global_batch_size=64, optimizer={"name": "lamb", "momentm": 0.9}, ema=2.0, last_batch="carry",
        compute={"fuse": 0, "precision": "fp16"}, sandblaster={"shards": 0}, lr={"base": -1},
        simulated={"server": 3, "faults": [{"kill": "shard 9"}]},
    )  # fmt: skip
    assert set(found) == {
        "global_batch_size=64", "optimizer.name=lamb", "optimizer.momentm=0.9", "ema=2.0", "last_batch=carry",
        "compute.fuse=0", "compute.precision=fp16", "sandblaster.replicas", "sandblaster.shards=0", "lr.base=-1",
        "simulated.server=3", "simulated.faults[0].at",
    }  # fmt: skip


# -- between strategies --------------------------------------------------------------------------------------------


def test_keys_of_another_strategy_name_it():
    rule = "not read by strategy=downpour. Write strategy=sandblaster, or leave it out"
    assert overridden("digits-downpour", "sandblaster.unit=2") == {"sandblaster.unit=2": rule}


@pytest.mark.parametrize("target", ["digits", "digits-downpour", "digits-sandblaster"])
def test_a_misspelt_strategy_is_one_mistake(target):
    found = overridden(target, "strategy=sandblster")
    assert found == {"strategy=sandblster": "not known. One of: downpour sandblaster sync"}


@pytest.mark.parametrize("base", [read("digits"), load("digits")], ids=["as written", "resolved"])
def test_another_strategy_drops_what_it_does_not_read(base):
    recipe = override(base, ["strategy=sandblaster", "sandblaster.replicas=4"])
    assert (recipe.update_size, recipe.optimizer.weight_decay, recipe.has_rate) == (16, 5e-4, False)
    assert override(base, ["sandblaster.replicas=4", "strategy=sandblaster"]) == recipe
    assert parse(tomllib.loads(to_toml(recipe)), "x").model_dump() == recipe.model_dump()
    back = override(recipe, ["strategy=sync", "global_batch_size=64", "lr=0.1"])
    assert (back.sandblaster, back.simulated, back.virtual_workers, back.lr.base) == (None, None, 4, 0.1)


def test_short_forms_are_dropped_alike():
    given = {"epochs": 3, "global_batch_size": 64, "worker_batch_size": 16, "lr": 0.1, "schedule": "cosine"}
    for optimizer in ("adamw", {"name": "adamw", "weight_decay": 0.1}):
        base = {**given, "optimizer": optimizer}
        recipe = override(base, ["strategy=sandblaster", "sandblaster.replicas=2", "weight_decay=0.5"])
        assert recipe.optimizer.weight_decay == 0.5
    base = {**given, "momentum": 0.9, "weight_decay": 0.25}
    assert override(base, ["strategy=sandblaster", "sandblaster.replicas=2"]).optimizer.weight_decay == 0.25


def test_what_is_asked_for_is_not_dropped():
    found = overridden(
        "digits", "strategy=sandblaster", "sandblaster.replicas=4", "momentum=0.5", "lr=0.2", "global_batch_size=64"
    )
    assert {label.partition("=")[0].partition(".")[0] for label in found} == {"optimizer", "lr", "global_batch_size"}
    assert "optimizer.momentum=0.5" in found
    assert overridden("digits", "strategy=sandblaster", "sandblaster.replicas=4", "optimizer=adamw") == {
        "optimizer.name=adamw": NO_RULE
    }


def test_from_downpour_and_back():
    recipe = override(load("digits-downpour"), ["strategy=sandblaster", "sandblaster.replicas=3"])
    assert (recipe.downpour, recipe.roles.replicas) == (None, 3)
    back = override(recipe, ["strategy=downpour", "downpour.replicas=2", "lr=0.1"])
    assert (back.sandblaster, back.roles.replicas, back.checkpoint.every) == (None, 2, "1ep")


def test_a_rate_is_asked_for_when_there_is_one_again():
    found = overridden("digits-sandblaster", "strategy=downpour", "downpour.replicas=2")
    assert list(found) == ["lr"]
