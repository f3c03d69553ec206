"""Recipes of Downpour: what follows from what is written, overrides between strategies, and every mistake."""

import math
import pickle
import tomllib

import pytest

from squall.cluster.fault import Costs, Fault
from squall.errors import InputError
from squall.optim.rules import SERVER_RULES
from squall.recipe import DownpourSpec, Recipe, fields_table, load, override, parse, read, shipped, to_toml
from squall.recipe import names as known
from squall.strategy import STRATEGIES
from squall.training.spec import run_spec

GOOD = {
    "epochs": 10,
    "strategy": "downpour",
    "worker_batch_size": 100,
    "lr": 0.01,
    "optimizer": "adagrad",
    "downpour": {"replicas": 20, "shards": 4},
}
OURS = [name for name in shipped() if load(name).strategy == "downpour"]


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


def test_an_update_is_one_replicas_minibatch():
    recipe = Recipe(**GOOD)
    assert (recipe.update_size, recipe.global_batch_size, recipe.virtual_workers) == (100, None, 1)
    assert recipe.lr.base_batch_size == 100
    assert run_spec(recipe)["global_batch_size"] == 100


def test_the_rate_refers_to_the_minibatch_and_not_to_the_replicas():
    lr = {"base": 0.1, "base_batch_size": 50}
    peaks = [
        Recipe(**{**GOOD, "optimizer": "sgd", "lr": lr, "downpour": {"replicas": replicas}}).lr.rate().peak(100)
        for replicas in (1, 200)
    ]
    assert peaks == [0.2, 0.2]


def test_defaults_are_those_of_the_papers_experiments():
    downpour = Recipe(**{**GOOD, "downpour": {"replicas": 2}}).downpour
    assert (downpour.shards, downpour.fetch_every, downpour.push_every) == (1, 1, 1)
    assert (downpour.max_staleness, downpour.warm_minibatches(600), downpour.lease_seconds) == (None, 0, 60.0)


@pytest.mark.parametrize(("rule", "written"), [("sgd", "rate"), ("adagrad", 0.0), ("rmsprop", 0.0)])
def test_a_replicas_own_rate_follows_the_rule_and_is_shown(rule, written):
    recipe = Recipe(**{**GOOD, "optimizer": rule})
    assert recipe.downpour.local_lr == written
    assert recipe.downpour.own_rate == (None if rule == "sgd" else 0.0)
    assert tomllib.loads(to_toml(recipe))["downpour"]["local_lr"] == written
    changed = override(recipe, ["optimizer=sgd", "lr.scaling=none"])  # nobody wrote it: it follows
    assert changed.downpour.local_lr == "rate"
    assert override(recipe, ["downpour.local_lr=0.05", "optimizer=sgd"]).downpour.own_rate == 0.05


@pytest.mark.parametrize(
    ("text", "minibatches"), [("0ep", 0), ("1ep", 600), ("0.5ep", 300), ("500step", 500), ("0step", 0)]
)
def test_a_warm_start_is_counted_in_minibatches(text, minibatches):
    assert Recipe(**{**GOOD, "downpour": table(warm_start=text)}).downpour.warm_minibatches(600) == minibatches


def test_specs_are_taken_pickled_and_frozen():
    recipe = Recipe(**{**GOOD, "downpour": DownpourSpec(replicas=3)})
    assert recipe.downpour.replicas == 3
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.downpour.replicas = 4


@pytest.mark.parametrize("name", OURS)
def test_a_resolved_recipe_holds_every_number_and_loads_back(name):
    recipe = load(name)
    written = tomllib.loads(to_toml(recipe))
    assert parse(written, "x") == recipe
    assert "global_batch_size" not in written
    assert set(written["downpour"]) == set(DownpourSpec.model_fields) - {"max_staleness"}
    assert written["simulated"]["compute"] == {"mean": "120ms", "spread": 0.2, "stragglers": 0.05, "slowdown": 3.0}


def test_both_shipped_recipes_have_two_replicas():
    assert OURS == ["digits-downpour", "fashion-acoustic"]
    assert {load(name).downpour.replicas for name in OURS} == {2}


def test_every_field_of_the_new_tables_is_documented_with_its_value():
    rows = {row.name: row for row in fields_table(load("fashion-acoustic"))}
    assert (rows["downpour.replicas"].default, rows["downpour.replicas"].value) == ("required", "2")
    assert rows["downpour.local_lr"].type == "rate | number"
    assert (rows["simulated.compute.mean"].type, rows["simulated.compute.mean"].value) == ("text", "120ms")
    assert rows["simulated.network.bandwidth"].default == "10Gbit"
    assert (rows["global_batch_size"].value, rows["virtual_workers"].value) == ("-", "-")
    assert [row.name for row in rows.values() if not row.meaning or "class" in row.type] == []


# -- a simulated cluster -------------------------------------------------------------------------------------------


def simulated(**fields):
    return Recipe(**{**GOOD, "simulated": fields}).simulated


def test_without_a_table_the_costs_are_the_engines_own():
    assert Recipe(**GOOD).simulated.numbers() == Costs() == simulated(compute={}, network={}).numbers()
    assert Recipe(**GOOD).simulated.planned() == ()


def test_costs_are_plain_numbers():
    found = simulated(
        compute={"mean": "50ms", "spread": 0.1, "stragglers": 0.25, "slowdown": 2},
        network={"latency": "0s", "bandwidth": "1.25GB"},
        server="800Mbit",
    )
    assert found.numbers() == Costs(0.05, 0.1, 0.25, 2.0, 0.0, 1.25e9, 1e8)


def test_faults_read_as_sentences():
    faults = [
        {"kill": "replica 3", "at": "40s", "restart": "10s"},
        {"kill": "shard 0", "at": "1min"},
        {"kill": "replica-19", "at": "0s", "restart": "never"},
        {"slow": "replica 1", "at": "10s", "by": 5, "for": "20s"},
        {"drop": "replica 2", "at": "10s", "for": "500ms"},
        {"delay": "shard 3", "at": "10s", "for": "5s", "by": "1s"},
        {"duplicate": "replica 2", "at": "10s"},
    ]
    assert simulated(faults=faults).planned() == (
        Fault("kill", "replica-3", 40.0, 10.0),
        Fault("kill", "shard-0", 60.0, None),
        Fault("kill", "replica-19", 0.0, math.inf),
        Fault("slow", "replica-1", 10.0, 20.0, 5.0),
        Fault("drop", "replica-2", 10.0, 0.5),
        Fault("delay", "shard-3", 10.0, 5.0, 1.0),
        Fault("duplicate", "replica-2", 10.0, math.inf),
    )


@pytest.mark.parametrize(
    ("fault", "label", "rule"),
    [
        ({"kill": "replica 20", "at": "1s"}, ".kill=replica 20", "are replicas 0 to 19: downpour.replicas=20"),
        ({"kill": "shard 4", "at": "1s"}, ".kill=shard 4", "are shards 0 to 3: downpour.shards=4"),
        ({"kill": "driver", "at": "1s"}, ".kill=driver", '"replica 3"'),
        ({"kill": 3, "at": "1s"}, ".kill=3", '"replica 3"'),
        ({"kill": "replica 1"}, ".at", 'at = "40s"'),
        ({"kill": "replica 1", "at": 40}, ".at=40", "must be a number and its unit"),
        ({"kill": "replica 1", "at": "1s", "restart": "0x"}, ".restart=0x", "must be a number and its unit"),
        ({"kill": "replica 1", "at": "1s", "for": "2s"}, ".for=2s", "no such key of kill"),
        ({"kill": "replica 1", "at": "1s", "restrat": "2s"}, ".restrat=2s", "restart"),
        ({"slow": "replica 1", "at": "1s"}, ".by", "how many times slower"),
        ({"slow": "replica 1", "at": "1s", "by": "3s"}, ".by=3s", "how many times slower"),
        ({"slow": "replica 1", "at": "1s", "by": 0}, ".by=0", "above 0"),
        ({"delay": "replica 1", "at": "1s"}, ".by", "how late"),
        ({"delay": "replica 1", "at": "1s", "by": 3}, ".by=3", "must be a number and its unit"),
        ({"drop": "replica 1", "at": "1s", "for": "0s"}, ".for=0s", "above 0"),
        ({"duplicate": "replica 1", "at": "1s", "by": 2}, ".by=2", "no such key of duplicate"),
        ({"at": "1s"}, "", "does nothing. One of kill, slow, drop, delay, duplicate"),
        ({"kill": "replica 1", "drop": "replica 1", "at": "1s"}, "", "kill and drop are two faults"),
    ],
)
def test_mistakes_in_faults(fault, label, rule):
    found = of(simulated={"faults": [{"kill": "replica 0", "at": "1s"}, fault]})
    assert list(found) == [f"simulated.faults[1]{label}"]
    assert rule in found[f"simulated.faults[1]{label}"]


def test_a_single_role_is_named_as_one():
    found = of(downpour={"replicas": 1}, simulated={"faults": [{"kill": "replica 1", "at": "1s"}]})
    assert found["simulated.faults[0].kill=replica 1"] == "there is replica 0 alone: downpour.replicas=1"


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["global_batch_size", "virtual_workers"])
def test_there_is_no_minibatch_of_all_replicas(key):
    found = of(**{key: 8})
    assert found == {f"{key}=8": "there is none: each replica's minibatch is its own update; worker_batch_size is n"}


def test_a_replicas_minibatch_and_the_number_of_replicas_are_asked_for():
    found = mistakes({"epochs": 1, "lr": 0.1, "strategy": "downpour"})
    assert list(found) == ["worker_batch_size", "downpour.replicas"]
    assert "samples of one replica's minibatch" in found["worker_batch_size"]
    assert "downpour.replicas=4" in found["downpour.replicas"]


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("replicas", 0, "at least 1"),
        ("replicas", 1.5, "a whole number"),
        ("shards", 0, "at least 1"),
        ("fetch_every", 0, "at least 1"),
        ("push_every", -1, "at least 1"),
        ("local_lr", -0.1, 'a rate of at least 0, or "rate"'),
        ("local_lr", "fast", 'a rate of at least 0, or "rate"'),
        ("warm_start", "10min", "epochs or minibatches"),
        ("warm_start", "0.5step", "epochs or minibatches"),
        ("warm_start", 3, "epochs or minibatches"),
        ("warm_start", "10ep", "the run has 10 epochs"),
        ("max_staleness", -1, "at least 0"),
        ("max_staleness", 1.5, "a whole number"),
        ("lease_timeout", 60, "must be a number and its unit"),
        ("lease_timeout", "1ep", "must be a number and its unit"),
        ("lease_timeout", "0s", "above 0"),
        ("replcas", 3, "Near: downpour.replicas (20)"),
    ],
)
def test_mistakes_in_the_table(field, value, rule):
    found = of(downpour=table(**{field: value}))
    assert list(found) == [f"downpour.{field}={value}"]
    assert rule in found[f"downpour.{field}={value}"]


@pytest.mark.parametrize(
    ("given", "label", "rule"),
    [
        ({"compute": {"mean": 120}}, "simulated.compute.mean=120", "must be a number and its unit"),
        ({"compute": {"mean": "0ms"}}, "simulated.compute.mean=0ms", "above 0"),
        ({"compute": {"spread": -1}}, "simulated.compute.spread=-1", "at least 0"),
        ({"compute": {"stragglers": 1.5}}, "simulated.compute.stragglers=1.5", "at most 1"),
        ({"compute": {"slowdown": 0.5}}, "simulated.compute.slowdown=0.5", "at least 1"),
        ({"compute": {"maen": "1s"}}, "simulated.compute.maen=1s", "simulated.compute.mean"),
        ({"compute": "fast"}, "simulated.compute=fast", "a table"),
        ({"network": {"bandwidth": "10Gb"}}, "simulated.network.bandwidth=10Gb", "must be bits or bytes a second"),
        ({"network": {"bandwidth": "0GB"}}, "simulated.network.bandwidth=0GB", "above 0"),
        ({"network": {"latency": "fast"}}, "simulated.network.latency=fast", "must be a number and its unit"),
        ({"server": "5s"}, "simulated.server=5s", "must be bits or bytes a second"),
        ({"speed": 3}, "simulated.speed=3", "no such field"),
    ],
)
def test_mistakes_in_a_simulated_cluster(given, label, rule):
    found = of(simulated=given)
    assert list(found) == [label]
    assert rule in found[label]


@pytest.mark.parametrize("rule", [*sorted(set(known.OPTIMIZERS) - set(known.SHARD_RULES)), "mine.rules:Rule"])
def test_rules_that_shards_cannot_apply(rule):
    found = of(optimizer=rule)
    assert found == {
        f"optimizer.name={rule}": "the update lives on the shards, each with a slice of the weights. "
        "One of: adagrad rmsprop sgd"
    }


def test_an_unknown_rule_is_one_mistake():
    assert "not known" in of(optimizer="adamx")["optimizer.name=adamx"]


@pytest.mark.parametrize(
    ("given", "label", "reason"),
    [
        ({"optimizer": {"momentum": 0.9, "nesterov": True}}, "optimizer.nesterov=true", "nesterov=false"),
        ({"optimizer": {"betas": [0.9, 0.99]}}, "optimizer.betas=[0.9, 0.99]", "sgd has none"),
        ({"optimizer": {"options": {"maximize": True}}}, "optimizer.options={maximize = true}", "not read by"),
        ({"compute": {"fuse": 2}}, "compute.fuse=2", "one pass"),
        ({"compute": {"precision": "fp16"}}, "compute.precision=fp16", "bf16 or fp32"),
        ({"compute": {"compile": True}}, "compute.compile=true", "leave it out"),
        ({"data": {"name": "digits", "num_workers": 2}}, "data.num_workers=2", "more replicas read more"),
        ({"ema": 0.99}, "ema=0.99", "leave it out"),
        ({"checkpoint": {"keep_best": "val/accuracy"}}, "checkpoint.keep_best=val/accuracy", "leave it out"),
        ({"last_batch": "carry"}, "last_batch=carry", "last_batch=short or drop"),
    ],
)
def test_what_has_no_meaning_without_a_common_update(given, label, reason):
    found = of(**given)
    assert list(found) == [label]
    assert reason in found[label]


def test_momentum_and_decay_are_the_shards_own_business():
    rule = {"name": "sgd", "momentum": 0.5, "weight_decay": 1e-4, "groups": [{"match": "fc.*", "lr_scale": 2.0}]}
    assert Recipe(**{**GOOD, "optimizer": rule}).optimizer.momentum == 0.5


def test_nothing_hides_another_mistake():
    found = of(
        global_batch_size=64, optimizer="lamb", ema=2.0, compute={"fuse": 0, "precision": "fp16"},
        downpour={"shards": 0}, simulated={"server": 3, "faults": [{"kill": "shard 9"}]}, last_batch="carry",
    )  # fmt: skip
    assert set(found) == {
        "global_batch_size=64", "optimizer.name=lamb", "ema=2.0", "compute.fuse=0", "compute.precision=fp16",
        "downpour.replicas", "downpour.shards=0", "simulated.server=3", "simulated.faults[0].at", "last_batch=carry",
    }  # fmt: skip


# -- between strategies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "label", "owners"),
    [
        ("downpour.replicas=4", "downpour.replicas=4", "strategy=downpour"),
        ("simulated.server=1GB", "simulated.server=1GB", "strategy=downpour or strategy=sandblaster"),
        ("downpour={ replicas = 2, shards = 2 }", "downpour={replicas = 2, shards = 2}", "strategy=downpour"),
    ],
)
def test_keys_of_another_strategy_name_it(assignment, label, owners):
    found = overridden("digits", assignment)
    assert found == {label: f"not read by strategy=sync. Write {owners}, or leave it out"}


def test_a_misspelt_strategy_is_one_mistake():
    found = overridden("digits-downpour", "strategy=downpuor")
    assert found == {"strategy=downpuor": "not known. One of: downpour sandblaster sync"}
    assert overridden("digits", "strategy=downpuor") == found


def test_overrides_reach_the_table():
    recipe = override(load("fashion-acoustic"), ["downpour.replicas=4", "downpour.warm_start=1ep", "downpour.shards=3"])
    assert (recipe.downpour.replicas, recipe.downpour.shards, recipe.downpour.warm_start) == (4, 3, "1ep")
    deep = override(read("fashion-acoustic"), ["simulated.compute.mean=1s", "simulated.network.bandwidth=1GB"])
    assert (deep.simulated.numbers().minibatch, deep.simulated.numbers().bandwidth) == (1.0, 1e9)
    assert deep.simulated.numbers().spread == Costs().spread
    given = override(deep, ['simulated.faults=[{ kill = "replica 1", at = "4s" }]', "downpour.max_staleness=3"])
    assert given.simulated.planned() == (Fault("kill", "replica-1", 4.0),)
    assert override(given, ["downpour.max_staleness=none", "downpour.local_lr=none"]).downpour.max_staleness is None


@pytest.mark.parametrize("base", [read("digits"), load("digits")], ids=["as written", "resolved"])
def test_another_strategy_drops_what_it_does_not_read(base):
    recipe = override(base, ["strategy=downpour", "downpour.replicas=4", "nesterov=false"])
    assert (recipe.update_size, recipe.global_batch_size, recipe.downpour.replicas) == (16, None, 4)
    assert recipe.lr.rate().peak(recipe.update_size) == pytest.approx(0.1 * 16 / 128)  # 0.1 at 128, as written
    order = override(base, ["downpour.replicas=4", "nesterov=false", "strategy=downpour"])
    assert order == recipe
    back = override(recipe, ["strategy=sync", "global_batch_size=64"])
    assert (back.downpour, back.simulated, back.virtual_workers) == (None, None, 4)


def test_a_minibatch_of_all_that_is_asked_for_is_not_dropped():
    found = overridden("digits", "global_batch_size=64", "strategy=downpour", "downpour.replicas=4", "nesterov=false")
    assert list(found) == ["global_batch_size=64"]


def test_a_recipe_without_a_workers_minibatch_is_told_what_is_missing():
    given = {"epochs": 1, "lr": 0.1, "global_batch_size": 64, "virtual_workers": 4}
    with pytest.raises(InputError) as caught:
        override(given, ["strategy=downpour", "downpour.replicas=2"])
    assert [found for found, _ in caught.value.rows] == [
        "global_batch_size=64",
        "virtual_workers=4",
        "worker_batch_size",
    ]
    assert override(given, ["strategy=downpour", "downpour.replicas=2", "worker_batch_size=16"]).update_size == 16


def test_the_same_strategy_again_drops_nothing():
    given = {**GOOD, "global_batch_size": 64}
    with pytest.raises(InputError, match="there is none"):
        override(given, ["strategy=downpour"])


def test_the_names_known_without_torch_are_those_of_the_parts():
    assert sorted(SERVER_RULES) == sorted(known.SHARD_RULES)
    assert {*STRATEGIES, "downpour", "sandblaster"} == set(known.STRATEGIES)  # the second kind: programs of roles
