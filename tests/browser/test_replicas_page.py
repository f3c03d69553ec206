"""The page of a run of replicas and shards in a real browser: drawn, readable at both widths, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from squall.report import Reader, document, html
from tests.browser.chromium import chromium, show
from tests.browser.test_report_page import MARKS, STICKS_OUT, complaints, followed, open_, until
from tests.fabricated import Made, write_lines
from tests.fabricated_downpour import Replicated
from tests.unit.test_report_pages import HOSTILE

KINDS = {
    "finished": [Replicated(faults=True)],
    "many": [Replicated(replicas=200, shards=8, per_epoch=2000, faults=True)],
    "alone": [Replicated(replicas=1, shards=1)],
    "killed": [Replicated(until=30, outcome=None, engine="ray")],
    "hostile": [Replicated(name=HOSTILE, called=HOSTILE, faults=True)],
    "several": [Replicated(faults=True), Replicated(engine="ray", seed=1), Made()],
}

# Names of roles and numbers of replicas: each with the box that it fills, which no other may touch.
TICKS = """
return [...document.querySelectorAll(`[data-block='${arguments[0]}'] .plot ${arguments[1]} text`)].map((text) => {
  const box = text.getBoundingClientRect();
  return [box.left, box.right, box.top, box.bottom];
});
"""

COLOURS = """
const of = (name, what, key) => getComputedStyle(document.querySelector(`[data-block='${name}'] .plot ${what}`))[key];
return {
  shard: of("roles", ".scatterlayer .trace:nth-child(1) path.js-line", "stroke"),
  replica: of("roles", ".scatterlayer .trace:nth-child(2) path.js-line", "stroke"),
  bar: of("staleness", ".bars path", "fill"), mean: of("staleness", ".shapelayer path", "stroke"),
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser")) as found:
        yield found


def page_of(kind: str, folder: Path) -> Path:
    paths = [made.write(folder / f"run{at}") for at, made in enumerate(KINDS[kind])]
    path = folder / f"{kind}.html"
    path.write_text(html(document([Reader(path).read() for path in paths])))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_plot_is_drawn_nothing_sticks_out_and_nothing_is_complained_of(
    browser: Any, tmp_path: Path, kind: str
) -> None:
    page = page_of(kind, tmp_path)
    for width in (400, 1400):
        show(browser, width=width)
        open_(browser, page.as_uri())
        plots = browser.execute_script(MARKS)
        assert len(plots) >= 5
        assert [plot for plot in plots if plot[1] == 0 or min(plot[2:]) < 60] == []
        assert browser.execute_script(STICKS_OUT) == []
        assert complaints(browser) == []


@pytest.mark.parametrize("kind", ["finished", "many"])
@pytest.mark.parametrize(("plot", "axis"), [("roles", ".ytick"), ("work", ".xtick"), ("staleness", ".xtick")])
def test_names_below_and_beside_plots_do_not_touch(
    browser: Any, tmp_path: Path, kind: str, plot: str, axis: str
) -> None:
    page = page_of(kind, tmp_path)
    for width in (400, 1400):
        show(browser, width=width)
        open_(browser, page.as_uri())
        boxes = browser.execute_script(TICKS, plot, axis)
        assert len(boxes) >= 3
        apart = [
            one[1] <= two[0] or two[1] <= one[0] or one[3] <= two[2] + 3 or two[3] <= one[2] + 3
            for at, one in enumerate(boxes)
            for two in boxes[:at]
        ]
        assert all(apart)


def test_lanes_and_bars_have_other_colours_in_the_dark(browser: Any, tmp_path: Path) -> None:
    show(browser, scheme="light")
    open_(browser, page_of("finished", tmp_path).as_uri())
    light = browser.execute_script(COLOURS)
    assert len({light["shard"], light["replica"], light["mean"]}) == 3
    show(browser, scheme="dark")
    until(browser, lambda: not set(browser.execute_script(COLOURS).values()) & set(light.values()))
    show(browser, scheme="light")


def test_plots_over_the_run_s_clock_zoom_together_and_not_with_those_over_epochs(browser: Any, tmp_path: Path) -> None:
    show(browser)
    open_(browser, page_of("finished", tmp_path).as_uri())
    plot = "document.querySelector(`[data-block=${name}] .plot`)"
    ranges = f"return ['roles', 'pushes', 'loss'].map((name) => {plot}._fullLayout.xaxis.range);"
    loss = browser.execute_script(ranges)[2]
    as_dragged = "{'xaxis.range[0]': 2, 'xaxis.range[1]': 4}"
    browser.execute_script(f"const name = 'roles'; Plotly.relayout({plot}, {as_dragged});")
    until(browser, lambda: browser.execute_script(ranges) == [[2, 4], [2, 4], loss])
    assert complaints(browser) == []


def test_a_page_follows_replicas_as_they_push_and_come_back(browser: Any, tmp_path: Path) -> None:
    records = Replicated(faults=True, outcome=None).records()
    run = tmp_path / "run"
    run.mkdir()
    write_lines(run / "records.jsonl", records[:18])
    traces = "return document.querySelector('[data-block=roles] .plot').data.map((trace) => trace.name);"
    with followed(browser, run):
        assert browser.execute_script(traces) == ["shard", "replica, heard of"]
        write_lines(run / "records.jsonl", records[18:])
        gone = ["replica, not heard of", "came back", "called silent"]
        until(browser, lambda: browser.execute_script(traces) == ["shard", "replica, heard of", *gone])
        pushes = "return document.querySelector('[data-block=work] .plot').data[0].y.reduce((a, b) => a + b);"
        assert browser.execute_script(pushes) == 120
        assert complaints(browser) == []
