"""What a training prints: header, rows, last block; as a person, a pipe and a program see it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from squall.cli import bar as bar_
from squall.cli import header, summary
from squall.cli.bar import Bar
from squall.cli.header import Words
from squall.cli.sizes import order_of
from squall.cli.terminal import Terminal, json_lines
from squall.recipe import Recipe, load, override, read
from squall.records import Ended, EpochEnded, Noted, Record, Started, Stepped
from squall.report.ledger import sentence
from squall.units import duration

GOLDEN = Path(__file__).parents[1] / "golden"
ABOUT = Words("1,437 train + 360 test images of 8x8, 10 classes (inside the package)", "resnet8", "images")
NEXT = "squall report last      squall explain digits      squall train my_task.py"
FINGERPRINT = {"torch": "2.13.0+cpu", "device": "cpu", "instruction_set": "AVX512", "threads": 1}


def started(recipe: Recipe, **changed: Any) -> Started:
    order = order_of(recipe, 1437)
    values = {
        "name": recipe.name,
        "folder": "runs/digits-1120-1744",
        "processes": 2,
        "seed": 0,
        "fingerprint": FINGERPRINT,
        "num_steps": order.num_steps,
        "steps_per_epoch": order.steps_per_epoch,
        "epochs": recipe.epochs,
        "global_batch_size": recipe.global_batch_size,
        "worker_batch_size": recipe.worker_batch_size,
        "num_samples": 1437,
        "num_parameters": 77754,
    }
    return Started(**{**values, **changed})


def epoch(index: int, **changed: Any) -> EpochEnded:
    values = {
        "epoch": index,
        "step": 12 * index + 11,
        "train_loss": 1.8413,
        "lr": 0.0997,
        "samples_per_second": 9870.4,
        "spent": {"data": 0.02, "compute": 0.91, "communication": 0.05, "wait": 0.02, "save": 0.0},
        "seconds": 0.2,
        "test": {"loss": 1.5, "accuracy": 0.525},
    }
    return EpochEnded(**{**values, **changed})


def result(**changed: Any) -> dict[str, Any]:
    ledger = {"samples": 43110, "distinct": 1437, "least": 30, "most": 30, "skipped": 0, "complete": True}
    values = {
        "test_accuracy": 353 / 360,
        "test_error_median_last5": 7 / 360,
        "seconds": 4.61,
        "processes": 2,
        "ledger": ledger,
        "weights_sha256": "75cf431b31af" + 52 * "0",
    }
    return {**values, **changed}


def shown(records: list[Record], recipe: Recipe | None = None, **options: Any) -> str:
    out = io.StringIO()
    about = options.pop("about", ABOUT)
    sink = Terminal(recipe or load("digits"), about, version="0.1.0", next_line=NEXT, out=out, **options)
    for record in records:
        sink(record)
    sink.close()
    return out.getvalue()


def whole_run() -> list[Record]:
    recipe = load("digits")
    last = epoch(29, train_loss=0.0211, lr=0.0, test={"accuracy": 353 / 360}, samples_per_second=10310.0)
    return [started(recipe), Stepped(0, 0, 128, 2.3, 0.1, 0.01), epoch(0), last, Ended("finished", "", 4.6, result())]


def test_a_run_that_is_piped_prints_the_golden_text_without_a_bar() -> None:
    assert shown(whole_run()) == (GOLDEN / "train-digits.txt").read_text()


def test_quiet_prints_the_last_block_only() -> None:
    text = (GOLDEN / "train-digits.txt").read_text()
    assert shown(whole_run(), quiet=True) == text[text.index("test accuracy 98.06") :]


def test_json_prints_one_record_a_line() -> None:
    out = io.StringIO()
    sink = json_lines(out)
    for record in whole_run():
        sink(record)
    kinds = [json.loads(line)["kind"] for line in out.getvalue().splitlines()]
    assert kinds == ["started", "step", "epoch", "epoch", "ended"]


def test_a_diverged_run_prints_no_last_block_since_the_error_follows() -> None:
    assert "accuracy" not in shown([started(load("digits")), Ended("diverged", "less", 1.0, result())])


def test_notes_are_printed_between_the_rows() -> None:
    assert "note    3 images left out\n" in shown([started(load("digits")), Noted("3 images left out")])


def test_the_columns_are_what_the_first_epoch_measured() -> None:
    val = {"loss": 0.5, "accuracy": 0.75, "auc": 0.8125}
    lines = shown([epoch(0, test={}, val=val)], about=Words("", "", "samples")).splitlines()
    assert "validation accuracy   validation auc" in lines[0]
    assert "samples/s" in lines[0]
    assert "75.00 %           0.8125" in lines[1]
    assert len(lines[0]) == len(lines[1])


def test_a_run_without_evaluation_has_no_such_column() -> None:
    head, row = shown([epoch(0, test={})]).splitlines()
    assert head.split()[:4] == ["epoch", "train", "loss", "rate"]
    assert len(head) == len(row)


def test_the_header_says_where_the_first_weights_come_from_and_which_do_not() -> None:
    recipe = override(read("digits"), ["model.weights=runs/base"])
    assert "\nmodel      resnet8, 77,754 parameters; weights of runs/base\n" in shown([started(recipe)], recipe)
    recipe = override(recipe, ['model.weights_skip=["fc", "*.bias"]'])
    line = "resnet8, 77,754 parameters; weights of runs/base, but fc *.bias as made (weights_skip)\n"
    assert line in shown([started(recipe)], recipe)


def test_small_rates_keep_their_digits() -> None:
    recipe = override(read("digits"), ["lr=3e-4", "lr.base_batch_size=none"])
    assert "2.99e-04" in shown([epoch(0, lr=2.99e-4)], recipe)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ([], "0.1 = 0.1 at 128, no scaling needed; no warm-up; cosine to 0 over 30 epochs"),
        (
            ["optimizer=adamw", "lr=3e-4", "lr.schedule=constant"],
            "0.0003, not scaled; no warm-up; constant over 30 epochs",
        ),
        (
            ["global_batch_size=512", "lr.warmup_epochs=5", "lr.schedule=step", "lr.milestones=[10,20]"],
            (
                "0.4 = 0.1 at 128, linear: 0.1 x 512 / 128; gradual warm-up from 0.1 in 5 epochs; "
                "x 0.1 after 10, 20 of 30 epochs"
            ),
        ),
        (
            ["global_batch_size=512", "lr.scaling=sqrt"],
            "0.2 = 0.1 at 128, square root: 0.1 x sqrt(512 / 128); no warm-up; cosine to 0 over 30 epochs",
        ),
    ],
)
def test_the_rate_line_says_where_the_rate_comes_from(changes: list[str], line: str) -> None:
    assert header.rate(override(read("digits"), changes)) == line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["last_batch=drop"], "128 = 8 virtual workers x 16; 11 steps an epoch (29 images left out), 330"),
        (
            ["last_batch=carry"],
            "128 = 8 virtual workers x 16; 12 steps an epoch (29 images carried into the next), 337",
        ),
        (
            ["global_batch_size=1437", "worker_batch_size=479"],
            "1,437 = 3 virtual workers x 479; 1 step an epoch, 30",
        ),
        (
            ["global_batch_size=100"],
            "100 = 7 virtual workers x 14 or 15; 15 steps an epoch (the last: 37 images), 450",
        ),
        (
            ["strategy=downpour", "downpour.replicas=4", "nesterov=false"],
            "16 of one replica, each an update of its own; 90 steps an epoch (the last: 13 images), 2,700",
        ),
    ],
)
def test_the_minibatch_line_says_what_becomes_of_the_rest(changes: list[str], line: str) -> None:
    recipe = override(read("digits"), changes)
    assert header.minibatch(recipe, order_of(recipe, 1437), "images") == f"{line} in all"


def test_the_rate_line_of_replicas_speaks_of_ones_minibatch() -> None:
    recipe = override(read("digits"), ["strategy=downpour", "downpour.replicas=4", "nesterov=false"])
    assert header.rate(recipe).startswith("0.0125 = 0.1 at 128, linear: 0.1 x 16 / 128; ")


def test_the_first_line_names_everything_that_changes_the_arithmetic() -> None:
    recipe = override(
        read("digits"), ["precision=bf16", "fuse=2", "channels_last=true", "compile=true", "reduction=fast"]
    )
    line = header.first_line(started(recipe, processes=1), recipe, "0.1.0")
    assert line == (
        "squall 0.1.0, torch 2.13.0, cpu (avx512): 1 process x 1 thread, bfloat16, channels-last, compiled, "
        "2 workers a pass, fast reduction"
    )


def test_the_first_line_on_a_gpu_speaks_of_no_threads() -> None:
    recipe = load("digits")
    gpu = {"torch": "2.13.0+cu130", "device": "NVIDIA X", "instruction_set": "", "threads": 0}
    line = header.first_line(started(recipe, fingerprint=gpu), recipe, "0.1.0")
    assert line == "squall 0.1.0, torch 2.13.0, NVIDIA X: 2 processes, float32, exact reduction"


def last_block(**options: Any) -> list[str]:
    given = {"num_epochs": 30, "exact": True, "num_passes": 8, "averaged": False, "next_line": NEXT}
    values = options.pop("result", result())
    return summary.summary(values, **{**given, **options})


def test_equal_weights_are_promised_for_the_exact_reduction_only() -> None:
    assert "the same on 1, 2, 4 or 8 processes: try --processes 1" in last_block()[2]
    assert "try --processes 2" in last_block(result=result(processes=1))[2]
    assert "the same on any number up to 256 processes" in last_block(num_passes=256)[2]
    assert last_block(num_passes=6)[2].split("  ")[1].startswith("the same on 1, 2, 4 or 6 processes")
    assert last_block(exact=False)[2] == "weights sha256 75cf431b31af..."
    assert last_block(num_passes=1)[2] == "weights sha256 75cf431b31af..."


def test_the_median_is_named_after_the_epochs_that_it_is_of() -> None:
    assert "(median of the last five epochs: 1.94 %)" in last_block()[0]
    assert "(median of both epochs: 1.94 %)" in last_block(num_epochs=2)[0]
    assert "median" not in last_block(num_epochs=1)[0]
    assert "(median of the last five epochs: 1.94 %; averaged weights) in" in last_block(averaged=True)[0]


def test_a_task_without_accuracy_ends_with_what_it_measures() -> None:
    own = {"val_loss": 0.25, "val_mean_error": 1.5, "seconds": 3.0, "train_loss": 0.3}
    assert last_block(result=own)[0] == "val loss 0.2500, val mean_error 1.5000 in 3.0 s"
    assert last_block(result={"train_loss": 0.3, "seconds": 3.0})[0] == "train loss 0.3000 in 3.0 s"


def test_the_ledger_tells_skipped_and_uneven_reads() -> None:
    uneven = {"samples": 29, "distinct": 10, "least": 2, "most": 3, "skipped": 1}
    skipped = "1 read skipped: images that do not decode"
    assert sentence(uneven) == f"29 samples: each of 10 seen 2 to 3 times; {skipped}"
    once = {"samples": 10, "distinct": 10, "least": 1, "most": 1}
    assert sentence(once) == "10 samples: each of 10 seen exactly once"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.61, "4.6 s"), (99.96, "1 min 40 s"), (754.0, "12 min 34 s"), (7500.0, "2 h 5 min"), (273_600.0, "3 d 4 h")],
)
def test_durations_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_thousand_steps_in_a_second_redraw_the_bar_at_most_ten_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(bar_.time, "monotonic", lambda: now[0])
    drawn = []
    monkeypatch.setattr(bar_.Live, "refresh", lambda self: drawn.append(now[0]))
    bar = Bar(bar_.Console(file=Screen(), force_terminal=True))
    beginning = started(load("digits"))
    for index in range(1000):
        now[0] += 0.001
        bar.step(Stepped(index % 360, 0, 128, 1.0, 0.1, 0.1), beginning)
    assert 2 <= len(drawn) <= 10


def test_on_a_terminal_the_bar_shows_the_step_and_goes_before_a_row_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Screen()
    sink = Terminal(load("digits"), ABOUT, version="0.1.0", next_line=NEXT, out=out)
    for record in whole_run():
        sink(record)
    sink.close()
    text = out.getvalue()
    assert "epoch  1 of 30" in text
    assert "step 1 of 360   loss 2.3000" in text
    assert text.index("step 1 of 360") < text.index("test accuracy 98.06 %")


@pytest.mark.parametrize(("no_color", "rest"), [(False, "━"), (True, " ")])
def test_without_colours_the_bar_still_shows_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, no_color: bool, rest: str
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = Screen()
    bar = Bar(bar_.Console(file=out, force_terminal=True, color_system="standard", no_color=no_color))
    bar.step(Stepped(149, 12, 128, 1.0, 0.1, 0.1), started(load("digits")))  # 6 of 12 in epoch 13
    bar.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert f"epoch 13 of 30 {'━' * 15}{rest * 15} step 150 of 360" in plain
