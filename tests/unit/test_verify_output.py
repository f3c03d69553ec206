"""What `squall verify` says of a verdict: on the terminal, as JSON, as JUnit, as a page; and that all say the same."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html as markup
import json
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall.verify import words
from squall.verify.catalogue import CHECKS, NAMES, chosen
from squall.verify.finding import OUTCOMES, Edit, Finding, Outcome, Place, Trouble, Verdict
from squall.verify.junit import junit
from squall.verify.page import page
from squall.verify.text import stories, text
from squall.verify.values import to_json
from tests.verify.corpus import index
from tests.verify.verdicts import FILES, HOSTILE, HUNG, ONE_FAULT, hostile, ok

# As the design has it (120 columns), the story's place but for where it stands.
SHOWN = """\
squall verify: my_script.py (DistributedDataParallel, gloo), 2 and 4 processes, 2 epochs x 6 steps, 41 s
reference: every rank's own batches, replayed one after another in one process, float32

  gradient          ok     = sum of 4 ranks / 128 samples; largest relative difference 2e-7 (layer3.0.conv2)
  loss weighting    ok     a mean of means, and all ranks hold equal batches, in the last step too (8 each)
  epoch coverage    note   1,437 samples, 3 of them twice: DistributedSampler pads to a multiple of 4
  epoch order       FAIL   epoch 2 repeats epoch 1: 1,440 of 1,440 positions equal; by chance about 1
  augmentation      ok     no two ranks or epochs share a stream
  rate              ok     0.1 at steps 0 .. 11, as the schedule says
  weight decay      ok     1e-4, not scaled with the loss
  batch statistics  note   over 32 a rank: another per-rank batch would be another objective
  evaluation        ok     360 of 360 samples counted once
  resume            --     no checkpoint was written; verify --resume 'CMD' to check

FAIL  epoch order                                                                                        my_script.py:41
  expected  a new permutation in each epoch
  found     DistributedSampler.set_epoch is never called, so each epoch has epoch 0's order
  effect    the same 32 samples meet in every epoch; usually 0 to 1 points of accuracy, and never an error message
  change    41   for epoch in range(epochs):
          + 42       sampler.set_epoch(epoch)
  known     pytorch#31771, #31232

1 of 9 checks failed, 1 not run, 2 notes      verify.html  verify.json  verify.xml      exit status 1"""


def some(*outcomes: Outcome, fatal: bool = False) -> Verdict:
    """A verdict of checks with these outcomes."""
    findings = [Finding(check=f"check {place}", outcome=out, says="x") for place, out in enumerate(outcomes)]
    troubles = (Trouble(what="crashed", says="x"),) if fatal else ()
    return Verdict(script="x.py", findings=tuple(findings), troubles=troubles)


def joined(found: str) -> str:
    return " ".join(found.split())


# -- terminal --------------------------------------------------------------------------------------------------------


def test_one_fault_is_shown_as_designed() -> None:
    assert text(ONE_FAULT, 120, FILES) == SHOWN


def test_many_checks_that_were_not_run_share_their_lines() -> None:
    shown = text(some("ok", "--", "--", "--", "FAIL"))
    rows = [line for line in shown.split("\n") if re.match(r"  \S", line)]
    assert sum(line.startswith("  not run") for line in rows) == 1
    assert len([line for line in rows if re.search(r"  (ok|note|FAIL)  ", line)]) == 2


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_lines_keep_to_the_width_and_no_word_is_lost(width: int) -> None:
    shown = text(ONE_FAULT, width, FILES)
    code = [line for line in shown.split("\n") if re.search(r" 4[12]   ", line)]
    assert len(code) == 2
    assert [line for line in shown.split("\n") if len(line) > width and line not in code] == []
    assert sorted(joined(shown).split()) == sorted(joined(SHOWN).split())


@given(says=st.text(max_size=400).map(str.strip), width=st.integers(30, 160))
def test_any_text_is_whole_printable_and_indented_alike(says: str, width: int) -> None:
    finding = Finding(check="gradient", outcome="FAIL", says="x", expected=says)
    shown = text(Verdict(script="x.py", findings=(finding,)), width)
    assert all(line.isprintable() for line in shown.split("\n"))
    story = shown.split("\n\n")[2].split("\n")[1:]
    assert joined(" ".join(story)).removeprefix("expected").split() == words.plain(says).split()
    indents = {len(line) - len(line.lstrip(" ")) for line in story[1:]}
    assert len(indents) <= 1


def test_colours_are_only_those_that_are_asked_for_and_change_no_column() -> None:
    plain = text(ONE_FAULT, 100, FILES)
    assert "\x1b" not in plain
    painted = text(ONE_FAULT, 100, FILES, lambda outcome, word: f"\x1b[3{OUTCOMES.index(outcome)}m{word}\x1b[0m")
    assert re.sub(r"\x1b\[\d+m", "", painted) == plain
    assert painted.count("\x1b[0m") == len(ONE_FAULT.findings) + len(ONE_FAULT.fails)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (some("ok", "ok"), "all 2 checks passed"),
        (some("ok"), "1 check passed"),
        (some("ok", "note", "--", "--"), "all 2 checks passed, 2 not run, 1 note"),
        (some("FAIL"), "1 of 1 check failed"),
        (some("FAIL", "FAIL", "ok", "--"), "2 of 3 checks failed, 1 not run"),
        (some("--", "--"), "nothing was checked"),
        (some(fatal=True), "nothing was checked"),
        (some("ok", "--", fatal=True), "1 check passed, but the training could not be observed to its end, 1 not run"),
        (some("FAIL", fatal=True), "1 of 1 check failed"),
    ],
)
def test_the_last_line_counts(verdict: Verdict, said: str) -> None:
    assert words.tally(verdict) == said
    assert text(verdict, 200, ["a"]).endswith(f"{said}      a      exit status {0 if verdict.ok else 1}")


def test_a_training_that_was_not_observed_has_its_reason_and_no_table() -> None:
    assert text(HUNG, 100, FILES).split("\n") == [
        "squall verify: my_script.py hung with 4 processes: rank 1 waited in an all-reduce for 570 s, rank 0",
        "               had left its loop",
        "  my_script.py:41   dist.all_reduce(loss)",
        "  rank 0            ended",
        "  rank 1            Traceback:",
        "                      ZeroDivisionError",
        "",
        "nothing was checked      verify.html  verify.json  verify.xml      exit status 1",
    ]


def test_a_trouble_stands_before_the_table() -> None:
    shown = text(dataclasses.replace(ONE_FAULT, troubles=HUNG.troubles), 120)
    order = [shown.index(part) for part in ("reference: ", "hung with 4", "  gradient ", "FAIL  epoch order", "1 of 9")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ((), ""),
        (("pytorch#31771", "pytorch#31232", "pytorch#1"), "pytorch#31771, #31232, #1"),
        (("Goyal et al. 2017, Remark 3", "a/b#1", "c#2", "a/b#3"), "Goyal et al. 2017, Remark 3; a/b#1; c#2; a/b#3"),
        (("A 2017", "A 2018"), "A 2017; A 2018"),
    ],
)
def test_sources_of_one_repository_are_named_once(known: tuple[str, ...], said: str) -> None:
    assert words.sources(known) == said


def test_a_change_keeps_its_own_indentation_and_loses_what_its_lines_share() -> None:
    lines = (
        Edit(mark=" ", line=99, text="\tfor x in y:"),
        Edit(mark="-", line=100, text="\t\tf(x)"),
        Edit(mark="+", line=100, text="\t    g(x)\x1b[2J"),
        Edit(mark=" ", line=101, text=""),
    )
    assert [tuple(line) for line in words.edits(lines)] == [
        (" ", " 99", "for x in y:"),
        ("-", "100", "    f(x)"),
        ("+", "100", "    g(x)\\x1b[2J"),
        (" ", "101", ""),
    ]
    assert words.edits(()) == []


def test_the_lines_of_a_change_stand_in_place_of_its_sentence() -> None:
    fault = dataclasses.replace(ONE_FAULT.fails[0], change="tell the sampler which epoch it is")
    shown = text(dataclasses.replace(ONE_FAULT, findings=(fault,)))
    assert "  change    41   for epoch" in shown
    assert "tell the sampler" not in shown
    shown = text(dataclasses.replace(ONE_FAULT, findings=(dataclasses.replace(fault, edits=()),)))
    assert "  change    tell the sampler which epoch it is\n" in shown


def test_the_line_of_a_fault_is_not_shown_twice() -> None:
    fault = ONE_FAULT.fails[0]
    elsewhere = Place(path="my_script.py", line=42, text="for batch in loader:")
    shown = text(dataclasses.replace(ONE_FAULT, findings=(dataclasses.replace(fault, place=elsewhere),)))
    assert "  line      for batch in loader:\n" in shown
    there = Place(path="my_script.py", line=41, text="for epoch in range(epochs):")
    shown = text(dataclasses.replace(ONE_FAULT, findings=(dataclasses.replace(fault, place=there),)))
    assert shown.count("for epoch in range(epochs):") == 1


def test_the_stories_alone_leave_out_what_may_fail() -> None:
    assert "FAIL  epoch order" in stories(ONE_FAULT)
    assert "augmentation" not in stories(ONE_FAULT)
    assert "FAIL" not in stories(ONE_FAULT, allow=["epoch order"])


# -- the checks ------------------------------------------------------------------------------------------------------


def test_the_checks_are_those_that_the_corpus_was_written_for() -> None:
    assert sorted(NAMES) == sorted(index.CHECKS)
    assert len(set(NAMES)) == len(NAMES)


def test_what_the_corpus_cites_is_known() -> None:
    listed = {source for check in CHECKS for source in check.known}
    cited = {case.source for case in index.CASES if case.source}
    assert cited <= listed


def test_checks_are_named_as_people_write_them_and_come_in_the_order_of_the_table() -> None:
    class Nobody:
        def add(self, found: str, rule: str) -> None:
            pytest.fail(f"{found}: {rule}")

    nobody: Any = Nobody()
    assert chosen(["Epoch-Order", "non_finite", "gradient", "epoch order"], nobody, "") == (
        *("gradient", "non-finite", "epoch order"),
    )
    assert chosen(NAMES[::-1], nobody, "") == NAMES


# -- JSON ------------------------------------------------------------------------------------------------------------


def keys(values: Any) -> list[str]:
    return list(values)


@pytest.mark.parametrize("verdict", [ONE_FAULT, HUNG, hostile(), Verdict(script="x.py")])
def test_json_has_every_field(verdict: Verdict) -> None:
    values = json.loads(json.dumps(to_json(verdict), allow_nan=False))
    assert keys(values) == ["schema", "squall", "ok", *(field.name for field in dataclasses.fields(Verdict))]
    for finding, shown in zip(verdict.findings, values["findings"], strict=True):
        assert keys(shown) == [field.name for field in dataclasses.fields(Finding)]
        assert (shown["check"], shown["says"], len(shown["edits"])) == (
            *(finding.check, finding.says, len(finding.edits)),
        )
        assert (shown["place"] is None) == (finding.place is None)
    for trouble, shown in zip(verdict.troubles, values["troubles"], strict=True):
        assert keys(shown) == [field.name for field in dataclasses.fields(Trouble)]
        assert [tuple(row.values()) for row in shown["rows"]] == list(trouble.rows)
    assert values["ok"] == verdict.ok


def test_the_names_of_the_schema_stay() -> None:
    """Programs read them: a name that goes or changes its meaning counts the schema up."""
    values = json.loads(json.dumps(to_json(ONE_FAULT)))
    assert values["schema"] == 1
    assert {"script", "arguments", "framework", "processes", "epochs", "steps", "seconds", "reference"} <= set(values)
    order = next(finding for finding in values["findings"] if finding["check"] == "epoch order")
    assert order["outcome"] == "FAIL"
    assert order["place"] == {"path": "my_script.py", "line": 41, "text": "    for epoch in range(epochs):"}
    assert order["edits"][1] == {"mark": "+", "line": 42, "text": "        sampler.set_epoch(epoch)"}
    assert order["known"] == ["pytorch#31771", "pytorch#31232"]


# -- JUnit -----------------------------------------------------------------------------------------------------------

# What both read: the children of an element in their order, and its attributes ("!": required).
SCHEMA: dict[str, tuple[list[str], set[str]]] = {
    "testsuites": (["testsuite"], set()),
    "testsuite": (["testcase"], {"!name", "!tests", "!failures", "!errors", "skipped", "time"}),
    "testcase": (
        ["skipped", "error", "failure", "system-out", "system-err"],
        {"!name", "!classname", "time", "file", "line"},
    ),
    "failure": ([], {"message", "type"}),
    "error": ([], {"message", "type"}),
    "skipped": ([], {"message"}),
    "system-out": ([], set()),
}


def check_schema(element: ElementTree.Element) -> None:
    children, attributes = SCHEMA[element.tag]
    found = [child.tag for child in element]
    assert found == sorted(found, key=children.index)
    assert set(element.attrib) <= {name.removeprefix("!") for name in attributes}
    assert {name[1:] for name in attributes if name.startswith("!")} <= set(element.attrib)
    for child in element:
        check_schema(child)


@pytest.mark.parametrize("verdict", [ONE_FAULT, HUNG, ok(), hostile(), Verdict(script="x.py")])
def test_junit_keeps_to_the_schema_and_counts_right(verdict: Verdict) -> None:
    root = ElementTree.fromstring(junit(verdict).encode())
    check_schema(root)
    (suite,) = root
    cases = list(suite)
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases)
    assert int(suite.get("tests", "")) == len(cases) == 1 + len(verdict.findings)
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(attribute, "")) == sum(case.find(tag) is not None for case in cases)
    good = all(case.find("failure") is None and case.find("error") is None for case in cases)
    assert good == verdict.ok


def test_junit_has_a_case_for_each_check_with_its_outcome() -> None:
    (suite,) = ElementTree.fromstring(junit(ONE_FAULT).encode())
    cases = {case.get("name"): case for case in suite}
    assert list(cases) == ["runs", *(finding.check for finding in ONE_FAULT.findings)]
    failure = cases["epoch order"].find("failure")
    assert failure is not None
    assert "set_epoch is never called" in (failure.text or "")
    assert (cases["epoch order"].get("file"), cases["epoch order"].get("line")) == ("my_script.py", "41")
    assert [len(cases[name]) for name in ("runs", "gradient")] == [0, 0]
    assert "no checkpoint was written" in str(cases["resume"].find("skipped").attrib)  # type: ignore[union-attr]
    assert "pads to a multiple" in (cases["epoch coverage"].findtext("system-out") or "")


def test_junit_has_an_error_where_the_training_could_not_be_observed() -> None:
    (suite,) = ElementTree.fromstring(junit(HUNG).encode())
    error = suite.find("testcase[@name='runs']/error")
    assert error is not None
    assert error.get("type") == "hung"
    assert "ZeroDivisionError" in (error.text or "")


# -- the page --------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """All tags of a page with their attributes, and its words."""

    def __init__(self, whole: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(whole)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_says_what_the_terminal_says() -> None:
    said = joined(" ".join(Tags(page(ONE_FAULT)).words))
    wanted = [words.tally(ONE_FAULT), ONE_FAULT.reference, *words.extent(ONE_FAULT), "pytorch#31771, #31232"]
    wanted += [f"{finding.check} {finding.outcome}" for finding in ONE_FAULT.findings]
    wanted += [finding.says for finding in ONE_FAULT.findings]
    wanted += [sentence for finding in ONE_FAULT.findings for _, sentence in words.story(finding)]
    wanted += ["41 for epoch in range(epochs): + 42 sampler.set_epoch(epoch)", "my_script.py:41"]
    assert [part for part in wanted if part not in said] == []


def test_what_failed_is_open_and_the_rest_unfolds() -> None:
    rows = Tags(page(ONE_FAULT)).of("details")
    assert [row["id"] for row in rows] == [f"check-{f.check.replace(' ', '-')}" for f in ONE_FAULT.findings]
    assert [row["id"] for row in rows if "open" in row] == ["check-epoch-order"]


def test_the_page_of_a_training_that_was_not_observed_has_its_reason() -> None:
    tags = Tags(page(HUNG))
    assert tags.of("details") == []
    said = joined(" ".join(tags.words))
    assert HUNG.troubles[0].says in said
    assert "Traceback: ZeroDivisionError" in said


@pytest.mark.parametrize("verdict", [ONE_FAULT, HUNG, hostile(), ok()])
def test_the_page_needs_nothing_but_itself_and_runs_nothing(verdict: Verdict) -> None:
    whole = page(verdict)
    tags = Tags(whole)
    kinds = {tag for tag, _ in tags.found}
    assert kinds & {"script", "img", "iframe", "b", "object", "form"} == set()
    assert [attrs for _, attrs in tags.found if any(name.startswith("on") or name == "style" for name in attrs)] == []
    links = [value for _, attrs in tags.found for name, value in attrs.items() if name in ("src", "href")]
    assert [link for link in links if link is None or not link.startswith(("#", "data:"))] == []
    (policy,) = [attrs["content"] or "" for attrs in tags.of("meta") if "http-equiv" in attrs]
    style = whole.partition("<style>")[2].partition("</style>")[0]
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{hashed}'" in policy
    assert "url(" not in style
    assert "unsafe" not in policy


# -- what comes from the script is shown, never obeyed ---------------------------------------------------------------


def test_control_characters_and_markup_of_the_script_reach_nobody() -> None:
    verdict = hostile()
    shown = text(verdict, 100, FILES)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "\\x1b[2J" in shown
    for document in (page(verdict), junit(verdict)):
        document.encode()
        body = document.partition("</style>")[2] or document
        assert all(line.isprintable() for line in body.split("\n"))
    assert markup.escape(words.plain(HOSTILE)) in page(verdict)
    (suite,) = ElementTree.fromstring(junit(verdict).encode())
    assert words.plain(HOSTILE) in (suite.findtext("testcase/failure") or "")


@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_any_text_becomes_one_line_that_prints(said: str) -> None:
    shown = words.plain(said)
    assert shown.isprintable()
    if said.isprintable():
        assert shown == said


def test_a_place_is_named_once() -> None:
    place = Place(path="a.py", line=3, text="  x = 1")
    finding = Finding(check="rate", outcome="FAIL", says="x", place=place, expected="y")
    assert words.story(finding) == [("line", "x = 1"), ("expected", "y")]
    shown = text(Verdict(script="a.py", findings=(finding,)))
    assert shown.count("a.py:3") == 1
