"""The ledger: how often each sample was seen, as a sentence and as a block of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from squall.report.blocks import Block, code, pairs, paragraph, text_block
from squall.report.read import RunData
from squall.report.values import mapping, whole
from squall.report.words import NONE, plural
from squall.units import count


def sentence(found: Mapping[str, Any]) -> str:
    """ "11,496 samples: each of 1,437 seen exactly 8 times"; and how many reads were skipped."""
    samples, distinct, least, most, skipped = (
        whole(found.get(key)) for key in ("samples", "distinct", "least", "most", "skipped")
    )
    times = "once" if most == 1 else f"{count(most)} times"
    seen = f"exactly {times}" if least == most else f"{count(least)} to {count(most)} times"
    words = f"{plural(samples, 'sample')}: each of {count(distinct)} seen {seen}"
    return f"{words}; {plural(skipped, 'read')} skipped: images that do not decode" if skipped else words


def ledger(run: RunData) -> Block:
    """What the ledger found."""
    found = mapping(run.result.get("ledger"))
    if not found:
        why = "It closes when the run finishes." if run.state == "running" else "The run came to no end that closes it."
        return text_block("ledger", paragraph(f"No ledger. {why}"))
    complete = (
        "Every sample was seen exactly as often as the order says."
        if found.get("complete")
        else "Not as the order says: samples are missing or were seen too often."
    )
    digest = pairs([("digest", code(found.get("digest", NONE)))])
    note = paragraph("Equal digests: the same samples stood in the same workers of the same steps.", kind="quiet")
    return text_block("ledger", paragraph(f"{sentence(found)}."), paragraph(complete), digest, note)
