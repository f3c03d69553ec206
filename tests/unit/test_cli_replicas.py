"""What a training of replicas and shards prints: to a person, to a pipe, in a script; and its numbers."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squall.cli import replicas
from squall.cli.bar import Bar, Console
from squall.cli.header import Words
from squall.cli.terminal import Terminal, json_lines
from squall.events import Changes
from squall.recipe import Recipe, override, read
from squall.records import Ended, EpochEnded, Noted, Pushed, Record, RoleChanged, Started
from squall.training.progress import Progress
from tests.downpours import Job
from tests.fabricated_downpour import Replicated

GOLDEN = Path(__file__).parents[1] / "golden"
ABOUT = Words("1,437 train + 360 test images of 8x8, 10 classes (inside the package)", "resnet8", "images")
NEXT = "squall report last      squall explain digits-downpour      squall train my_task.py"
FAULTS = 'simulated.faults=[{ kill = "replica 1", at = "2s", restart = "3s" }, { kill = "shard 0", at = "5s" }]'


def recipe(*changes: str) -> Recipe:
    return override(read("digits-downpour"), ["downpour.replicas=4", "epochs=3", *changes])


def shown(records: list[Record], used: Recipe | None = None, **options: Any) -> str:
    out = io.StringIO()
    sink = Terminal(used or recipe(FAULTS), ABOUT, version="0.1.0", next_line=NEXT, out=out, **options)
    for record in records:
        sink(record)
    sink.close()
    return out.getvalue()


def made(**values: Any) -> list[Record]:
    """Three epochs of 90 minibatches, with faults."""
    return Replicated(per_epoch=90, faults=True, **values).records("runs/digits-downpour-1122-0141")


def test_a_simulated_run_that_is_piped_prints_the_golden_text() -> None:
    assert shown(made()) == (GOLDEN / "train-downpour.txt").read_text()


def test_quiet_prints_the_last_block_only() -> None:
    text = (GOLDEN / "train-downpour.txt").read_text()
    assert shown(made(), quiet=True) == text[text.index("test accuracy 95.00 %, error") :]


def test_json_prints_one_record_a_line() -> None:
    out = io.StringIO()
    sink = json_lines(out)
    for record in made():
        sink(record)
    kinds = [json.loads(line)["kind"] for line in out.getvalue().splitlines()]
    assert kinds.count("push") == 270
    assert (kinds[0], kinds[1], kinds[-1]) == ("started", "role", "ended")


def test_a_run_that_goes_on_says_from_which_minibatch() -> None:
    text = shown([replace(Replicated(per_epoch=90).started(), start_step=120)])
    assert text.endswith("\ngoes on    from minibatch 120 of 270, in epoch 2\n\n")


def test_on_ray_nothing_is_called_simulated() -> None:
    text = shown(made(engine="ray"))
    assert text.startswith(
        "squall 0.1.0, torch 2.13.0, cpu (avx512): 4 replicas x 1 thread and 2 shards on Ray, float32\n"
    )
    assert "simulated" not in text


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            ["downpour.replicas=1"],
            ["replicas   1: fetch every minibatch, push every minibatch\n", "a push is applied however stale\n"],
        ),
        (
            ["downpour.fetch_every=4", "downpour.push_every=2", "downpour.local_lr=0.5", "downpour.max_staleness=8"],
            [
                "16 of one replica, the sum of 2 an update; 90 steps an epoch",
                "fetch every 4 minibatches, push every 2 minibatches, own steps at 0.5 in between; all begin at once\n",
                "a push more than 8 updates stale is dropped\n",
            ],
        ),
        (["downpour.warm_start=1ep"], ["; one alone for 90 minibatches, then the others\n"]),
        (["optimizer.name=adagrad"], ["shards     2: adagrad on each; "]),
    ],
)
def test_the_header_says_who_talks_to_whom_and_when(changes: list[str], lines: list[str]) -> None:
    used = recipe(*changes)
    assert used.downpour is not None
    text = shown([Replicated(replicas=used.downpour.replicas, per_epoch=90).started()], used)
    assert [line for line in lines if line not in text] == []


def epoch(index: int, **values: Any) -> EpochEnded:
    given = {"step": 90 * index + 89, "train_loss": 1.0, "lr": 0.1, "samples_per_second": 400.0, "seconds": 1.0}
    return EpochEnded(epoch=index, **{**given, "spent": {"compute": 9.0, "communication": 1.0}, **values})


def pushed(settled: int, staleness: list[int], alive: int = 4, minibatches: int = 1) -> Pushed:
    return Pushed(settled / 10, "replica-0", 0, minibatches, 16, 1.0, staleness, 0, 0.4, 0.04, alive, settled)


def test_an_epoch_s_row_is_of_its_own_pushes_though_those_of_the_next_came_before_it() -> None:
    epochs = replicas.Epochs()
    columns = [cell for _, _, cell in epochs.columns()]
    for settled in range(1, 93):
        epochs.add(pushed(settled, [2, 4] if settled <= 90 else [9, 9], 4 if settled < 50 else 3), 90)
    assert [cell(epoch(0)) for cell in columns] == ["3-4", "3.0", "10.0 %"]
    epochs.add(pushed(93, [-1, -1], 3), 90)
    assert [cell(epoch(1)) for cell in columns] == ["3", "9.0", "10.0 %"]
    assert [cell(epoch(2, spent={})) for cell in columns] == ["-", "-", "-"]


def test_a_push_that_ends_an_epoch_belongs_to_it() -> None:
    epochs = replicas.Epochs()
    epochs.add(pushed(91, [5], minibatches=2), 90)
    assert epochs.columns()[1][2](epoch(0)) == "5.0"


def test_a_row_is_as_wide_as_its_head() -> None:
    head, row, *_ = shown([r for r in made() if isinstance(r, Started | Pushed | EpochEnded)]).splitlines()[10:]
    assert head.split()[-3:] == ["replicas", "staleness", "stalled"]
    assert len(head) == len(row)


# -- roles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "change", "lost", "line"),
    [
        ("shard-0", "restarted", 12, "at 8.3 s: shard-0 came back from its snapshot: 12 minibatches lost"),
        ("shard-0", "restarted", 1, "at 8.3 s: shard-0 came back from its snapshot: 1 minibatch lost"),
        ("shard-0", "restarted", 0, "at 8.3 s: shard-0 came back from its snapshot: nothing lost"),
        ("replica-1", "restarted", 0, "at 8.3 s: replica-1 came back; what it had in hand is handed out again"),
        ("replica-1", "silent", 0, "at 8.3 s: replica-1 is silent; what it had in hand is handed out again"),
        ("replica-1", "left", 0, "at 8.3 s: replica-1 left"),
        ("replica-9", "joined", 0, "at 8.3 s: replica-9 joined"),
        ("replica-1", "joined", 0, ""),
    ],
)
def test_what_became_of_a_role_is_a_line(role: str, change: str, lost: int, line: str) -> None:
    changes = Changes()
    assert changes(Replicated().started()) == ""
    assert changes(RoleChanged(8.3, role, change, lost)) == line


def test_a_replica_that_left_and_joins_again_is_news() -> None:
    changes = Changes()
    changes(Replicated().started())
    said = [changes(RoleChanged(1.0, "replica-1", change)) for change in ("joined", "left", "joined")]
    assert said == ["", "at 1.0 s: replica-1 left", "at 1.0 s: replica-1 joined"]


# -- the bar ---------------------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("engine", "second"), [("ray", "s"), ("simulated", "simulated s")])
def test_the_bar_shows_replicas_pushes_a_second_staleness_and_loss(
    monkeypatch: pytest.MonkeyPatch, engine: str, second: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    now = [100.0]
    monkeypatch.setattr("squall.cli.bar.time.monotonic", lambda: now[0])
    out = Screen()
    bar = Bar(Console(file=out, force_terminal=True, color_system="standard"))
    started = Replicated(per_epoch=90, engine=engine).started()
    for settled in range(1, 136):
        now[0] += 0.02
        bar.push(pushed(settled, [1, 2, -1], 3), started)
    now[0] += 1.0
    bar.push(pushed(136, [1, 2, -1], 3), started)
    bar.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    last = plain[plain.rindex("epoch 2 of 3") :]
    assert "━" * 30 + f" 136 of 270   loss 1.0000   3 replicas   10 pushes/{second}   staleness 1.5   0:0" in last
    assert last.strip().endswith("left")


def test_in_the_terminal_the_bar_goes_before_a_row_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    out = Screen()
    sink = Terminal(recipe(FAULTS), ABOUT, version="0.1.0", next_line=NEXT, out=out)
    for record in made():
        sink(record)
    sink.close()
    text = out.getvalue()
    assert "1 of 270" in text
    assert text.index("4 replicas   ") < text.index("test accuracy 95.00 %")


# -- the last block --------------------------------------------------------------------------------------------------


def last_block(*shards: tuple[int, int, int], **changed: Any) -> list[str]:
    settled = sum(shards[0])
    fates = [dict(zip(("applied", "dropped", "lost"), shard, strict=True)) for shard in shards]
    result = {
        "test_accuracy": 0.9,
        "test_error_median_last5": 0.1,
        "seconds": 12.0,
        "pushes": {"computed": settled, "repeated": 0},
        "minibatches": {"settled": settled, "of": settled, "shards": fates},
        "staleness": {"mean": 1.25, "most": 3},
        "samples": 16 * settled,
        "weights_sha256": "adf318c167cb" + 52 * "0",
    }
    return replicas.summary({**result, **changed}, 3, simulated=False, next_line=NEXT)


def test_the_ledger_names_every_fate_and_adds_up() -> None:
    assert last_block((10, 0, 0))[2] == "ledger  10 minibatches, 160 samples: each applied once on the shard"
    assert last_block((10, 0, 0), (10, 0, 0))[2].endswith(": each applied once on each of 2 shards")
    assert last_block((7, 2, 1))[2].endswith(
        "; on the shard = 7 applied + 2 dropped as too stale + 1 lost with a shard"
    )
    both = last_block((1000, 0, 24), (1024, 0, 0))[2]
    assert both.endswith("; on 2 shards 2,048 = 2,024 applied + 24 lost with a shard")


def test_the_line_of_pushes_tells_what_was_done_twice_and_how_stale_they_were() -> None:
    assert last_block((10, 0, 0))[1] == "pushes  10 computed; staleness 1.2 on average, 3 at most"
    twice = last_block((10, 0, 0), pushes={"computed": 12, "repeated": 2}, staleness={"mean": None, "most": None})[1]
    assert twice == "pushes  12 computed, 2 of them of minibatches that another replica settled first"


def test_only_simulated_weights_are_promised_again() -> None:
    assert last_block((10, 0, 0))[3] == "weights sha256 adf318c167cb..."
    assert last_block((10, 0, 0))[0].endswith("in 12.0 s")


def test_a_real_simulated_run_prints_what_its_summary_counts_and_the_same_again() -> None:
    printed = []
    for _ in range(2):
        job = Job(replicas=3, shards=2, epochs=3, evaluates=True, num_samples=1437, batch=16)
        summary = job.run()
        ended = Ended("finished", "", summary.seconds, {**last_result(summary.values), "seconds": summary.seconds})
        started = Replicated(replicas=3, per_epoch=90).started()
        printed.append(shown([started, *job.records, ended], recipe("downpour.replicas=3")))
    assert printed[0] == printed[1]
    counts = summary.values["staleness"]
    assert f"270 computed; staleness {counts['mean']:.1f} on average, {counts['most']} at most\n" in printed[0]
    assert "ledger  270 minibatches, 4,311 samples: each applied once on each of 2 shards\n" in printed[0]
    assert len(re.findall(r"\n +[123] .* 3 +\d\.\d +\d\.\d %", printed[0])) == 3


def last_result(values: dict[str, Any]) -> dict[str, Any]:
    return {"test_accuracy": 0.5, "test_error_median_last5": 0.5, "weights_sha256": 64 * "0", **values}


# -- a script's output -----------------------------------------------------------------------------------------------


def test_a_script_prints_the_run_its_epochs_and_what_became_of_roles() -> None:
    out = io.StringIO()
    sink = Progress(out)
    for record in [*made(), Noted("from now on 3 replicas")]:
        sink(record)
    lines = out.getvalue().splitlines()
    assert lines[0] == (
        "digits-downpour: 77,754 parameters, 1,437 samples, 270 minibatches of 16, 4 replicas, 2 shards, simulated time"
    )
    assert lines[1] == "note: at 5.0 s: replica-1 came back; what it had in hand is handed out again"
    assert [line.split()[:2] for line in lines if line.startswith("epoch")] == [["epoch", str(n)] for n in (1, 2, 3)]
    assert len(lines) == 1 + 3 + 3 + 1 + 1
