"""What is said of a verdict, in the same words on the terminal, on the page and in the file for continuous integration.

Much of it comes from the script that was looked at: its path, its lines, what it raised. `plain` lets none of that move
a cursor, turn a line around or end a document: what does not print is shown as its escape.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from squall import units
from squall.verify.finding import Edit, Finding, Trouble, Verdict

Row = tuple[str, str]


class CodeLine(NamedTuple):
    """A line of a change: "+", "-" or " "; its number, as wide as the widest; its text."""

    mark: str
    number: str
    text: str


def plain(text: object) -> str:
    """Any text in one line of characters that print."""
    line = " ".join(str(text).splitlines()).replace("\t", " ")
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in line)


def plain_lines(text: object) -> list[str]:
    """The lines of a text, each of characters that print; tabs are spaces."""
    return [plain(line.expandtabs(4)) for line in str(text).splitlines()]


def headline(verdict: Verdict) -> str:
    """What was run: "train.py (DistributedDataParallel, gloo), 2 and 4 processes, 2 epochs x 6 steps, 41 s"."""
    framework = f" ({plain(verdict.framework)})" if verdict.framework else ""
    return ", ".join([f"{command(verdict)}{framework}", *extent(verdict)])


def command(verdict: Verdict) -> str:
    """The script with its arguments."""
    return plain(" ".join([verdict.script, *(shlex.quote(word) for word in verdict.arguments)]))


def extent(verdict: Verdict) -> list[str]:
    """How much was run, in parts: processes, epochs and steps, seconds."""
    parts = []
    if verdict.processes:
        numbers = [str(number) for number in verdict.processes]
        listed = " and ".join([", ".join(numbers[:-1]), numbers[-1]] if len(numbers) > 1 else numbers)
        parts.append(f"{listed} process{'' if verdict.processes == (1,) else 'es'}")
    if verdict.epochs:
        parts.append(f"{_many(verdict.epochs, 'epoch')} x {_many(verdict.steps, 'step')}")
    if verdict.seconds:
        whole = 9.95 <= verdict.seconds < 99.5
        parts.append(f"{verdict.seconds:.0f} s" if whole else units.duration(verdict.seconds))
    return parts


def tally(verdict: Verdict) -> str:
    """What it came to: "1 of 9 checks failed, 1 not run, 2 notes"."""
    outcomes = [finding.outcome for finding in verdict.findings]
    failed, idle, notes = (outcomes.count(outcome) for outcome in ("FAIL", "--", "note"))
    ran = len(outcomes) - idle
    broken = any(trouble.fatal for trouble in verdict.troubles)
    if not ran:
        parts = ["nothing was checked"]
    elif failed:
        parts = [f"{failed} of {_many(ran, 'check')} failed"]
    elif broken:
        parts = [f"{_many(ran, 'check')} passed, but the training could not be observed to its end"]
    else:
        parts = [f"all {ran} checks passed" if ran > 1 else "1 check passed"]
    if idle and ran:
        parts.append(f"{idle} not run")
    if notes:
        parts.append(_many(notes, "note"))
    return ", ".join(parts)


def story(finding: Finding) -> list[Row]:
    """A finding's sentences with their labels; where it has edits they say what to change, and `edits` gives them."""
    line = finding.place.text.strip() if finding.place else ""
    line = "" if line in [edit.text.strip() for edit in finding.edits] else line
    rows = [("line", line), ("expected", finding.expected), ("found", finding.found), ("effect", finding.effect)]
    rows += [] if finding.edits else [("change", finding.change)]
    return [(label, plain(text)) for label, text in rows if text]


def edits(lines: Sequence[Edit]) -> list[CodeLine]:
    """The lines of a change, without the indentation that they share."""
    width = max((len(str(line.line)) for line in lines), default=0)
    code = textwrap.dedent("\n".join(plain(line.text.expandtabs(4)) for line in lines)).split("\n")
    return [CodeLine(line.mark, f"{line.line:>{width}}", text) for line, text in zip(lines, code, strict=False)]


def sources(known: Sequence[str]) -> str:
    """Papers and threads in one line: "Goyal et al. 2017, Remark 1; pytorch#31771, #31232"."""
    text, before = "", ""
    for source in known:
        repository, mark, number = source.rpartition("#")
        again = bool(mark) and repository == before
        text += f", #{number}" if again else f"{'; ' if text else ''}{source}"
        before = repository if mark else ""
    return plain(text)


def details(trouble: Trouble) -> list[Row]:
    """The rows of a trouble: the line where it happened, then what is known; a text may have several lines."""
    where = []
    if trouble.place:
        line = trouble.place.text.strip()
        where = [(str(trouble.place), line) if line else ("at", str(trouble.place))]
    return [(plain(label), "\n".join(plain_lines(text))) for label, text in [*where, *trouble.rows]]


def _many(number: int, word: str) -> str:
    return f"{units.count(number)} {word}{'' if number == 1 else 's'}"


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")
