"""The page of a minimisation in a real browser: drawn, readable at both widths, light and dark, and following it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from squall.records import Saved
from squall.report import Reader, document, html
from tests.browser.chromium import chromium, show
from tests.browser.test_report_page import MARKS, STICKS_OUT, complaints, followed, open_, until
from tests.fabricated import Made, write_lines
from tests.fabricated_downpour import Replicated
from tests.fabricated_sandblaster import Minimised
from tests.unit.test_report_pages import HOSTILE

KINDS = {
    "finished": [Minimised(faults=True)],
    "many": [Minimised(replicas=200, shards=8, iterations=300, budget=400, faults=True)],
    "killed": [Minimised(until=4, outcome=None, engine="ray")],
    "hostile": [Minimised(name=HOSTILE, called=HOSTILE, faults=True)],
    "several": [Minimised(faults=True), Replicated(), Made()],
}

COLOURS = """
const of = (name, what) => getComputedStyle(document.querySelector(`[data-block='${name}'] .plot ${what}`)).stroke;
const line = (at) => `.scatterlayer .trace:nth-child(${at}) path.js-line`;
return { value: of("loss", line(1)), test: of("loss", line(2)), tolerance: of("gradient", line(2)) };
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


def test_lines_have_other_colours_in_the_dark_and_the_norm_a_logarithmic_axis(browser: Any, tmp_path: Path) -> None:
    show(browser, scheme="light")
    open_(browser, page_of("finished", tmp_path).as_uri())
    light = browser.execute_script(COLOURS)
    assert len(set(light.values())) == 3
    norm = "return document.querySelector('[data-block=gradient] .plot')._fullLayout.yaxis.type;"
    assert browser.execute_script(norm) == "log"
    show(browser, scheme="dark")
    until(browser, lambda: not set(browser.execute_script(COLOURS).values()) & set(light.values()))
    show(browser, scheme="light")


def test_a_page_follows_iterations_and_the_counts_of_checkpoints(browser: Any, tmp_path: Path) -> None:
    made = Minimised(faults=True, outcome=None)
    records = made.records()
    rest = [record for record in records if not isinstance(record, Saved)]
    events = made.events(records)
    run = tmp_path / "run"
    run.mkdir()
    write_lines(run / "records.jsonl", rest[:6])
    write_lines(run / "sessions.jsonl", events[:3])
    data = "return document.querySelector('[data-block={}] .plot').data[0].{};"
    with followed(browser, run):
        assert browser.execute_script(data.format("gradient", "x")) == [1, 2]
        assert sum(browser.execute_script(data.format("work", "y"))) == 30
        write_lines(run / "records.jsonl", rest[6:])
        write_lines(run / "sessions.jsonl", events[3:])
        until(browser, lambda: len(browser.execute_script(data.format("gradient", "x"))) == 12)
        until(browser, lambda: sum(browser.execute_script(data.format("work", "y"))) == 178)
        assert complaints(browser) == []
