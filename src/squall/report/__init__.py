"""One self-contained page of a run, or of several side by side: records in, HTML out.

    folder -> Reader -> RunData -> single / several -> Document -> HTML, or JSON for the page that follows a job

Nothing here trains or loads torch; a run that was killed, diverged or still goes on is shown for what it is. Names are
imported when they are first used: the command line looks at run folders (`squall.report.folder`) without the page.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from squall.report.blocks import Document
    from squall.report.page import html
    from squall.report.read import Reader, RunData
    from squall.report.serve import Live
    from squall.report.several import document

_WHERE = {
    "Document": "blocks",
    "Live": "serve",
    "Reader": "read",
    "RunData": "read",
    "document": "several",
    "html": "page",
}

__all__ = ["Document", "Live", "Reader", "RunData", "document", "html"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'squall.report' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"squall.report.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
