"""A document as one file of HTML that needs nothing else: style, plotly and numbers are inside it.

Nothing of it reaches for the network, and its content security policy says so: scripts run only if they are the two
that were put in here (by their hashes), and nothing may be fetched, but by a page that follows a job, from where it
came.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from squall.errors import MissingExtraError
from squall.report.blocks import Document
from squall.report.words import safe
from squall.version import own_version


def html(document: Document, *, live: bool = False) -> str:
    """The whole page.

    Arguments:
        live: it is served, and asks for `data.json` beside it again and again.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    plotly, own, style = plotly_script(), _file("page.js"), _file("page.css")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(plotly)} {_hash(own)}",
            "style-src 'unsafe-inline'",  # plotly places its parts by style attributes
            "img-src data: blob:",
            "connect-src 'self'" if live else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    links = "".join(f'<li><a href="#{part.id}">{safe(part.title)}</a></li>' for part in document.sections)
    body = "".join(section.html for section in document.sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta name="generator" content="squall {safe(own_version())}">
<title>{safe(document.title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body{' data-live="data.json"' if live else ""}>
<a class="skip" href="#main">Skip to the sections</a>
<header><div id="head">{document.head}</div>
<p id="live" class="live" role="status"{"" if live else " hidden"}></p>
<nav aria-label="Sections"><ul id="links">{links}</ul></nav></header>
<noscript><p class="said">The plots need JavaScript; the words and tables do not.</p></noscript>
<main id="main">{body}</main>
<footer><p>Made by squall {safe(own_version())} from the run's records. Nothing is loaded from elsewhere.</p></footer>
<script type="application/json" id="data">{data(document.to_json())}</script>
<script>{plotly}</script>
<script>{own}</script>
</body>
</html>
"""


def data(values: dict[str, Any]) -> str:
    """JSON that may stand inside a script element: no tag can begin or end in it."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def plotly_script() -> str:
    """plotly.js, as the plotly package brings it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        offline = importlib.import_module("plotly.offline")
    except ImportError as error:
        raise MissingExtraError("squall report", "plotly", "report") from error
    return str(offline.get_plotlyjs()).replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r", "")


def _file(name: str) -> str:
    return (files("squall.report") / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
