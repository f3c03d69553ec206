"""A person's own code is named "package.module:name"; what is missing is told apart from what is broken."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest

from squall.references import NoModuleError, find, is_reference


@pytest.mark.parametrize("text", ["mine:net", "package.module:Net", "package.module:Net.small"])
def test_the_form(text: str) -> None:
    assert is_reference(text)


@pytest.mark.parametrize("text", ["mine", "mine:", ":net", ".near:net", "a..b:net", "a-b:net", "mine:net:net", ""])
def test_what_has_another_form(text: str) -> None:
    assert not is_reference(text)


def test_a_name_leads_to_its_module_and_object() -> None:
    import collections

    assert find("collections:OrderedDict") == (collections, OrderedDict)
    assert find("collections:OrderedDict.fromkeys") == (collections, OrderedDict.fromkeys)
    assert find("collections:NoSuchName") == (collections, None)
    assert find("collections:NoSuchName.fromkeys") == (collections, None)


@pytest.mark.parametrize(
    ("reference", "missing"),
    [
        ("no_such_package.part:f", "no_such_package"),
        ("collections.no_such_part:f", "collections.no_such_part"),
        ("squall_test_broken:f", None),
    ],
)
def test_a_missing_module_is_told_apart_from_one_that_imports_a_missing_one(
    reference: str, missing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "squall_test_broken.py").write_text("import squall_test_missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError) as error:
        find(reference)
    assert isinstance(error.value, NoModuleError) == (missing is not None)
    assert error.value.name == (missing or "squall_test_missing")
