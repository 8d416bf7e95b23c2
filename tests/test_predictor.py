"""Predictor: images in all forms to classes, the same over an export as over the eager network."""

import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import paddle
import pytest
from helpers import ARTIFACT, code_without_ppcls, damage, predictor_of, value_from, write_config
from PIL import Image

import ppcls
from ppcls import Predictor
from ppcls.data.dataset import Dataset
from ppcls.data.folders import find_images
from ppcls.data.loader import load_batch
from ppcls.data.opencv import cv2
from ppcls.data.transforms import EvalTransform
from ppcls.errors import ConfigError, DataError, ExportError, PpclsError
from ppcls.inference import load as module
from ppcls.inference.artifact import read_artifact
from ppcls.inference.eager import eager_predictor
from ppcls.inference.engines import ENGINES, installed_engines
from ppcls.inference.engines.eager import EagerEngine
from ppcls.inference.engines.engine import LoadedEngine
from ppcls.inference.predictions import softmax
from ppcls.inference.predictor import BULK
from ppcls.preprocessing import Interpolation


@pytest.fixture(scope="module")
def expected(network, preprocessing, pictures):
    """The eager network's probabilities of all pictures, read as training and evaluation read them."""
    files = find_images(str(pictures))
    dataset = Dataset.of_files(files)
    batch = load_batch(
        dataset, np.arange(len(files)), EvalTransform(preprocessing), preprocessing, on_error="fail"
    )
    return dict(zip(files, softmax(EagerEngine(network).run(batch.images)), strict=True))


@pytest.fixture(scope="module")
def predictor(exported):
    """A predictor on an engine that is quick to open, if there is one."""
    return ppcls.load(exported, installed_engines(read_artifact(exported))[0], topk=3, threads=2)


def check(prediction, probabilities, file=None):
    best = np.argsort(-probabilities)[: len(prediction.class_ids)]
    assert prediction.class_ids == tuple(best) and prediction.error is None
    assert prediction.labels == tuple(f"class {number}" for number in best)
    assert np.allclose(prediction.probabilities, probabilities[best], atol=2e-5)
    assert prediction.file == file


@pytest.mark.parametrize("name", ENGINES)
def test_answers_are_the_eager_networks(exported, expected, pictures, name):
    if name not in installed_engines(read_artifact(exported)):
        pytest.skip(f"{name} or the converter to its format is not installed")
    predictor = ppcls.load(exported, name, topk=3, threads=2)
    predictions = predictor(pictures)
    assert predictor.engine.name == name and len(predictions) == 40
    for file, prediction in zip(expected, predictions, strict=True):
        check(prediction, expected[file], file)
    assert len({prediction.class_ids for prediction in predictions}) > 10  # the pictures can be told apart


def test_answers_of_a_predictor_over_the_eager_network(network, preprocessing, expected, pictures, predictor):
    eager = eager_predictor(network, preprocessing, predictor.class_names, topk=3, batch_size=7)
    assert eager.model is network and eager.engine.name == "eager" and predictor.model is None
    for file, prediction in zip(expected, eager(pictures), strict=True):
        check(prediction, expected[file], file)
    assert eager.fingerprint == predictor.fingerprint
    assert (eager.num_classes, eager.batch_size, predictor.batch_size) == (40, 7, 4)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_outputs_that_are_not_finite_are_an_error(activation):
    """And not a picture of no class."""

    def run(images):
        return np.full((len(images), 3), np.nan, np.float32)

    own = {"num_classes": 3, "preprocessing": ARTIFACT.preprocessing, "activation": activation}
    with pytest.raises(PpclsError, match="not finite"):
        predictor_of(run, **own)(np.zeros((40, 40, 3), np.uint8))


def test_other_preprocessing_on_the_same_engines(predictor, network, preprocessing, pictures):
    smaller = replace(preprocessing, resize_short=50, crop_size=40, mean=(0.4, 0.5, 0.6), std=(0.3,) * 3)
    other, file = predictor.with_preprocessing(smaller), pictures / "picture 00.png"
    assert other.engine is predictor.engine and other.preprocessing == smaller
    assert predictor.preprocessing == preprocessing  # it is unchanged
    eager = eager_predictor(network, smaller, predictor.class_names)
    assert other(file).class_ids == eager(file).class_ids[:3]
    assert other(file).probabilities == pytest.approx(eager(file).probabilities[:3], abs=2e-5)
    assert other(file).probabilities != predictor(file).probabilities


def test_logits_and_probabilities_with_the_softmax_inside_and_outside():
    logits = np.random.RandomState(0).normal(size=(4, 3)).astype(np.float32)
    images = np.zeros((4, 3, 32, 32), np.float32)
    outside = Predictor(ARTIFACT, lambda streams: LoadedEngine("a", [lambda _: logits]))
    inside = Predictor(
        replace(ARTIFACT, output="probabilities"),
        lambda streams: LoadedEngine("b", [lambda _: softmax(logits).astype(np.float32)]),
    )
    assert np.array_equal(outside.logits(images), logits)
    assert np.allclose(softmax(logits).sum(axis=1), 1)
    for predictor in (outside, inside):
        np.testing.assert_allclose(predictor.probabilities(images), softmax(logits), rtol=1e-6)
        np.testing.assert_allclose(softmax(predictor.logits(images)), softmax(logits), rtol=1e-6)
    shift = inside.logits(images) - logits  # logits are known but for a constant
    np.testing.assert_allclose(shift - shift[:, :1], 0, atol=1e-5)
    certain = np.array([[1, 0, 0]], np.float32)
    sure = Predictor(
        replace(ARTIFACT, output="probabilities"), lambda streams: LoadedEngine("c", [lambda _: certain])
    )
    assert np.isfinite(sure.logits(images)).all() and np.array_equal(sure.probabilities(images), certain)


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


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "jpeg", {"exif": {0x112: 6}}),
        ("RGB", "png", {}),
        ("RGB", "webp", {"lossless": True, "exif": {0x112: 3}}),
        ("L", "png", {}),
        ("P", "gif", {}),
        ("CMYK", "tiff", {}),
        ("1", "png", {}),
        ("I;16", "png", {}),
        ("I;16", "tiff", {}),
    ],
)
def test_bytes_and_pil_images_are_predicted_as_their_file(predictor, pictures, tmp_path, mode, kind, options):
    with Image.open(pictures / "picture 03.png") as picture:
        if mode == "I;16":
            wide = np.asarray(picture.convert("L")).astype(np.uint16) * 256 + 7
            image = Image.fromarray(wide)
        else:
            image = picture.convert(mode)
    if "exif" in options:
        exif = Image.Exif()
        exif.update(options["exif"])
        options = options | {"exif": exif.tobytes()}
    file = tmp_path / f"a.{kind}"
    image.save(file, kind, **options)
    expected = replace(predictor(file), file=None)
    assert predictor(file.read_bytes()) == expected
    with Image.open(file) as opened:
        assert predictor(opened) == expected
        assert predictor([opened, file.read_bytes()]) == [expected, expected]
        if "exif" in options:
            assert predictor(opened.convert("RGB")) == expected  # the orientation is kept by Pillow
            assert predictor(np.asarray(opened.convert("RGB"))) != expected


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_the_documented_code_without_ppcls_prepares_the_same_input(
    exported, pictures, tmp_path, interpolation, antialias
):
    pytest.importorskip("onnxruntime")
    artifact = read_artifact(exported)
    if "onnx" not in artifact.files:
        pytest.skip("the converter to ONNX is not installed")
    shutil.copytree(exported, tmp_path / "lite0")
    own = replace(artifact.preprocessing, interpolation=interpolation, antialias=antialias, crop_size=63)
    replace(artifact, preprocessing=own).write(tmp_path / "lite0")
    file = pictures / "picture 03.png"
    code = code_without_ppcls().replace("lite0/", f"{tmp_path / 'lite0'}/").replace("cat.jpg", str(file))
    assert "ppcls" not in code
    found: dict = {}
    exec(code, found)
    predictor = ppcls.load(tmp_path / "lite0", "onnxruntime", log=lambda line: None)
    batch = load_batch(Dataset.of_files([str(file)]), np.arange(1), EvalTransform(own), own, on_error="fail")
    assert np.array_equal(found["x"], batch.images)
    assert np.allclose(found["outputs"], predictor.logits(batch.images), atol=1e-4)


def test_grey_arrays_are_predicted_as_a_grey_file(predictor, pictures, tmp_path):
    grey = cv2.imread(str(pictures / "picture 03.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    expected = replace(predictor(tmp_path / "grey.png"), file=None)
    assert predictor(grey) == predictor(grey[..., None]) == expected
    assert predictor([grey, np.stack([grey] * 3, axis=2)]) == [expected] * 2


@pytest.mark.parametrize(
    "image", [b"no image", b"", Image.new("F", (40, 40)), Image.new("I", (40, 40), 70000)]
)
def test_bytes_and_pil_images_that_cannot_be_read(predictor, image):
    with pytest.raises(DataError, match="^unreadable image: "):
        predictor(image)


def test_without_class_names_the_numbers_are_the_labels(exported, pictures, predictor, monkeypatch):
    monkeypatch.setattr(predictor, "class_names", None)
    prediction = predictor(pictures / "picture 00.png")
    assert prediction.labels == tuple(map(str, prediction.class_ids))


def test_more_classes_requested_than_there_are(exported, pictures, predictor, monkeypatch):
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
def test_a_file_that_is_not_an_image_is_an_error_with_its_reason(predictor, pictures, tmp_path, name):
    content, words = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: .*{words}"):
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
    with pytest.raises(DataError, match="none.png"):
        predictor(tmp_path / "none.png")
    with pytest.raises(DataError, match=rf"{tmp_path} .*\.bmp, "):
        predictor(tmp_path)
    missing, folder, good = predictor([tmp_path / "none.png", tmp_path, pictures / "picture 00.png"])
    assert missing.error == "No such file or directory" and folder.error == "Is a directory"
    assert good.error is None
    with pytest.raises(DataError, match="none.png .*No such file"):
        predictor([tmp_path / "none.png", np.zeros((8, 8, 3), np.uint8)])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((40, 40, 3), np.float32),
        np.zeros((40, 40), np.float32),
        np.zeros((40,), np.uint8),
        np.zeros((3, 40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((0, 40, 3), np.uint8),
        np.zeros((2, 40, 40, 3), np.float64),
        np.zeros((1, 2, 40, 40, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused(predictor, array):
    with pytest.raises(DataError, match=rf"uint8 \[H, W, 3\].*Received: {array.dtype} \["):
        predictor(array)


@pytest.mark.parametrize(
    ("images", "kind"),
    [(None, "NoneType"), (3, "int"), (["a.png", 3], "int"), ((x for x in "a"), "generator")],
)
def test_an_input_of_another_kind_is_refused(predictor, images, kind):
    with pytest.raises(DataError, match=f"Expected: .*Received: {kind}"):
        predictor(images)


def test_options_that_cannot_be(exported):
    for option in ("topk", "threads"):
        with pytest.raises(ConfigError, match=f"{option} .*Received: 0"):
            ppcls.load(exported, **{option: 0})
    for option in ("topk", "num_workers", "batch_size"):
        with pytest.raises(ConfigError, match=f"{option} .*Received: 0"):
            Predictor(ARTIFACT, lambda streams: LoadedEngine("test", [len]), **{option: 0})
    with pytest.raises(ConfigError, match="preprocessing"):
        Predictor(replace(ARTIFACT, preprocessing=None), lambda streams: LoadedEngine("test", [len]))
    with pytest.raises(ExportError, match="Received: onnxrun; .*onnxruntime"):
        ppcls.load(exported, "onnxrun")
    with pytest.raises(ExportError, match="eager .*auto"):
        ppcls.load(exported, "eager")


class Counting:
    """An engine that counts the images of its batches, and returns the same class for all."""

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
    predictor = ppcls.load(exported, "onnxruntime", threads=2)
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
    predictor = ppcls.load(exported, "openvino", threads=3)
    files = [str(pictures / "picture 00.png")] * BULK
    predictor(files[1:])
    assert opened == [("openvino", 3, 1)]
    predictor(files)
    predictor(files)
    assert opened == [("openvino", 3, 1), ("openvino", 1, 3)]
    opened.clear()
    bulk = module.open_export(exported, "openvino", threads=3, bulk=True)
    bulk(files)
    bulk(files[0])
    assert opened == [("openvino", 1, 3)]  # no other than the one of several streams


def test_a_failed_batch_leaves_the_engine_for_many_files(exported, pictures, monkeypatch):
    def opener(folder, artifact, name, *, threads, streams):
        def run(images):
            if len(images) > 4:
                raise MemoryError("too large")
            return np.zeros((len(images), 40), np.float32)

        return LoadedEngine(name, [run] * streams, batch_size=4)

    monkeypatch.setattr(module, "open_engine", opener)
    predictor = ppcls.load(exported, "openvino", threads=2)
    with pytest.raises(ExportError, match="openvino .*too large"):
        predictor.logits(np.zeros((5, 3, 32, 32), np.float32))
    assert len(predictor([pictures / "picture 00.png"] * BULK)) == BULK


def test_auto_replaces_what_fails_with_one_line(exported, pictures, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "rank_engines", lambda *_, **__: installed_engines(read_artifact(exported)))
    first, *others = installed_engines(read_artifact(exported))
    if not others:
        pytest.skip("only one engine here")
    said = []
    predictor = ppcls.load(damage(exported, tmp_path, first), topk=2, threads=2, log=said.append)
    assert predictor.engine.name == others[0]
    for file, prediction in zip(expected, predictor(pictures), strict=True):
        check(prediction, expected[file], file)
    assert len(said) == 1 and said[0].startswith("note: ") and f" {first} cannot load" in said[0]
    assert said[0].endswith(f" {others[0]}.")


def test_a_named_engine_is_not_replaced(exported, tmp_path):
    (first, *_) = installed_engines(read_artifact(exported))
    folder = damage(exported, tmp_path, first)
    with pytest.raises(ExportError, match=f"{first} cannot load"):
        ppcls.load(folder, first)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_other_engines_run_without_paddle(exported, pictures, name):
    if name not in installed_engines(read_artifact(exported)):
        pytest.skip(f"{name} or the converter to its format is not installed")
    code = f"""
import sys
sys.modules["paddle"] = None  # importing it fails
import ppcls
predictions = ppcls.load({str(exported)!r}, {name!r})({str(pictures)!r})
others = [name for name in ("onnxruntime", "openvino") if name in sys.modules]
print((len(predictions), predictions[0].error, others))
"""
    assert value_from(code) == (40, None, [name])


def test_a_batch_that_does_not_fit_in_memory(exported):
    (name, *_) = installed_engines(read_artifact(exported))
    code = f"""
import numpy as np, resource
import ppcls
from ppcls.errors import ExportError
predictor = ppcls.load({str(exported)!r}, {name!r}, threads=1)
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
    assert name in text and "[64, 3, 512, 512]" in text and "batch size" in text
    assert shape == (1, 40)


# Embeddings


@pytest.fixture(scope="module")
def eager(network, preprocessing):
    return eager_predictor(network, preprocessing, batch_size=7)


@pytest.fixture(scope="module")
def embeddings(network, preprocessing, pictures):
    """The network's own embeddings of all pictures, by their file."""
    files = find_images(str(pictures))
    batch = load_batch(
        Dataset.of_files(files), np.arange(40), EvalTransform(preprocessing), preprocessing, on_error="fail"
    )
    with paddle.no_grad():
        rows = network.embed(paddle.to_tensor(batch.images)).numpy()
    return dict(zip(files, rows, strict=True))


def near(rows, expected):
    expected = np.asarray(expected)
    assert rows.dtype == np.float32 and rows.shape == expected.shape
    return np.linalg.norm(rows - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["eager", *ENGINES])
def test_embeddings_on_all_engines(eager, embedding_export, embeddings, expected, pictures, tmp_path, name):
    """The export takes three images of 64 x 64 pixels at a time: the last of 41 files are filled up."""
    if name != "eager" and name not in installed_engines(read_artifact(embedding_export)):
        pytest.skip(f"{name} or the converter to its format is not installed")
    predictor = eager if name == "eager" else ppcls.load(embedding_export, name, topk=3, threads=2)
    assert predictor.batch_size == (7 if name == "eager" else 3)
    assert near(predictor.embed(pictures), list(embeddings.values()))
    file, array = "", np.empty(0)
    for file in (str(pictures / "picture 03.png"), str(pictures / "picture 00.png")):
        array = cv2.imread(file, cv2.IMREAD_COLOR_RGB)
        for image in (file, Path(file), Path(file).read_bytes(), Image.open(file), array):
            assert near(predictor.embed(image), embeddings[file])
    assert near(predictor.embed([array, file]), [embeddings[file]] * 2)
    assert near(predictor.embed(np.stack([array, array])), [embeddings[file]] * 2)
    assert predictor.embed([]).shape == (0, 1280)
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    files = [*embeddings, str(broken), file]
    found = list(predictor.stream(files, embeddings=True))
    assert [prediction.file for prediction in found] == files
    for prediction in found:
        if prediction.file == str(broken):
            assert prediction.error and prediction.embedding is None
        else:
            assert near(prediction.embedding, embeddings[prediction.file])
            assert prediction.class_ids[0] == expected[prediction.file].argmax()
    with pytest.raises(DataError, match="broken.png"):
        predictor.embed(files)
    with pytest.raises(DataError, match="broken.png"):
        predictor.embed(str(broken))


def test_an_export_without_embeddings_names_the_cure(predictor, pictures):
    for call in (predictor.embed, lambda images: next(predictor.stream(images, embeddings=True))):
        with pytest.raises(ExportError, match="EfficientNetB0 .*export .*--embeddings"):
            call(pictures)


def test_a_fixed_shape_fills_batches_and_refuses_other_sizes(embedding_export, eager):
    predictor = ppcls.load(embedding_export, threads=2, log=lambda line: None)  # measured at this shape too
    images = np.random.RandomState(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    assert np.allclose(predictor.logits(images), eager.logits(images), atol=1e-4)
    with pytest.raises(DataError, match=r"\[3, 3, 64, 64\] only. Received: \[4, 3, 64, 64\]"):
        predictor.logits(np.zeros((4, 3, 64, 64), np.float32))
    with pytest.raises(ConfigError, match=r"64 pixels.*--image-size.*crop_size=40"):
        ppcls.load(embedding_export, overrides=["data.preprocessing.crop_size=40"], log=lambda line: None)


def test_a_network_of_the_cache_gives_embeddings(tmp_path, pictures):
    config = write_config(tmp_path, 6, 72, 64)
    auto, eager = (ppcls.load(config, engine, log=lambda line: None) for engine in ("auto", "eager"))
    assert auto.model is None and near(auto.embed(pictures), eager.embed(pictures))
