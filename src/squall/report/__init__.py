"""One self-contained page of a run, or of several side by side: records in, HTML out.

    folder -> Reader -> RunData -> single / several -> Document -> HTML, or JSON for the page that follows a job

Nothing here trains or loads torch; a run that was killed, diverged or still goes on is shown for what it is.
"""

from __future__ import annotations

from squall.report.blocks import Document
from squall.report.page import html
from squall.report.read import Reader, RunData
from squall.report.serve import Live
from squall.report.several import document

__all__ = ["Document", "Live", "Reader", "RunData", "document", "html"]
