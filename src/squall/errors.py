"""What goes wrong, as values that print well.

Three kinds are told apart because a person acts differently on each:

* `InputError`: a mistake in a recipe, a flag, a data folder. One clear message, exit status 2, no traceback.
* `UserCodeError`: an exception in the user's own model, data set or loss. Shows the user's frames, exit status 1.
* `RunError`: the run itself could not go on (diverged, a peer lost, a forgotten update). Exit status 1.

A message has a headline, aligned rows (a label and a text each) and a last line that says where to look next::

    squall: 2 mistakes in cifar10                                                                    (exit 2)
      worker=32              no such field. Near: worker_batch_size (32), virtual_workers (8)
      optimizer.name=adamx   not known. One of: adagrad adam adamw lamb lars rmsprop sgd
    all fields: squall recipes cifar10 --fields
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

Row = tuple[str, str]

_STATUS_COLUMN = 97


class SquallError(Exception):
    """Base of every error that Squall raises on purpose.

    Arguments:
        headline: what was found, in one line.
        rows: (label, text) pairs, printed aligned below the headline; a text may hold several lines.
        hint: the last line: where to look or what to type next.
    """

    exit_status = 1

    def __init__(self, headline: str, rows: Iterable[Row] = (), hint: str = "") -> None:
        self.headline = headline
        self.rows: tuple[Row, ...] = tuple(rows)
        self.hint = hint
        super().__init__(self.text())

    def __reduce__(self) -> tuple[type[SquallError], tuple[object, ...], dict[str, object]]:
        return type(self), (self.headline, self.rows, self.hint), dict(self.__dict__)

    def text(self) -> str:
        """The message without the program's name and the exit status."""
        return "\n".join([self.headline, *self._below()])

    def render(self) -> str:
        """The message as the command line prints it."""
        head = f"squall: {self.headline}"
        status = f"(exit {self.exit_status})"
        return "\n".join(
            [f"{head.ljust(_STATUS_COLUMN)}{' ' if len(head) >= _STATUS_COLUMN else ''}{status}", *self._below()]
        )

    def _below(self) -> list[str]:
        width = max((len(label) for label, _ in self.rows), default=0)
        lines = []
        for label, text in self.rows:
            first, *rest = text.splitlines() or [""]
            lines.append(f"  {label.ljust(width)}   {first}".rstrip())
            lines.extend(f"  {' ' * width}   {line}".rstrip() for line in rest)
        if self.hint:
            lines.append(self.hint)
        return lines


class InputError(SquallError):
    """A mistake in what the user gave: recipe, flags, files. Nothing was started or written."""

    exit_status = 2


class UserCodeError(SquallError):
    """An exception raised by the user's own code (model, data set, loss, metric).

    Attributes:
        traceback: the whole traceback as text, for the log.
    """

    traceback: str = ""


class RunError(SquallError):
    """A run that cannot go on: misuse of the loop, a lost peer, unequal processes."""


class DivergedError(RunError):
    """The loss or a gradient stopped being finite."""


class MissingExtraError(InputError):
    """An optional dependency is not installed; says the pip line that installs it."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs {package}, which is not installed",
            [("to do", f"pip install 'squall-train[{extra}]'")],
        )
        self._given = (feature, package, extra)

    def __reduce__(self) -> tuple[type[SquallError], tuple[object, ...], dict[str, object]]:
        return type(self), self._given, dict(self.__dict__)


class Mistakes:
    """Gathers all mistakes of one input, so that the user sees them at once.

    Example:
        >>> mistakes = Mistakes("cifar10", hint="all fields: squall recipes cifar10 --fields")
        >>> mistakes.add("worker=32", "no such field. Near: worker_batch_size")
        >>> mistakes.raise_if_any()
        Traceback (most recent call last):
        squall.errors.InputError: 1 mistake in cifar10
          worker=32   no such field. Near: worker_batch_size
        all fields: squall recipes cifar10 --fields
    """

    def __init__(self, where: str, hint: str = "") -> None:
        self.where = where
        self.hint = hint
        self.rows: list[Row] = []

    def add(self, found: str, rule: str) -> None:
        """Notes one mistake: what was found, and the rule it breaks with what to change."""
        self.rows.append((found, rule))

    def raise_if_any(self) -> None:
        """Raises one `InputError` with all rows, or returns."""
        if self.rows:
            plural = "" if len(self.rows) == 1 else "s"
            raise InputError(f"{len(self.rows)} mistake{plural} in {self.where}", self.rows, self.hint)


def nearest(word: str, names: Sequence[str], most: int = 3) -> list[str]:
    """The names that resemble `word`, best first; a name that contains the word counts as near."""
    close = difflib.get_close_matches(word, names, n=most, cutoff=0.55)
    inside = [name for name in names if word and word in name and name not in close]
    return (close + inside)[:most]
