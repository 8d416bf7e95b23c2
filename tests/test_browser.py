"""The report's page in a real browser."""

import cv2
import numpy as np
import pytest

from ppcls.data.class_names import ClassNames, read_class_names
from ppcls.data.dataset import Dataset
from ppcls.evaluation.evaluate import Evaluation
from ppcls.evaluation.metrics import batch_sums, count_classes, fill_samples, sample_type
from ppcls.evaluation.report import write_report
from ppcls.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(32, 28, "bilinear", False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module", params=[10, 1000])
def report(request, tmp_path_factory):
    """A page of drawn pictures and predictions; the name of one class is hostile."""
    num_classes, count = request.param, 600
    folder = tmp_path_factory.mktemp(f"report{num_classes}")
    random = np.random.RandomState(0)
    paths = []
    for index in range(20):
        image = np.full((30, 40, 3), random.randint(0, 255, 3), np.uint8)
        cv2.circle(image, (20, 15), 8, random.randint(0, 255, 3).tolist(), -1)
        paths.append(str(folder / f"circle {index}.png"))
        cv2.imwrite(paths[-1], image)
    labels = random.randint(0, num_classes - 1, count)  # the last class has no image
    logits = random.normal(size=(count, num_classes)).astype(np.float32)
    logits[np.arange(count), labels] += 2.5
    samples = np.empty(count, sample_type(num_classes))
    fill_samples(samples, logits, labels, np.arange(count))
    _, top1, top5, loss = batch_sums(logits, labels) / count
    names = [f"digit {number}" for number in range(10)]
    if num_classes == 1000:
        names = list(read_class_names("imagenet1k", 1000).names)
    names[3] = "</script><img src=x onerror=alert(1)>&\"'"
    dataset = Dataset.of_files([paths[index % 20] for index in range(count)], labels, ClassNames.of(names))
    write_report(
        folder,
        Evaluation(top1, top5, loss, count, [], 1.0, count_classes(logits, labels), samples),
        dataset,
        PREPROCESSING,
        title="Drawn pictures",
        num_classes=num_classes,
        classes=None,
        about={"weights": "<b>none</b>"},
    )
    return folder / "index.html", num_classes, names


@pytest.fixture
def page(browser, report):
    browser.open(report[0].as_uri())
    return browser


def column(page, number: int) -> list[str]:
    return page.evaluate(
        f"Array.from(document.querySelector('tbody').rows, r => r.cells[{number}].textContent)"
    )


def sorted_by(page) -> list[list[str]]:
    code = "Array.from(document.querySelectorAll('th[aria-sort]'), h => [h.textContent, h.ariaSort])"
    return page.evaluate(code)


def test_the_page_opens_with_its_pictures_and_no_complaint(page, report):
    _, num_classes, names = report
    widths = page.evaluate("Array.from(document.images, image => image.naturalWidth)")
    assert len(widths) == 2 + 48 and min(widths) > 20
    assert page.evaluate("Array.from(document.images).every(image => image.alt.length > 5)")
    assert len(column(page, 0)) == num_classes
    assert sorted(column(page, 1)) == sorted(names)
    assert page.complaints() == []


def test_a_click_sorts_and_another_turns_it_round(page):
    assert sorted_by(page) == [["F1", "ascending"]]
    before = [float(value) for value in column(page, 5) if value]
    assert before == sorted(before)
    page.click("th:nth-child(4) button")  # recall
    assert sorted_by(page) == [["recall", "ascending"]]
    cells = column(page, 3)
    assert cells[-1] == "" and "" not in cells[:5]  # a class without images
    values = [float(value) for value in cells if value]
    assert values == sorted(values) and len(set(values)) > 3
    page.click("th:nth-child(4) button")
    assert sorted_by(page) == [["recall", "descending"]]
    cells = column(page, 3)
    assert cells[-1] == ""
    assert [float(value) for value in cells if value] == sorted(values, reverse=True)
    assert page.complaints() == []


def test_the_keyboard_sorts(page, report):
    """From the top of the page by Tab alone; numbers as numbers, names as text."""
    for _ in range(30):
        page.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "class":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter", "\r")
    assert sorted_by(page) == [["class", "ascending"]]
    assert column(page, 0) == [str(number) for number in range(report[1])]
    page.press(" ", " ")
    assert sorted_by(page) == [["class", "descending"]]
    assert column(page, 0)[0] == str(report[1] - 1)
    page.press("Tab")
    page.press("Enter", "\r")
    assert sorted_by(page) == [["name", "ascending"]]
    page.press("Tab", shift=True)
    assert page.evaluate("document.activeElement.textContent") == "class"
    assert page.complaints() == []


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_ink_and_paper_follow_the_readers_colours(page, mode):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": mode}])
    page.open(page.evaluate("location.href"))
    shown = page.evaluate("""(() => {
        const style = getComputedStyle(document.body);
        const light = text => text.match(/\\d+/g).slice(0, 3).reduce((sum, v) => sum + Number(v), 0) / 3;
        const source = document.querySelector("picture source").srcset;
        return [light(style.color), light(style.backgroundColor), document.images[0].currentSrc === source];
    })()""")
    ink, paper, is_dark_picture = shown
    assert (ink > 200 and paper < 50) if mode == "dark" else (ink < 50 and paper > 200)
    assert is_dark_picture == (mode == "dark")
    assert page.evaluate("document.images[0].naturalWidth") > 300


def test_a_narrow_screen_scrolls_the_table_not_the_page(page):
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=False)
    spare = "(element => element.scrollWidth - element.clientWidth)"
    of_page = page.evaluate(f"{spare}(document.documentElement)")
    of_table = page.evaluate(f"{spare}(document.querySelector('.scroll'))")
    page.call("Emulation.clearDeviceMetricsOverride")
    assert of_page == 0 and of_table > 0
