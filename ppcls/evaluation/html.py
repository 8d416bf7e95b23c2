"""The page of the report: one file that needs no other file and no connection."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --soft: #f0f1f3; --line: #d5d7db;
  --dim: #5c6067; --link: #1f5fa8; --wrong: #b3470a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #171717; --soft: #232527; --line: #3c4046; --dim: #a3a8b0;
    --link: #85b8f5; --wrong: #f39a5b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 80rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { max-width: 46rem; }
.lead { font-size: 1.15rem; }
.about { color: var(--dim); overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
dl { display: grid; gap: .5rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
dl div { background: var(--soft); border-radius: .4rem; padding: .5rem .75rem; }
dt { color: var(--dim); font-size: .85rem; }
dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
.gallery { list-style: none; margin: 1rem 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.gallery img, .missing { display: block; width: 100%; aspect-ratio: 1; border-radius: .3rem; }
.missing { background: var(--soft); color: var(--dim); display: grid; place-items: center; }
.gallery p { margin: .3rem 0 0; font-size: .85rem; line-height: 1.3; overflow-wrap: anywhere; }
.gallery .file { color: var(--dim); }
.gallery b { color: var(--wrong); font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
thead th { position: sticky; top: 0; background: var(--paper); padding: 0; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; width: 100%;
  padding: .4rem .6rem; text-align: left; cursor: pointer; white-space: nowrap; }
th.n button { text-align: right; }
th button:hover { background: var(--soft); }
th button::after { content: "\\2195"; opacity: .35; padding-left: .3rem; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
table.plain { width: auto; max-width: 100%; margin: 1rem 0; }
table.plain thead th { position: static; padding: .3rem .6rem; }
table.plain td { font-variant-numeric: tabular-nums; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
.figures figure { margin: 0; flex: 0 1 30rem; }
figcaption { color: var(--dim); font-size: .9rem; }
.scroll { overflow-x: auto; }
@media (min-width: 60rem) { .scroll { overflow: visible; } }
"""

# Cells without a value come last in both directions.
SCRIPT = """
"use strict";
function sortBy(header) {
  const body = header.closest("table").tBodies[0], column = header.cellIndex;
  const isNumber = header.classList.contains("n");
  const isDown = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", isDown ? "descending" : "ascending");
  const rows = Array.from(body.rows, row => [row.cells[column].textContent, row]);
  rows.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = isNumber ? a - b : a.localeCompare(b);
    return isDown ? -order : order;
  });
  body.append(...rows.map(([, row]) => row));
}
for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => sortBy(button.parentNode));
"""


class Figure(NamedTuple):
    """A picture with lines below it. thumbnail: JPEG, or None if the image cannot be read any more. words:
    what it shows. lines: HTML. file: its name."""

    thumbnail: bytes | None
    words: str
    lines: Sequence[str]
    file: str


class Column(NamedTuple):
    """A column of the table."""

    title: str
    is_number: bool


def page(
    title: str, about: Mapping[str, str], figures: Mapping[str, str], sections: Sequence[tuple[str, str]]
) -> str:
    """Return the page. about: lines below the title; figures: shown large; sections: headings and their
    HTML."""
    lines = "<br>".join(f"{escape(name)}: {escape(value)}" for name, value in about.items())
    names = [f"section-{number}" for number in range(len(sections))]
    links = "\n".join(
        f'<a href="#{name}">{escape(heading)}</a>' for name, (heading, _) in zip(names, sections, strict=True)
    )
    shown = "\n".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in figures.items())
    body = "\n".join(
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(heading)}</h2>\n{content}\n</section>'
        for name, (heading, content) in zip(names, sections, strict=True)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="about">{lines}</p>
<nav aria-label="Sections">
{links}
</nav>
</header>
<main>
<dl>
{shown}
</dl>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def lead(text: str) -> str:
    """Return the sentence that says most, larger than the others."""
    return f'<p class="lead">{escape(text)}</p>'


def picture(light: bytes, dark: bytes, words: str) -> str:
    """Return an image in two PNGs, of which the browser shows the one for the page's colours. words: its
    content."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_data("png", dark)}">'
        f'<img src="{_data("png", light)}" alt="{escape(words)}"></picture>'
    )


def figures(items: Iterable[tuple[str, str]]) -> str:
    """Return pictures beside one another where there is room. items: a picture's HTML and its caption."""
    shown = "\n".join(
        f"<figure>{item}<figcaption>{escape(words)}</figcaption></figure>" for item, words in items
    )
    return f'<div class="figures">\n{shown}\n</div>'


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a small table; its first column names the rows."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<table class="plain">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'


def gallery(items: Iterable[Figure]) -> str:
    return '<ul class="gallery">\n' + "\n".join(map(_item, items)) + "\n</ul>"


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], label: str, sorted_by: int) -> str:
    """Return a table that mouse and keyboard can sort by any column. rows: numbers as plain digits, "" for
    none; already in ascending order of the column `sorted_by`."""
    headers = "".join(
        f'<th scope="col"{_kind(column)}{_sorted(number == sorted_by)}>'
        f'<button type="button">{escape(column.title)}</button></th>'
        for number, column in enumerate(columns)
    )
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{_kind(c)}>{escape(cell)}</td>" for c, cell in zip(columns, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">\n<table>\n'
        f"<thead><tr>{headers}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _item(figure: Figure) -> str:
    shown = '<div class="missing">no picture</div>'
    if figure.thumbnail is not None:
        shown = f'<img src="{_data("jpeg", figure.thumbnail)}" alt="{escape(figure.words)}">'
    lines = "".join(f"<p>{line}</p>" for line in figure.lines)
    return f'<li>{shown}{lines}<p class="file">{escape(figure.file)}</p></li>'


def probability(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.0e}"


def _kind(column: Column) -> str:
    return ' class="n"' if column.is_number else ""


def _sorted(is_sorted: bool) -> str:
    return ' aria-sort="ascending"' if is_sorted else ""


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
