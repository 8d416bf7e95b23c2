"""Results of a search for doubtful images: a page with their pictures, and a table to act on."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ppcls.data.files import Files
from ppcls.evaluation import html
from ppcls.evaluation.clean import Doubtful, Images
from ppcls.evaluation.plots import short_names
from ppcls.evaluation.report import thumbnail
from ppcls.evaluation.tables import write_csv
from ppcls.files import write_text
from ppcls.preprocessing import Preprocessing

TABLE, PAGE = "doubtful.csv", "index.html"
HEADER = ["action", "kind", "group", "file", "list", "line", "label", "name", "suggested", "suggested_name"]
HEADER += ["probability", "suggested_probability"]
# Kinds of groups of near duplicates; a group has the first that fits.
CONFLICT, LEAK, COPY = "conflict", "leak", "copy"
KINDS = {
    CONFLICT: ("Groups of copies with different labels", "At least one of the labels is wrong."),
    LEAK: (
        "Groups of copies in several lists or folders",
        "If one trains the network and another evaluates it, the accuracy comes out too high.",
    ),
    COPY: ("Groups of copies in one list or folder", "They count several times in training."),
}
MOST_LABELS, MOST_GROUPS, MOST_COPIES = 96, 24, 6  # pictures on the page: of labels, groups of each kind


def groups_of(copies: np.ndarray) -> list[np.ndarray]:
    """Return the images of each group of two or more, from what find_near_duplicates returns."""
    order = np.argsort(copies, kind="stable")
    starts = np.flatnonzero(np.diff(copies[order], prepend=-1))
    return [group for group in np.split(order, starts[1:]) if len(group) > 1]


def write_clean_report(
    folder: Path,
    images: Images,
    wrong: Sequence[Doubtful],
    groups: Sequence[np.ndarray],
    preprocessing: Preprocessing,
    about: dict[str, str],
) -> dict[str, int]:
    """Write index.html and doubtful.csv. Return how many wrong labels and groups of each kind there are, by
    the titles of the page's sections.

    about: lines below the page's title.
    """
    kinds: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for group in groups:
        kinds[_kind_of(group, images)].append(group)
    rows = [
        ["", "label", "", *_place(item.position, images), item.suggested, images.names[item.suggested]]
        + [f"{probability:.6f}" for probability in item.probabilities]
        for item in wrong
    ]
    numbered = enumerate(((kind, group) for kind in KINDS for group in kinds[kind]), 1)
    for number, (kind, group) in numbered:
        rows += [["", kind, number, *_place(position, images)] + [""] * 4 for position in group]
    write_csv(folder / TABLE, HEADER, rows)
    counts = {"Likely wrong labels": len(wrong)} | {KINDS[kind][0]: len(kinds[kind]) for kind in KINDS}
    bodies = [_labels(wrong, images, preprocessing)]
    bodies += [_copies(kinds[kind], KINDS[kind][1], images, preprocessing) for kind in KINDS]
    figures = {name: f"{count:,}" for name, count in ({"Images": len(images.labels)} | counts).items()}
    page = html.page("Doubtful images", about, figures, list(zip(counts, bodies, strict=True)))
    write_text(folder / PAGE, page, errors="replace")
    return counts


def _kind_of(group: np.ndarray, images: Images) -> str:
    if len(np.unique(images.labels[group])) > 1:
        return CONFLICT
    return LEAK if len(np.unique(images.sources[group])) > 1 else COPY


def _place(position: int, images: Images) -> list:
    """Return the columns from file to name."""
    dataset, index = images.dataset(position)
    label, source = int(images.labels[position]), dataset.source
    place: list = ["", ""]
    if isinstance(source, Files) and source.lines is not None:
        place = [source.list_file, int(source.lines[index])]
    return [dataset.name(index), *place, label, images.names[label]]


def _labels(wrong: Sequence[Doubtful], images: Images, preprocessing: Preprocessing) -> str:
    names, figures = short_names(images.names), []
    for item in wrong[:MOST_LABELS]:
        given, suggested = names[images.labels[item.position]], names[item.suggested]
        lines = [
            f"given: {escape(given)}, {html.probability(item.probabilities[0])}",
            f"suggested: <b>{escape(suggested)}</b>, {html.probability(item.probabilities[1])}",
        ]
        figures.append(_figure(item.position, f"{given}, perhaps {suggested}", lines, images, preprocessing))
    words = (
        "The given label, the suggested one, and their probabilities by a classifier that has not seen the "
        f"image; the least probable label first. {len(figures)} of {len(wrong)} are shown; {TABLE} has all."
    )
    return html.paragraph(words) + html.gallery(figures)


def _copies(groups: Sequence[np.ndarray], words: str, images: Images, preprocessing: Preprocessing) -> str:
    shown, names, parts = groups[:MOST_GROUPS], short_names(images.names), []
    for group in shown:
        labels = [names[label] for label in images.labels[group[:MOST_COPIES]]]
        parts.append(
            html.gallery(
                _figure(int(position), name, [escape(name)], images, preprocessing)
                for position, name in zip(group, labels, strict=False)
            )
        )
    words += f" One row for each group, with {MOST_COPIES} images at most."
    words += f" {len(shown)} of {len(groups)} groups are shown; {TABLE} has all."
    return html.paragraph(words) + "\n<hr>\n".join(parts)


def _figure(
    position: int, words: str, lines: Sequence[str], images: Images, preprocessing: Preprocessing
) -> html.Figure:
    dataset, index = images.dataset(position)
    picture = thumbnail(dataset, index, preprocessing)
    return html.Figure(picture, words, lines, dataset.where(index))
