"""What batch optimisation prints: to a person, in a script, while an evaluation is under way."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from squall.cli.bar import Bar
from squall.cli.header import Words
from squall.cli.terminal import Terminal
from squall.recipe import Recipe, load, override, read
from squall.records import Ended, EpochEnded, Evaluating, Record, Started
from squall.training.progress import Progress

ABOUT = Words("1,437 train + 360 test images of 8x8, 10 classes (inside the package)", "mlp", "images")

STARTED = Started(
    name="digits-sandblaster",
    folder="runs/one",
    processes=2,
    seed=0,
    fingerprint={"torch": "2.13.0+cpu", "device": "cpu", "instruction_set": "AVX2", "threads": 1},
    num_steps=40,
    steps_per_epoch=1,
    epochs=40,
    global_batch_size=1437,
    worker_batch_size=64,
    num_samples=1437,
    num_parameters=4810,
    strategy="sandblaster",
    replicas=2,
    shards=1,
    engine="ray",
)

ITERATION = EpochEnded(
    epoch=0,
    step=1,
    train_loss=1.86142,
    lr=0.55,
    samples_per_second=12345.0,
    spent={"compute": 0.9, "communication": 0.1},
    seconds=1.0,
    train={"gradient_norm": 1.234},
    test={"loss": 1.9, "accuracy": 0.3944},
)

RESULT: dict[str, Any] = {
    "test_accuracy": 0.9889,
    "test_error_median_last5": 0.0194,
    "seconds": 15.4,
    "iterations": 37,
    "evaluations": 40,
    "inexact": 0,
    "portions": {"counted": 920, "wasted": 0},
    "samples": 57480,
    "set_backs": {"times": 0, "iterations": 0},
    "loss": 0.016028,
    "gradient_norm": 0.00509,
    "minimum": {"outcome": "budget spent", "why": "40 evaluations", "advice": "epochs=80"},
    "weights_sha256": "25de6d7aeebd" + 52 * "0",
}


def shown(records: list[Record], recipe: Recipe | None = None) -> str:
    out = io.StringIO()
    sink = Terminal(
        recipe or load("digits-sandblaster"), ABOUT, version="0.1.0", next_line="squall report last", out=out
    )
    for record in records:
        sink(record)
    sink.close()
    return out.getvalue()


def ended(**changes: Any) -> Ended:
    return Ended("finished", "", 15.4, {**RESULT, **changes})


def test_the_whole_text() -> None:
    text = shown([STARTED, ITERATION, replace(ITERATION, epoch=1, step=3, lr=1.0), ended()])
    assert text.splitlines() == [
        "squall 0.1.0, torch 2.13.0, cpu (avx2): 2 replicas x 1 thread and 1 shard on Ray, float32",
        "data       1,437 train + 360 test images of 8x8, 10 classes (inside the package)",
        "model      mlp, 4,810 parameters",
        "batch      all 1,437 images: 23 portions of 64 (the last: 29), handed out by 4",
        "replicas   2: a unit to whoever is free; idle ones copy what takes long",
        "shards     1: point, gradient and 10 pairs of history",
        "search     L-BFGS, strong Wolfe steps; 40 evaluations of the batch at most, or a gradient's norm of 1e-05",
        "run        runs/one",
        "",
        "iteration   train loss   test accuracy   gradient      step   passes   images/s   stalled",
        "        1       1.8614         39.44 %    1.2e+00      0.55        2     12,345    10.0 %",
        "        2       1.8614         39.44 %    1.2e+00         1        4     12,345    10.0 %",
        "",
        "test accuracy 98.89 %, error 1.11 % (median of the last five iterations: 1.94 %) in 15.4 s",
        "ended   37 iterations, 40 evaluations: the budget is spent; loss 0.0160, gradient's norm 5.1e-03",
        "advice  epochs=80",
        "ledger  40 evaluations x 1,437 samples: each once in each",
        "weights sha256 25de6d7aeebd...  the same with any number of replicas",
        "next    squall report last",
    ]


def test_nothing_is_promised_that_does_not_hold() -> None:
    """One replica copies nothing; without a tolerance none ends it; sums without room have the bits of an order."""
    recipe = override(
        read("digits-sandblaster"),
        ["sandblaster.replicas=1", "sandblaster.tolerance_gradient=0", "sandblaster.line_search=armijo"],
    )
    text = shown([STARTED, ended(inexact=1)], recipe)
    assert "replicas   1: a unit to whoever is free\n" in text
    assert "search     L-BFGS, Armijo steps, pairs damped; 40 evaluations of the batch at most\n" in text
    assert "weights sha256 25de6d7aeebd...\n" in text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"minimum": {"outcome": "converged", "why": "the gradient's norm 9e-06 is within 1e-05", "advice": ""}},
            "ended   37 iterations, 40 evaluations: converged: the gradient's norm 9e-06 is within 1e-05; loss 0.0160",
        ),
        (
            {"portions": {"counted": 920, "wasted": 12}, "set_backs": {"times": 1, "iterations": 2}},
            "12 portions computed besides, as copies or for what was given up; set back once by a shard's death, 2 it",
        ),
    ],
)
def test_the_last_block_says_what_happened(changes: dict[str, Any], line: str) -> None:
    assert line in shown([STARTED, ended(**changes)])


def test_a_run_that_goes_on_says_from_which_iteration() -> None:
    assert shown([replace(STARTED, start_step=21)]).endswith("\ngoes on    from iteration 21\n\n")


def test_in_simulated_time_it_says_so() -> None:
    text = shown([replace(STARTED, engine="simulated"), ended()])
    assert "2 replicas and 1 shard in simulated time" in text
    assert "time       simulated, and so are all seconds below: 120ms a portion, " in text
    assert "in 15.4 s of simulated time" in text


def test_a_line_shows_how_far_an_evaluation_is() -> None:
    out = io.StringIO()
    bar = Bar(Console(file=out, force_terminal=True, width=120, color_system=None))
    bar.evaluate(Evaluating(3.0, 12, 8, 23, 2, 0.048), STARTED)
    bar.close()
    assert "portions  8 of 23 " in out.getvalue()
    assert " evaluation 12 of 40   loss 0.0480   2 replicas" in out.getvalue()


def test_in_a_script_its_lines_are_iterations() -> None:
    out = io.StringIO()
    progress = Progress(out)
    for record in (STARTED, ITERATION):
        progress(record)
    assert out.getvalue().splitlines() == [
        "digits-sandblaster: 4,810 parameters, 1,437 samples, 40 evaluations at most of 1437, 2 replicas, 1 shard",
        "iteration   1   train loss 1.8614   test accuracy 39.44 %   12,345 samples/s",
    ]
