"""The files of the model pages: which they are, and writing them."""

from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

from ppcls.complexity import Complexity
from ppcls.zoo.measured import read_measured
from ppcls.zoo.pages import CHINESE, ENGLISH, count_all, model_page, replace_block, summary_block
from ppcls.zoo.plots import draw, panels, plot_data

MEASURED = Path("docs/models/measured.json")
PAGES = {
    Path("docs/models/EfficientNet_and_ResNeXt101_wsl.md"): ENGLISH,
    Path("docs/models/EfficientNet_and_ResNeXt101_wsl_ch.md"): CHINESE,
}
READMES = {Path("README.md"): ENGLISH, Path("README_ch.md"): CHINESE}
PLOTS = Path("docs/images/models")


def texts(root: Path, counts: Mapping[str, Complexity], measured: Mapping[str, Any]) -> dict[Path, str]:
    """Each Markdown file below root as it should be."""
    pages = {path: model_page(words, counts, measured) for path, words in PAGES.items()}
    for path, words in READMES.items():
        old = (root / path).read_text(encoding="utf-8")
        pages[path] = replace_block(old, summary_block(words, counts, measured), str(path))
    return pages


def plot_paths(name: str) -> tuple[Path, Path]:
    """PNG and SVG of a plot: flops, params or fp32."""
    return PLOTS / f"EfficientNet.png.{name}.png", PLOTS / f"EfficientNet.png.{name}.svg"


def write_files(root: Path) -> list[Path]:
    """Write all of them, and say which."""
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
    """Those that are missing, or not what figures and code give now; of plots the data count, not pixels."""
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
