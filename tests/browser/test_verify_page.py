"""The page of `squall verify` in a real browser: readable, light and dark, silent, open where it failed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from squall.verify.page import page
from tests.browser.chromium import chromium, show
from tests.browser.test_report_page import STICKS_OUT, complaints, luminance
from tests.verify.verdicts import HUNG, ONE_FAULT, hostile, ok

KINDS = {"fault": ONE_FAULT, "hung": HUNG, "ok": ok(), "hostile": hostile()}
OPEN = "return [...document.querySelectorAll('details[open]')].map((x) => x.id);"

# Texts with what they stand on.
COLOURS = """
const of = (x, key) => getComputedStyle(document.querySelector(x))[key];
const page = of('body', 'backgroundColor'), card = of('.check', 'backgroundColor');
const on_card = ['.says', '[open] .asks', '[open] dt', '.plus', ...['.failed', '.finished', '.stopped', '.none'].map(
  (x) => `.check ${x}`)];
return [['body', of('body', 'color'), page], ['.folder', of('.folder', 'color'), page],
  ...on_card.map((x) => [x, of(x, 'color'), card])];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser")) as found:
        yield found


def open_(browser: Any, folder: Path, kind: str) -> None:
    path = folder / f"{kind}.html"
    path.write_text(page(KINDS[kind]), encoding="utf-8")
    browser.get(path.as_uri())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_sticks_out_and_nothing_is_complained_of(browser: Any, tmp_path: Path, kind: str) -> None:
    for width in (400, 640, 700, 1000, 1400):
        show(browser, width=width)
        open_(browser, tmp_path, kind)
        browser.execute_script("document.querySelectorAll('details').forEach((x) => { x.open = true; });")
        wide = "const root = document.documentElement; return [root.scrollWidth - root.clientWidth, innerWidth];"
        assert browser.execute_script(wide) == [0, width]
        assert browser.execute_script(STICKS_OUT) == []
        assert complaints(browser) == []


def test_what_failed_is_open_and_a_row_unfolds_by_hand_and_by_key(browser: Any, tmp_path: Path) -> None:
    show(browser)
    open_(browser, tmp_path, "fault")
    assert browser.execute_script(OPEN) == ["check-epoch-order"]
    assert browser.title == "my_script.py: 1 of 9 checks failed, 1 not run, 2 notes"
    code = browser.find_element(By.CSS_SELECTOR, ".edits")
    assert code.is_displayed()
    assert code.text.split("\n") == ["  41   for epoch in range(epochs):", "+ 42       sampler.set_epoch(epoch)"]
    browser.find_element(By.CSS_SELECTOR, "#check-epoch-order summary").click()
    browser.find_element(By.CSS_SELECTOR, "#check-epoch-coverage summary").send_keys(Keys.ENTER)
    assert browser.execute_script(OPEN) == ["check-epoch-coverage"]
    assert not code.is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_they_stand_on(browser: Any, tmp_path: Path, scheme: str) -> None:
    show(browser, scheme=scheme)
    open_(browser, tmp_path, "fault")
    for name, ink, ground in browser.execute_script(COLOURS):
        high, low = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) > 4.5, (name, ink, ground)
    (_, _, ground), *_ = browser.execute_script(COLOURS)
    assert (luminance(ground) < 0.1) == (scheme == "dark")


def test_a_reader_who_cannot_see_is_told(browser: Any, tmp_path: Path) -> None:
    show(browser)
    open_(browser, tmp_path, "fault")
    levels = "return [...document.querySelectorAll('h1, h2, h3')].map((x) => Number(x.tagName[1]));"
    found = browser.execute_script(levels)
    assert found[0] == 1
    assert found.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(found))
    assert browser.execute_script("return document.documentElement.lang") == "en"
    row = browser.find_element(By.CSS_SELECTOR, "#check-resume summary")
    assert "not run" in str(row.get_property("textContent"))
