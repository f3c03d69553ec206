"""The explanation of Downpour: every number a second way, what changes it, notes and warnings."""

import math
import random
import statistics

import pytest
import torch
from torch import nn

from squall.explain import ModelFacts, explain, model_facts
from squall.explain.downpour import expected_staleness
from squall.model import build
from squall.recipe import load, override
from squall.server.layout import Layout

ACOUSTIC = ModelFacts(400_906, 400_906, vector=400_960)
RESNET8 = ModelFacts(77_754, 77_754, batch_norms=9, vector=79_488)


def of(target, *assignments, samples=60_000, facts=ACOUSTIC):
    return explain(override(load(target), [f"downpour.{text}" for text in assignments]), facts, samples)


def rows(explanation):
    return dict(explanation.rows)


def replayed(replicas, fetch_every, push_every, seed):
    """The staleness of each push where replicas of one speed begin at different times; the first rounds left out."""
    draw, rounds = random.Random(seed), 6 * math.lcm(fetch_every, push_every)
    begins = [draw.uniform(0, rounds / 6) for _ in range(replicas)]
    turns = sorted((begins[replica] + step, replica, step) for replica in range(replicas) for step in range(rounds + 1))
    pushes, fetched, oldest, found = 0, [0] * replicas, [None] * replicas, []
    for _, replica, step in turns:  # a step begins where the one before has ended
        if step and (step - 1) % push_every == 0:
            if rounds / 3 < step <= 2 * rounds / 3:
                found.append(pushes - oldest[replica])
            pushes, oldest[replica] = pushes + 1, None
        if step % fetch_every == 0:
            fetched[replica] = pushes
        if oldest[replica] is None:
            oldest[replica] = fetched[replica]
    return found


@pytest.mark.parametrize("replicas", [1, 2, 5, 20])
@pytest.mark.parametrize(("fetch_every", "push_every"), [(1, 1), (4, 1), (1, 4), (3, 3), (4, 6), (6, 4)])
def test_the_staleness_to_expect_is_that_of_a_replay(replicas, fetch_every, push_every):
    found = [value for seed in range(100) for value in replayed(replicas, fetch_every, push_every, seed)]
    expected = expected_staleness(replicas, fetch_every, push_every)
    assert statistics.fmean(found) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("replicas", [1, 5, 20, 200])
def test_equal_replicas_that_talk_at_every_step_are_one_less_than_their_number_stale(replicas):
    """D7."""
    assert expected_staleness(replicas, 1, 1) == replicas - 1


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_the_shards_are_those_of_the_servers_layout(shards):
    for name in ("fashion-acoustic", "digits-downpour"):
        recipe = override(load(name), [f"downpour.shards={shards}"])
        model = build(recipe.model.name, recipe.model.arguments)
        layout = Layout.of(model)
        facts = model_facts(model, recipe.optimizer)
        numbers = explain(recipe, facts, 1000).to_json()
        assert facts.vector == layout.size
        assert numbers["shard_elements"] == [part.size for part in layout.slices(shards)]
        assert numbers["push_bytes"] == numbers["fetch_bytes"] == 4 * layout.size


def test_frozen_parameters_do_not_travel_and_whole_numbers_neither():
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 1))
    model[0].requires_grad_(False)
    facts = model_facts(model, load("digits").optimizer)
    assert facts.vector == 64 + 64 + 64 + 64 + 64 + 64  # scale, shift, mean, variance; weight; bias, padded


def test_the_numbers_of_the_acoustic_recipe_a_second_way():
    numbers = of("fashion-acoustic", "replicas=20", "warm_start=1ep").to_json()
    assert (numbers["steps_per_epoch"], numbers["num_steps"]) == (1875, 18_750) == (60_000 / 32, 600_000 / 32)
    assert (numbers["warm_start_steps"], numbers["expected_staleness"]) == (1875, 19)
    assert numbers["server_bytes"] == 4 * (400_960 + 400_906)  # weights, and Adagrad's squares
    assert numbers["checkpoint_bytes"] == 4 * 2 * 400_906
    assert numbers["peak_lr"] == 0.01
    assert "global_batch_size" not in numbers
    with torch.device("meta"):
        recipe = load("fashion-acoustic")
        assert model_facts(build("acoustic", recipe.model.arguments), recipe.optimizer).vector == ACOUSTIC.vector


def test_what_the_rows_say_of_one_replica():
    lines = rows(of("fashion-acoustic", "replicas=1", "warm_start=1ep"))
    assert lines["replicas"][0] == "1: all 18,750 steps"
    assert lines["warm start"] == ("none: there is one replica",)
    assert lines["staleness"] == ("0 updates between a fetch and its push (R - 1); no cap",)


def test_what_the_rows_say_of_a_warm_start_and_of_steps_of_ones_own():
    lines = rows(of("fashion-acoustic", "warm_start=500step", "local_lr=0.02", "fetch_every=4"))
    assert lines["warm start"] == ("one replica alone for 500step: steps 0 .. 500; then the others begin",)
    assert lines["replicas"][2] == "takes steps of its own between fetches, at 0.02 (local_lr)"
    assert "the next fetch undoes each" in rows(of("digits-downpour", facts=RESNET8))["replicas"][2]


def notes(*given, **more):
    return " ".join(of(*given, **more).notes)


def test_notes_name_what_asynchrony_changes():
    assert "ten times the best fixed rate in Dean et al. 2012, section 4.1" in notes("fashion-acoustic")
    assert "squares the sum of a push's 3 gradients" in notes("fashion-acoustic", "push_every=3")
    assert "begin at once" in notes("fashion-acoustic", "replicas=20")
    assert "begin at once" not in notes("fashion-acoustic", "replicas=20", "warm_start=1ep")
    assert "running merge" in notes("digits-downpour", facts=RESNET8)
    assert "Mitliagkas" not in notes("digits-downpour", facts=RESNET8)
    momentum = explain(override(load("digits-downpour"), ["momentum=0.9"]), RESNET8, 1437)
    assert any("Mitliagkas et al. 2016" in note and "momentum=0.9" in note for note in momentum.notes)


def test_a_cap_below_what_is_to_be_expected_is_warned_of():
    (warning,) = of("fashion-acoustic", "replicas=20", "max_staleness=18", "warm_start=1ep").warnings
    assert "max_staleness=18 is below the 19 to expect" in warning
    assert of("fashion-acoustic", "replicas=20", "max_staleness=19", "warm_start=1ep").warnings == ()


def test_a_warm_start_as_long_as_the_run_is_warned_of():
    (warning,) = of("fashion-acoustic", "warm_start=18750step").warnings
    assert "one replica computes it all" in warning


def test_few_steps_name_the_field_that_makes_more():
    (warning,) = of("fashion-acoustic", samples=1000).warnings
    assert "a smaller worker_batch_size" in warning


@pytest.mark.parametrize(("last_batch", "offered"), [("short", "last_batch=drop changes"), ("drop", "=short uses")])
def test_a_way_that_is_refused_is_not_offered(last_batch, offered):
    recipe = override(load("digits-downpour"), [f"last_batch={last_batch}"])
    text = explain(recipe, RESNET8, 1437).text()
    assert offered in text
    assert "carry" not in text
