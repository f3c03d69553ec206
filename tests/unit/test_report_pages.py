"""What a page shows of runs of every kind; and that nothing in a run's files can break it, or break out of it."""

from __future__ import annotations

import json
import math
import random
import re
import statistics
import sys
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from squall.errors import MissingExtraError
from squall.records import Logged
from squall.report import Document, Reader, RunData, document, html, page
from squall.report.groups import groups, mean_and_std, same_weights, scaling
from squall.report.work import slowest
from tests.fabricated import Made, sessions, write_lines

ROOT = Path(__file__).resolve().parents[2]


def read(*folders: Path) -> list[RunData]:
    return [Reader(folder).read() for folder in folders]


def of(tmp_path: Path, made: Made, name: str = "run") -> Document:
    return document(read(made.write(tmp_path / name)))


def ids(found: Document) -> list[str]:
    return [chart.id for chart in found.charts]


def text(found: Document) -> str:
    """The words of a page without its markup."""
    parts = [found.head, *(block.html for section in found.sections for block in section.blocks)]
    return " ".join(re.sub(r"<[^>]*>", " ", part) for part in parts)


def chart(found: Document, name: str) -> Any:
    return next(chart for chart in found.charts if chart.id == name)


def strict(found: Document) -> dict[str, Any]:
    """Its JSON; fails if it holds nan or infinity."""
    values: dict[str, Any] = json.loads(json.dumps(found.to_json(), allow_nan=False))
    return values


# -- one run ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_shows_everything(tmp_path: Path) -> None:
    path = Made(processes=3, slow=(1, 1.6), notes=("something was left out",)).write(tmp_path / "run")
    write_lines(path / "sessions.jsonl", sessions())
    found = document(read(path))
    names = ["learning", "time", "ranks", "sessions", "arithmetic", "ledger", "notes", "environment"]
    assert [section.id for section in found.sections] == names
    assert ids(found) == ["loss", "metric-accuracy", "rate", "speed", "time", "ranks", "sessions"]
    words = text(found)
    result = json.loads((path / "result.json").read_text())
    for wanted in (
        "finished",
        f"{100 * (1 - result['test_accuracy']):.2f} %",
        result["weights_sha256"],
        "4 → 2 → 3 processes",
        "128 = 8 virtual workers × 16",
        "1,437 samples = 12 steps, the last one of 29",
        "72 in 6 epochs",
        "0.1 at 128; no warm-up; cosine to 0 over 6 epochs",
        "each of 1,437 seen exactly 6 times",
        "b15ba89db798b048",
        "avx512_bf16",
        "2.13.0+cpu",
        "c6100a5e50d2",
        "No space left on device",
        "SIGTERM: saved at step 53",
        "Training stood still for",
        "something was left out",
    ):
        assert wanted in words, wanted
    assert "Rank 1 is the slowest of 3" in chart(found, "ranks").caption
    assert "3 sessions, 2 restarts, 5 checkpoints, 1 failed" in chart(found, "sessions").caption
    assert not found.running
    strict(found)


def test_the_parts_of_the_time_add_up(tmp_path: Path) -> None:
    found = chart(of(tmp_path, Made()), "time")
    assert [trace["name"] for trace in found.figure["data"]] == [
        "data",
        "compute",
        "communication",
        "wait",
        "save",
        "evaluation",
    ]
    shares = [float(share) for share in re.findall(r"([\d.]+) %", found.caption)]
    assert sum(shares) == pytest.approx(100, abs=0.4)


def test_the_first_epochs_throughput_is_that_of_training_without_the_evaluation_between_them(tmp_path: Path) -> None:
    path = Made(until=1, steps_more=5, outcome=None).write(tmp_path / "run")
    lines = [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]
    at = next(i for i, record in enumerate(lines) if record["kind"] == "epoch")
    lines[at]["evaluation"] += 60.0
    for record in lines[at:]:
        record["seconds"] += 60.0
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    fast, measured = (chart(document(read(folder)), "speed").figure["data"][0]["y"] for folder in (path, slow))
    assert measured == pytest.approx(fast, rel=1e-3)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Made(until=3, steps_more=5, outcome=None), ["killed", "after 41 of 72 steps", "squall resume", "3 of 6"]),
        (
            Made(until=2, steps_more=9, outcome="diverged", error="the loss is nan in step 32"),
            ["diverged", "in step 32", "The loss is nan in step 32.", "No ledger"],
        ),
        (Made(until=2, outcome="failed", error="rank 1 was lost"), ["failed", "Rank 1 was lost."]),
        (Made(until=0, steps_more=9, outcome=None), ["killed", "training loss", "0 of 6"]),
        (Made(until=0, outcome=None), ["killed", "after 0 of 72 steps"]),
    ],
)
def test_a_run_that_did_not_finish_is_shown_for_what_it_is(tmp_path: Path, made: Made, words: list[str]) -> None:
    found = of(tmp_path, made)
    strict(found)
    assert [word for word in words if word not in text(found)] == []


def test_a_diverged_loss_is_marked_and_drawn_on_a_logarithmic_axis(tmp_path: Path) -> None:
    found = chart(of(tmp_path, Made(until=2, steps_more=9, outcome="diverged", error="nan")), "loss")
    assert found.log == "on"
    assert [words["text"] for words in found.figure["layout"]["annotations"]] == ["diverged"]


def test_a_hundred_thousand_steps_make_a_small_page(tmp_path: Path) -> None:
    found = of(tmp_path, Made(epochs=90, per_epoch=1112, processes=16))
    assert len(json.dumps(found.to_json())) < 300_000
    assert max(len(trace["x"]) for drawn in found.charts for trace in drawn.figure["data"]) < 2000
    assert "100,080 steps" in chart(found, "loss").caption


def test_an_empty_folder_of_records_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    found = document(read(tmp_path))
    assert "killed" in text(found)
    strict(found)


def test_own_metrics_and_logged_values_are_drawn_and_counted_where_there_are_too_many(tmp_path: Path) -> None:
    path = Made(outcome=None).write(tmp_path / "run")
    values = {f"value{n}": float(n) for n in range(30)}
    write_lines(path / "records.jsonl", [Logged(step, 0, {**values, "odd": math.nan}) for step in range(0, 72, 12)])
    found = document(read(path))
    assert "logged-value1" in ids(found)
    assert "logged-odd" not in ids(found)
    assert "7 more metrics stand in records.jsonl" in text(found)


def test_the_slowest_rank_is_the_one_with_the_greatest_mean_ratio() -> None:
    assert slowest([(1.0, [1.0, 1.0, 2.0]), (2.0, [1.0, 1.0, 1.5])]) == (2, 2.0, 1.0)
    assert slowest([(1.0, [1.0, 3.0]), (2.0, [1.0])])[0] == 1
    assert slowest([(1.0, [math.nan, math.nan])]) == (0, 1.0, 1.0)


# -- several ---------------------------------------------------------------------------------------------------------


def seeds(tmp_path: Path, count: int = 4, **more: Any) -> list[Path]:
    return [Made(seed=seed, **more).write(tmp_path / f"seed{seed}") for seed in range(count)]


def test_mean_and_spread_over_seeds_are_those_of_the_textbook(tmp_path: Path) -> None:
    runs = read(*seeds(tmp_path), Made(lr=0.2).write(tmp_path / "other"))
    errors = [100 * (1 - run.result["test_accuracy"]) for run in runs[:4]]
    found = document(runs)
    assert f"{statistics.fmean(errors):.2f} ± {statistics.stdev(errors):.2f} %" in text(found)
    assert "lr.base" in text(found)
    assert [group.label for group in groups(runs)] == ["lr.base=0.1", "lr.base=0.2"]
    names = [trace["name"] for trace in chart(found, "error").figure["data"]]
    assert "lr.base=0.1, mean of 4" in names
    assert "lr.base=0.1, ± std" in names


def test_two_runs_have_no_spread_and_a_seed_counts_once(tmp_path: Path) -> None:
    assert mean_and_std([1.0, 2.0]) is None
    assert mean_and_std([1.0, 2.0, math.nan]) is None
    assert mean_and_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    again = [Made(seed=seed, processes=p).write(tmp_path / f"{seed}-{p}") for seed in (0, 1) for p in (1, 2)]
    (group,) = groups(read(*again))
    assert [run.label for run in group.seeds] == ["0-1", "1-1"]
    assert "seeds" not in [section.id for section in document(read(*again)).sections]


def test_scaling_efficiency_is_speed_over_the_ideal_from_the_least(tmp_path: Path) -> None:
    runs = read(*(Made(processes=p).write(tmp_path / f"p{p}") for p in (2, 4, 8)))
    (group,) = groups(runs)
    speeds = [run.result["samples_per_second"] for run in runs]
    assert scaling(group) == [
        (2, speeds[0], 1.0),
        (4, speeds[1], pytest.approx(speeds[1] / (2 * speeds[0]))),
        (8, speeds[2], pytest.approx(speeds[2] / (4 * speeds[0]))),
    ]
    found = document(runs)
    assert {"scaling", "efficiency"} <= set(ids(found))
    ideal, measured = chart(found, "scaling").figure["data"]
    assert ideal["y"] == pytest.approx([speeds[0], 2 * speeds[0], 4 * speeds[0]], rel=1e-3)
    assert measured["y"] == pytest.approx(speeds, rel=1e-3)


def test_a_run_whose_processes_changed_does_not_count_for_scaling(tmp_path: Path) -> None:
    one, two = (Made(processes=p).write(tmp_path / f"p{p}") for p in (2, 4))
    write_lines(two / "sessions.jsonl", sessions())
    (group,) = groups(read(one, two))
    assert scaling(group) == []


def test_runs_with_the_same_bits_are_named(tmp_path: Path) -> None:
    paths = [*seeds(tmp_path, 2), Made(seed=0, processes=4).write(tmp_path / "again")]
    runs = read(*paths)
    assert [[run.label for run in some] for some in same_weights(runs)] == [["seed0", "again"]]
    assert "Bit for bit the same weights" in text(document(runs))


def test_runs_of_every_state_and_of_own_loops_stand_side_by_side(tmp_path: Path) -> None:
    paths = seeds(tmp_path, 2)
    paths.append(Made(until=2, steps_more=9, outcome="diverged", error="nan").write(tmp_path / "diverged"))
    paths.append(Made(until=0, outcome=None).write(tmp_path / "begun"))
    paths.append(Made(until=3, outcome=None).write(tmp_path / "own"))
    (paths[-1] / "recipe.toml").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "records.jsonl").touch()
    found = document(read(*paths, tmp_path / "empty"))
    assert [word for word in ("finished", "diverged", "killed") if word not in text(found)] == []
    strict(found)


def test_a_run_that_tells_no_versions_does_not_make_them_differ(tmp_path: Path) -> None:
    killed = Made(until=3, outcome=None, seed=1).write(tmp_path / "killed")
    assert "differs:" not in text(document(read(*seeds(tmp_path, 1), killed)))
    other = Made(seed=2)
    other.result = {"versions": {"torch": "3.0"}}
    assert "differs: 2.13.0+cpu; 3.0" in text(document(read(*seeds(tmp_path / "more", 1), other.write(tmp_path / "o"))))


def test_thirty_runs_have_colours_and_no_endless_list_of_names(tmp_path: Path) -> None:
    found = document(read(*seeds(tmp_path, 30, epochs=2, per_epoch=3)))
    assert chart(found, "loss").figure["layout"]["showlegend"] is False
    strict(found)


# -- nothing breaks out ----------------------------------------------------------------------------------------------

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<b>"


class Tags(HTMLParser):
    """Elements and attributes that a page really has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def hostile(tmp_path: Path) -> list[Path]:
    made = Made(name=HOSTILE, notes=(HOSTILE,), until=2, outcome="failed", error=HOSTILE)
    made.result = {"weights_sha256": HOSTILE, "versions": {HOSTILE: HOSTILE}, "commit": HOSTILE}
    one = made.write(tmp_path / "<script>alert(3)<")
    write_lines(one / "records.jsonl", [Logged(1, 0, {HOSTILE: 1.0})])
    (one / "run.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    for record in sessions():
        values = {
            key: HOSTILE if isinstance(item, str) and key != "kind" else item for key, item in vars(record).items()
        }
        with (one / "sessions.jsonl").open("a") as file:
            file.write(json.dumps({"kind": record.kind, **values}) + "\n")
    return [one, Made(name=HOSTILE, seed=1).write(tmp_path / "two"), Made(name=HOSTILE).write(tmp_path / "three")]


def test_what_files_say_is_shown_letter_by_letter_and_never_obeyed(tmp_path: Path) -> None:
    folders = hostile(tmp_path)
    for found in (document(read(folders[0])), document(read(*folders))):
        whole = html(found)
        before = whole.partition('<script type="application/json"')[0]
        tags = Tags()
        tags.feed(before)
        assert {tag for tag, _ in tags.found} & {"script", "img", "iframe", "b"} == set()
        assert [attrs for _, attrs in tags.found if any(name.startswith("on") for name in attrs)] == []
        assert whole.count("</script>") == 3
        embedded = whole.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
        assert "<" not in embedded
        assert json.loads(embedded) == strict(found)
        for drawn in found.charts:
            labels = [trace["name"] for trace in drawn.figure["data"]]
            labels += [label for trace in drawn.figure["data"] for label in trace.get("text", [])]
            assert [label for label in labels if "<" in label] == []


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    found = of(tmp_path, Made())
    whole = html(found)
    tags = Tags()
    tags.feed(whole.partition("<script>")[0])
    links = [value for _, attrs in tags.found for name, value in attrs.items() if name in ("src", "href")]
    assert [link for link in links if link is None or not link.startswith(("#", "data:"))] == []
    assert "@import" not in whole
    assert "url(" not in whole.partition("</style>")[0]
    policy = next(attrs["content"] or "" for _, attrs in tags.found if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    assert '<html lang="en">' in whole
    assert "connect-src 'self'" in html(found, live=True)


def junk(values: Any, chance: random.Random) -> Any:
    """The values with some of them replaced by what no run writes."""
    odd: list[Any] = [None, [], {}, "x", -1, 0, 1e308, "inf", "nan", True, [None], {"a": []}, 10**30, HOSTILE]
    if chance.random() < 0.12:
        return chance.choice(odd)
    if isinstance(values, dict):
        return {key: item if key == "kind" else junk(item, chance) for key, item in values.items()}
    return [junk(item, chance) for item in values] if isinstance(values, list) else values


@pytest.mark.parametrize("seed", range(40))
def test_no_record_however_strange_stops_a_page(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    paths = [Made(seed=n, processes=n + 1, per_epoch=4).write(tmp_path / f"run{n}") for n in range(3)]
    for path in paths:
        write_lines(path / "sessions.jsonl", sessions())
        for name in ("records.jsonl", "sessions.jsonl"):
            records = [json.loads(line) for line in (path / name).read_text().splitlines()]
            (path / name).write_text("".join(json.dumps(junk(record, chance)) + "\n" for record in records))
        result = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps(junk(result, chance)))
        recipe = (path / "recipe.toml").read_text()
        (path / "recipe.toml").write_text(
            re.sub(r"= .+", lambda m: chance.choice([m[0], "= 7", '= "x"', "= []"]), recipe)
        )
    strict(document(read(*paths)))
    for run in read(*paths):
        strict(document([run]))


# -- its parts -------------------------------------------------------------------------------------------------------


def test_without_plotly_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = of(tmp_path, Made())
    page.plotly_script.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'squall-train\[report\]'"):
        html(found)


def test_the_wheel_takes_style_and_script_along() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    taken = settings["tool"]["setuptools"]["package-data"]["squall"]
    package = ROOT / "src" / "squall"
    others = [
        path for path in (package / "report").iterdir() if path.suffix not in (".py", "") or path.name == "py.typed"
    ]
    assert {path.name for path in others} == {"page.css", "page.js"}
    assert all(any(fnmatch(str(path.relative_to(package)), form) for form in taken) for path in others)
    assert any(line.startswith("plotly") for line in settings["project"]["optional-dependencies"]["report"])
