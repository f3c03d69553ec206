"""The documents say nothing that does not exist: commands, flags, keys, files, links, tests; and their programs run."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from squall.cli.main import app
from squall.recipe import Recipe, load, override, parse, shipped

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = typer.main.get_command(app)
BLOCK = re.compile(r"^(<!-- runs -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HIDDEN_VALUES = ("NAME", "FILE", "TARGET", "RUN", "DIR", "URL", "KEY=VALUE")


def blocks(language: str, *, runs: bool = False) -> list[Any]:
    """(where, text) of the pages' blocks in a language; of the ones marked to run only, if asked."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if match[2] == language and (match[1] or not runs):
                line = text[: match.start(3)].count("\n")
                found.append(pytest.param(match[3], id=f"{page.name}:{line}"))
    return found


def commands() -> Iterator[tuple[str, list[str]]]:
    """(where, words) of every command line, in blocks of shell and between backquotes."""
    for page in PAGES:
        text = page.read_text()
        lines = [line for match in BLOCK.finditer(text) if match[2] == "sh" for line in match[3].splitlines()]
        lines += re.findall(r"`((?:squall|python|torchrun|make|pip|\.venv/bin/\w+) [^`]+)`", BLOCK.sub("", text))
        for line in lines:
            for part in re.split(r" && | \| ", line):
                if words := shlex.split(part, comments=True):
                    yield page.name, words


def of(program: str) -> list[Any]:
    named = [(where, words) for where, words in commands() if Path(words[0]).name == program]
    assert named, f"no document shows {program}"
    return [pytest.param(words[1:], id=f"{where}: {' '.join(words)}") for where, words in named]


@pytest.mark.parametrize("words", of("squall"))
def test_every_squall_command_exists_with_its_flags_and_keys(words: list[str]) -> None:
    command, place = PROGRAM, 0
    while hasattr(command, "commands") and place < len(words):
        assert words[place] in command.commands, f"squall has no {words[place]}"
        command, place = command.commands[words[place]], place + 1
    flags = {flag: option for option in command.params for flag in option.opts if flag.startswith("-")}
    arguments, rest = [], iter(words[place:])
    for word in rest:
        if word == "--":
            break  # what follows is for a script
        if not word.startswith("-"):
            arguments.append(word)
            continue
        name, _, value = word.partition("=")
        assert name in flags or name == "--help", f"squall {' '.join(words[:place])} has no {name}"
        if name in flags and not flags[name].is_flag and not value:
            assert next(rest, None) is not None, f"{name} needs a value"
    if words[0] in ("train", "explain", "recipes"):
        check_target(arguments)


def check_target(arguments: list[str]) -> None:
    """The target is there, and the recipe takes the keys."""
    target, keys = (arguments[0], arguments[1:]) if arguments and "=" not in arguments[0] else ("", arguments)
    if target.startswith("examples/"):
        assert (ROOT / target).is_file()
    elif not target.endswith((".py", ".toml")) and target not in (*HIDDEN_VALUES, "last", ""):
        assert target in shipped()
    keys = [key for key in keys if "=" in key and key not in HIDDEN_VALUES and "..." not in key]
    base = load(target) if target in shipped() else load("digits")
    assert isinstance(override(base, keys), Recipe)


@pytest.mark.parametrize("words", of("make"))
def test_every_make_target_exists(words: list[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets)


@pytest.mark.parametrize("words", [*of("python"), *of("torchrun")])
def test_every_script_that_is_run_exists(words: list[str]) -> None:
    scripts = [word for word in words if word.endswith(".py") and word != "my_task.py"]
    for script in scripts:
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("text", blocks("python"))
def test_every_program_compiles(text: str) -> None:
    compile(text, "block", "exec")


@pytest.mark.parametrize("text", blocks("python", runs=True))
def test_every_program_marked_to_run_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "program.py"
    script.write_text(text)
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("text", blocks("toml"))
def test_every_recipe_is_one(text: str) -> None:
    import tomllib

    recipe = parse(tomllib.loads(text), "the document")
    assert recipe == load(recipe.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The places in a page that a link may name: headings as web pages of repositories number them, and ids."""
    text = BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    names = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return names | set(re.findall(r'id="([^"]+)"', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_and_file_that_is_named_exists(page: Path) -> None:
    for name in re.findall(r"`((?:tests|benchmarks|examples|src)/[\w/.:-]+)`", page.read_text()):
        path, *parts = name.split("::")
        assert (ROOT / path).exists(), name
        text = (ROOT / path).read_text() if parts else ""
        for part in parts:
            assert re.search(rf"^\s*(?:def|class) {part}\b", text, re.MULTILINE), name


def test_the_table_of_fields_is_current() -> None:
    path = ROOT / "docs" / "fields.py"
    spec = importlib.util.spec_from_file_location("docs_fields", path)
    assert spec is not None
    assert spec.loader is not None
    fields = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fields)
    written = (ROOT / "docs" / "recipes.md").read_text()
    assert fields.page(written) == written, "run .venv/bin/python docs/fields.py"


def test_the_shipped_recipes_stand_in_the_table() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \|", text.partition("## A file")[0], re.MULTILINE)) == set(shipped())


def test_the_first_page_says_what_the_product_is() -> None:
    words = " ".join((ROOT / "README.md").read_text().split())
    assert "the recipe fixes the training, the number of processes does not touch it, and you can prove it." in words
