"""How sure a network is: numbers against torch-uncertainty and scikit-learn, and their page."""

import json
from dataclasses import replace

import numpy as np
import pytest
from golden.make_calibration import CLASSES, draw_known, draw_others
from helpers import GOLDEN
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, roc_curve

from ppcls.errors import DataError
from ppcls.evaluation import calibrate as module
from ppcls.evaluation.calibrate import (
    COLDEST,
    HOTTEST,
    SCORES,
    area,
    calibrate,
    deal_halves,
    find_threshold,
    fit_temperature,
    image_scores,
    least_images,
    risk_coverage,
    strange_scores,
    tell_apart,
)
from ppcls.evaluation.metrics import calibration_table, expected_calibration_error
from ppcls.evaluation.sureness import describe_sureness, section, sentence
from ppcls.inference.predictions import softmax

THEIRS = json.loads((GOLDEN / "calibration.json").read_text())
KNOWN, LABELS = draw_known()
RIGHT = KNOWN.argmax(axis=1) == LABELS


def judge(temperature):
    """NLL, ECE, Brier score and AURC of the drawn logits at a temperature."""
    nll, brier, confidence = image_scores(KNOWN, LABELS, np.full(len(LABELS), temperature)).T
    ece = expected_calibration_error(calibration_table(confidence, RIGHT))
    aurc = area(*risk_coverage(confidence, RIGHT))
    return {"nll": nll.mean(), "ece": ece, "brier": brier.mean(), "aurc": aurc}


def test_numbers_equal_torch_uncertaintys():
    temperature = fit_temperature(KNOWN, LABELS)
    assert temperature == pytest.approx(THEIRS["temperature"], rel=1e-4)
    for name, at in (("before", 1.0), ("after", THEIRS["temperature"])):
        assert judge(at) == pytest.approx(THEIRS[name], rel=2e-6)
    known, others = strange_scores(KNOWN), strange_scores(draw_others())
    for number, name in enumerate(SCORES):
        found = tell_apart(known[:, number], others[:, number])
        assert found._asdict() == pytest.approx(THEIRS[name], rel=2e-6)


def test_numbers_equal_scikit_learns():
    p = softmax(KNOWN / 1.7)
    found = judge(1.7)
    assert found["nll"] == pytest.approx(log_loss(LABELS, p, labels=range(CLASSES)), rel=1e-6)
    assert found["brier"] == pytest.approx(
        brier_score_loss(LABELS, p, labels=list(range(CLASSES)), scale_by_half=False), rel=1e-6
    )
    known, others = strange_scores(KNOWN), strange_scores(draw_others())
    is_known = np.r_[np.ones(len(known)), np.zeros(len(others))]
    for number in range(len(SCORES)):
        score = np.r_[known[:, number], others[:, number]].round(1)  # with ties
        found = tell_apart(score[: len(known)], score[len(known) :])
        assert found.auroc == pytest.approx(roc_auc_score(is_known, score), rel=1e-12)
        passed, recall, _ = roc_curve(is_known, score, drop_intermediate=False)
        assert found.passed == pytest.approx(passed[np.argmax(recall >= 0.95)], rel=1e-12)


def test_the_temperature_has_the_lowest_loss():
    for scale in (0.3, 1.0, 6.0):
        logits = KNOWN * np.float32(scale)
        best = minimize_scalar(
            lambda t, logits=logits: log_loss(LABELS, softmax(logits.astype(np.float64) / t)),
            bounds=(0.1, 10),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert fit_temperature(logits, LABELS) == pytest.approx(best.x, rel=1e-4)


def test_a_network_without_errors_gets_a_finite_temperature():
    logits = np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    assert fit_temperature(logits, np.arange(40) % 4) == pytest.approx(COLDEST, rel=1e-6)
    found = calibrate(logits, np.arange(40) % 4, 0.4)
    assert (
        found.calibration.temperature == 1 and found.halves == (1, 1) and found.before.nll == found.after.nll
    )
    assert "temperature 1: with 0 errors" in describe_sureness(found)


def test_a_temperature_at_a_limit_is_said_and_equal_logits_ask_for_none():
    wrong = calibrate(KNOWN, (KNOWN.argmax(axis=1) + 1) % CLASSES, 0.1)
    assert wrong.calibration.temperature == pytest.approx(HOTTEST, rel=1e-6)
    assert "limits, 0.05 to 20" in describe_sureness(wrong)
    assert "limits" not in describe_sureness(calibrate(KNOWN, LABELS, 0.1))
    assert fit_temperature(np.zeros((12, 3), np.float32), np.arange(12) % 3) == 1


def test_each_half_is_judged_at_the_others_temperature():
    found = calibrate(KNOWN, LABELS, 0.1)
    is_first = deal_halves(RIGHT)
    assert is_first.sum() == 250 and abs(int((~RIGHT[is_first]).sum()) - (~RIGHT).sum() / 2) < 1
    first, second = (fit_temperature(KNOWN[part], LABELS[part]) for part in (is_first, ~is_first))
    assert found.halves == (first, second) and first != second
    expected = [
        log_loss(LABELS[part], softmax(KNOWN[part].astype(np.float64) / t), labels=range(CLASSES))
        * part.sum()
        for part, t in ((is_first, second), (~is_first, first))
    ]
    assert found.after.nll == pytest.approx(sum(expected) / len(LABELS), rel=1e-9)
    assert judge(found.calibration.temperature)["nll"] < found.after.nll < found.before.nll
    energies = np.log(np.exp(KNOWN.astype(np.float64)).sum(axis=1))
    assert found.calibration.energy["0.05"] == pytest.approx(np.quantile(energies, 0.05))


def test_a_threshold_keeps_its_promise_in_nineteen_of_twenty_cases():
    """Draw images whose true error rate is known at each confidence, and count the broken promises."""
    broken, found = 0, 0
    for seed in range(400):
        random = np.random.RandomState(seed)
        confidence = random.uniform(0.5, 1, 1500)
        right = random.uniform(0, 1, 1500) < confidence
        answers = find_threshold(confidence, right, 0.1)
        if answers.threshold is not None:
            found += 1
            broken += (1 - answers.threshold) / 2 > 0.1  # the mean true error rate above the threshold
            assert answers.answered == (confidence >= answers.threshold).sum()
            assert answers.wrong == (~right[confidence >= answers.threshold]).sum()
    assert found > 200 and broken / 400 <= 0.07


def test_one_early_error_does_not_end_the_search():
    confidence = np.linspace(1, 0.5, 5000)
    right = np.ones(5000, bool)
    right[3] = False
    right[4000:] = np.arange(1000) % 2 == 0
    answers = find_threshold(confidence, right, 0.01)
    assert 3900 < answers.answered < 4100 and answers.bound <= 0.01


def test_several_starts_share_the_risk():
    """Of 5000 images several sequences start: 299 without an error are enough for one alone."""
    right = np.arange(5000) < least_images(0.01)
    assert find_threshold(np.linspace(1, 0.5, 5000), right, 0.01).threshold is None
    assert find_threshold(np.linspace(1, 0.5, 300), right[:300], 0.01).answered == 299


def test_blocks_of_images_change_nothing(monkeypatch):
    def figures():
        scores = image_scores(KNOWN, LABELS, np.linspace(0.5, 2, len(LABELS)))
        return fit_temperature(KNOWN, LABELS), scores, strange_scores(KNOWN)

    whole = figures()
    monkeypatch.setattr(module, "_BLOCK", 64)
    for own, expected in zip(figures(), whole, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-9)


def test_equal_probabilities_are_answered_together():
    confidence = np.repeat([0.9, 0.8, 0.7], 100)
    right = np.r_[np.ones(190, bool), np.zeros(110, bool)]
    answers = find_threshold(confidence, right, 0.05)
    assert (answers.threshold, answers.answered, answers.wrong) == (0.9, 100, 0)


def test_few_images_allow_no_threshold_and_say_how_many_would():
    assert least_images(0.01) == 299 and least_images(0.05) == 59
    found = calibrate(KNOWN[:200], LABELS[:200], 0.01)
    assert found.calibration.threshold is None and found.calibration.answered == 0
    assert "299" in sentence(found) and f"--max-error {found.possible:g}" in sentence(found)
    assert calibrate(KNOWN[:200], LABELS[:200], found.possible).calibration.threshold is not None
    with pytest.raises(DataError, match="at least 10 .*Received: 9"):
        calibrate(KNOWN[:9], LABELS[:9], 0.01)


def test_a_page_and_lines_for_people():
    found = calibrate(KNOWN, LABELS, 0.1)
    strange = {"energy": tell_apart(strange_scores(KNOWN)[:, 2], strange_scores(draw_others())[:, 2])}
    found = replace(found, strange=strange, others=300)
    page = section(found)
    answered = round(100 * found.calibration.answered)
    assert f"answers {answered} of 100" in sentence(found)
    assert f"{found.answers.wrong} were wrong" in page
    assert page.count("<picture>") == 3
    assert f"{found.before.ece:.4f}" in page and f"{found.aurc:.4f}" in page
    assert f"AUROC {strange['energy'].auroc:.4f}" in describe_sureness(found)
    assert "AUROC" in page and f"{strange['energy'].auroc:.4f}" in page
    json.dumps(found.to_dict(), allow_nan=False)
    assert "at most 10 of 100" in sentence(found)
    found = replace(found, calibration=replace(found.calibration, max_error=0.125))
    assert "at most 12.5 of 100" in sentence(found)  # 12 would promise more than was tested
