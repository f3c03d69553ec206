"""The manifest of a checkpoint: everything that is no tensor, and the hash of every byte that belongs to it.

It is written last, and ends with the hash of its own text: a checkpoint whose manifest reads back to the same bytes,
and whose files have the hashes that it names, is whole; anything else is as if it were not there.
"""

from __future__ import annotations

import json
from typing import Any

from squall.checkpoint.writer import manifest_text

FORMAT = 1
"""Of checkpoints; a later Squall that cannot be read by this one writes a larger number."""

FILE = "manifest.json"


class BrokenManifestError(ValueError):
    """A manifest that is torn or changed."""


def read(text: bytes) -> dict[str, Any]:
    """The body of a manifest's text.

    Raises:
        BrokenManifestError: a byte is missing or another than was written.
    """
    try:
        body: dict[str, Any] = json.loads(text)["body"]
        same = manifest_text(body).encode() == text
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenManifestError("it is cut short or changed") from error
    if not same:
        raise BrokenManifestError("its own hash does not fit")
    return body
