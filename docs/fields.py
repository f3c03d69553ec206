"""Writes the table of all recipe fields into docs/recipes.md: `.venv/bin/python docs/fields.py`."""

from pathlib import Path

from squall.recipe import fields_table

PAGE = Path(__file__).parent / "recipes.md"
BEGIN, END = "<!-- fields: written by docs/fields.py -->", "<!-- end of fields -->"


def table() -> str:
    """All fields as a Markdown table."""
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for row in fields_table():
        cells = (f"`{row.name}`", row.type, row.default, row.meaning)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """The page with its table as it should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
