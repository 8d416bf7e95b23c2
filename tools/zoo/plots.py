"""Plots of accuracy against cost: PNG for pages, and the same as SVG for print."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppcls.weights.published import PUBLISHED
from zoo.complexity import Complexity
from zoo.published import LITES, ORDER, PADDLECLAS_PAGE

# A line joins the models that differ only in scale; the others are single points. Colours and markers can
# be told apart in grey and by the colour-blind.
EFFICIENTNET, LITE, RESNEXT = "EfficientNet", "EfficientNet-Lite", "ResNeXt101 WSL"
LINES = {
    EFFICIENTNET: [f"EfficientNetB{number}" for number in range(8)],
    LITE: LITES,
    RESNEXT: [f"ResNeXt101_32x{width}d_wsl" for width in (8, 16, 32, 48)],
}
COLOURS = {EFFICIENTNET: "#0072B2", LITE: "#009E73", RESNEXT: "#D55E00"}
MARKERS = {EFFICIENTNET: "o", LITE: "^", RESNEXT: "s"}
PIXELS_PER_INCH = 150
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "ppcls",
}
# Places of a label relative to its point: directions, and distances in points (1/72 inch).
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, -1), (-1, 1), (1, 1), (-1, -1))
DISTANCES = (6, 10, 15, 21, 28, 36, 46)


@dataclass(frozen=True)
class Panel:
    """Points are (model, x); y is the documented top-1 in percent."""

    title: str
    x_label: str
    points: Sequence[tuple[str, float]]


def panels(counts: Mapping[str, Complexity], measured: Mapping[str, Any]) -> dict[str, list[Panel]]:
    """Return the panels of each plot, by the last part of the plot's name."""
    flops = [(name, counts[name].multiply_adds / 1e9) for name in ORDER]
    params = [(name, counts[name].trainable / 1e6) for name in ORDER]
    v100 = [(name, page.v100_ms) for name, page in PADDLECLAS_PAGE.items()]
    cpu = [
        (name, min(row["milliseconds"]["median"] for row in measured["latency"][name]["engines"].values()))
        for name in ORDER
        if name in measured["latency"]
    ]
    x_label = "milliseconds an image, batch 1, float32"
    latency = [Panel("NVIDIA V100, as PaddleClas published it", x_label, v100)]
    if cpu:
        machines = {
            f"{seen['processor']}, {seen['threads']} threads" for seen in measured["latency"].values()
        }
        where = machines.pop() if len(machines) == 1 else "CPU"
        busy = any(seen["is_busy"] for seen in measured["latency"].values())
        title = f"{where}, the fastest engine, measured{' while other programs ran' if busy else ''}"
        latency.append(Panel(title, x_label, cpu))
    return {
        "flops": [Panel("", "multiply-adds of an image, in 1e9", flops)],
        "params": [Panel("", "trainable parameters, in 1e6", params)],
        "fp32": latency,
    }


def plot_data(shown: Sequence[Panel]) -> str:
    """Return all points as JSON, which the SVG holds in its description."""
    content = [
        {
            "title": panel.title,
            "x": panel.x_label,
            "points": {name: [float(f"{x:.6g}"), round(_top1(name), 2)] for name, x in panel.points},
        }
        for panel in shown
    ]
    return json.dumps(content, separators=(",", ":"))


def draw(shown: Sequence[Panel], png: Path, svg: Path) -> None:
    """Draw the panels side by side, into both files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        width = 7.2 if len(shown) == 1 else 5.8 * len(shown)
        figure, axes = pyplot.subplots(
            1, len(shown), figsize=(width, 4.8), sharey=True, squeeze=False, layout="constrained"
        )
        for axis, panel in zip(axes[0], shown, strict=True):
            _draw_panel(axis, panel)
        axes[0][0].set_ylabel("ImageNet top-1 in percent, as documented")
        axes[0][0].legend(loc="lower right")
        figure.canvas.draw()  # computes the layout, which then stays fixed
        figure.set_layout_engine("none")
        for axis, panel in zip(axes[0], shown, strict=True):
            place_labels(
                axis, [(short_name(name), x, _top1(name), _family(name)) for name, x in panel.points]
            )
        png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, dpi=PIXELS_PER_INCH, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None, "Creator": None, "Description": plot_data(shown)})
        pyplot.close(figure)


def short_name(name: str) -> str:
    """Return a model's label. It leaves out the family, which the colour shows."""
    if name.startswith("Fix_"):
        return "Fix 32x48d"
    return (
        name.removeprefix("EfficientNet").removeprefix("ResNeXt101_").removesuffix("_wsl").replace("_", " ")
    )


def place_labels(axis: Any, points: Sequence[tuple[str, float, float, str]]) -> list[Any]:
    """Put a label beside each point, in the nearest free place.

    A free place touches no point, line, legend, edge of the axes, or other label. points: (label, x, y,
    family).
    """
    figure = axis.figure
    renderer = figure.canvas.get_renderer()
    unit = figure.dpi / 72  # pixels of a point
    positions = axis.transData.transform([(x, y) for _, x, y, _ in points])
    taken = [_around(position, 4 * unit) for position in positions]
    for line in axis.get_lines():
        corners = axis.transData.transform(line.get_xydata())
        for start, end in zip(corners[:-1], corners[1:], strict=True):
            steps = max(2, int(abs(end - start).max() / (3 * unit)))
            for step in range(steps + 1):
                taken.append(_around(start + (end - start) * step / steps, unit))
    if axis.get_legend() is not None:
        taken.append(axis.get_legend().get_window_extent(renderer))
    inside = axis.get_window_extent(renderer)
    labels = []
    for index, ((label, x, y, family), position) in enumerate(zip(points, positions, strict=True)):
        # further from other points than from its own, so that it is clear which one it names
        strangers = [_around(other, 11 * unit) for i, other in enumerate(positions) if i != index]
        text = axis.annotate(
            label, (x, y), (0, 0), textcoords="offset points", fontsize=8, color=COLOURS[family], va="center"
        )
        size = text.get_window_extent(renderer)
        places = [
            _beside(position, size.width, size.height, direction, distance * unit)
            for distance in DISTANCES
            for direction in DIRECTIONS
        ]
        free = [
            box
            for box in places
            if inside.x0 <= box.x0
            and box.x1 <= inside.x1
            and inside.y0 <= box.y0
            and box.y1 <= inside.y1
            and not any(box.overlaps(other) for other in [*taken, *strangers])
        ]
        box = free[0] if free else places[0]
        text.set_position(((box.x0 - position[0]) / unit, ((box.y0 + box.y1) / 2 - position[1]) / unit))
        taken.append(box)
        labels.append(text)
    return labels


def _around(position: Any, distance: float) -> Any:
    """Return the square with this centre and this distance to each side, in pixels."""
    from matplotlib.transforms import Bbox

    x, y = position
    return Bbox.from_extents(x - distance, y - distance, x + distance, y + distance)


def _beside(position: Any, width: float, height: float, direction: tuple[int, int], distance: float) -> Any:
    """Return the box of a label: direction and distance are from the position to its nearest edge."""
    from matplotlib.transforms import Bbox

    across, up = direction
    x = position[0] + across * (distance + width / 2) - width / 2
    y = position[1] + up * (distance + height / 2) - height / 2
    return Bbox.from_bounds(x, y, width, height)


def _draw_panel(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    x_of = dict(panel.points)
    joined = {name for names in LINES.values() for name in names}
    for family, names in LINES.items():
        line = [(x_of[name], _top1(name)) for name in names if name in x_of]
        apart = [(x, _top1(n)) for n, x in panel.points if n not in joined and _family(n) == family]
        style = {"color": COLOURS[family], "marker": MARKERS[family], "markersize": 5.5}
        if line:
            axis.plot(*zip(*line, strict=True), **style, linewidth=1.4, label=family)
        if apart:
            axis.plot(*zip(*apart, strict=True), **style, linestyle="none", markerfacecolor="white")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.08, y=0.08)
    smallest, largest = min(x_of.values()), max(x_of.values())
    if largest < 4 * smallest:  # few points: widen the axis, so that it has several ticks
        axis.set_xlim(smallest / 3, largest * 3)
    axis.set_xlabel(panel.x_label)
    axis.set_title(panel.title, fontsize=9)


def _family(name: str) -> str:
    return LITE if name in LITES else EFFICIENTNET if name.startswith("EfficientNet") else RESNEXT


def _top1(name: str) -> float:
    top1 = PUBLISHED[name][0].top1
    return 100 * top1 if top1 is not None else float("nan")
