"""What a page shows of a minimisation: iterations, portions and evaluations whose counts add up, and no rate."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from squall.report import Document, Reader, RunData, document
from squall.report.lanes import Span, lanes
from squall.report.minimum import counts
from squall.report.pushes import shares
from tests.fabricated import Made, write_lines
from tests.fabricated_downpour import Replicated
from tests.fabricated_sandblaster import SAMPLES, UNITS, Minimised, length, tries
from tests.sandblasters import Job
from tests.unit.test_report_pages import HOSTILE, chart, ids, junk, read, strict, text
from tests.unit.test_report_replicas import numbers, table


def page(tmp_path: Path, made: Minimised, name: str = "run") -> Document:
    return document(read(made.write(tmp_path / name)))


def test_a_minimisation_shows_everything(tmp_path: Path) -> None:
    found = page(tmp_path, Minimised(faults=True))
    sections = ["learning", "minimum", "time", "replicas", "sessions", "arithmetic", "ledger", "notes", "environment"]
    assert [section.id for section in found.sections] == sections
    learning = ["loss", "passes", "metric-accuracy", "gradient", "lengths"]
    assert ids(found) == [*learning, "speed", "time", "work", "stalled", "roles", "sessions"]
    words = text(found)
    for wanted in (
        "12 iterations, 15 of at most 30 evaluations, on 3 replicas and 2 shards in simulated time",
        "Converged: the gradient&#x27;s norm 1e-11 is within 1e-05; a narrower sandblaster.tolerance_gradient.",
        "11 kept, 0 of them damped; 1 left out, without curvature",
        "1, where a shard was restarted: 2 iterations done again",
        "157 samples = 10 portions of 16, the last one of 13",
        "3 units of 4 portions, the last one of 2: computed by one replica and pushed at once",
        "3; idle ones compute copies of what takes long",
        "10 pairs of L-BFGS",
        "strong Wolfe, forgives 1e-07 of the loss: finds the length of each step",
        "where the gradient&#x27;s norm is within 1e-05, or nothing gets better; after 30 evaluations at the latest",
        "0.0001 / 2 × the squares of the weights, part of the value",
        "17 evaluations counted each of 157 samples exactly once: 2,669 in all. 2 led to no iteration",
        "All sums are exact",
    ):
        assert wanted in words, wanted
    strict(found)


def test_nothing_is_said_that_only_other_strategies_have(tmp_path: Path) -> None:
    found = page(tmp_path, Minimised(faults=True))
    everything = text(found) + json.dumps(found.to_json()["sections"])
    strange = r"[^\"]*(?i:minibatch|downpour|staleness|epochs? \d|learning rate|rank 0|reduction)[^\"]*"
    recipe = re.sub(r"<details>.*?</details>", "", everything, flags=re.DOTALL)
    assert [word for word in re.findall(strange, recipe) if "epochs = " not in word] == []


def test_plots_count_iterations_and_only_the_cost_is_over_evaluations(tmp_path: Path) -> None:
    made = Minimised()
    found = page(tmp_path, made)
    ends = [sum(tries(at) for at in range(iteration + 1)) for iteration in range(12)]
    for name in ("loss", "metric-accuracy", "gradient", "lengths", "speed", "time"):
        drawn = chart(found, name).figure
        assert drawn["layout"]["xaxis"]["title"]["text"] == "iteration", name
        assert drawn["data"][0]["x"] == [float(at) for at in range(1, 13)], name
    (drawn,) = chart(found, "passes").figure["data"]
    assert drawn["x"] == [float(end) for end in ends]
    assert f"15 evaluations of the batch: 15 passes over {SAMPLES} samples." in chart(found, "passes").caption
    assert chart(found, "lengths").figure["data"][0]["y"] == [length(at) for at in range(12)]
    assert "10 of 12 steps as long as the direction; shortest 0.25" in chart(found, "lengths").caption
    assert "11 of 12 iterations took the first length that was tried, most tried 3" in chart(found, "lengths").caption


def test_the_norm_of_the_gradient_is_drawn_on_a_logarithmic_axis_with_the_tolerance(tmp_path: Path) -> None:
    drawn = chart(page(tmp_path, Minimised()), "gradient")
    norm, tolerance = drawn.figure["data"]
    assert (drawn.log, norm["y"], tolerance["y"]) == ("on", [10.0**-at for at in range(12)], [1e-5, 1e-5])
    assert drawn.caption == "From 1 to 1.000e-11. Dashed: converged at 1e-05."


def test_without_an_accuracy_the_cost_is_that_of_the_loss(tmp_path: Path) -> None:
    path = Minimised().write(tmp_path / "run")
    lines = [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]
    for line in lines:
        for split in ("train", "test"):
            line.get(split, {}).pop("accuracy", None)
    (path / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert chart(document(read(path)), "passes").title == "Loss over evaluations"


def test_rows_and_columns_of_the_portions_add_up(tmp_path: Path) -> None:
    found = page(tmp_path, Minimised(faults=True))
    *replicas, all_ = table(found, "Work of each replica")
    for column in (1, 2, 4):
        assert sum(numbers([row[column] for row in replicas])) == numbers([all_[column]])[0]
    counted, wasted, broken, computed = (numbers(row[1:2])[0] for row in table(found, "Portions"))
    assert (counted, wasted, broken) == (17 * sum(UNITS), UNITS[0], UNITS[1])
    assert counted + wasted + broken == computed == numbers([all_[2]])[0]
    assert sum(chart(found, "work").figure["data"][0]["y"]) == computed


def test_an_evaluation_that_missed_samples_is_told(tmp_path: Path) -> None:
    path = Minimised().write(tmp_path / "run")
    result = json.loads((path / "result.json").read_text())
    (path / "result.json").write_text(json.dumps({**result, "samples": 2000, "inexact": 2}))
    words = text(document(read(path)))
    assert "Not as it must be: 15 evaluations of 157 samples counted 2,000." in words
    assert "In 2 evaluations the sums were not exact" in words


# -- runs that came to no end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            Minimised(until=5, outcome=None),
            [
                "killed",
                "after 5 iterations, 8 of at most 30 evaluations",
                "squall resume",
                "8 evaluations counted each",
            ],
        ),
        (Minimised(until=0, outcome=None), ["killed", "after 0 iterations, 0 of at most 30", "No counts."]),
        (Minimised(until=5, outcome=None, saves=False), ["No counts. The run came to no checkpoint"]),
        (
            Minimised(until=5, outcome=None, engine="ray"),
            ["on 3 replicas and 2 shards</p>", "up to the newest checkpoint"],
        ),
        (Minimised(replicas=1, shards=1, iterations=1), ["1 iteration, 2 of at most 30", "on 1 replica and 1 shard"]),
    ],
)
def test_a_run_that_did_not_finish_is_shown_for_what_it_is(tmp_path: Path, made: Minimised, words: list[str]) -> None:
    found = page(tmp_path, made)
    strict(found)
    said = f"{text(found)} {found.head}"
    assert [word for word in words if word not in said] == []


def test_counts_without_a_result_are_those_of_the_newest_checkpoint(tmp_path: Path) -> None:
    made = Minimised(until=6, outcome=None)
    (run,) = read(made.write(tmp_path / "run"))
    found = counts(run)
    assert found is not None
    assert (found.evaluations, found.portions, found.final) == (9, 9 * sum(UNITS), False)
    assert {share.name: share.minibatches for share in shares(run)} == {
        name: own["portions"] for name, own in made.tally["replicas"].items()
    }
    assert not any("tally" in event for event in run.events)


def test_a_lane_is_faint_from_where_its_replica_was_missed_until_it_is_told_of_again(tmp_path: Path) -> None:
    (run,) = read(Minimised(faults=True).write(tmp_path / "run"))
    found = {lane.name: lane for lane in lanes(run)}
    silent = next(change["seconds"] for change in run.changes if change["change"] == "silent")
    again = min(at for at, name in run.signs if name == "replica-1" and at > silent)
    assert found["replica-1"].spans[0] == Span(0.001, silent)
    assert found["replica-1"].spans[1] == Span(silent, again, heard=False)
    assert all(span.heard for name in ("shard-0", "shard-1", "replica-0") for span in found[name].spans)
    assert "Of the replicas, 1 came back, 1 called silent." in chart(document([run]), "roles").caption


def test_a_checkpoint_s_counts_do_not_bring_a_replica_back_that_has_left() -> None:
    run = RunData(Path("run"), "run", started={"strategy": "sandblaster", "replicas": 1}, ended={"seconds": 10.0})
    run.changes += [
        {"seconds": at, "role": "replica-0", "change": what} for at, what in ((0.0, "joined"), (5.0, "left"))
    ]
    run.signs += [(2.0, "replica-0"), (6.0, "replica-0")]
    (lane,) = lanes(run)
    assert lane.spans == [Span(0.0, 5.0)]


def test_a_reader_sees_iterations_and_counts_as_they_come(tmp_path: Path) -> None:
    made = Minimised(faults=True, outcome=None)
    whole = made.write(tmp_path / "whole")
    run = tmp_path / "run"
    run.mkdir()
    reader = Reader(run)
    names = ("records.jsonl", "sessions.jsonl")
    lines = {name: (whole / name).read_text().splitlines(keepends=True) for name in names}
    for start in range(0, max(map(len, lines.values())), 4):
        for name in names:
            with (run / name).open("a") as file:
                file.writelines(lines[name][start : start + 4])
        strict(document([reader.read()]))
    found, once = reader.read(), Reader(whole).read()
    assert (found.epochs, found.tally, found.signs, found.events) == (once.epochs, once.tally, once.signs, once.events)
    assert (found.steps_done, found.evaluations) == (12, 15)


# -- a real run, and runs of every kind --------------------------------------------------------------------------------


def test_a_real_run_in_simulated_time_makes_a_page_whose_counts_are_the_coordinator_s(tmp_path: Path) -> None:
    job = Job()
    summary = job.run()
    folder = tmp_path / "run"
    folder.mkdir()
    write_lines(folder / "records.jsonl", [Minimised().started(), *job.records])
    (folder / "result.json").write_text(json.dumps({**summary.values, "outcome": "finished"}))
    (run,) = read(folder)
    found = counts(run)
    assert found is not None
    values = summary.values
    assert (found.evaluations, found.portions, found.wasted) == (
        values["evaluations"],
        values["portions"]["counted"],
        values["portions"]["wasted"],
    )
    assert run.steps_done == values["iterations"] == summary.done
    assert found.broken_off == 0
    strict(document([run]))


def test_runs_of_all_strategies_stand_side_by_side(tmp_path: Path) -> None:
    runs = read(
        Made().write(tmp_path / "sync"),
        Replicated().write(tmp_path / "downpour"),
        Minimised().write(tmp_path / "sandblaster"),
        Minimised(until=0, outcome=None).write(tmp_path / "killed"),
    )
    found = document(runs)
    strict(found)
    for name in ("loss", "error", "speed"):
        drawn = chart(found, name).figure
        assert [trace["name"] for trace in drawn["data"]] == ["sync", "downpour", "sandblaster"], name
        assert drawn["layout"]["xaxis"]["title"]["text"] == "epoch"
        assert drawn["data"][-1]["x"][-1] == 15.0  # passes over the training set, not iterations
    assert [trace["name"] for trace in chart(found, "rate").figure["data"]] == ["sync", "downpour"]
    assert "An evaluation of L-BFGS is an epoch" in chart(found, "loss").caption
    assert [row[8:11] for row in table(found, "Runs")][2] == ["15", "sandblaster", "–"]


def test_minimisations_side_by_side_are_drawn_over_evaluations(tmp_path: Path) -> None:
    found = document(read(*(Minimised(seed=seed).write(tmp_path / str(seed)) for seed in range(3))))
    strict(found)
    assert ids(found) == ["loss", "error", "speed", "time"]
    assert chart(found, "loss").figure["layout"]["xaxis"]["title"]["text"] == "evaluation"
    assert "mean over 3 seeds" in chart(found, "error").caption
    assert [word for word in ("staleness", "steps", "epoch:") if word in text(found)] == []


def test_what_files_say_is_shown_letter_by_letter(tmp_path: Path) -> None:
    path = Minimised(name=HOSTILE, called=HOSTILE, faults=True).write(tmp_path / "run")
    result = json.loads((path / "result.json").read_text())
    result["minimum"] = dict.fromkeys(("outcome", "why", "advice"), HOSTILE)
    (path / "result.json").write_text(json.dumps(result))
    found = document(read(path))
    for markup in (found.head, *(block.html for section in found.sections for block in section.blocks)):
        assert "<img" not in markup
        assert "<script" not in markup


def test_ten_thousand_iterations_make_a_small_page(tmp_path: Path) -> None:
    found = page(tmp_path, Minimised(iterations=10_000, saves=False))
    assert len(json.dumps(found.to_json())) < 2_000_000
    strict(found)


@pytest.mark.parametrize("seed", range(40))
def test_no_record_however_strange_stops_a_page(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    paths = [Minimised(seed=n, replicas=n + 1, faults=n > 0).write(tmp_path / f"run{n}") for n in range(3)]
    for path in paths:
        for name in ("records.jsonl", "sessions.jsonl"):
            records = [json.loads(line) for line in (path / name).read_text().splitlines()]
            odd: list[Any] = [junk(record, chance) for record in records]
            if chance.random() < 0.7 and name == "records.jsonl" and isinstance(odd[0], dict):
                odd[0] |= {"kind": "started", "strategy": "sandblaster"}
            (path / name).write_text("".join(json.dumps(record) + "\n" for record in odd))
        result = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps(junk(result, chance)))
        recipe = (path / "recipe.toml").read_text()
        (path / "recipe.toml").write_text(
            re.sub(r"= .+", lambda match: chance.choice([match[0], "= 7", '= "x"', "= []"]), recipe)
        )
    strict(document(read(*paths)))
    for run in read(*paths):
        strict(document([run]))
