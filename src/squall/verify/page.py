"""A verdict as one file of HTML that needs nothing else: no script, no network, light and dark as its reader likes.

It says what the terminal says, in the style of `squall report`; what failed is open, the rest unfolds. Texts of the
script that was looked at are made of characters that print, then escaped; the content security policy allows the one
style sheet that was put in here (by its hash), and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from squall.report.blocks import code, pairs, paragraph
from squall.report.words import Html, join, safe
from squall.verify import words
from squall.verify.catalogue import CHECKS
from squall.verify.finding import Edit, Finding, Outcome, Trouble, Verdict
from squall.version import own_version

_STYLE = """
/* -- checks -- */
.check { margin-top: 8px; scroll-margin-top: 16px; }
.check summary {
  display: grid; grid-template-columns: 1em 148px 72px minmax(0, 1fr); gap: 2px 10px; align-items: baseline;
}
.check summary::-webkit-details-marker { display: none; }
.check summary::before { content: "\\25b8"; color: var(--muted); }
.check[open] summary::before { content: "\\25be"; }
.check .badge { justify-self: start; }
.check .says { overflow-wrap: anywhere; }
.check[open] summary { border-bottom: 1px solid var(--grid); }
.inside { padding: 10px 14px 12px calc(14px + 1em + 10px); }
.inside .asks { color: var(--muted); font-size: 13px; margin-bottom: 6px; overflow-wrap: anywhere; }
.none { color: var(--muted); }
.edits { padding: 6px 0; }
.edits span { white-space: pre; }
.edits .plus { color: var(--good); } .edits .minus { color: var(--bad); }
.trouble {
  border: 1px solid var(--line); border-left: 3px solid var(--bad); border-radius: 10px; background: var(--surface);
  padding: 10px 14px;
}
.trouble + .trouble { margin-top: 8px; }
.trouble h3 { overflow-wrap: anywhere; }
.trouble.light { border-left-color: var(--warn); }
.trouble dd { white-space: pre-wrap; font: 0.92em/1.6 ui-monospace, Menlo, Consolas, "Liberation Mono", monospace; }
@media (max-width: 640px) {
  .check summary { grid-template-columns: 1em minmax(0, 1fr) auto; }
  .check .says { grid-column: 2 / -1; }
  .inside { padding-left: 14px; }
  .pairs > div { grid-template-columns: minmax(0, 1fr); gap: 0; }
}
"""

_BADGES: dict[Outcome, str] = {"ok": "finished", "note": "stopped", "FAIL": "failed", "--": "none"}
_ASKS = {check.name: check.asks for check in CHECKS}


def page(verdict: Verdict) -> str:
    """The whole page."""
    style = (files("squall.report") / "page.css").read_text(encoding="utf-8") + _STYLE
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{hashed}'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta name="generator" content="squall {safe(own_version())}">
<title>{_shown(verdict.script)}: {safe(words.tally(verdict))}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to what was found</a>
<header>{_head(verdict)}</header>
<main id="main">{_troubles(verdict.troubles)}{_checks(verdict.findings)}</main>
<footer><p>Made by squall {safe(own_version())} from what the script did. Nothing is loaded from elsewhere.</p></footer>
</body>
</html>
"""


def _shown(text: object) -> Html:
    return safe(words.plain(text))


def _head(verdict: Verdict) -> Html:
    kind, word = ("finished", "ok") if verdict.ok else ("failed", "FAIL")
    about = ", ".join([*filter(None, [words.plain(verdict.framework)]), *words.extent(verdict)])
    parts = [
        paragraph("squall verify", kind="kicker"),
        Html(f"<h1>{_shown(verdict.script)}</h1>"),
        paragraph(about, kind="folder"),
        paragraph(Html(f'<span class="badge {kind}">{word}</span> '), words.tally(verdict), kind="state"),
    ]
    if verdict.reference:
        parts.append(paragraph(f"reference: {words.plain(verdict.reference)}", kind="said"))
    if verdict.arguments:
        parts.append(paragraph("as it was run: ", code(words.command(verdict)), kind="said"))
    return join(parts, "")


def _troubles(troubles: tuple[Trouble, ...]) -> Html:
    found = [
        Html(
            f'<div class="trouble{"" if trouble.fatal else " light"}"><h3>{_shown(trouble.says)}</h3>'
            f"{pairs(words.details(trouble))}</div>"
        )
        for trouble in troubles
    ]
    return _section("troubles", "What kept it from being observed", found)


def _checks(findings: tuple[Finding, ...]) -> Html:
    return _section("checks", "Checks", [_check(finding) for finding in findings])


def _check(finding: Finding) -> Html:
    """A row; what there is to know beyond it unfolds."""
    name = _shown(finding.check)
    spoken = '<span class="unseen">not run</span>' if finding.outcome == "--" else ""
    hidden = ' aria-hidden="true"' if spoken else ""
    asks = paragraph(_ASKS[finding.check], kind="asks") if finding.check in _ASKS else ""
    where = [("where", code(words.plain(finding.place)))] if finding.place else []
    rows = [(label, code(said) if label == "line" else said) for label, said in words.story(finding)]
    if finding.edits:
        rows.append(("change", _edits(finding.edits)))
    if finding.known:
        rows.append(("known", words.sources(finding.known)))
    return Html(
        f'<details class="check" id="check-{name.replace(" ", "-")}"{" open" if finding.outcome == "FAIL" else ""}>'
        f'<summary><h3>{name}</h3><span><span class="badge {_BADGES[finding.outcome]}"{hidden}>{finding.outcome}</span>'
        f'{spoken}</span><span class="says">{_shown(finding.says)}</span></summary>'
        f'<div class="inside">{asks}{pairs([*where, *rows])}</div></details>'
    )


def _edits(lines: tuple[Edit, ...]) -> Html:
    """The user's lines, numbered, with what goes and what comes."""
    kinds = {"+": "plus", "-": "minus", " ": "same"}
    shown = [
        f'<span class="{kinds[mark]}">{mark} {number}   {safe(text)}</span>'
        for mark, number, text in words.edits(lines)
    ]
    return Html(f'<pre class="edits" tabindex="0" aria-label="the change">{chr(10).join(shown)}</pre>')


def _section(name: str, title: str, parts: list[Html]) -> Html:
    if not parts:
        return Html("")
    return Html(
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{title}</h2>{join(parts, "")}</section>'
    )
