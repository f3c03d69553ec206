"""The report in a real browser: drawn, readable at both widths, light and dark, silent, and following a job."""

from __future__ import annotations

import fcntl
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from squall.records import EpochEnded, Record, Stepped
from squall.report import Live, Reader, document, html
from tests.browser.chromium import chromium, show
from tests.fabricated import Made, sessions, write_lines
from tests.unit.test_report_pages import hostile

WAIT_S = 30
PLOTS = "[...document.querySelectorAll('.chart > .plot')]"
DRAWN = f"const plots = {PLOTS}; return plots.length > 0 && plots.every((plot) => plot.dataset.drawn);"

# Per plot: how many marks it has, and the size of what holds them.
MARKS = """
return [...document.querySelectorAll('figure.chart')].map((figure) => {
  const marks = [...figure.querySelectorAll('.plot .overplot path')].filter((path) => {
    const box = path.getBoundingClientRect();
    return (path.getAttribute('d') || '').length > 4 && box.width + box.height > 0;
  });
  const area = figure.querySelector('.plot svg.main-svg').getBoundingClientRect();
  return [figure.dataset.block, marks.length, area.width, area.height];
});
"""

# Whatever sticks out of the window, but for what lies in a box that scrolls.
STICKS_OUT = """
const wide = document.documentElement.clientWidth;
return [...document.querySelectorAll('header, header *, main, main *, footer, footer *')].filter((x) => {
  const box = x.getBoundingClientRect();
  const hidden = x.closest('.unseen, .skip, .plot') || (x.closest('.scroll, pre') && !x.matches('.scroll, pre'));
  return !hidden && box.width > 0 && (box.right > wide + 0.5 || box.left < -0.5);
}).map((x) => x.outerHTML.slice(0, 80));
"""

COLOURS = """
const of = (x, key) => x && getComputedStyle(x)[key];
const first = document.querySelector('.plot');
return {
  page: of(document.body, 'backgroundColor'), ink: of(document.body, 'color'),
  card: of(document.querySelector('.chart'), 'backgroundColor'), table: of(document.querySelector('th'), 'color'),
  line: of(first.querySelector('.scatterlayer path.js-line'), 'stroke'),
  tick: of(first.querySelector('.xtick text'), 'fill'),
  key: of(document.querySelector('.keys button'), 'color'),
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser")) as found:
        yield found


def open_(browser: Any, url: str) -> None:
    browser.get(url)
    until(browser, lambda: browser.execute_script(DRAWN))


def until(browser: Any, holds: Callable[[], Any]) -> None:
    WebDriverWait(browser, WAIT_S, poll_frequency=0.05).until(lambda _: holds())


def words(browser: Any, selector: str) -> str:
    """What an element says now; it may have been replaced just before."""
    return str(browser.execute_script("return document.querySelector(arguments[0]).textContent;", selector))


def complaints(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def page_of(kind: str, folder: Path) -> Path:
    """The page of a run, or of runs, of a kind."""
    paths: list[Path] = []
    if kind == "finished":
        paths.append(Made(processes=3, slow=(1, 1.6), notes=("a note",)).write(folder / "finished"))
        write_lines(paths[0] / "sessions.jsonl", sessions())
    elif kind == "killed":
        paths.append(Made(until=1, steps_more=5, outcome=None).write(folder / "killed"))
    elif kind == "diverged":
        paths.append(
            Made(until=2, steps_more=9, outcome="diverged", error="the loss is nan").write(folder / "diverged")
        )
    elif kind == "long":
        paths.append(Made(epochs=90, per_epoch=1112, processes=24, slow=(17, 1.4)).write(folder / "long"))
    elif kind == "several":
        paths += [Made(seed=seed).write(folder / f"seed{seed}") for seed in range(3)]
        paths += [Made(processes=p).write(folder / f"p{p}") for p in (1, 4, 8)]
        paths.append(Made(until=2, outcome=None).write(folder / ("a-very-long-name-" * 6)))
    else:
        paths += hostile(folder)[: 1 if kind == "hostile" else 3]
    path = folder / f"{kind}.html"
    path.write_text(html(document([Reader(path).read() for path in paths])))
    return path


@pytest.mark.parametrize("kind", ["finished", "killed", "diverged", "long", "several", "hostile", "hostile-several"])
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
        wide = "const root = document.documentElement; return [root.scrollWidth - root.clientWidth, innerWidth];"
        assert browser.execute_script(wide) == [0, width]
        assert browser.execute_script(STICKS_OUT) == []
        assert complaints(browser) == []


def test_colours_are_others_in_the_dark_and_change_while_the_page_is_open(browser: Any, tmp_path: Path) -> None:
    show(browser, scheme="light")
    open_(browser, page_of("finished", tmp_path).as_uri())
    light = browser.execute_script(COLOURS)
    assert None not in light.values()
    show(browser, scheme="dark")
    until(browser, lambda: browser.execute_script(COLOURS)["tick"] != light["tick"])
    dark = browser.execute_script(COLOURS)
    assert [name for name in light if light[name] == dark[name]] == []
    show(browser, scheme="light")
    until(browser, lambda: browser.execute_script(COLOURS) == light)
    assert complaints(browser) == []


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2.2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_lines_stand_out_from_what_they_stand_on(browser: Any, tmp_path: Path, scheme: str) -> None:
    show(browser, scheme=scheme)
    open_(browser, page_of("finished", tmp_path).as_uri())
    found = browser.execute_script(COLOURS)

    def contrast(one: str, other: str) -> float:
        high, low = sorted((luminance(found[one]), luminance(found[other])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert contrast("ink", "page") > 7
    assert min(contrast(words, "card") for words in ("table", "tick", "key")) > 4.5
    assert contrast("line", "card") > 3


def test_a_reader_can_take_a_line_away_everywhere_and_change_the_axis(browser: Any, tmp_path: Path) -> None:
    show(browser)
    open_(browser, page_of("finished", tmp_path).as_uri())
    shown = f"return {PLOTS}.map((plot) => plot.data.filter((trace) => trace.visible !== false).length);"
    before = browser.execute_script(shown)
    key = "[data-block='loss'] .keys button[data-name='test']"
    browser.find_element(By.CSS_SELECTOR, key).click()
    until(browser, lambda: sum(browser.execute_script(shown)) == sum(before) - 2)  # of the losses and of the errors
    assert browser.find_element(By.CSS_SELECTOR, key).get_attribute("aria-pressed") == "false"
    browser.find_element(By.CSS_SELECTOR, key).click()
    until(browser, lambda: browser.execute_script(shown) == before)
    axis = "return document.querySelector(\"[data-block='loss'] .plot\")._fullLayout.yaxis.type;"
    assert browser.execute_script(axis) == "linear"
    browser.find_element(By.CSS_SELECTOR, "[data-block='loss'] button[data-do='log']").click()
    until(browser, lambda: browser.execute_script(axis) == "log")
    assert complaints(browser) == []


def test_charts_over_the_training_zoom_together(browser: Any, tmp_path: Path) -> None:
    show(browser)
    open_(browser, page_of("finished", tmp_path).as_uri())
    as_dragged = "{'xaxis.range[0]': 2, 'xaxis.range[1]': 4}"
    browser.execute_script(f"Plotly.relayout(document.querySelector('[data-block=rate] .plot'), {as_dragged});")
    ranges = f"return {PLOTS}.map((plot) => plot._fullLayout.xaxis.range);"
    until(browser, lambda: all(found == [2, 4] for found in browser.execute_script(ranges)))
    assert complaints(browser) == []


def test_a_reader_who_cannot_see_is_told(browser: Any, tmp_path: Path) -> None:
    show(browser)
    open_(browser, page_of("finished", tmp_path).as_uri())
    unnamed = """
    const named = (x) => document.getElementById(x.getAttribute('aria-labelledby'))?.textContent;
    const name = (x) => x.getAttribute('aria-label') || named(x) || x.textContent.trim();
    return [...document.querySelectorAll('figure, [role=img], button, a, .scroll, nav, section')]
      .filter((x) => !name(x) || (x.hasAttribute('aria-labelledby') && !named(x))).map((x) => x.outerHTML.slice(0, 80));
    """
    assert browser.execute_script(unnamed) == []
    levels = "return [...document.querySelectorAll('h1, h2, h3')].map((x) => Number(x.tagName[1]));"
    found = browser.execute_script(levels)
    assert found[0] == 1
    assert found.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(found))
    assert browser.execute_script("return document.documentElement.lang") == "en"
    assert browser.title == "finished: finished"


def test_on_a_telephone_a_finger_scrolls_the_page_and_does_not_zoom_a_plot(browser: Any, tmp_path: Path) -> None:
    show(browser, width=400, touch=True)
    open_(browser, page_of("finished", tmp_path).as_uri())
    drag = f"return {PLOTS}.map((plot) => plot._fullLayout.dragmode);"
    assert set(browser.execute_script(drag)) == {False}
    show(browser)


def records_of(made: Made) -> list[Record]:
    return made.records(Path("unused"))


@contextmanager
def followed(browser: Any, run: Path) -> Iterator[None]:
    """The page of a run, served and open."""
    live = Live([Reader(run)], port=0)
    thread = threading.Thread(target=live.serve)
    thread.start()
    try:
        show(browser)
        open_(browser, live.url)
        yield
    finally:
        browser.get("about:blank")
        live.stop()
        thread.join()


def test_a_page_follows_its_job_without_loading_anew(browser: Any, tmp_path: Path) -> None:
    made = Made(until=2, outcome=None)
    run = made.write(tmp_path / "run")
    rest = records_of(Made(until=6, outcome=None))[len(records_of(made)) :]
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with followed(browser, run):
            assert browser.title == "run: epoch 3 of 6"
            until(browser, lambda: words(browser, "#live") == "Follows the run.")
            browser.execute_script(
                "window.same = document.querySelector('.plot'); document.querySelector('details').open = true;"
            )
            points = "return document.querySelector(\"[data-block='metric-accuracy'] .plot\").data[0].x.length;"
            assert browser.execute_script(points) == 2
            half = next(i for i, record in enumerate(rest) if isinstance(record, EpochEnded)) + 1
            write_lines(run / "records.jsonl", rest[:half])
            write_lines(run / "sessions.jsonl", sessions()[:3])  # a section that was not there
            until(browser, lambda: browser.execute_script(points) == 3)
            until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "[data-block='sessions'] .plot svg"))
            assert "36 of 72 steps" in words(browser, "#head")
            assert "RanksSessionsArithmetic" in words(browser, "#links")
            write_lines(run / "records.jsonl", rest[half:])
            until(browser, lambda: browser.execute_script(points) == 6)
            assert browser.title == "run: epoch 6 of 6"
            kept = "return window.same === document.querySelector('.plot') && document.querySelector('details').open;"
            assert browser.execute_script(kept)
            assert browser.execute_script(MARKS)[0][1] > 0
            fcntl.flock(lock, fcntl.LOCK_UN)
            until(browser, lambda: words(browser, "#head .badge") == "killed")
            assert complaints(browser) == []


def test_an_axis_that_becomes_logarithmic_while_its_page_is_open_says_so_on_its_button(
    browser: Any, tmp_path: Path
) -> None:
    run = Made(until=2, outcome=None).write(tmp_path / "run")
    pressed = "return document.querySelector(\"[data-block='loss'] [data-do='log']\").ariaPressed;"
    with followed(browser, run):
        assert browser.execute_script(pressed) == "false"
        write_lines(run / "records.jsonl", [Stepped(24, 2, 128, 1e-6, 0.1, 9.0)])
        until(browser, lambda: browser.execute_script(pressed) == "true")
        axis = "return document.querySelector(\"[data-block='loss'] .plot\")._fullLayout.yaxis.type;"
        until(browser, lambda: browser.execute_script(axis) == "log")
