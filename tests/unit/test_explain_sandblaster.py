"""The explanation of Sandblaster: a golden text, every number a second way, notes and warnings."""

import json
import math
from pathlib import Path

import pytest

from squall.data.order import Order
from squall.explain import ModelFacts, explain, model_facts
from squall.model import build
from squall.optim.lbfgs import names
from squall.recipe import load, override
from squall.server.layout import Layout

GOLDEN = Path(__file__).parents[1] / "golden"
MLP = ModelFacts(4_810, 4_810, decayed={"linear weight": 2, "linear bias": 2}, vector=4_864)
RESNET8 = ModelFacts(77_754, 77_754, batch_norms=9, vector=79_488, buffers=672)
SAMPLES = 1437


def of(*assignments, facts=MLP, samples=SAMPLES):
    return explain(override(load("digits-sandblaster"), assignments), facts, samples)


def rows(*assignments, **more):
    return dict(of(*assignments, **more).rows)


def numbers(*assignments, **more):
    return of(*assignments, **more).to_json()


@pytest.mark.parametrize(
    ("golden", "assignments"),
    [
        ("explain-sandblaster.txt", []),
        ("explain-sandblaster-armijo.txt",
         ["sandblaster.line_search=armijo", "sandblaster.replicas=1", "sandblaster.shards=3", "sandblaster.unit=100",
          "sandblaster.noise=0", "sandblaster.tolerance_step=1e-6", "checkpoint.every=5ep", "weight_decay=0"]),
    ],
)  # fmt: skip
def test_golden_texts(golden, assignments):
    recipe = override(load("digits-sandblaster"), assignments)
    facts = model_facts(build("mlp", recipe.model.arguments), recipe.optimizer)
    text = explain(recipe, facts, SAMPLES).text()
    assert text + "\n" == (GOLDEN / golden).read_text(encoding="utf-8")


@pytest.mark.parametrize(("size", "unit"), [(64, 4), (64, 1), (500, 4), (2000, 3), (1437, 1), (3, 7)])
def test_portions_and_units_are_those_of_the_order(size, unit):
    found = numbers(f"worker_batch_size={size}", f"sandblaster.unit={unit}")
    order = Order(num_samples=SAMPLES, global_batch_size=size, worker_batch_size=size, epochs=1, seed=0)
    assert found["portions"] == order.num_steps == math.ceil(SAMPLES / size)
    assert found["units"] == len(range(0, order.num_steps, unit))
    assert found["max_samples"] == 40 * sum(order.step(index).num_samples for index in range(order.num_steps))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("history", [1, 10])
@pytest.mark.parametrize("target", ["digits", "digits-sandblaster"])
def test_the_shards_hold_what_the_optimiser_names(target, history, shards):
    recipe = override(
        load(target),
        ["strategy=sandblaster", "sandblaster.replicas=2", f"sandblaster.history={history}",
         f"sandblaster.shards={shards}"],
    )  # fmt: skip
    model = build(recipe.model.name, recipe.model.arguments)
    layout, facts = Layout.of(model), model_facts(model, recipe.optimizer)
    found = explain(recipe, facts, SAMPLES).to_json()
    parts = layout.slices(shards)
    assert (facts.vector, facts.buffers) == (layout.size, layout.size - layout.parameters_end)
    assert found["shard_elements"] == [part.size for part in parts]
    held = sum(
        len(names(history)) * part.buffers * 4 + part.size * 8 + 2 * (part.size - part.buffers) * 4 for part in parts
    )
    assert found["server_bytes"] == held
    assert found["history_bytes"] == 2 * history * layout.parameters_end * 4
    assert found["checkpoint_bytes"] == (2 * layout.parameters_end + facts.buffers) * 4


def test_an_evaluation_moves_weights_once_to_each_replica_and_sums_from_each_unit():
    found = numbers()
    assert found["fetch_bytes"] == found["push_bytes"] == 4 * 4_864
    assert found["evaluation_bytes"] == (2 + 6) * 4 * 4_864
    assert numbers("sandblaster.replicas=50")["evaluation_bytes"] == (6 + 6) * 4 * 4_864  # no more replicas than units


def test_numbers_are_plain_and_none_is_a_rate():
    found = numbers()
    assert json.loads(json.dumps(found)) == found
    assert {"peak_lr", "rate", "global_batch_size"} & set(found) == set()
    assert rows()["rate"] == ("none: the line search finds the length of each step",)


@pytest.mark.parametrize(
    ("every", "said"),
    [
        ("1step", "every iteration,"),
        ("1ep", "every iteration,"),
        ("0.5ep", "every iteration,"),
        ("5step", "every 5 iterations,"),
        ("10min", "every 10min,"),
        ("never", "when the run is asked to stop,"),
    ],
)
def test_steps_and_epochs_of_checkpoints_are_iterations(every, said):
    assert rows(f"checkpoint.every={every}")["checkpoint"][0].startswith(said)


def test_what_the_rows_say_of_replicas():
    assert rows("sandblaster.replicas=1")["replicas"] == ("1: all units of an evaluation",)
    assert "about 1.5 units each" in rows("sandblaster.replicas=4")["replicas"][0]
    assert "idle ones wait (backups=false)" in rows("sandblaster.backups=false")["replicas"][0]
    assert "copies" not in rows("sandblaster.backups=false")["traffic"][0]


def test_the_end_names_the_tests_that_are_on():
    assert rows("sandblaster.tolerance_gradient=0")["ends"] == ("where nothing gets better, or with the budget of 40",)
    assert "a step is within 0.01 of the weights" in rows("sandblaster.tolerance_step=0.01")["ends"][0]


def test_notes_name_what_the_function_depends_on():
    assert of().notes == ()
    assert any("normalise over a portion" in note for note in of(facts=RESNET8).notes)
    (note,) = of("model.dropout=0.5", "data.train=[{ horizontal_flip = 0.5 }]").notes
    assert note.startswith("horizontal_flip, dropout: drawn once")
    (note,) = of("sandblaster.line_search=armijo", "sandblaster.damping=0").notes
    assert "Powell 1978" in note


def test_replicas_without_work_are_warned_of():
    (warning,) = of("sandblaster.replicas=9").warnings
    assert "3 of 9 replicas get none of the 6 units: they compute copies at most" in warning
    (warning,) = of("sandblaster.replicas=9", "sandblaster.backups=false").warnings
    assert "nothing to do" in warning
    assert of("sandblaster.replicas=6").warnings == ()


def test_rounding_that_the_line_search_does_not_forgive_is_warned_of():
    (warning,) = of("precision=bf16").warnings
    assert "sandblaster.noise=1e-07" in warning
    assert of("precision=bf16", "sandblaster.noise=0.01").warnings == ()
