"""Predictor: images in all forms to classes, the same as the plain network's, without Paddle."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import damage, value_from

from ppcls import Predictor
from ppcls.data.dataset import Dataset
from ppcls.data.loader import load_batch
from ppcls.data.opencv import cv2
from ppcls.data.transforms import EvalTransform
from ppcls.errors import ConfigError, DataError, ExportError
from ppcls.inference import predictor as module
from ppcls.inference.artifact import read_artifact
from ppcls.inference.classify import find_images, softmax
from ppcls.inference.engines import EagerEngine, LoadedEngine, candidates

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def expected(network, spec, pictures):
    """The plain network's probabilities of all pictures, read as training and evaluation read them."""
    files = find_images(str(pictures))
    dataset = Dataset.of_files(files)
    batch = load_batch(dataset, np.arange(len(files)), EvalTransform(spec), spec, on_error="fail")
    return dict(zip(files, softmax(EagerEngine(network).run(batch.images)), strict=True))


@pytest.fixture(scope="module")
def predictor(exported):
    """With an engine that is quick to open, if there is one."""
    return Predictor(exported, candidates(read_artifact(exported))[0], topk=3, threads=2)


def check(prediction, probabilities, file=None):
    best = np.argsort(-probabilities)[: len(prediction.class_ids)]
    assert prediction.class_ids == tuple(best) and prediction.error is None
    assert prediction.labels == tuple(f"class {number}" for number in best)
    assert np.allclose(prediction.probabilities, probabilities[best], atol=2e-5)
    assert prediction.file == file


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "paddle"])
def test_answers_are_the_plain_networks(exported, expected, pictures, name):
    if name not in candidates(read_artifact(exported)):
        pytest.skip(f"{name} or the converter to its format is not installed")
    predictor = Predictor(exported, name, topk=3, threads=2)
    predictions = predictor(pictures)
    assert predictor.engine.name == name and len(predictions) == 40
    for file, prediction in zip(expected, predictions, strict=True):
        check(prediction, expected[file], file)
    assert len({prediction.class_ids for prediction in predictions}) > 10  # the pictures can be told apart


def test_images_in_all_forms(predictor, expected, pictures):
    file = str(pictures / "picture 03.png")
    check(predictor(file), expected[file], file)
    check(predictor(Path(file)), expected[file], file)
    array = cv2.imread(file, cv2.IMREAD_COLOR_RGB)
    check(predictor(array), expected[file])
    for prediction in predictor(np.stack([array, array])):
        check(prediction, expected[file])
    other = str(pictures / "picture 04.jpg")
    first, second = predictor([other, Path(file)])
    check(first, expected[other], other)
    check(second, expected[file], file)
    first, second, third = predictor([array, other, array[:, ::-1]])
    check(first, expected[file])
    check(second, expected[other], other)
    assert third.class_ids != first.class_ids or third.probabilities != first.probabilities
    found = predictor(str(pictures / "*.bmp"))
    assert [prediction.file for prediction in found] == [name for name in expected if name.endswith("bmp")]
    for prediction in found:
        check(prediction, expected[prediction.file], prediction.file)
    assert predictor([]) == []
    assert len(predictor(file).class_ids) == 3 and isinstance(predictor(file).probabilities[0], float)


def test_without_class_names_the_numbers_are_the_labels(exported, pictures, predictor, monkeypatch):
    monkeypatch.setattr(type(predictor), "_names", None)
    prediction = predictor(pictures / "picture 00.png")
    assert prediction.labels == tuple(map(str, prediction.class_ids))


def test_more_classes_asked_for_than_there_are(exported, pictures, predictor, monkeypatch):
    monkeypatch.setattr(predictor, "topk", 5000)
    prediction = predictor(pictures / "picture 00.png")
    assert len(prediction.class_ids) == 40 and sum(prediction.probabilities) == pytest.approx(1)


def test_a_file_whose_name_is_a_pattern(predictor, pictures, tmp_path):
    shutil.copy(pictures / "picture 00.png", tmp_path / "a[1].png")
    assert predictor(tmp_path / "a[1].png").error is None
    (tmp_path / "b" / "c").mkdir(parents=True)
    shutil.copy(pictures / "picture 00.png", tmp_path / "b" / "c" / "d.png")
    found = find_images(str(tmp_path / "**" / "**" / "*.png"))
    assert found == [str(tmp_path / "a[1].png"), str(tmp_path / "b" / "c" / "d.png")]


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"0"))
        + chunk(b"IEND", b"")
    )


def jpeg_of(width, height):
    data = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


BROKEN = {
    "text.jpg": (b"no image at all", "not an image"),
    "zero.png": (b"", "the file is empty"),
    "huge.png": (png_header(30_000, 30_000), "900000000 pixels"),
    "huge.jpg": (jpeg_of(30_000, 30_000), "900000000 pixels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_is_an_error_with_its_reason(predictor, pictures, tmp_path, name):
    content, words = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"unreadable image .*{name}: .*{words}"):
        predictor(tmp_path / name)
    good = pictures / "picture 00.png"
    for count in (1, 20):  # on one stream and on several
        predictions = predictor([good, tmp_path / name, good] * count)
        for number, prediction in enumerate(predictions):
            if number % 3 == 1:
                assert words in prediction.error and prediction.file == str(tmp_path / name)
                assert (prediction.class_ids, prediction.labels, prediction.probabilities) == ((), (), ())
            else:
                assert prediction.error is None and prediction.class_ids == predictions[0].class_ids
    assert all(prediction.error for prediction in predictor([tmp_path / name] * 40))


def test_files_that_are_not_there(predictor, pictures, tmp_path):
    with pytest.raises(DataError, match="There is no image, folder or match for .*none.png"):
        predictor(tmp_path / "none.png")
    with pytest.raises(DataError, match=r"The folder .* holds no image \(\.bmp, "):
        predictor(tmp_path)
    missing, folder, good = predictor([tmp_path / "none.png", tmp_path, pictures / "picture 00.png"])
    assert missing.error == "No such file or directory" and folder.error == "Is a directory"
    assert good.error is None
    with pytest.raises(DataError, match="none.png cannot be read: No such file"):
        predictor([tmp_path / "none.png", np.zeros((8, 8, 3), np.uint8)])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((40, 40, 3), np.float32),
        np.zeros((40, 40), np.uint8),
        np.zeros((3, 40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((0, 40, 3), np.uint8),
        np.zeros((2, 40, 40, 3), np.float64),
        np.zeros((1, 2, 40, 40, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused(predictor, array):
    with pytest.raises(DataError, match=rf"uint8 \[H, W, 3\], red first.*Received: {array.dtype} \["):
        predictor(array)


@pytest.mark.parametrize(
    ("images", "kind"),
    [(None, "NoneType"), (3, "int"), (["a.png", 3], "int"), ((x for x in "a"), "generator")],
)
def test_what_is_no_image_at_all_is_refused(predictor, images, kind):
    with pytest.raises(DataError, match=f"Expected: a file, a folder.*Received: {kind}"):
        predictor(images)


def test_options_that_cannot_be(exported):
    for option in ("topk", "threads"):
        with pytest.raises(ConfigError, match=f"{option} must be at least 1. Received: 0"):
            Predictor(exported, **{option: 0})
    with pytest.raises(ExportError, match="Unknown engine. Received: onnxrun; did you mean onnxruntime"):
        Predictor(exported, "onnxrun")
    with pytest.raises(ExportError, match="Unknown engine. Received: eager; choose from .*auto"):
        Predictor(exported, "eager")
    with pytest.raises(ExportError, match="There is no folder"):
        Predictor(exported / "none")


class Counting:
    """Stands in for the engine: counts what it ran, and says the same class for all."""

    def __init__(self, streams):
        self.streams, self.batches = streams, []

        def run(images):
            self.batches.append(len(images))
            return np.eye(40, dtype=np.float32)[np.zeros(len(images), int)]

        self.run = run

    def open(self, folder, artifact, name, **options):
        return LoadedEngine(name, [self.run] * self.streams, batch_size=4)


@pytest.mark.parametrize("streams", [1, 2])
def test_streaming_reads_no_more_than_a_few_batches_ahead(exported, pictures, monkeypatch, streams):
    counting = Counting(streams)
    monkeypatch.setattr(module, "open_engine", counting.open)
    monkeypatch.setattr(module, "streams_for", lambda *_: streams)
    predictor = Predictor(exported, "onnxruntime", threads=2)
    file = str(pictures / "picture 00.png")
    stream = predictor.stream([file] * 400)
    for _ in range(5):
        assert next(stream).class_ids[0] == 0
    assert 2 <= len(counting.batches) <= 8  # of 100
    stream.close()
    done = len(counting.batches)
    assert sum(prediction.error is None for prediction in predictor.stream([file] * 403)) == 403
    assert sum(counting.batches[done:]) == 403 and set(counting.batches) == {4, 3}


def test_few_files_take_all_threads_for_each_and_many_one(exported, pictures, monkeypatch):
    opened = []

    def opener(folder, artifact, name, *, threads, streams):
        opened.append((name, threads, streams))
        return Counting(streams).open(folder, artifact, name)

    monkeypatch.setattr(module, "open_engine", opener)
    predictor = Predictor(exported, "openvino", threads=3)
    files = [str(pictures / "picture 00.png")] * module.MANY
    predictor(files[1:])
    assert opened == [("openvino", 3, 1)]
    predictor(files)
    predictor(files)
    assert opened == [("openvino", 3, 1), ("openvino", 1, 3)]


def test_auto_replaces_what_fails_with_one_line(exported, pictures, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "rank_engines", lambda *_, **__: candidates(read_artifact(exported)))
    first, *others = candidates(read_artifact(exported))
    if not others:
        pytest.skip("only one engine here")
    said = []
    predictor = Predictor(damage(exported, tmp_path, first), topk=2, threads=2, say=said.append)
    assert predictor.engine.name == others[0]
    for file, prediction in zip(expected, predictor(pictures), strict=True):
        check(prediction, expected[file], file)
    assert len(said) == 1 and f"The engine {first} cannot load" in said[0]
    assert said[0].endswith(f"Going on with {others[0]}.")


def test_a_named_engine_is_not_replaced(exported, tmp_path):
    (first, *_) = candidates(read_artifact(exported))
    folder = damage(exported, tmp_path, first)
    with pytest.raises(ExportError, match=f"The engine {first} cannot load"):
        Predictor(folder, first)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_other_engines_run_without_paddle(exported, pictures, name):
    if name not in candidates(read_artifact(exported)):
        pytest.skip(f"{name} or the converter to its format is not installed")
    code = f"""
import sys
sys.modules["paddle"] = None  # importing it fails
from ppcls import Predictor
predictions = Predictor({str(exported)!r}, {name!r})({str(pictures)!r})
others = [name for name in ("onnxruntime", "openvino") if name in sys.modules]
print((len(predictions), predictions[0].error, others))
"""
    assert value_from(code) == (40, None, [name])


def test_a_batch_that_does_not_fit_in_memory(exported):
    (name, *_) = candidates(read_artifact(exported))
    code = f"""
import numpy as np, resource
from ppcls import Predictor
from ppcls.errors import ExportError
predictor = Predictor({str(exported)!r}, {name!r}, threads=1)
predictor(np.zeros((32, 32, 3), np.uint8))
images = np.zeros((64, 3, 512, 512), np.float32)
size = next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]
resource.setrlimit(resource.RLIMIT_AS, (1024 * int(size) + (300 << 20), -1))
try:
    predictor.engine.run(images)
except ExportError as error:
    text = str(error)
print((text, predictor.engine.run(images[:1, :, :64, :64]).shape))
"""
    text, shape = value_from(code)
    assert f"The engine {name} failed on a batch of [64, 3, 512, 512]" in text
    assert "If memory ran out, lower the batch size" in text
    assert shape == (1, 40)
