"""What a page is made of, as values: sections of blocks, each a piece of markup or a chart.

The same value becomes the file that is sent around, and the JSON that a page following a job fetches. Colours in a
chart are names ("$c1", "$c1/0.2" with an opacity); the page looks them up in its style sheet, so that light and
dark are its own business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from squall.report.words import Html, join, safe


@dataclass(frozen=True)
class Block:
    """A piece of a section.

    Attributes:
        id: its name on the page; a block that changes keeps it.
        html: markup.
    """

    id: str
    html: Html

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return {"id": self.id, "html": self.html}


@dataclass(frozen=True)
class Chart:
    """A plot with its title and what it shows in words.

    Attributes:
        figure: `data` and `layout` as plotly takes them.
        caption: a sentence below the title: the reading, not the drawing. Also what a screen reader says.
        unit: of the y axis, beside the title.
        wide: as wide as the page.
        log: a button changes the y axis between linear and logarithmic; None: it stays linear.
        linked: charts of one name zoom together along x.
    """

    id: str
    title: str
    figure: dict[str, Any]
    caption: str = ""
    unit: str = ""
    wide: bool = False
    log: Literal["off", "on"] | None = None
    linked: str = ""

    @property
    def html(self) -> Html:
        """The frame in which the page draws."""
        name, caption = safe(self.id), safe(self.caption)
        unit = f' <span class="unit">{safe(self.unit)}</span>' if self.unit else ""
        return Html(
            f'<figure class="block chart{" wide" if self.wide else ""}" data-block="{name}" aria-labelledby="t-{name}">'
            f'<figcaption><h3 id="t-{name}">{safe(self.title)}{unit}</h3><div class="tools">{self._buttons()}</div>'
            f'<p class="caption">{caption}</p></figcaption><div class="keys"></div>'
            f'<div class="plot" role="img" aria-label="{safe(self.label)}"></div></figure>'
        )

    @property
    def label(self) -> str:
        """All of it in words."""
        return f"{self.title}{f', {self.unit}' if self.unit else ''}. {self.caption}"

    def _buttons(self) -> str:
        png = '<button type="button" data-do="png" title="save as an image">png</button>'
        if self.log is None:
            return png
        pressed = "true" if self.log == "on" else "false"
        return (
            f'<button type="button" data-do="log" aria-pressed="{pressed}" title="logarithmic axis">log</button>{png}'
        )

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return {
            "id": self.id,
            "html": self.html,
            "title": self.title,
            "unit": self.unit,
            "caption": self.caption,
            "label": self.label,
            "figure": self.figure,
            "log": self.log,
            "linked": self.linked,
        }


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading."""

    id: str
    title: str
    blocks: Sequence[Block | Chart]

    @property
    def html(self) -> Html:
        """All of it."""
        inside = "".join(block.html for block in self.blocks)
        return Html(
            f'<section id="{self.id}" aria-labelledby="h-{self.id}"><h2 id="h-{self.id}">{safe(self.title)}</h2>'
            f'<div class="blocks">{inside}</div></section>'
        )


@dataclass(frozen=True)
class Document:
    """A page.

    Attributes:
        title: of the window.
        head: what stands above the sections.
        running: somebody works on one of the runs now.
    """

    title: str
    head: Html
    sections: Sequence[Section] = field(default_factory=list)
    running: bool = False

    @property
    def charts(self) -> list[Chart]:
        """All of them, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Chart)]

    def to_json(self) -> dict[str, Any]:
        """For the page; strict JSON."""
        sections = [
            {"id": section.id, "title": section.title, "blocks": [block.to_json() for block in section.blocks]}
            for section in self.sections
        ]
        return {"title": self.title, "head": self.head, "running": self.running, "sections": sections}


def sections_of(parts: Iterable[tuple[str, str, Sequence[Block | Chart | None]]]) -> list[Section]:
    """Sections of (id, title, blocks); a block that is None is left out, and so is an empty section."""
    found = [(name, title, [block for block in blocks if block is not None]) for name, title, blocks in parts]
    return [Section(name, title, blocks) for name, title, blocks in found if blocks]


def text_block(name: str, *parts: object, wide: bool = True) -> Block:
    """A block of markup; texts are escaped."""
    place = "block text wide" if wide else "block text"
    return Block(name, Html(f'<div class="{place}" data-block="{safe(name)}">{join(parts, "")}</div>'))


def table(
    caption: str,
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    words: Sequence[int] = (0,),
    tall: bool = False,
) -> Html:
    """A table in a box of its own that scrolls sideways where it must.

    Arguments:
        words: the columns that hold words, which stand to the left; the others stand to the right, as numbers do.
        tall: it may be long: the box scrolls downwards too.
    """
    kinds = [' class="w"' if column in words else ' class="n"' for column in range(len(head))]

    def cells(tag: str, row: Sequence[object]) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        return "".join(
            f"<{tag}{scope}{kind}><div>{safe(cell)}</div></{tag}>" for kind, cell in zip(kinds, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    name = safe(caption)
    return Html(
        f'<div class="scroll{" tall" if tall else ""}" role="region" tabindex="0" aria-label="{name}"><table>'
        f'<caption class="unseen">{name}</caption><thead><tr>{cells("th", head)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def pairs(rows: Iterable[tuple[object, object]]) -> Html:
    """Words and what they stand for, one below the other."""
    inside = "".join(f"<div><dt>{safe(label)}</dt><dd>{safe(text)}</dd></div>" for label, text in rows if str(text))
    return Html(f'<dl class="pairs">{inside}</dl>')


def paragraph(*parts: object, kind: str = "") -> Html:
    """A paragraph."""
    opening = f'<p class="{kind}">' if kind else "<p>"
    return Html(f"{opening}{join(parts, '')}</p>")


def code(text: object) -> Html:
    """A command or a hash."""
    return Html(f"<code>{safe(text)}</code>")
