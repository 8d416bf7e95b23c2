"""Tables in Markdown, in English and Chinese, and the templates that hold them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from ppcls.architectures import MODELS, build_model
from ppcls.distributed import import_paddle
from ppcls.errors import DataError
from ppcls.weights.published import PUBLISHED
from zoo.complexity import Complexity, complexity
from zoo.measured import ENGINES
from zoo.published import IMAGENET_VALIDATION, ORDER, PADDLECLAS_PAGE, SOURCES

BEGIN, END = "<!-- model table: written by tools/model_zoo.py -->", "<!-- end of the model table -->"
TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class Words:
    """Column titles and sentences of one language."""

    accuracy: Sequence[str]
    counts: Sequence[str]
    latency: Sequence[str]
    eager: str
    summary: Sequence[str]
    converted: str
    nothing_measured: str
    measured_all: str
    measured_sample: str
    machine: str
    busy: str
    mismatch: str
    flops: str
    params: str
    comma: str
    plot: str


ENGLISH = Words(
    accuracy=(
        *("model", "top-1", "top-5", "reference<br>top-1", "reference<br>top-5"),
        *("measured<br>top-1", "measured<br>top-5", "measured<br>images", "weights published by", "license"),
    ),
    counts=(
        *("model", "input", "multiply-adds", "trainable<br>parameters", "paddle.flops<br>(G)"),
        *("paddle.flops<br>params (M)", "PaddleClas's formula<br>FLOPs (G)"),
        *("PaddleClas's formula<br>params (M)", "documented<br>FLOPs (G)", "documented<br>params (M)"),
    ),
    latency=("model", "crop", "resize short", "V100, published<br>(ms)", "ceiling<br>(GFLOP/s)"),
    eager="eager network",
    summary=("model", "parameters", "multiply-adds (G)", "crop / resize", "top-1", "top-5", "measured top-1"),
    converted="{publisher}, converted from {origin}",
    nothing_measured="Nothing has been measured yet.",
    measured_all="- {model}: weights `{weights}`, all {count:,} images of the validation set.",
    measured_sample="- {model}: weights `{weights}`, {right1:,} of {count:,} top-1, {right5:,} top-5. "
    "This is a sample of ImageNet's training and validation images. The network may have been "
    "trained on some of them, so it is not a benchmark.",
    machine="- {models}: {processor}, {threads} threads, {versions}.",
    busy=" Other programs ran at the same time, so these figures are too high and are to be measured again.",
    mismatch="{model}, {what}: documented {documented:.2f}, by the formula {computed:.2f}",
    flops="FLOPs (G)",
    params="parameters (M)",
    comma=", ",
    plot="Top-1 against multiply-adds",
)
CHINESE = Words(
    accuracy=(
        *("模型", "top-1", "top-5", "参考<br>top-1", "参考<br>top-5"),
        *("实测<br>top-1", "实测<br>top-5", "实测<br>图像数", "权重发布者", "许可证"),
    ),
    counts=(
        *("模型", "输入尺寸", "乘加次数", "可训练<br>参数量", "paddle.flops<br>(G)"),
        *("paddle.flops<br>参数量 (M)", "PaddleClas 公式<br>FLOPs (G)"),
        *("PaddleClas 公式<br>参数量 (M)", "文档<br>FLOPs (G)", "文档<br>参数量 (M)"),
    ),
    latency=("模型", "裁剪尺寸", "缩放后短边", "V100，官方公布<br>(ms)", "算力上限<br>(GFLOP/s)"),
    eager="动态图网络",
    summary=("模型", "参数量", "乘加次数 (G)", "裁剪 / 缩放短边", "top-1", "top-5", "实测 top-1"),
    converted="{publisher}，转换自 {origin}",
    nothing_measured="尚无实测数据。",
    measured_all="- {model}：权重为 `{weights}`，使用验证集的全部 {count:,} 张图像。",
    measured_sample="- {model}：权重为 `{weights}`，{count:,} 张图像中 top-1 正确 {right1:,} 张，"
    "top-5 正确 {right5:,} 张。这些图像抽样自 ImageNet 的训练集和验证集，"
    "其中一部分可能参与过模型训练，因此不能作为基准测试结果。",
    machine="- {models}：{processor}，{threads} 个线程，{versions}。",
    busy="测试时有其他程序在运行，因此数值偏大，需要重新测试。",
    mismatch="{model}，{what}：文档为 {documented:.2f}，公式结果为 {computed:.2f}",
    flops="FLOPs (G)",
    params="参数量 (M)",
    comma="、",
    plot="Top-1 精度与乘加次数",
)


def count_all() -> dict[str, Complexity]:
    """Count each model at its nominal size. This takes some seconds and allocates no weights."""
    paddle = import_paddle()

    counts = {}
    for name in ORDER:
        with paddle.LazyGuard():
            model = build_model(name)
        counts[name] = complexity(model, MODELS[name].image_size, MODELS[name].image_size)
    return counts


def model_page(words: Words, counts: Mapping[str, Complexity], measured: Mapping[str, Any]) -> str:
    """Return the whole page in one language."""
    template = TEMPLATES / ("page_ch.md" if words is CHINESE else "page.md")
    matched, others = mismatches(counts)
    return Template(template.read_text(encoding="utf-8")).substitute(
        accuracy=accuracy_table(words, measured),
        accuracy_notes=accuracy_notes(words, measured),
        counts=counts_table(words, counts),
        reproduced=matched,
        documented=matched + len(others),
        others="\n".join(
            "- "
            + words.mismatch.format(
                model=model,
                what=words.flops if what == "flops" else words.params,
                documented=documented,
                computed=computed,
            )
            for model, what, documented, computed in others
        ),
        latency=latency_table(words, measured),
        latency_notes=latency_notes(words, measured),
    )


def summary_block(words: Words, counts: Mapping[str, Complexity], measured: Mapping[str, Any]) -> str:
    """Return the README's table and plot."""
    rows = []
    for name in ORDER:
        published, accuracy = PUBLISHED[name][0], measured["accuracy"].get(name)
        preprocessing = published.preprocessing
        seen = ""
        if accuracy is not None:
            seen = _measured(accuracy, "top1")
            if accuracy["count"] != IMAGENET_VALIDATION:
                seen += f" ({accuracy['count']:,})"
        rows.append(
            (
                *(name, f"{counts[name].trainable:,}", f"{counts[name].multiply_adds / 1e9:.2f}"),
                *(f"{preprocessing.crop_size} / {preprocessing.resize_short}", _fraction(published.top1)),
                *(_fraction(published.top5), seen),
            )
        )
    return f"{_table(words.summary, rows)}\n\n![{words.plot}](docs/images/models/EfficientNet.png.flops.png)"


def replace_block(text: str, block: str, where: str) -> str:
    """Return the text with another block between the marks. Raises DataError unless each is there once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise DataError(
            f"{where} must have the lines {BEGIN!r} and {END!r} once each, in this order. Received: "
            f"{text.count(BEGIN)} and {text.count(END)} of them. Put them back around the model table."
        )
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def accuracy_table(words: Words, measured: Mapping[str, Any]) -> str:
    rows = []
    for name in ORDER:
        published = PUBLISHED[name][0]
        page = PADDLECLAS_PAGE.get(name)
        reference = ("", "") if page is None or page.reference is None else page.reference
        publisher, origin = SOURCES[name]
        source = publisher
        if origin != publisher:
            source = words.converted.format(publisher=publisher, origin=origin)
        seen = measured["accuracy"].get(name)
        found = ["", "", ""]
        if seen is not None:
            found = [_measured(seen, "top1"), _measured(seen, "top5"), f"{seen['count']:,}"]
        rows.append(
            (
                *(name, _fraction(published.top1), _fraction(published.top5)),
                *(f"{value:.3f}" if value else "" for value in reference),
                *(*found, source, published.license),
            )
        )
    return _table(words.accuracy, rows)


def accuracy_notes(words: Words, measured: Mapping[str, Any]) -> str:
    lines = []
    for name in ORDER:
        seen = measured["accuracy"].get(name)
        if seen is None:
            continue
        count = seen["count"]
        phrase = words.measured_all if count == IMAGENET_VALIDATION else words.measured_sample
        lines.append(
            phrase.format(
                model=name,
                weights=seen["weights"],
                count=count,
                right1=round(seen["top1"] * count),
                right5=round(seen["top5"] * count),
            )
        )
    return "\n".join(lines) or words.nothing_measured


def counts_table(words: Words, counts: Mapping[str, Complexity]) -> str:
    rows = []
    for name in ORDER:
        count, page, size = counts[name], PADDLECLAS_PAGE.get(name), MODELS[name].image_size
        rows.append(
            (
                *(name, f"{size} x {size}", f"{count.multiply_adds:,}", f"{count.trainable:,}"),
                *(f"{count.paddle_flops / 1e9:.3f}", f"{count.paddle_params / 1e6:.3f}"),
                *(f"{count.model_stat_flops / 1e9:.3f}", f"{count.model_stat_params / 1e6:.3f}"),
                *(("", "") if page is None else (f"{page.gflops:.2f}", f"{page.mparams:.2f}")),
            )
        )
    return _table(words.counts, rows)


def mismatches(counts: Mapping[str, Complexity]) -> tuple[int, list[tuple[str, str, float, float]]]:
    """Compare PaddleClas's figures with the formula, to two decimals.

    Returns the number of equal figures, and each other one: (model, "flops" or "params", documented,
    computed).
    """
    matched, others = 0, []
    for name, page in PADDLECLAS_PAGE.items():
        pairs = (
            ("flops", page.gflops, counts[name].model_stat_flops / 1e9),
            ("params", page.mparams, counts[name].model_stat_params / 1e6),
        )
        for what, documented, computed in pairs:
            if f"{documented:.2f}" == f"{computed:.2f}":
                matched += 1
            else:
                others.append((name, what, documented, computed))
    return matched, others


def latency_table(words: Words, measured: Mapping[str, Any]) -> str:
    engines = [words.eager if engine == "eager" else label for engine, label in ENGINES.items()]
    *first, ceiling = words.latency
    rows = []
    for name in ORDER:
        preprocessing, page = PUBLISHED[name][0].preprocessing, PADDLECLAS_PAGE.get(name)
        seen = measured["latency"].get(name)
        cells = ["", *[""] * len(ENGINES)]
        if seen is not None:
            cells = [f"{seen['ceiling_gflops']:.0f}"]
            cells += [_engine_cell(seen["engines"].get(engine)) for engine in ENGINES]
        v100 = "" if page is None else f"{page.v100_ms:.3f}"
        rows.append((name, str(preprocessing.crop_size), str(preprocessing.resize_short), v100, *cells))
    return _table((*first, ceiling, *engines), rows)


def latency_notes(words: Words, measured: Mapping[str, Any]) -> str:
    """Name each machine once, with the models that were measured on it."""
    machines: dict[tuple[Any, ...], list[str]] = {}
    for name in ORDER:
        seen = measured["latency"].get(name)
        if seen is not None:
            versions = words.comma.join(f"{package} {v}" for package, v in sorted(seen["versions"].items()))
            key = (seen["processor"], seen["threads"], versions, seen["is_busy"])
            machines.setdefault(key, []).append(name)
    lines = [
        words.machine.format(models=words.comma.join(names), processor=processor, threads=threads, versions=v)
        + (words.busy if is_busy else "")
        for (processor, threads, v, is_busy), names in machines.items()
    ]
    return "\n".join(lines) or words.nothing_measured


def _engine_cell(row: Mapping[str, Any] | None) -> str:
    """Return the median in milliseconds, and the share of the ceiling in brackets."""
    if row is None:
        return ""
    share = row["share_of_ceiling"]
    return f"{row['milliseconds']['median']:.1f}" + ("" if share is None else f" ({share:.2f})")


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _measured(accuracy: Mapping[str, Any], key: str) -> str:
    """Return a measured share with its 95% confidence interval."""
    low, high = accuracy[f"{key}_interval"]
    return f"{accuracy[key]:.4f} [{low:.4f}, {high:.4f}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
