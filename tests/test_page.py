"""The server's page in a real browser, and its address for explanations."""

import base64
import io
import json
import re
import signal
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from helpers import Served, write_config
from PIL import Image

import ppcls
from ppcls.data.show import denormalize
from ppcls.evaluation.explain import QUALITY, draw_heat
from ppcls.serving.page import page_of

pytest.importorskip("starlette")
ENGINE = "onnxruntime"
pytest.importorskip(ENGINE)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A config with drawn weights of 7 classes."""
    return write_config(tmp_path_factory.mktemp("small"), num_classes=7, short=72, crop=64, gain=30)


@pytest.fixture(scope="module")
def address(exported, config):
    """A server of an export, and of a network."""
    models = [f"export={exported}", f"network={config}"]
    with Served(["-m", "ppcls", "serve", *models, "--engine", ENGINE, "--port", 0]) as served:
        yield f"http://127.0.0.1:{served.port}"
        assert served.end(signal.SIGTERM) == 0, served.errors


@pytest.fixture
def page(browser, address):
    browser.open(f"{address}/")
    yield browser
    assert browser.complaints(own=address) == []


def post(address: str, path: str, data: bytes) -> bytes:
    with urlopen(Request(f"{address}{path}", data), timeout=60) as answer:
        return answer.read()


def wait_for_answer(page, model: str) -> None:
    page.wait_for(
        "!document.querySelector('.busy') && document.getElementById('answer').checkVisibility() && "
        f"document.getElementById('facts').textContent.startsWith('{model}: ')"
    )


def shown(page) -> list[list]:
    """The classes with their probabilities and the widths of their bars, in percent."""
    return page.evaluate("""Array.from(document.querySelectorAll("#classes li"), row => [
        ...Array.from(row.querySelectorAll(".name span"), span => span.textContent),
        Math.round(100 * row.querySelector("i").getBoundingClientRect().width
                   / row.querySelector(".bar").getBoundingClientRect().width)])""")


def expected(source: Path, file: Path) -> list[list]:
    """The same of the predictor itself."""
    prediction = ppcls.load(source, ENGINE, log=lambda line: None)(file)
    pairs = zip(prediction.labels, prediction.probabilities, strict=True)
    names = {str(number): f"class {number}" for number in range(7)}  # of classes without names
    return [[names.get(name, name), f"{100 * value:.1f} %", round(100 * value)] for name, value in pairs]


def same(rows: list[list], others: list[list]) -> bool:
    """Whether the texts are equal, and the bars but for two pixels."""
    texts = [row[:2] for row in rows] == [row[:2] for row in others]
    return texts and all(abs(row[2] - other[2]) <= 2 for row, other in zip(rows, others, strict=True))


def text_of(page, name: str) -> str:
    return page.evaluate(f"document.getElementById('{name}').textContent")


def is_visible(page, name: str) -> bool:
    return page.evaluate(f"document.getElementById('{name}').checkVisibility()")


def test_a_chosen_picture_gets_its_classes(page, exported, pictures):
    file = pictures / "picture 03.png"
    page.choose("#file", file)
    wait_for_answer(page, "export")
    rows = expected(exported, file)
    assert len(rows) == 5 and same(shown(page), rows)
    assert page.evaluate("document.getElementById('picture').naturalHeight") == 43
    assert text_of(page, "facts").count(" ms ") == 2 and text_of(page, "caption") == file.name
    assert text_of(page, "status") == f"{rows[0][0]}, {rows[0][1]}."  # spoken by screen readers
    assert not is_visible(page, "error") and not is_visible(page, "unsure")
    page.choose("#file", file)  # once more the same
    asked = "performance.getEntriesByType('resource').filter(entry => entry.name.includes('/predict')).length"
    page.wait_for(f"{asked} === 2")


@pytest.mark.parametrize(
    ("kind", "name", "key"),
    [("DragEvent", "drop", "dataTransfer"), ("ClipboardEvent", "paste", "clipboardData")],
)
def test_a_dropped_or_pasted_picture(page, exported, pictures, kind, name, key):
    file = pictures / "picture 06.png"
    content = base64.b64encode(file.read_bytes()).decode()
    page.evaluate(f"""(() => {{
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob("{content}"), letter => letter.charCodeAt(0));
        data.items.add(new File([bytes], "image.png", {{type: "image/png"}}));
        const options = {{{key}: data, bubbles: true, cancelable: true}};
        document.body.dispatchEvent(new {kind}("{name}", options));
    }})()""")
    wait_for_answer(page, "export")
    assert same(shown(page), expected(exported, file))


def test_text_that_is_pasted_is_not_a_picture(page):
    page.evaluate("""document.body.dispatchEvent(
        new ClipboardEvent("paste", {clipboardData: new DataTransfer(), bubbles: true}))""")
    assert is_visible(page, "error") and "no picture" in text_of(page, "error")


def test_another_model_by_the_keyboard_and_what_speaks_for_its_class(page, config, pictures):
    """By Tab and arrows alone; the export has no explanation."""
    file = pictures / "picture 09.png"
    page.choose("#file", file)
    wait_for_answer(page, "export")
    assert not is_visible(page, "explain")
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "model"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("ArrowDown")
    wait_for_answer(page, "network")
    assert same(shown(page), expected(config, file))
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    assert page.evaluate("getComputedStyle(document.querySelector('.drop')).outlineStyle") == "solid"
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "explain"
    page.press("Enter", "\r")
    page.wait_for("document.getElementById('explain').getAttribute('aria-pressed') === 'true'")
    assert shown(page)[0][0] in text_of(page, "caption")
    page.wait_for("document.getElementById('picture').naturalHeight === 64")  # the crop
    assert page.evaluate("document.activeElement.id") == "explain"
    page.press(" ", " ")
    page.wait_for("document.getElementById('explain').getAttribute('aria-pressed') === 'false'")
    page.wait_for("document.getElementById('picture').naturalHeight === 42")
    assert text_of(page, "caption") == file.name


def test_each_control_has_a_name_for_screen_readers(page):
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "combobox", "textbox", "link"}
    controls = [node for node in nodes if node.get("role", {}).get("value") in roles]
    names = [node["name"]["value"] for node in controls]
    assert len(names) == 2 and all(names), names
    roles = {node["role"]["value"] for node in nodes if "role" in node}
    assert {"main", "heading", "status"} <= roles


def test_errors_are_sentences(page, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    page.choose("#file", tmp_path / "notes.png")
    page.wait_for("document.getElementById('error').checkVisibility()")
    assert text_of(page, "error").startswith("Not a readable image: ") and text_of(page, "error")[-1] == "."
    assert "notes.png" in text_of(page, "caption")
    assert not is_visible(page, "picture") and not is_visible(page, "answer")
    page.wait_for("!document.querySelector('.busy')")
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", **offline)
    page.choose("#file", tmp_path / "notes.png")
    page.wait_for("document.getElementById('error').textContent.includes('does not answer')")
    page.call("Network.emulateNetworkConditions", **offline | {"offline": False})
    page.events.clear()  # Chromium logs failed requests


def test_answers_that_are_unsure_or_hostile(page):
    """What the server does not say here: drawn by the page's own functions."""
    name = "</li><img src=x onerror=alert(1)>"
    answer = {"model": "m", "milliseconds": 1, "is_sure": False}
    answer["predictions"] = [{"class": 0, "name": name, "probability": 0.4}]
    page.evaluate(f"document.getElementById('result').hidden = false; showAnswer({json.dumps(answer)}, 2)")
    assert shown(page)[0][:2] == [name, "40.0 %"]
    assert is_visible(page, "unsure") and text_of(page, "status").startswith("Unsure: ")
    page.evaluate(f"showAnswer({json.dumps(answer | {'is_sure': True})}, 2)")
    assert not is_visible(page, "unsure")
    page.evaluate(f"showAnswer({json.dumps(answer | {'is_sure': None, 'predictions': []})}, 2)")
    assert shown(page) == [] and "No class" in text_of(page, "status")


def test_no_name_of_a_model_ends_the_script_that_holds_it():
    assert "</script><b>" not in page_of({"</script><b>": True})
    assert '[{"name": "a", "explains": true}]</script>' in page_of({"a": True})


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_ink_and_paper_follow_the_readers_colours(page, address, mode):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": mode}])
    style = "getComputedStyle(document.body)"
    colours = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
    ink, paper = (np.mean([int(value) for value in re.findall(r"\d+", text)[:3]]) for text in colours)
    assert (ink > 200 and paper < 50) if mode == "dark" else (ink < 50 and paper > 200)


def test_a_phone_needs_no_scrolling_sideways(page, pictures):
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=True)
    page.choose("#file", pictures / "picture 03.png")
    wait_for_answer(page, "export")
    spare = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    columns = page.evaluate("getComputedStyle(document.getElementById('result')).gridTemplateColumns")
    page.call("Emulation.clearDeviceMetricsOverride")
    assert spare == 0 and len(columns.split()) == 1


def test_explanations_are_those_of_the_network(address, config, pictures):
    file = pictures / "picture 12.png"
    picture = Image.open(io.BytesIO(post(address, "/explain?model=network", file.read_bytes())))
    predictor = ppcls.load(config, "eager", log=lambda line: None)
    images = np.empty((1, 3, 64, 64), np.float32)
    predictor.fill(file.read_bytes(), images[0])
    (drawn,) = draw_heat(predictor.model, images, predictor.preprocessing)
    assert picture.size == (64, 64)
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, "jpeg", quality=QUALITY)
    assert np.abs(np.asarray(picture, float) - np.asarray(Image.open(buffer))).mean() < 0.5
    assert np.abs(denormalize(images[0], predictor.preprocessing) - drawn.astype(float)).mean() > 16


def test_explanations_that_cannot_be(address):
    for path, data, status, words in (
        ("/explain", b"x", 404, "export"),
        ("/explain?model=none", b"x", 404, "network"),
        ("/explain?model=network", b"not an image", 422, "not a readable image"),
    ):
        with pytest.raises(HTTPError) as error:
            post(address, path, data)
        assert error.value.code == status and words in json.loads(error.value.read())["error"]


def test_explanations_leave_room_for_predictions(address, pictures):
    """One at a time: others are refused at once, so that they keep no worker."""
    data, statuses = (pictures / "picture 03.png").read_bytes(), []

    def ask() -> None:
        try:
            post(address, "/explain?model=network", data)
            statuses.append(200)
        except HTTPError as error:
            statuses.append(error.code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert json.loads(post(address, "/predict?model=network", data))["model"] == "network"
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429} and 200 in statuses
