"""A comparison as a page: sections of text, tables and charts, as an HTML file and as Markdown with PNGs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib import parse

from mvjax import files
from mvjax.report import charts, html

# What would be markup: emphasis at the edge of a word, code, HTML, links, cells, lists and headings.
_MARKUP = re.compile(
    r"[\\`|]|<(?=[\w/!?])|&(?=[#\w]+;)|\*(?=\S)|(?<=\S)\*|(?<!\w)_(?=\S)|(?<=\S)_(?!\w)|\](?=[(:])|~(?=~)"
    r"|^(?:>|[#+-](?=[#\s]))|(?:(?<=^\d)|(?<=^\d\d))[.)](?=\s)"
)
HTML, MARKDOWN, JSON, CSV = "report.html", "report.md", "results.json", "results.csv"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart, its file name without ending, what it shows in words, and its caption."""

    name: str
    chart: charts.Chart
    alt: str
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what follows it, in order; strings are paragraphs."""

    title: str
    blocks: Sequence[str | Table | Figure]


@dataclasses.dataclass(frozen=True)
class Page:
    """A whole comparison."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    footer: str


def write(folder: Path, page: Page, *, numbers: Mapping[str, str]) -> None:
    """Writes `HTML`, `MARKDOWN`, the charts as PNG files, and `numbers`, {file name: text}."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {HTML: render(page), MARKDOWN: markdown(page), **numbers}
    for name, text in texts.items():
        files.write_atomic(folder / name, text.encode())
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Figure):
                files.write_atomic(folder / f"{block.name}.png", block.chart.png)


def render(page: Page) -> str:
    """Returns the page as HTML that loads nothing."""
    kinds = {"Table": "table", "Figure": "figure", "str": "text"}
    sections = [
        {
            "title": section.title,
            "id": f"s{i}",
            "blocks": [(kinds[type(block).__name__], block) for block in section.blocks],
        }
        for i, section in enumerate(page.sections)
    ]
    template = html.environment().get_template("comparison.html")
    return template.render(page=page, sections=sections)


def markdown(page: Page) -> str:
    """Returns the page as GitHub's Markdown, beside the PNG files."""
    parts = [f"# {_escaped(page.title)}", _escaped(page.subtitle)]
    for section in page.sections:
        parts.append(f"## {_escaped(section.title)}")
        for block in section.blocks:
            parts += _markdown(block)
    return "\n\n".join([*parts, f"*{_escaped(page.footer)}*"]) + "\n"


def _markdown(block: str | Table | Figure) -> list[str]:
    if isinstance(block, str):
        return [_escaped(block)]
    if isinstance(block, Figure):
        image = f"![{_escaped(block.alt)}]({parse.quote(block.name)}.png)"
        return [image, *([_escaped(block.caption)] if block.caption else [])]
    cells = [[_escaped(cell) for cell in row] for row in (block.head, *block.rows)]
    rows = [cells[0], ["---"] + ["--:"] * (len(block.head) - 1), *cells[1:]]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [_escaped(block.caption), "\n".join(lines)]


def _escaped(text: str) -> str:
    """Plain text as one line of Markdown that shows it as it is."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
