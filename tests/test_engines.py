"""The engines against the eager network and published numbers; which one is taken, and what replaces it."""

import json
import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden.seeded import draw_input
from helpers import GOLDEN, LIMIT, NETWORK_FILES, build_filled, damage, value_from

import ppcls
from ppcls.errors import DataError, ExportError
from ppcls.inference import fastest
from ppcls.inference.artifact import read_artifact
from ppcls.inference.eager import describe, eager_predictor
from ppcls.inference.engines import ENGINES, installed_engines, open_engine
from ppcls.inference.engines import engine as records
from ppcls.inference.engines.eager import EagerEngine
from ppcls.inference.engines.engine import CPU_BATCH, EngineType, LoadedEngine
from ppcls.inference.engines.fallback import FallbackEngine
from ppcls.inference.engines.onnxruntime import session_options
from ppcls.inference.export import export_model
from ppcls.inference.fastest import measure, rank_engines, streams_for
from ppcls.inference.formats import FORMATS, writable_formats
from ppcls.inference.timing import time_in_blocks
from ppcls.inference.versions import versions

SHAPES = [(1, 31, 33), (3, 65, 97), (2, 199, 153), (5, 32, 32), (1, 224, 224)]
NEAR = 5e-5  # of the logits' norm: the classifier of `network` enlarges small differences
IMAGES = np.zeros((1, 3, 32, 32), np.float32)
FILES = {
    "EfficientNetB0": ["paddleclas/1x3x224x224", "timm/2x3x199x153"],
    "EfficientNetB0_small": ["paddleclas/1x3x224x224", "paddleclas/2x3x199x153"],
    "EfficientNetLite0": ["timm/1x3x224x224", "efficientnet_lite_pytorch/1x3x224x224", "timm/2x3x199x153"],
}


def difference(actual, expected):
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected))


def draw_images(number, count, height, width):
    return np.random.RandomState(number).normal(size=(count, 3, height, width)).astype(np.float32)


def open_here(folder, name, **options):
    """Open the engine; skip the test where it is not installed or has nothing to read."""
    artifact = read_artifact(folder)
    if name not in installed_engines(artifact):
        pytest.skip(f"{name} or the converter to its format is not installed")
    return open_engine(folder, artifact, name, **{"threads": 1} | options)


@pytest.fixture(scope="module")
def eager(network):
    return EagerEngine(network)


@pytest.mark.parametrize("name", ENGINES)
def test_outputs_are_the_networks_at_any_size_and_batch(exported, eager, name):
    engine = open_here(exported, name)
    assert (engine.name, engine.streams) == (name, 1)
    for number, shape in enumerate(SHAPES):
        images = draw_images(number, *shape)
        outputs, expected = engine.run(images), eager.run(images)
        assert outputs.dtype == np.float32 and outputs.shape == (shape[0], 40)
        assert difference(outputs, expected) < NEAR
        assert outputs.argmax(1).tolist() == expected.argmax(1).tolist()


@pytest.mark.parametrize("name", ENGINES)
def test_threads_share_an_engine_of_several_streams(exported, eager, name):
    engine = open_here(exported, name, streams=3)
    assert engine.streams == 3
    batches = [draw_images(number, 1 + number % 3, 31 + number, 50 - number) for number in range(5)]
    expected = [eager.run(images) for images in batches]
    with ThreadPoolExecutor(5) as pool:  # more than there are streams
        outputs = list(pool.map(engine.run, batches * 2))
    assert max(map(difference, outputs, expected * 2)) < NEAR


def test_streams_keep_their_outputs(exported):
    """The outputs of one call are not overwritten by the next."""
    for name in installed_engines(read_artifact(exported)):
        engine = open_here(exported, name)
        first = engine.run(draw_images(0, 1, 32, 32))
        kept = first.copy()
        engine.run(draw_images(1, 1, 32, 32))
        assert np.array_equal(first, kept)


def test_openvino_fills_its_table_of_types_before_any_thread_runs(exported, monkeypatch):
    """Its first call in several threads at once can wait forever: 8 of 15 processes that tried it."""
    openvino = pytest.importorskip("openvino")
    to_dtype, calls = openvino.Type.to_dtype, []
    monkeypatch.setattr(openvino.Type, "to_dtype", lambda kind: calls.append(kind) or to_dtype(kind))
    open_here(exported, "openvino", streams=2)
    assert calls


def test_threads_of_onnxruntime_take_no_core_while_they_wait():
    pytest.importorskip("onnxruntime")
    options = session_options(2)
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize("kind", ["onnx", "paddle"])
def test_openvino_reads_other_formats(exported, eager, kind):
    artifact = read_artifact(exported)
    if kind not in artifact.files:
        pytest.skip(f"no {kind} here")
    artifact = replace(artifact, files={kind: artifact.files[kind]})
    if kind == "paddle" and "inference.json" in artifact.files[kind]:
        assert "openvino" not in installed_engines(artifact)
        with pytest.raises(ExportError, match="openvino.*Received: paddle.*--formats openvino"):
            open_engine(exported, artifact, "openvino", threads=1)
        return
    pytest.importorskip("openvino")
    images = draw_images(0, 2, 65, 97)
    outputs = open_engine(exported, artifact, "openvino", threads=1).run(images)
    assert difference(outputs, eager.run(images)) < NEAR


def published(name):
    for entry in FILES[name]:
        file, shape = entry.split("/")
        with np.load(GOLDEN / f"{file}.npz") as arrays:
            yield entry, draw_input(*map(int, shape.split("x"))), arrays[f"{name}/{shape}"]


@pytest.fixture(
    scope="module",
    params=[
        "EfficientNetB0",
        "EfficientNetLite0",
        pytest.param("EfficientNetB0_small", marks=pytest.mark.slow),
    ],
)
def seeded(request, preprocessing, tmp_path_factory):
    """An export of each network with the golden files' weights."""
    model = build_filled(request.param)
    folder = tmp_path_factory.mktemp(request.param) / "model"
    formats = writable_formats(model)[0]
    export_model(
        model, folder, describe(model, preprocessing), formats=formats, threads=2, log=lambda _: None
    )
    return request.param, folder


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_are_the_published_implementations(seeded, engine, record_property):
    """Network, export and engine together, against numbers that none of this code has made."""
    name, folder = seeded
    runner = open_here(folder, engine, threads=2)
    differences = {entry: difference(runner.run(images), logits) for entry, images, logits in published(name)}
    record_property("relative differences", differences)
    print(f"\n{name} on {engine}: {differences}")
    assert len(differences) == len(FILES[name]) and max(differences.values()) <= LIMIT


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 32, 32), np.float64),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((3, 32, 32), np.float32),
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((0, 3, 32, 32), np.float32),
        np.zeros((1, 3, 0, 32), np.float32),
    ],
)
def test_arrays_of_another_kind_are_refused(images):
    engine = LoadedEngine("test", [lambda images: images])
    with pytest.raises(DataError, match=rf"float32 \[N, 3, H, W\].*Received: {images.dtype} ") as error:
        engine.run(images)
    assert str(list(images.shape)) in str(error.value)


def test_arrays_in_any_layout_are_taken(exported, eager):
    images = draw_images(0, 2, 32, 40)
    turned = np.ascontiguousarray(images.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    for name in installed_engines(read_artifact(exported)):
        assert difference(open_here(exported, name).run(turned), eager.run(images)) < NEAR


def test_an_engine_that_fails_reports_it_and_runs_again():
    def run(images):
        if len(images) > 1:
            raise RuntimeError("stack\nResourceError: out of memory\nmore stack")
        return images

    engine = LoadedEngine("test", [run])
    for _ in range(3):  # the only runner comes back each time
        with pytest.raises(ExportError, match=r"test .*\[2, 3, 8, 8\]: ResourceError: out of memory"):
            engine.run(np.zeros((2, 3, 8, 8), np.float32))
    assert engine.run(IMAGES).shape == IMAGES.shape


def test_an_unknown_engine_and_one_that_is_not_installed(exported, monkeypatch):
    artifact = read_artifact(exported)
    with pytest.raises(ExportError, match="Received: onnxruntim; .*onnxruntime"):
        open_engine(exported, artifact, "onnxruntim", threads=1)
    monkeypatch.setattr(records, "find_spec", lambda name: None)
    for name, extra in (("onnxruntime", "onnx"), ("openvino", "openvino"), ("paddle", "cpu")):
        with pytest.raises(ExportError, match=rf"{name} .*pip install 'ppcls\[{extra}\]'"):
            open_engine(exported, artifact, name, threads=1)
    with pytest.raises(ExportError, match=r"'ppcls\[onnx\]'.*'ppcls\[openvino\]'"):
        rank_engines(exported, artifact, threads=1, log=print)


def test_a_format_that_was_not_exported(exported):
    artifact = read_artifact(exported)
    only = replace(artifact, files={"paddle": artifact.files["paddle"]})
    pytest.importorskip("onnxruntime")
    with pytest.raises(ExportError, match="onnxruntime.*Received: paddle.*--formats onnx"):
        open_engine(exported, only, "onnxruntime", threads=1)


@pytest.mark.parametrize("name", NETWORK_FILES)
def test_a_damaged_file_is_an_error(exported, tmp_path, name):
    folder = damage(exported, tmp_path, name)
    with pytest.raises(ExportError, match=f"{name} cannot load .*damaged"):
        open_engine(folder, read_artifact(folder), name, threads=1)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_measuring_leaves_a_damaged_one_out_and_does_not_remember_it(exported, tmp_path, monkeypatch, name):
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fastest, "time_in_blocks", quick_blocks)
    folder = damage(exported, tmp_path, name)
    artifact, said = read_artifact(folder), []
    few = {kind: sizes for kind, sizes in artifact.files.items() if kind != "paddle"}  # which is slow to load
    artifact = replace(artifact, files=few)
    ranking = rank_engines(folder, artifact, threads=1, log=said.append)
    assert set(ranking) == set(installed_engines(artifact)) - {name}
    assert sum(line.startswith("note: ") and f" {name} cannot load" in line for line in said) == 1
    shutil.copy(exported / NETWORK_FILES[name], folder)  # once it is repaired it is taken again
    assert set(rank_engines(folder, artifact, threads=1, log=said.append)) == set(installed_engines(artifact))


def quick_blocks(runs, rounds, of):
    return time_in_blocks(runs, rounds=rounds, seconds=0, pause=0, of=of)


class Sleeper:
    """A stand-in for open_engine: its engines take the given time, or fail."""

    def __init__(self, **seconds):
        self.seconds, self.opened, self.runs = seconds, [], []

    def __call__(self, folder, artifact, name, *, threads, streams=1):
        self.opened.append((name, threads))
        if self.seconds[name] == "cannot load":
            raise ExportError(f"{name} cannot load.")

        def run(images):
            self.runs.append((name, images.shape))
            if self.seconds[name] == "fails":
                raise RuntimeError("it broke")
            time.sleep(self.seconds[name])
            return images

        return LoadedEngine(name, [run])


@pytest.fixture
def stubbed(monkeypatch, tmp_path, exported):
    """rank_engines on stubs: takes their seconds, returns the ranking, the logged lines, and the stub."""
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fastest, "time_in_blocks", quick_blocks)
    monkeypatch.setattr(fastest, "installed_engines", lambda artifact: ["onnxruntime", "openvino", "paddle"])

    def rank(threads=2, artifact=None, **seconds):
        stub, said = Sleeper(**seconds), []
        monkeypatch.setattr(fastest, "open_engine", stub)
        artifact = artifact or read_artifact(exported)
        return rank_engines(exported, artifact, threads=threads, log=said.append), said, stub

    return rank


SLOW_ORT = {"onnxruntime": 0.02, "openvino": 0.001, "paddle": 0.01}


def test_the_fastest_is_taken_and_remembered(stubbed):
    ranking, said, stub = stubbed(**SLOW_ORT)
    assert ranking == ["openvino", "paddle", "onnxruntime"]
    assert said[0].startswith("engine: measuring onnxruntime, openvino, paddle")
    assert said[1].startswith("engine: openvino, ") and said[1].count(" ms") == 3
    assert set(stub.runs) == {(name, (1, 3, 64, 64)) for name in SLOW_ORT}
    assert {threads for _, threads in stub.opened} == {2}
    ranking, said, stub = stubbed(**dict.fromkeys(SLOW_ORT, "fails"))  # not run at all
    assert ranking == ["openvino", "paddle", "onnxruntime"] and not stub.opened
    assert len(said) == 1 and said[0].startswith("engine: openvino, ") and said[0].count(" ms") == 3


def test_another_artifact_machine_or_number_of_threads_is_measured_anew(stubbed, exported, monkeypatch):
    stubbed(**SLOW_ORT)
    artifact = read_artifact(exported)
    others = [
        replace(artifact, parameters_sha256="0" * 64),
        replace(artifact, output="probabilities"),
        replace(artifact, preprocessing=replace(artifact.preprocessing, crop_size=24)),
        replace(artifact, versions=artifact.versions | {"paddle2onnx": "9"}),
    ]
    for other in others:
        assert stubbed(artifact=other, **SLOW_ORT)[2].runs
        assert not stubbed(artifact=other, **SLOW_ORT)[2].runs
    assert stubbed(threads=1, **SLOW_ORT)[2].runs
    monkeypatch.setattr(fastest, "processor", lambda: "another")
    assert stubbed(**SLOW_ORT)[2].runs
    monkeypatch.setattr(fastest, "versions", lambda: {"onnxruntime": "9"})
    assert stubbed(**SLOW_ORT)[2].runs


@pytest.mark.parametrize("failure", ["fails", "cannot load"])
def test_measuring_leaves_out_what_fails(stubbed, failure):
    ranking, said, _ = stubbed(**SLOW_ORT | {"openvino": failure})
    assert ranking == ["paddle", "onnxruntime"]
    assert [line for line in said if line.startswith("note: ") and "openvino" in line]
    assert stubbed(**SLOW_ORT)[0][0] == "openvino"  # tried again the next time
    with pytest.raises(ExportError, match="paddle"):
        stubbed(threads=3, **dict.fromkeys(SLOW_ORT, failure))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"openvino": "fast"}', "{"])
def test_a_damaged_memory_is_measured_again(stubbed, tmp_path, text):
    stubbed(**SLOW_ORT)
    (place,) = (tmp_path / "home" / "engines").iterdir()
    assert set(json.loads(place.read_text())) == set(SLOW_ORT)
    place.write_text(text)
    assert stubbed(**SLOW_ORT)[2].runs and set(json.loads(place.read_text())) == set(SLOW_ORT)


def test_a_cache_that_cannot_be_written_costs_a_measurement(stubbed, tmp_path):
    (tmp_path / "home").write_text("a file")
    for _ in range(2):
        ranking, _, stub = stubbed(**SLOW_ORT)
        assert ranking[0] == "openvino" and stub.runs


def blocks_from(*tries):
    """A stand-in for time_in_blocks that returns these times, one of them at each call."""
    left = list(tries)
    return lambda runs, rounds, of: left.pop(0)


def test_a_wrong_order_under_load_is_measured_again_and_not_kept(stubbed, monkeypatch):
    # another program slows one engine's first block and the other's second
    unstable = {"onnxruntime": [0.9, 1.2], "openvino": [1.5, 1.0], "paddle": [3.0, 3.0]}
    calm = {"onnxruntime": [0.8, 0.8], "openvino": [0.7, 0.7], "paddle": [3.0, 3.0]}
    tie = {"onnxruntime": [0.50, 0.52], "openvino": [0.51, 0.51], "paddle": [3.0, 3.0]}
    monkeypatch.setattr(fastest, "time_in_blocks", blocks_from(unstable, calm))
    ranking, said, stub = stubbed(**SLOW_ORT)
    assert ranking == ["openvino", "onnxruntime", "paddle"] and len(said) == 2
    assert stubbed(**SLOW_ORT)[0] == ranking  # remembered
    monkeypatch.setattr(fastest, "time_in_blocks", blocks_from(tie))
    assert stubbed(threads=5, **SLOW_ORT)[0][0] == "onnxruntime"  # as good as equal: not measured again
    monkeypatch.setattr(fastest, "time_in_blocks", blocks_from(unstable, unstable, unstable, calm))
    ranking, said, stub = stubbed(threads=4, **SLOW_ORT)
    assert ranking[0] == "onnxruntime" and [line for line in said if line.startswith("note: ")]
    assert stubbed(threads=4, **SLOW_ORT)[0][0] == "openvino"  # nothing was remembered


def test_measure_measures_anew(stubbed, exported, monkeypatch):
    assert stubbed(**SLOW_ORT)[0][0] == "openvino"
    others = SLOW_ORT | {"openvino": 0.03}
    assert stubbed(**others)[0][0] == "openvino"  # remembered
    stub = Sleeper(**others)
    monkeypatch.setattr(fastest, "open_engine", stub)
    assert ppcls.load(exported, "measure", threads=2, log=lambda line: None).engine.name == "paddle"
    assert stubbed(**SLOW_ORT)[0][0] == "paddle"  # remembered in the place of the earlier one


def test_a_single_engine_is_not_measured(exported, monkeypatch):
    monkeypatch.setattr(fastest, "installed_engines", lambda artifact: ["paddle"])
    monkeypatch.setattr(fastest, "open_engine", None)
    said = []
    assert rank_engines(exported, read_artifact(exported), threads=1, log=said.append) == ["paddle"]
    assert len(said) == 1 and said[0].startswith("engine: paddle, ")


def test_large_networks_are_measured_one_at_a_time_and_take_one_stream(exported, monkeypatch):
    artifact = read_artifact(exported)
    assert streams_for(artifact, 2) == 2 and streams_for(artifact, 1) == 1
    monkeypatch.setattr(fastest, "SMALL_BYTES", 1 << 20)
    assert streams_for(artifact, 2) == 1
    together = []
    monkeypatch.setattr(fastest, "open_engine", Sleeper(**dict.fromkeys(SLOW_ORT, 0)))
    monkeypatch.setattr(
        fastest,
        "time_in_blocks",
        lambda runs, **how: together.append(list(runs)) or quick_blocks(runs, **how),
    )
    measure(exported, artifact, list(SLOW_ORT), threads=1, log=print)
    assert together == [["onnxruntime"], ["openvino"], ["paddle"]]


def test_blocks_take_turns():
    """Each time is the median of a block, and each round begins with another name."""
    calls = []

    def call(name, seconds):
        calls.append(name)
        time.sleep(seconds)

    runs = {"a": lambda: call("a", 0.001), "b": lambda: call("b", 0.005)}
    times = time_in_blocks(runs, rounds=2, seconds=0, pause=0)
    assert "".join(calls) == "aaabbb" + "bbbaaa"  # one call that isn't counted, and two that are
    assert len(times["a"]) == len(times["b"]) == 2 and max(times["a"]) < min(times["b"])
    calls.clear()
    time_in_blocks(runs, rounds=1, seconds=0.02, pause=0)
    assert calls.count("b") >= 5


def fall_back(said, **seconds):
    stub = Sleeper(**seconds)
    engine = FallbackEngine(list(seconds), lambda name: stub(Path(), None, name, threads=1), said.append)
    return engine, stub


def test_an_engine_that_cannot_load_is_replaced():
    said = []
    engine, stub = fall_back(said, onnxruntime="cannot load", openvino=0, paddle=0)
    assert engine.name == "openvino" and [name for name, _ in stub.opened] == ["onnxruntime", "openvino"]
    assert len(said) == 1 and said[0].startswith("note: onnxruntime cannot load.")
    assert said[0].endswith(" openvino.")


def test_an_engine_that_fails_at_run_time_is_replaced_and_the_batch_not_lost():
    said = []
    engine, stub = fall_back(said, onnxruntime="fails", openvino="cannot load", paddle=0)
    assert engine.name == "onnxruntime" and not said
    assert np.array_equal(engine.run(IMAGES), IMAGES) and engine.name == "paddle"
    assert len(said) == 2 and "it broke" in said[0] and said[0].endswith(" openvino.")
    assert said[1].startswith("note: openvino cannot load.") and said[1].endswith(" paddle.")
    engine.run(IMAGES)
    assert len(said) == 2 and len(stub.opened) == 3
    assert (engine.streams, engine.batch_size) == (1, None)


def test_threads_replace_an_engine_once():
    said, barrier = [], threading.Barrier(4)

    def opener(name):
        def run(images):
            if name == "a":
                barrier.wait()  # all four fail at the same time
                raise RuntimeError("it broke")
            return images

        return LoadedEngine(name, [run] * 4)

    engine = FallbackEngine(["a", "b", "c"], opener, said.append)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(engine.run, [IMAGES] * 4))
    assert len(outputs) == 4 and engine.name == "b" and len(said) == 1


def test_where_all_fail_the_last_reason_is_raised():
    said = []
    engine, _ = fall_back(said, onnxruntime="fails", paddle="fails")
    for _ in range(2):
        with pytest.raises(ExportError, match="paddle failed"):
            engine.run(IMAGES)
    assert len(said) == 1
    with pytest.raises(ExportError, match="b cannot load"):
        fall_back(said, a="cannot load", b="cannot load")
    with pytest.raises(ExportError, match="no engine"):
        FallbackEngine([], lambda name: None, print)


def test_wrong_input_replaces_no_engine():
    said = []
    engine, _ = fall_back(said, onnxruntime=0, paddle=0)
    with pytest.raises(DataError):
        engine.run(IMAGES.astype(np.float64))
    assert engine.name == "onnxruntime" and not said


def test_engines_of_one_export_share_what_has_failed():
    """A second one, as for many files, does not try again what the first has replaced."""
    names, opened = ["a", "b", "c"], []

    def opener(name):
        def run(images):
            if name == "a":
                raise RuntimeError("it broke")
            return images

        opened.append(name)
        return LoadedEngine(name, [run])

    first = FallbackEngine(names, opener, lambda line: None)
    first.run(IMAGES)
    second = FallbackEngine(names, opener, lambda line: None)
    assert (first.name, second.name) == ("b", "b") and opened == ["a", "b", "b"]


@pytest.fixture
def doubling(monkeypatch):
    """A new engine's record in ENGINES, which reads ONNX files: it returns 2 x the mean of each channel."""
    calls = []

    def load(file, threads, streams):
        calls.append((file.name, threads, streams))
        return [lambda images: 2 * images.mean(axis=(2, 3))] * streams, True

    # `is_installed` looks for a module of the engine's name
    record = EngineType("json", (".zip", ".onnx"), "doubling", ("numpy", "no-such-package"), load)
    monkeypatch.setitem(ENGINES, record.name, record)
    return calls


def test_another_engine_is_a_record(doubling, exported):
    artifact = read_artifact(exported)
    if "onnx" not in artifact.files:
        pytest.skip("the converter to ONNX is not installed")
    assert installed_engines(artifact)[-1] == "json"
    engine = open_engine(exported, artifact, "json", threads=3, streams=2)
    assert doubling == [("model.onnx", 3, 2)]
    assert (engine.name, engine.streams, engine.batch_size) == ("json", 2, CPU_BATCH)
    images = draw_images(0, 2, 32, 40)
    assert np.array_equal(engine.run(images), 2 * images.mean(axis=(2, 3)))
    assert versions()["numpy"] == np.__version__ and "no-such-package" not in versions()
    only = replace(artifact, files={"paddle": artifact.files["paddle"]})
    assert "json" not in installed_engines(only)


def test_a_records_own_errors_and_its_absence(exported, monkeypatch):
    def fail(file, threads, streams):
        raise RuntimeError("no such operator")

    artifact = read_artifact(exported)
    ending = next(name for name in artifact.files["paddle"] if name.endswith(FORMATS["paddle"].endings))
    for name, words in (
        ("json", f"json cannot load .*{ending}: .*no such operator"),
        ("nowhere", "nowhere .*xyz"),
    ):
        record = EngineType(name, FORMATS["paddle"].endings, "xyz", (), fail)
        monkeypatch.setitem(ENGINES, name, record)
        with pytest.raises(ExportError, match=words):
            open_engine(exported, artifact, name, threads=1)
    assert "nowhere" not in installed_engines(artifact)


# Processes


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("count", [1, 20], ids=["one", "many"])
def test_a_forked_process_runs_or_is_refused_and_never_hangs(exported, pictures, name, count):
    """Both predictors of before the fork, and engines that are opened behind it."""
    if name not in installed_engines(read_artifact(exported)):
        pytest.skip(f"{name} or the converter to its format is not installed")
    files = [str(path) for path in sorted(pictures.iterdir())[:count]]
    code = f"""
import os, signal
import ppcls
from ppcls.errors import PpclsError
files = {files!r}
def load():
    return ppcls.load({str(exported)!r}, {name!r}, topk=1, threads=2, log=lambda line: None)
predictor = load()
expected = [prediction.class_ids for prediction in predictor(files)]
results = []
for opened in (lambda: predictor, load):
    reading, writing = os.pipe()
    if os.fork() == 0:
        signal.alarm(60)
        try:
            same = [prediction.class_ids for prediction in opened()(files)] == expected
            os.write(writing, b"same" if same else b"other")
        except PpclsError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    results.append(os.read(reading, 1000).decode())
    os.wait()
print(results)
"""
    for result in value_from(code):
        refused = name in result and "forked" in result and "spawn" in result
        assert refused or (result == "same" and ENGINES[name].survives_fork)


@pytest.mark.parametrize("name", ENGINES)
def test_a_predictor_is_pickled_without_its_engines(exported, pictures, name):
    open_here(exported, name)
    said = []
    predictor = ppcls.load(exported, name, topk=2, threads=2, log=lambda line: said.append(line))
    files = [str(path) for path in sorted(pictures.iterdir())[:17]]
    expected = predictor(files)
    other = pickle.loads(pickle.dumps(predictor))
    assert other.engine is not predictor.engine and other.engine.name == name
    assert other(files) == expected
    assert predictor.with_preprocessing(predictor.preprocessing).engine is predictor.engine


def test_a_predictor_over_the_eager_network_cannot_be_pickled(network, preprocessing):
    with pytest.raises(TypeError, match="eager"):
        pickle.dumps(eager_predictor(network, preprocessing))


def test_memory_of_openvino_does_not_grow_with_each_input_size(exported):
    open_here(exported, "openvino")
    code = f"""
from pathlib import Path
import numpy as np
from ppcls.inference.artifact import read_artifact
from ppcls.inference.engines import open_engine
folder = Path({str(exported)!r})
engine = open_engine(folder, read_artifact(folder), "openvino", threads=1)
def resident(sizes):
    for size in sizes:
        engine.run(np.zeros((1, 3, 32, size), np.float32))
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
before = resident(range(32, 62))
print(resident(range(62, 122)) - before)
"""
    assert value_from(code, ONEDNN_PRIMITIVE_CACHE_CAPACITY="64") < 10  # MB; 40 with OpenVINO's own setting
