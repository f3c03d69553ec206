"""A verdict as plain JSON, for programs: every field under its own name. A change of meaning counts `SCHEMA` up."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from squall.verify.finding import Verdict
from squall.version import own_version

SCHEMA = 1


def to_json(verdict: Verdict) -> dict[str, Any]:
    """The values: those of `Verdict`, and `schema`, `squall` (its version), `ok`."""
    fields = asdict(verdict)
    for trouble in fields["troubles"]:
        trouble["rows"] = [{"label": label, "text": text} for label, text in trouble["rows"]]
    return {"schema": SCHEMA, "squall": own_version(), "ok": verdict.ok, **fields}
