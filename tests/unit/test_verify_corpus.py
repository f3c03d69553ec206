"""The corpus of `squall verify` is whole: every script is in the index, half are right, faults have what names them."""

from __future__ import annotations

import re

import pytest

from tests.verify.corpus.index import CASES, CHECKS, FOLDER, FRAMEWORKS, RIGHT, WRONG, Case

SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name not in ("__init__.py", "index.py"))
GIVES_AWAY = re.compile(r"\b(bug|buggy|fault|faulty|wrong|mistake|incorrect|fixme|verify)\b", re.IGNORECASE)


def text(file: str) -> str:
    return (FOLDER / file).read_text(encoding="utf-8")


def test_every_script_is_in_the_index_once_and_the_reverse() -> None:
    assert [case.file for case in CASES] == SCRIPTS
    assert len(SCRIPTS) >= 40


def test_about_half_are_right() -> None:
    assert 0.45 <= len(RIGHT) / len(CASES) <= 0.55


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_a_script_is_plain_and_compiles(case: Case) -> None:
    source = text(case.file)
    compile(source, case.file, "exec")
    assert 25 <= len(source.splitlines()) <= 75
    assert not GIVES_AWAY.search(source)
    assert ("squall" in source.lower()) == (case.framework == "squall")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_an_entry_uses_known_words(case: Case) -> None:
    assert case.framework in FRAMEWORKS
    assert {*case.faults, *case.also, *case.notes} <= set(CHECKS)
    assert not set(case.faults) & {*case.also, *case.notes}


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.file)
def test_a_wrong_script_has_one_fault_its_reason_and_a_right_twin_that_differs(case: Case) -> None:
    assert len(case.faults) == 1
    assert case.why
    assert case.twin in {right.file for right in RIGHT}
    assert text(case.twin) != text(case.file)


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.file)
def test_a_right_script_is_accused_of_nothing(case: Case) -> None:
    assert case.right
    assert not case.also
    assert not case.why


def test_every_check_has_a_script_that_it_must_find() -> None:
    assert {fault for case in WRONG for fault in case.faults} == set(CHECKS)
