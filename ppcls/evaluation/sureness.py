"""Calibrate a network on what an evaluation saw, and write how sure it is, for people and for exports."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ppcls import distributed
from ppcls.data.dataset import Dataset
from ppcls.data.loader import eval_batch_indices
from ppcls.data.open import open_images, open_path
from ppcls.errors import ConfigError, DataError
from ppcls.evaluation import html
from ppcls.evaluation.calibrate import (
    COLDEST,
    FEWEST_ERRORS,
    HOTTEST,
    RECALL,
    SCORES,
    Sureness,
    calibrate,
    strange_scores,
    tell_apart,
)
from ppcls.evaluation.evaluate import Evaluation
from ppcls.files import write_aside, write_json
from ppcls.inference.calibration import CALIBRATION, VERSION, Subject
from ppcls.inference.predictor import Predictor
from ppcls.intervals import interval_of, with_interval
from ppcls.progress import progress_bar

LOGITS = "logits.npy"
MEASURES = {"nll": "NLL", "ece": "ECE", "brier": "Brier score"}


def require_one_label(predictor: Predictor, dataset: Dataset) -> None:
    """Raise ConfigError if the network does not choose one class, or if the images do not have one each."""
    if predictor.activation == "sigmoid":
        raise ConfigError(
            "--calibrate is for networks that choose one class. This one, trained with train.loss=binary, "
            "says yes or no to each class: its threshold is --threshold of `infer`. Leave --calibrate out."
        )
    if dataset.labels is None or dataset.labels.ndim != 1:
        raise ConfigError(
            "--calibrate compares the likeliest class with the one true class of each image, but these "
            "images have several labels, or none. Leave --calibrate out, or give one label an image."
        )


def calibrate_evaluation(
    predictor: Predictor,
    result: Evaluation,
    *,
    max_error: float,
    others: Dataset | None = None,
    on_error: str = "fail",
) -> Evaluation:
    """Return the result with its sureness. All processes of a run call this together.

    result: with its samples and logits. max_error: requested rate of errors among sure predictions. others:
    images of none of the classes. Raises DataError for too few images.
    """
    if result.samples is None or result.logits is None:
        raise ValueError("The evaluation has no logits. Evaluate with keep_logits=True.")
    has_energy = predictor.description.output == "logits"
    labels = result.samples["label"].astype(np.int64)
    sureness = calibrate(result.logits, labels, max_error, has_energy=has_energy)
    sureness = replace(sureness, calibration=replace(sureness.calibration, precision=predictor.precision))
    if others is not None:
        known, strange = strange_scores(result.logits), scores_of(predictor, others, on_error)
        names = SCORES if has_energy else SCORES[:1]  # a softmax inside leaves no scale to the others
        found = {name: tell_apart(known[:, n], strange[:, n]) for n, name in enumerate(names)}
        sureness = replace(sureness, strange=found, others=len(strange))
    return replace(result, sureness=sureness)


def open_others(source: str) -> Dataset:
    """Open images of none of the classes: a list file, shards, a folder, or a glob pattern."""
    return open_path(Path(source)) if Path(source).is_file() else open_images(source)


def scores_of(predictor: Predictor, dataset: Dataset, on_error: str) -> np.ndarray:
    """Return calibrate.strange_scores of all readable images, float64 [N, 3], as all processes get
    them; each runs its share."""
    rank, world_size = distributed.rank(), distributed.world_size()
    batch_indices = eval_batch_indices(len(dataset), predictor.batch_size, rank, world_size)

    def score() -> np.ndarray:
        rows = [np.empty((0, len(SCORES)))]
        with progress_bar(sum(map(len, batch_indices)), "others") as bar:
            for batch, outputs in predictor.run(dataset, batch_indices, on_error=on_error):
                if len(batch.indices):
                    rows.append(strange_scores(predictor.to_logits(outputs[0])))
                bar.update(len(batch.indices))
        return np.concatenate(rows)

    rows = np.concatenate(distributed.gather(distributed.run_together(score)))
    if not len(rows):
        raise DataError(f"None of the {len(dataset)} images of --ood can be read.")
    return rows


def describe_sureness(sureness: Sureness) -> str:
    """Return what was found, as text."""
    found = sureness.calibration
    halves = " and ".join(f"{value:.3f}" for value in sureness.halves)
    lines = [f"temperature {found.temperature:.3f} (of two halves of the images: {halves})"]
    errors = round(sureness.risk[-1] * found.images)
    if errors < FEWEST_ERRORS:
        lines = [
            f"temperature 1: with {errors} errors none can be fitted, at least {FEWEST_ERRORS} are needed"
        ]
    elif not 1.001 * COLDEST < found.temperature < HOTTEST / 1.001:
        lines.append(
            f"note: the best temperature is beyond the limits, {COLDEST:g} to {HOTTEST:g}. Check that the "
            "labels are those of the network's classes."
        )
    lines.append(f"{'':14}{'before':>10}{'after':>10}   (after: each half at the other's temperature)")
    for name, title in MEASURES.items():
        before, after = getattr(sureness.before, name), getattr(sureness.after, name)
        lines.append(f"{title:14}{before:10.4f}{after:10.4f}")
    lines += [f"AURC {sureness.aurc:.4f}", sentence(sureness)]
    for name, score in sureness.strange.items():
        passed = with_interval(score.passed, sureness.others, "95%: ")
        lines.append(f"{name}: AUROC {score.auroc:.4f}, FPR at 95% recall {passed}")
    return "\n".join(lines)


def sentence(sureness: Sureness) -> str:
    """Return how many answers are sure, and how often these are wrong, for everyone."""
    found, answers = sureness.calibration, sureness.answers
    rate, count = f"{100 * found.max_error:.3g}", found.images
    if answers.threshold is None:
        text = (
            f"No threshold is known to keep the errors at {rate} of 100 or fewer: that takes at least "
            f"{sureness.least} images that are answered without an error, more with some. There are {count}, "
            f"with {round(sureness.risk[-1] * count)} errors."
        )
        if sureness.possible is not None:
            text += f" They allow --max-error {sureness.possible:g}."
        return text
    return (
        f"It answers {_percent(found.answered)} of 100 pictures like these, those with a probability of "
        f"{answers.threshold:.4f} or more, and errs in at most {rate} of 100 of its answers (with 95% "
        f"confidence). Of the {answers.answered} of {count} pictures that it answered here, {answers.wrong} "
        f"{'was' if answers.wrong == 1 else 'were'} wrong."
    )


def write_sureness(folder: Path, predictor: Predictor, result: Evaluation) -> list[Path]:
    """Write calibration.json, plots and logits.npy, whose rows are those of predictions.csv. Return their
    paths."""
    from ppcls.evaluation.plots import draw_reliability, draw_risk_coverage

    sureness = result.sureness
    if sureness is None or result.logits is None:
        raise ValueError("The evaluation was not calibrated.")
    subject = Subject(predictor.fingerprint, predictor.preprocessing)
    values: dict[str, Any] = {
        "format_version": VERSION,
        "model": predictor.description.model,
        "engine": predictor.engine.name,
        "subject": subject.to_dict(),
        "calibration": sureness.calibration.to_dict(),
        **sureness.to_dict(),
    }
    write_json(folder / CALIBRATION, values)
    pictures = {
        "reliability_before.png": draw_reliability(sureness.before.table, dark=False, is_transparent=False),
        "reliability_after.png": draw_reliability(sureness.after.table, dark=False, is_transparent=False),
        "risk_coverage.png": draw_risk_coverage(*_curve(sureness), dark=False, is_transparent=False),
    }
    for name, content in pictures.items():
        with write_aside(folder / name) as aside:
            aside.write_bytes(content)
    with write_aside(folder / LOGITS) as aside, aside.open("wb") as file:
        np.save(file, result.logits)
    return [folder / name for name in (CALIBRATION, *pictures, LOGITS)]


def section(sureness: Sureness) -> str:
    """Return the section of the report, as HTML."""
    from ppcls.evaluation.plots import draw_reliability, draw_risk_coverage

    found = sureness.calibration
    parts = [html.lead(sentence(sureness))]
    pairs = []
    for words, scores in (("before", sureness.before), ("after", sureness.after)):
        light, dark = (draw_reliability(scores.table, dark=is_dark) for is_dark in (False, True))
        picture = html.picture(light, dark, f"Accuracy over confidence {words}; ECE {scores.ece:.4f}")
        pairs.append((picture, f"{words.capitalize()}: ECE {scores.ece:.4f}"))
    parts.append(
        html.paragraph(
            "Can its probabilities be believed? Of the pictures that it is 80% sure of, 80 of 100 should be "
            "right: then the bars end at the dashed line. ECE is the "
            "mean gap between them, and lower is better. One number, the temperature "
            f"{found.temperature:.3f}, divides the network's outputs and moves all bars. It changes no "
            "answer. After: each half of the pictures at the temperature of the other half, as pictures that "
            "a number was fitted to would flatter it."
        )
    )
    parts.append(html.figures(pairs))
    light, dark = (draw_risk_coverage(*_curve(sureness), dark=is_dark) for is_dark in (False, True))
    parts.append(
        html.paragraph(
            "What does silence gain? From left to right the network answers more pictures, the surest first; "
            "the line is the share of wrong answers. A lower line is better; AURC is its mean height, "
            f"{sureness.aurc:.4f}."
        )
    )
    parts.append(html.picture(light, dark, f"Errors over answered pictures; AURC {sureness.aurc:.4f}"))
    rows = [
        [title, f"{getattr(sureness.before, name):.4f}", f"{getattr(sureness.after, name):.4f}"]
        for name, title in MEASURES.items()
    ]
    parts.append(html.plain_table(["lower is better", "before", "after"], rows))
    if sureness.strange:
        parts.append(_strange_part(sureness))
    parts.append(
        html.paragraph(
            f"All this is measured on {found.images:,} pictures, and holds for others of the same kind: the "
            "same camera, the same classes, as often. For other pictures, measure again."
        )
    )
    return "\n".join(parts)


def _strange_part(sureness: Sureness) -> str:
    rows = []
    for name, score in sureness.strange.items():
        low, high = interval_of(score.passed, sureness.others)
        passed = f"{_percent(score.passed)} of 100 ({_percent(low)} to {_percent(high)})"
        rows.append([name, f"{score.auroc:.4f}", passed])
    words = (
        f"Does it notice pictures of something else? {sureness.others:,} pictures of none of the classes, by "
        "three scores. AUROC: how often a picture of the classes scores higher than one of the others; 0.5 "
        f"is guessing, 1 perfect. The last column: of the others, how many pass where {_percent(RECALL)} of "
        "100 pictures of the classes do."
    )
    return html.paragraph(words) + html.plain_table(["score", "AUROC", "others that pass"], rows)


def _curve(sureness: Sureness) -> tuple[np.ndarray, np.ndarray, float | None, float]:
    answered = None if sureness.answers.threshold is None else sureness.calibration.answered
    return sureness.coverage, sureness.risk, answered, sureness.calibration.max_error


def _percent(share: float) -> str:
    """Return a share in percent: 62, 1, 0.5, 99.7."""
    percent = 100 * share
    return f"{percent:.0f}" if 1 <= percent <= 99 else f"{percent:.3g}"
