"""Paths of the model pages' files, and functions that write and check them."""

from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

from zoo.complexity import Complexity
from zoo.measured import read_measured
from zoo.pages import CHINESE, ENGLISH, count_all, model_page, replace_block, summary_block
from zoo.plots import draw, panels, plot_data

MEASURED = Path("docs/models/measured.json")
PAGES = {
    Path("docs/models/EfficientNet_and_ResNeXt101_wsl.md"): ENGLISH,
    Path("docs/models/EfficientNet_and_ResNeXt101_wsl_ch.md"): CHINESE,
}
READMES = {Path("README.md"): ENGLISH, Path("README_ch.md"): CHINESE}
PLOTS = Path("docs/images/models")


def texts(root: Path, counts: Mapping[str, Complexity], measured: Mapping[str, Any]) -> dict[Path, str]:
    """Return the text that each Markdown file below root should have."""
    pages = {path: model_page(words, counts, measured) for path, words in PAGES.items()}
    for path, words in READMES.items():
        old = (root / path).read_text(encoding="utf-8")
        pages[path] = replace_block(old, summary_block(words, counts, measured), str(path))
    return pages


def plot_paths(name: str) -> tuple[Path, Path]:
    """Return the paths of a plot's PNG and SVG. name: flops, params or fp32."""
    return PLOTS / f"EfficientNet.png.{name}.png", PLOTS / f"EfficientNet.png.{name}.svg"


def write_files(root: Path) -> list[Path]:
    """Write all files, and return their paths."""
    counts, measured = count_all(), read_measured(root / MEASURED)
    written = []
    for path, text in texts(root, counts, measured).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
        written.append(path)
    for name, shown in panels(counts, measured).items():
        png, svg = plot_paths(name)
        draw(shown, root / png, root / svg)
        written += [png, svg]
    return written


def stale_files(root: Path) -> list[Path]:
    """Return the files that are missing or out of date. Plots are compared by their data, not by pixels."""
    counts, measured = count_all(), read_measured(root / MEASURED)
    stale = []
    for path, text in texts(root, counts, measured).items():
        if not (root / path).exists() or (root / path).read_text(encoding="utf-8") != text:
            stale.append(path)
    for name, shown in panels(counts, measured).items():
        png, svg = plot_paths(name)
        if not (root / png).exists():
            stale.append(png)
        text = (root / svg).read_text(encoding="utf-8") if (root / svg).exists() else ""
        if plot_data(shown) not in unescape(text):
            stale.append(svg)
    return stale
