"""What a page shows of a run of replicas and shards: counts that add up, lanes that claim no more than is known."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from squall.report import Document, Reader, RunData, document
from squall.report import folder as names
from squall.report.lanes import Mark, Span, lanes
from squall.report.pushes import computed, shares, staleness
from squall.server.disk import FOLDER
from tests.downpours import Job
from tests.fabricated import Made, write_lines
from tests.fabricated_downpour import Replicated
from tests.unit.test_report_pages import HOSTILE, chart, ids, junk, read, strict, text


def page(tmp_path: Path, made: Replicated, name: str = "run") -> Document:
    return document(read(made.write(tmp_path / name)))


class Tables(HTMLParser):
    """The cells of a page's tables by caption, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self._caption, self._place = "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._place = tag if tag in ("caption", "td") else self._place
        if tag == "tr" and self._caption:
            self.found[self._caption].append([])
        if tag == "td":
            self.found[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._place = "" if tag in ("caption", "td") else self._place

    def handle_data(self, data: str) -> None:
        if self._place == "caption":
            self._caption = data
            self.found[data] = []
        elif self._place == "td":
            self.found[self._caption][-1][-1] += data


def table(found: Document, caption: str) -> list[list[str]]:
    tables = Tables()
    tables.feed("".join(block.html for section in found.sections for block in section.blocks))
    return [row for row in tables.found[caption] if row]


def numbers(cells: list[str]) -> list[int]:
    return [int(cell.replace(",", "")) for cell in cells]


def test_a_run_of_replicas_shows_everything(tmp_path: Path) -> None:
    found = page(tmp_path, Replicated(faults=True))
    sections = ["learning", "time", "replicas", "sessions", "arithmetic", "ledger", "environment"]
    assert [section.id for section in found.sections] == sections
    learning = ["loss", "metric-accuracy", "rate", "speed", "time"]
    assert ids(found) == [*learning, "staleness", "pushes", "work", "stalled", "roles", "sessions"]
    words = text(found)
    for wanted in (
        "3 epochs, 120 minibatches, on 4 replicas and 2 shards in simulated time",
        "simulated time",
        "16 of one replica, each an update of its own",
        "4: fetch every minibatch, push every minibatch",
        "637 samples = 40 minibatches, the last one of 13, over all replicas",
        "0.01 at 16; no warm-up; constant",
        "120 of 120 minibatches settled: on each shard each of them applied, dropped or lost.",
        "121 pushes computed, 1 of them of minibatches that another replica settled first",
    ):
        assert wanted in words, wanted
    assert [word for word in ("virtual worker", "rank 0", "process", "exact reduction") if word in words] == []
    roles = chart(found, "roles").caption
    assert "Of the replicas, 1 came back, 1 called silent, 1 not heard of at the end." in roles
    assert "Of the shards, 1 came back, 3 minibatches lost." in roles
    assert "Replicas of equal speed would be 3 stale, R - 1." in chart(found, "staleness").caption
    assert "in 120 pushes of 1,911 samples in all" in chart(found, "loss").caption
    strict(found)


def test_rows_and_columns_of_the_counts_add_up(tmp_path: Path) -> None:
    found = page(tmp_path, Replicated(faults=True))
    *shards, all_ = [numbers(row[1:]) for row in table(found, "Minibatches on each shard")]
    assert all_ == [sum(column) for column in zip(*shards, strict=True)]
    assert shards == [[116, 1, 3, 120, 1], [119, 1, 0, 120, 0]]
    for applied, dropped, lost, total, _ in (*shards, all_):
        assert applied + dropped + lost == total
    *replicas, all_ = table(found, "Work of each replica")
    for column in (1, 2, 4):
        assert sum(numbers([row[column] for row in replicas])) == numbers([all_[column]])[0]
    assert numbers(all_[1:3]) == [121, 121]
    assert sum(float(row[3].removesuffix(" %")) for row in replicas) == pytest.approx(100, abs=0.2)
    words = "121 minibatches = 120 settled + 1 minibatch computed again, by a second replica or after a loss."
    assert words in text(found)


def test_the_histogram_counts_every_answer_once_and_its_mean_is_that_of_a_slow_twin(tmp_path: Path) -> None:
    made = Replicated(faults=True)
    path = made.write(tmp_path / "run")
    records = [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]
    answers = [value for record in records if record["kind"] == "push" for value in record["staleness"]]
    known = [value for value in answers if value >= 0]
    drawn = chart(document(read(path)), "staleness")
    (bars,) = drawn.figure["data"]
    assert dict(zip(bars["x"], bars["y"], strict=True)) == dict(Counter(known))
    assert sum(bars["y"]) == len(known)
    assert f"Mean {sum(known) / len(known):.3g}, median {sorted(known)[(len(known) - 1) // 2]}," in drawn.caption
    assert "at most 6" in drawn.caption


def test_a_wide_histogram_is_binned_and_loses_nothing(tmp_path: Path) -> None:
    made = Replicated(replicas=150, per_epoch=200, shards=1)
    (bars,) = chart(page(tmp_path, made), "staleness").figure["data"]
    assert len(bars["x"]) <= 60
    assert sum(bars["y"]) == 600
    assert bars["text"][0] == "0 – 4"


def test_counts_that_do_not_speak_of_all_pushes_on_record_are_not_used(tmp_path: Path) -> None:
    path = Replicated().write(tmp_path / "run")
    result = json.loads((path / "result.json").read_text())
    result["pushes"] = {"computed": 7, "repeated": 1}
    result["replicas"] = {"replica-0": {"pushes": 7, "minibatches": 7, "samples": 112, "seconds": 1.0, "stalled": 0.0}}
    result["staleness"]["counts"] = {"0": 7}
    (path / "result.json").write_text(json.dumps(result))
    (run,) = read(path)
    assert computed(run) == (120, None)
    words = text(document([run]))
    assert "120 pushes on record." in words
    assert "no minibatch twice" not in words
    assert sum(share.minibatches for share in shares(run)) == 120
    assert staleness(run).known == 240


def test_only_what_was_counted_is_said_of_minibatches_that_were_computed_twice(tmp_path: Path) -> None:
    path = Replicated().write(tmp_path / "run")
    assert "120 pushes computed, no minibatch twice." in text(document(read(path)))
    result = json.loads((path / "result.json").read_text())
    result["minibatches"] |= {"redone": 2, "unreported": 1}
    (path / "result.json").write_text(json.dumps(result))
    words = text(document(read(path)))
    again = "2 minibatches computed again, saved by no session; 1 minibatch on the shards and reported by no session."
    assert f"120 pushes computed; {again}" in words


def test_time_is_told_as_replicas_measure_it(tmp_path: Path) -> None:
    found = page(tmp_path, Replicated())
    assert "Computing: from the hand-over of a push to that of the next, in simulated seconds," in text(found)
    assert chart(found, "stalled").caption.startswith("Computing stood still for fetches, pushes and minibatches ")


# -- lanes -----------------------------------------------------------------------------------------------------------


def told(*events: Any, end: float = 10.0, replicas: int = 1) -> dict[str, Any]:
    """The lanes of a run of these events: (seconds, name) is a push, (seconds, name, change) a change."""
    run = RunData(Path("run"), "run", started={"strategy": "downpour", "shards": 0, "replicas": replicas})
    for at, name, *change in events:
        if change:
            run.changes.append(
                {"seconds": at, "role": name, "change": change[0], "lost": 5 * (change[0] == "restarted")}
            )
        else:
            run.pushes.add(
                {"seconds": at, "replica": name, "minibatches": 1, "samples": 1, "took": 1.0, "stalled": 0.0}
            )
    run.ended = {"seconds": end}
    return {lane.name: lane for lane in lanes(run)}


def test_a_replica_is_not_claimed_to_live_after_it_was_last_heard_of(tmp_path: Path) -> None:
    found = told((0.0, "replica-0", "joined"), (1.0, "replica-0"), (2.0, "replica-0"), (6.0, "replica-0", "silent"))
    assert found["replica-0"].spans == [Span(0.0, 2.0), Span(2.0, 10.0, heard=False)]
    found = told((0.0, "replica-0", "joined"), *((at / 4, "replica-0") for at in range(1, 9)))
    assert found["replica-0"].spans == [Span(0.0, 2.0), Span(2.0, 10.0, heard=False)]  # killed for good, and not missed


def test_a_replica_that_came_back_is_faint_from_its_last_push_to_its_return() -> None:
    events = [
        (0.0, "r-0", "joined"),
        (1.0, "r-0"),
        (4.0, "r-0", "restarted"),
        *((at, "r-0") for at in (6.0, 8.0, 10.0)),
    ]
    found = told(*events)["r-0"]
    assert found.spans == [Span(0.0, 1.0), Span(1.0, 4.0, heard=False), Span(4.0, 10.0)]
    assert found.marks == [Mark(0.0, "joined", 0), Mark(4.0, "restarted", 5)]


def test_a_replica_that_was_only_slow_is_heard_again() -> None:
    found = told((0.0, "r-0", "joined"), (1.0, "r-0"), (4.0, "r-0", "silent"), (7.0, "r-0"), (9.0, "r-0"))["r-0"]
    assert found.spans == [Span(0.0, 1.0), Span(1.0, 7.0, heard=False), Span(7.0, 10.0)]


def test_a_replica_that_left_has_no_lane_from_then_on_and_may_join_again() -> None:
    events = [(0.0, "r-0", "joined"), (2.0, "r-0"), (3.0, "r-0", "left"), (6.0, "r-0", "joined"), (8.0, "r-0")]
    assert told(*events)["r-0"].spans == [Span(0.0, 3.0), Span(6.0, 10.0)]


def test_spans_of_a_lane_follow_each_other_whatever_happens() -> None:
    chance = random.Random(4)
    changes = ("joined", "restarted", "silent", "left")
    for _ in range(300):
        times = sorted(chance.uniform(0, 9) for _ in range(chance.randrange(1, 15)))
        events = [(at, "r-0", *([chance.choice(changes)] * (chance.random() < 0.6))) for at in times]
        spans = told(*events)["r-0"].spans
        assert all(span.start < span.stop <= 10.0 for span in spans)
        assert all(one.stop <= two.start for one, two in pairwise(spans))


# -- a real run, and runs of every kind ------------------------------------------------------------------------------


def test_a_real_run_in_simulated_time_makes_a_page_whose_counts_are_the_coordinator_s(tmp_path: Path) -> None:
    job = Job(replicas=3, shards=2, epochs=3, push_every=2, evaluates=True)
    summary = job.run()
    started = Replicated(replicas=3, shards=2, per_epoch=12).started()
    folder = tmp_path / "run"
    folder.mkdir()
    write_lines(folder / "records.jsonl", [started, *job.records])
    (run,) = read(folder)
    found, counts = staleness(run), summary.values["staleness"]
    assert {str(value): times for value, times in sorted(found.counts.items())} == counts["counts"]
    assert found.mean == pytest.approx(counts["mean"])
    own = {share.name: (share.pushes, share.minibatches, share.samples) for share in shares(run)}
    theirs = summary.values["replicas"]
    assert own == {name: (it["pushes"], it["minibatches"], it["samples"]) for name, it in theirs.items()}
    assert run.steps_done == summary.values["minibatches"]["settled"] == 36
    assert [span.heard for lane in lanes(run) for span in lane.spans] == [True] * 5
    strict(document([run]))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Replicated(until=50, outcome=None), ["killed", "after 50 of 120 minibatches", "squall resume", "1 of 3"]),
        (Replicated(until=0, outcome=None), ["killed", "after 0 of 120 minibatches"]),
        (
            Replicated(until=30, outcome=None, engine="ray"),
            ["on 4 replicas and 2 shards ", "30 minibatches settled by"],
        ),
        (Replicated(replicas=1, shards=1), ["on 1 replica and 1 shard"]),
    ],
)
def test_a_run_that_did_not_finish_is_shown_for_what_it_is(tmp_path: Path, made: Replicated, words: list[str]) -> None:
    found = page(tmp_path, made)
    strict(found)
    assert [word for word in words if word not in text(found)] == []


def test_two_hundred_replicas_and_a_hundred_thousand_pushes_make_a_small_page(tmp_path: Path) -> None:
    found = page(tmp_path, Replicated(replicas=300, shards=8, epochs=5, per_epoch=4000, faults=True))
    assert len(json.dumps(found.to_json())) < 1_500_000
    roles = chart(found, "roles")
    assert "58 replicas of which there is nothing to tell are left out" in roles.caption
    assert max(y for trace in roles.figure["data"] for y in trace["y"] if y is not None) < 250
    strict(found)


def test_runs_of_both_strategies_stand_side_by_side(tmp_path: Path) -> None:
    runs = read(
        Made().write(tmp_path / "sync"),
        Replicated(faults=True).write(tmp_path / "downpour"),
        Replicated(engine="ray", until=30, outcome=None).write(tmp_path / "killed"),
    )
    found = document(runs)
    strict(found)
    assert ids(found) == ["loss", "error", "rate", "speed", "time"]
    for name in ("loss", "error", "rate", "speed"):
        named = [trace["name"] for trace in chart(found, name).figure["data"]]
        assert named[:2] == ["sync", "downpour"], name
    head, *_ = table(found, "Runs")
    assert [row[5] for row in table(found, "Runs")] == ["2", "4 replicas", "4 replicas"]
    assert head[9:11] == ["sync", "–"]
    assert len(head) == 12
    assert chart(found, "loss").caption.endswith("each run's steps or pushes.")
    assert chart(found, "time").caption.startswith("On rank 0 or of all replicas, over all epochs.")
    assert "some of it simulated" in text(found)


def test_runs_of_one_strategy_say_nothing_of_the_other(tmp_path: Path) -> None:
    words = text(document(read(*(Made(seed=seed).write(tmp_path / str(seed)) for seed in range(2)))))
    assert [word for word in ("strategy", "staleness", "replica", "simulated") if word in words] == []


def test_what_files_say_of_replicas_is_shown_letter_by_letter(tmp_path: Path) -> None:
    found = page(tmp_path, Replicated(name=HOSTILE, called=HOSTILE, faults=True))
    for block in (block for section in found.sections for block in section.blocks):
        assert "<img" not in block.html
        assert "<script" not in block.html
    for drawn in found.charts:
        labels = [label for trace in drawn.figure["data"] for label in (trace["name"], *trace.get("text", []))]
        labels += drawn.figure["layout"]["yaxis"].get("ticktext", []) + drawn.figure["layout"]["xaxis"].get(
            "ticktext", []
        )
        assert [label for label in labels if "<" in label] == []


@pytest.mark.parametrize("seed", range(40))
def test_no_record_however_strange_stops_a_page(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    paths = [
        Replicated(seed=n, replicas=n + 1, per_epoch=8, faults=n > 0).write(tmp_path / f"run{n}") for n in range(3)
    ]
    for path in paths:
        for name in ("records.jsonl", "sessions.jsonl"):
            records = [json.loads(line) for line in (path / name).read_text().splitlines()]
            (path / name).write_text("".join(json.dumps(junk(record, chance)) + "\n" for record in records))
        result = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps(junk(result, chance)))
        recipe = (path / "recipe.toml").read_text()
        odd = re.sub(r"= .+", lambda match: chance.choice([match[0], "= 7", '= "x"', "= []"]), recipe)
        (path / "recipe.toml").write_text(odd)
    strict(document(read(*paths)))
    for run in read(*paths):
        strict(document([run]))


def test_a_reader_sees_pushes_and_changes_as_they_come(tmp_path: Path) -> None:
    whole = Replicated(faults=True, outcome=None).write(tmp_path / "whole")
    lines = (whole / "records.jsonl").read_text().splitlines(keepends=True)
    run = tmp_path / "run"
    run.mkdir()
    reader = Reader(run)
    for start in range(0, len(lines), 29):
        with (run / "records.jsonl").open("a") as file:
            file.writelines(lines[start : start + 29])
        found = reader.read()
    once = Reader(whole).read()
    assert list(found.pushes.seconds) == list(once.pushes.seconds)
    assert found.pushes.staleness == once.pushes.staleness
    assert (len(found.changes), found.steps_done) == (7, 120)
    assert list(found.steps.loss) == list(once.steps.loss)


def test_the_folder_of_snapshots_is_named_once() -> None:
    assert names.SNAPSHOTS == FOLDER
