"""A verdict as a person reads it on a terminal: a header, troubles, a line for each check, the story of each failure.

    squall verify: train.py (DistributedDataParallel, gloo), 2 and 4 processes, 2 epochs x 6 steps, 41 s
    reference: each rank's own gradients, taken before any reduction, added up in one process in float64

      epoch order       FAIL   epoch 2 repeats epoch 1: 1,440 of 1,440 positions equal
      augmentation      ok     no two ranks or epochs share a stream

    FAIL  epoch order                                                             train.py:41
      expected  a new permutation in each epoch
      change    41   for epoch in range(epochs):
              + 42       sampler.set_epoch(epoch)

    1 of 2 checks failed      verify.html  verify.json  verify.xml      exit status 1

Lines go on below where their text began. Lines of the user's code are never broken: they are there to be copied.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Sequence

from squall.verify import words
from squall.verify.finding import Finding, Outcome, Trouble, Verdict

WIDTH = 100
"""Columns, where no terminal says how many there are."""

Paint = Callable[[Outcome, str], str]
"""Gives an outcome's word its colour."""

_LEAST = 30  # columns for a text; where fewer are left beside its label it stands below
_GAPS = (" " * 6, " " * 3)  # between the parts of the last line
_LABEL = 8
_IDLE = 2  # checks that were not run; where there are more they share their lines


def text(verdict: Verdict, width: int = WIDTH, files: Sequence[str] = (), paint: Paint = lambda _, word: word) -> str:
    """All of it.

    Arguments:
        width: columns.
        files: what was written, for the last line.
        paint: for the outcomes; without it there are no colours.
    """
    blocks = [*_top(verdict, width)]
    if verdict.findings:
        blocks.append(_table(verdict.findings, width, paint))
    blocks += [_story(finding, width, paint) for finding in verdict.fails]
    status = "" if not files else f"exit status {0 if verdict.ok else 1}"
    blocks.append(_joined([words.tally(verdict), "  ".join(files), status], width))
    return "\n\n".join("\n".join(block) for block in blocks)


def stories(verdict: Verdict, width: int = WIDTH, allow: Collection[str] = ()) -> str:
    """What is wrong and nothing else: header, troubles, and the stories of the checks that failed.

    Arguments:
        allow: checks that may fail.
    """
    failed = [_story(finding, width) for finding in verdict.fails if finding.check not in allow]
    return "\n\n".join("\n".join(block) for block in [*_top(verdict, width), *failed])


def story(finding: Finding, width: int = WIDTH) -> str:
    """One check's story."""
    return "\n".join(_story(finding, width))


def trouble(found: Trouble, width: int = WIDTH) -> str:
    """One trouble with its rows."""
    return "\n".join(_trouble(found, width))


def _top(verdict: Verdict, width: int) -> list[list[str]]:
    """What was run, and what kept it from being observed; where that is all there is, it says what was run too."""
    blocks = []
    if verdict.findings or not verdict.troubles:
        reference = [("reference: ", words.plain(verdict.reference))] if verdict.reference else []
        lines = [("squall verify: ", words.headline(verdict)), *reference]
        blocks.append([line for label, said in lines for line in _hanging(label, said, width)])
    return blocks + [_trouble(found, width) for found in verdict.troubles]


def _table(findings: Sequence[Finding], width: int, paint: Paint) -> list[str]:
    column = max(len(finding.check) for finding in findings)
    idle = [finding for finding in findings if finding.outcome == "--"]
    together = len(idle) > _IDLE
    lines = []
    for finding in findings:
        if together and finding in idle:
            continue
        name, outcome = f"  {words.plain(finding.check):<{column}}  ", f"{finding.outcome:<4}"
        first, *rest = _hanging(f"{name}{outcome}   ", words.plain(finding.says), width)
        painted = paint(finding.outcome, outcome)
        lines += [f"{name}{painted}{first[len(name) + len(outcome) :]}".rstrip(), *rest]
    if together:  # out of the way of what was found
        name = f"  {'not run':<{column}}  "
        said = "; ".join(f"{words.plain(finding.check)}: {words.plain(finding.says)}" for finding in idle)
        first, *rest = _hanging(f"{name}--     ", said, width)
        lines += [f"{name}{paint('--', '--')}{first[len(name) + 2 :]}".rstrip(), *rest]
    return lines


def _story(finding: Finding, width: int, paint: Paint = lambda _, word: word) -> list[str]:
    head, place = f"FAIL  {words.plain(finding.check)}", words.plain(finding.place or "")
    space = max(width - len(head) - len(place), 3)
    lines = [f"{paint('FAIL', 'FAIL')}{head[4:]}{' ' * space}{place}".rstrip()]
    for label, said in words.story(finding):
        lines += _hanging(f"  {label:<{_LABEL}}  ", said, width)
    label = "change"
    for mark, number, code in words.edits(finding.edits):
        lines.append(f"  {label:<{_LABEL}}{mark} {number}   {code}".rstrip())
        label = ""
    if finding.known:
        lines += _hanging(f"  {'known':<{_LABEL}}  ", words.sources(finding.known), width)
    return lines


def _trouble(trouble: Trouble, width: int) -> list[str]:
    lines = _hanging("squall verify: ", words.plain(trouble.says), width)
    rows = words.details(trouble)
    column = max((len(label) for label, _ in rows), default=0)
    for label, said in rows:
        for place, line in enumerate(said.split("\n")):
            lines += _hanging(f"  {label if not place else '':<{column}}   ", line, width)
    return lines


def _hanging(label: str, said: str, width: int) -> list[str]:
    """A label and its text, whose further lines begin where the first began; below the label, where it is narrow."""
    room = width - len(label)
    below = room < _LEAST
    lines = textwrap.wrap(
        said, max(width - 4, _LEAST) if below else room, break_long_words=False, break_on_hyphens=False
    )
    if below and lines:
        return [label.rstrip(), *(f"    {line}" for line in lines)]
    first, *rest = lines or [""]
    return [f"{label}{first}".rstrip(), *(f"{' ' * len(label)}{line}" for line in rest)]


def _joined(parts: Sequence[str], width: int) -> list[str]:
    """The last line: closer together, or one part below the other, where it does not fit."""
    found = [part for part in parts if part]
    lines = (gap.join(found) for gap in _GAPS)
    return next(([line] for line in lines if len(line) <= width), found)
