"""Results of a search for doubtful images: a page with their pictures, and a table to act on."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ppcls.data.files import Files
from ppcls.evaluation import html
from ppcls.evaluation.clean import Doubtful, Images
from ppcls.evaluation.plots import short_names
from ppcls.evaluation.report import thumbnail, write_csv
from ppcls.files import write_text
from ppcls.preprocessing import Preprocessing

TABLE, PAGE = "doubtful.csv", "index.html"
HEADER = ["action", "kind", "group", "file", "list", "line", "label", "name", "suggested", "suggested_name"]
HEADER += ["probability", "suggested_probability"]
# Kinds of groups of near duplicates; a group has the first that fits.
CONFLICT, LEAK, COPY = "conflict", "leak", "copy"
KINDS = {
    CONFLICT: ("Copies with different labels", "At least one of the labels is wrong."),
    LEAK: (
        "Copies in several lists or folders",
        "If one trains the network and another evaluates it, the accuracy comes out too high.",
    ),
    COPY: ("Copies in one list or folder", "They count several times in training."),
}
MOST_LABELS, MOST_GROUPS, MOST_COPIES = 96, 24, 6  # pictures on the page: of labels, groups of each kind


def groups_of(copies: np.ndarray) -> list[np.ndarray]:
    """Return the images of each group of two or more, from what find_near_duplicates returns."""
    order = np.argsort(copies, kind="stable")
    starts = np.flatnonzero(np.diff(copies[order], prepend=-1))
    return [group for group in np.split(order, starts[1:]) if len(group) > 1]


def kind_of(group: np.ndarray, images: Images) -> str:
    """Return the kind of a group of copies."""
    if len(np.unique(images.labels[group])) > 1:
        return CONFLICT
    return LEAK if len(np.unique(images.sources[group])) > 1 else COPY


def write_clean_report(
    folder: Path,
    images: Images,
    wrong: Sequence[Doubtful],
    groups: Sequence[np.ndarray],
    preprocessing: Preprocessing,
    about: dict[str, str],
) -> dict[str, int]:
    """Write index.html and doubtful.csv, and return how many wrong labels and groups of each kind there are.

    about: lines below the page's title.
    """
    kinds: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for group in groups:
        kinds[kind_of(group, images)].append(group)
    rows = [_label_row(item, images) for item in wrong]
    numbered = enumerate(((kind, group) for kind in KINDS for group in kinds[kind]), 1)
    for number, (kind, group) in numbered:
        rows += [["", kind, number, *_place(position, images)] + [""] * 4 for position in group]
    write_csv(folder / TABLE, HEADER, rows)
    counts = {"label": len(wrong)} | {kind: len(members) for kind, members in kinds.items()}
    sections = [("Likely wrong labels", _labels(wrong, images, preprocessing))]
    for kind, members in kinds.items():
        title, words = KINDS[kind]
        sections.append((title, _copies(members, words, images, preprocessing)))
    shown = {"images": len(images.labels), "likely wrong labels": counts["label"]}
    shown |= {KINDS[kind][0].lower(): counts[kind] for kind in KINDS}
    figures = {name: f"{count:,}" for name, count in shown.items()}
    write_text(folder / PAGE, html.page("Doubtful images", about, figures, sections), errors="replace")
    return counts


def _place(position: int, images: Images) -> list:
    """Return the columns from file to name."""
    dataset, index = images.dataset(position)
    label = int(images.labels[position])
    source = dataset.source
    if isinstance(source, Files) and source.lines is not None:
        return [dataset.name(index), source.list_file, int(source.lines[index]), label, images.names[label]]
    return [dataset.name(index), "", "", label, images.names[label]]


def _label_row(item: Doubtful, images: Images) -> list:
    suggested = [item.suggested, images.names[item.suggested]]
    return ["", "label", "", *_place(item.position, images), *suggested] + [
        f"{probability:.6f}" for probability in item.probabilities
    ]


def _labels(wrong: Sequence[Doubtful], images: Images, preprocessing: Preprocessing) -> str:
    if not wrong:
        return html.paragraph("None were found.")
    names, figures = short_names(images.names), []
    for item in wrong[:MOST_LABELS]:
        given, suggested = names[item.label], names[item.suggested]
        lines = [
            f"given: {escape(given)}, {html.probability(item.probabilities[0])}",
            f"suggested: <b>{escape(suggested)}</b>, {html.probability(item.probabilities[1])}",
        ]
        figures.append(_figure(item.position, f"{given}, perhaps {suggested}", lines, images, preprocessing))
    words = (
        "The given label, the suggested one, and their probabilities by a classifier that has not seen the "
        "image; the least probable label first."
    )
    return html.paragraph(f"{words} {_shown(len(figures), len(wrong))}") + html.figures(figures)


def _copies(groups: Sequence[np.ndarray], words: str, images: Images, preprocessing: Preprocessing) -> str:
    if not groups:
        return html.paragraph("None were found.")
    parts, names = [], short_names(images.names)
    for group in groups[:MOST_GROUPS]:
        figures = []
        for position in group[:MOST_COPIES]:
            name = names[images.labels[position]]
            figures.append(_figure(int(position), name, [escape(name)], images, preprocessing))
        parts.append(html.figures(figures))
        if len(group) > MOST_COPIES:
            parts.append(html.paragraph(f"And {len(group) - MOST_COPIES} more."))
    shown = _shown(len(groups[:MOST_GROUPS]), len(groups))
    return html.paragraph(f"{words} One row for each group. {shown}") + "\n<hr>\n".join(parts)


def _shown(shown: int, count: int) -> str:
    return f"All are in {TABLE}." if shown == count else f"{shown} of {count} are shown; {TABLE} has all."


def _figure(
    position: int, words: str, lines: Sequence[str], images: Images, preprocessing: Preprocessing
) -> html.Figure:
    dataset, index = images.dataset(position)
    picture = thumbnail(dataset, index, preprocessing)
    return html.Figure(picture, words, lines, dataset.where(index))
