"""A verdict as the XML that systems of continuous integration read: one test suite, a test case for each check.

There is no standard; this is what Jenkins and GitLab both take::

    FAIL      failure, with the story         note                system-out
    --        skipped, with the reason        a fatal trouble     an error of the test case "runs"

"runs", the first, is there always: that the script could be observed is what all other cases rest on.
"""

from __future__ import annotations

from pathlib import PurePath
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from squall.verify.finding import Finding, Place, Trouble, Verdict
from squall.verify.text import story, trouble
from squall.verify.words import command, plain


def junit(verdict: Verdict) -> str:
    """The whole document."""
    root = Element("testsuites")
    fatal = [each for each in verdict.troubles if each.fatal]
    skipped = [finding for finding in verdict.findings if finding.outcome == "--"]
    suite = SubElement(
        root,
        "testsuite",
        name=f"squall verify {command(verdict)}",
        tests=str(1 + len(verdict.findings)),
        failures=str(len(verdict.fails)),
        errors=str(int(bool(fatal))),
        skipped=str(len(skipped)),
        time=f"{verdict.seconds:.3f}",
    )
    group = f"squall.verify.{plain(PurePath(verdict.script).stem).replace('.', '_')}"
    _runs(_case(suite, group, "runs", next((each.place for each in verdict.troubles), None)), verdict.troubles)
    for finding in verdict.findings:
        _outcome(_case(suite, group, finding.check, finding.place), finding)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _case(suite: Element, group: str, name: str, place: Place | None) -> Element:
    where = {"file": plain(place.path), "line": str(place.line)} if place else {}
    return SubElement(suite, "testcase", {"classname": group, "name": plain(name), **where})


def _runs(case: Element, troubles: tuple[Trouble, ...]) -> None:
    """Errors stand before what else was said, as the schemas have it."""
    for name, found in (
        ("error", [each for each in troubles if each.fatal]),
        ("system-out", [each for each in troubles if not each.fatal]),
    ):
        if found:
            text = "\n\n".join(trouble(each) for each in found)
            about = {"message": plain(found[0].says), "type": plain(found[0].what)} if name == "error" else {}
            SubElement(case, name, about).text = text


def _outcome(case: Element, finding: Finding) -> None:
    says = plain(finding.says)
    match finding.outcome:
        case "FAIL":
            SubElement(case, "failure", message=says, type=plain(finding.check)).text = story(finding)
        case "--":
            SubElement(case, "skipped", message=says)
        case "note":
            SubElement(case, "system-out").text = f"note: {says}"
        case "ok":
            pass
