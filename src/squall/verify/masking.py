"""Arguments and command lines without their secrets, for verdicts that are kept, shown and sent around.

A secret is known by its name: `--api-key VALUE`, `hf_token=VALUE`, `DB_PASSWORD=VALUE`. Other options of trainings have
such words in theirs (`--max-tokens`, `--tokenizer`, `--key-dim`): "key" and "token" count at a name's end only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "HIDDEN"

_SECRET = re.compile(r"password|passwd|secret|credential|(key|token)$", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")


def masked(words: Iterable[str]) -> list[str]:
    """The words of a command line; the values of those that name a secret are masked, and passwords in addresses."""
    found, hides = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if equals and _SECRET.search(name):
            found.append(f"{name}={MASK}")
        elif hides and not word.startswith("--"):
            found.append(MASK)
        else:
            found.append(_IN_ADDRESS.sub(rf"\1{MASK}@", word))
        hides = not equals and word.startswith("-") and bool(_SECRET.search(word))
    return found


def masked_line(line: str) -> str:
    """A line of text that may hold such a command."""
    return " ".join(masked(line.split(" ")))
