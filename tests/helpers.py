"""Helpers that several test modules share. Importing this module imports no Paddle."""

import ast
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from golden.seeded import draw, draw_input

from ppcls.data.class_names import ClassNames
from ppcls.inference.artifact import Artifact
from ppcls.inference.engines.engine import LoadedEngine, RunBatch
from ppcls.inference.predictor import Predictor
from ppcls.preprocessing import Preprocessing

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
SAMPLE = Path(os.environ.get("PPCLS_SAMPLE", ROOT.parent / "shared" / "data" / "imagenet_sample"))
PHOTOS = {"a dog": 30, "bird": 2, "cat": 11, "one": 1}  # pictures in each folder of the fixture `photos`
LIMIT = 1e-5  # of ||a - b|| / ||b|| to published logits, float32: single small logits differ by 1e-3

_PADDLE = find_spec("paddle")
HAS_ONEDNN = bool(_PADDLE and (Path(_PADDLE.origin or "").parent / "libs/libdnnl.so.3").exists())
_PROCESSOR = Path("/proc/cpuinfo")
HAS_BF16 = HAS_ONEDNN and "amx_bf16" in (_PROCESSOR.read_text() if _PROCESSOR.exists() else "")

ARTIFACT = Artifact(
    model="EfficientNetB0",
    num_classes=3,
    output="logits",
    preprocessing=Preprocessing(36, 32, "bicubic", True, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    class_names=ClassNames(names=("tench, Tinca", "null", "Äsche"), folders=("01", "no", "1e3")),
    parameters_sha256="ab" * 32,
    weights="timm; sha256 12",
    license=None,
    versions={"ppcls": "0.1.0"},
    files={"onnx": {"model.onnx": 5}, "paddle": {"inference.json": 3, "inference.pdiparams": 4}},
    parity={"onnx": {"32x32": 1.25e-6}, "paddle": {"32x32": 0.0}},
)


# Processes


def on_two_ranks(log: Path) -> list[str]:
    """Python's arguments that start a script on two ranks, with their logs in a folder."""
    return ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(log)]


def run_python(*arguments, path=(), cwd=None, timeout=300, **variables) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments on this project, and return when it ends, with any exit code.

    path: folders to import from before the project. variables: set in the process's environment.
    """
    search = os.pathsep.join(map(str, (*path, ROOT)))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": search} | variables,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_tool(name: str, *arguments, launch=()) -> subprocess.CompletedProcess[str]:
    """Run tools/NAME.py. launch: `on_two_ranks(log)`, or nothing for a single process."""
    return run_python(*launch, ROOT / "tools" / f"{name}.py", *arguments)


def run_data(*arguments, cwd=None) -> subprocess.CompletedProcess[str]:
    """Run python -m ppcls.data."""
    return run_python("-m", "ppcls.data", *arguments, cwd=cwd)


def value_from(code: str, **variables):
    """Return the literal that the code, run in a process of its own, prints last."""
    run = run_python("-c", code, timeout=120, **variables)
    assert run.returncode == 0, run.stderr
    return ast.literal_eval(run.stdout.splitlines()[-1])


# Pictures and configs


def write_picture(path: Path, seed: int, size: tuple[int, int] = (9, 7)) -> None:
    """Write noise of height and width `size`."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)


def draw_classes(folder: Path, count: int, height: int, width: int) -> None:
    """Write noisy pictures of three classes that differ in brightness: a/0.png, b/1.png, c/2.png, a/3.png."""
    import cv2

    random = np.random.RandomState(0)
    for index in range(count):
        place = folder / "abc"[index % 3]
        place.mkdir(parents=True, exist_ok=True)
        picture = random.normal(80 * (index % 3), 40, (height, width, 3))
        cv2.imwrite(str(place / f"{index}.png"), np.clip(picture, 0, 255).astype(np.uint8))


def draw_labelled(folder: Path, kinds: tuple[str, ...], prefix: str = "") -> dict[str, str | int]:
    """Write 23 pictures of noise, a list that gives them six classes, and a file of the classes' names.

    kinds: endings of the files, in turn. Returns the options of a config's data section.
    """
    import cv2

    random = np.random.RandomState(0)
    lines = []
    for index in range(23):
        name = f"{prefix}{index}.{kinds[index % len(kinds)]}"
        cv2.imwrite(str(folder / name), random.randint(0, 255, (40 + index, 70 - index, 3), np.uint8))
        lines.append(f"{name} {index % 6}")
    (folder / "val_list.txt").write_text("\n".join(lines))
    (folder / "names.txt").write_text("\n".join(f"class {letter}" for letter in "abcdef"))
    options = {"eval_root": str(folder), "eval_list": str(folder / "val_list.txt"), "batch_size": 4}
    return options | {"class_names": str(folder / "names.txt")}


def write_config(folder: Path, num_classes: int, short: int, crop: int, gain: float = 1.0, **data) -> Path:
    """Write a config of EfficientNetB0_small with its weights, drawn from a seed, and return its path.

    short, crop: sizes in pixels. gain: factor of the classifier's weights. data: options of the data section.
    """
    import paddle

    from ppcls import build_model
    from ppcls.weights import metadata_of, write_weights

    paddle.seed(3)
    model = build_model("EfficientNetB0_small", num_classes=num_classes)
    model.fc.weight.set_value(model.fc.weight * gain)
    weights = folder / "weights.safetensors"
    write_weights(weights, arrays_of(model), metadata_of(model))
    preprocessing = {"resize_short": short, "crop_size": crop, "interpolation": "bilinear"}
    preprocessing |= {"antialias": False, "mean": [0.5] * 3, "std": [0.5] * 3}
    tree = {
        "model": {"name": "EfficientNetB0_small", "num_classes": num_classes, "weights": str(weights)},
        "data": data | {"preprocessing": preprocessing},
        "device": "cpu",
        "output_dir": str(folder / "output"),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


# Networks


def dense(labels, shares, classes):
    """Return the target of each class, float32 [N, C], from labels and their shares, [N, M]."""
    targets = np.zeros((len(labels), classes), np.float32)
    np.add.at(targets, (np.arange(len(labels))[:, None], labels), shares)
    return targets


def arrays_of(model) -> dict[str, np.ndarray]:
    return {key: parameter.numpy() for key, parameter in model.state_dict().items()}


def build_filled(name: str, prefix: str = "", **options):
    """Build a network in evaluation mode, with the drawn weights of the golden files. Only those under
    `prefix`: the others are not even allocated."""
    import paddle

    from ppcls import build_model

    with paddle.LazyGuard():
        model = build_model(name, **options)
    for key, parameter in model.state_dict().items():
        if key.startswith(prefix):
            parameter.set_value(draw(name, key, tuple(parameter.shape)))
    model.eval()
    return model


def read_golden(file: str, start: str) -> dict[tuple[int, ...], np.ndarray]:
    """Return the published outputs by the input's shape: the entries named `start`/shape."""
    with np.load(GOLDEN / file) as arrays:
        entries = [entry.rsplit("/", 1) for entry in arrays.files]
        shapes = [shape for entry, shape in entries if entry == start]
        return {tuple(map(int, shape.split("x"))): arrays[f"{start}/{shape}"] for shape in shapes}


def relative_difference(layer, shape: tuple[int, ...], expected: np.ndarray, channels=slice(None)) -> float:
    """Return ||a - b|| / ||b|| of a layer's output on the drawn input of this shape."""
    import paddle

    with paddle.no_grad():
        actual = layer(paddle.to_tensor(draw_input(*shape))).numpy()[:, channels]
    assert actual.shape == expected.shape
    difference = actual.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


def predictor_of(
    *functions: RunBatch, preprocessing: Preprocessing, num_classes: int, **options
) -> Predictor:
    """Return a Predictor over functions in place of a network, one for each stream.

    options: `output` is "logits" or "probabilities", `activation` "softmax" or "sigmoid"; all others are the
    Predictor's.
    """
    own = {"preprocessing": preprocessing, "num_classes": num_classes, "class_names": None}
    own |= {name: options.pop(name) for name in ("output", "activation") if name in options}
    description = replace(ARTIFACT, **own)
    engine = LoadedEngine("test", functions)
    options = {"batch_size": 5, "num_workers": 2} | options
    return Predictor(description, lambda streams: engine, streams=len(functions), **options)


def assert_entry(entry, expected: np.ndarray) -> None:
    """Check the tensor that a reader of weights has found."""
    array = entry.read()
    assert entry.shape == array.shape == expected.shape
    assert entry.dtype == array.dtype == expected.dtype
    assert array.flags.aligned
    np.testing.assert_array_equal(array, expected)


# Exports


def code_without_ppcls() -> str:
    """Return the code of docs/deployment.md that runs an export without ppcls."""
    text = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    return text.split("## Without ppcls")[1].split("```python\n")[1].split("```")[0].strip()


def corrected_list() -> str:
    """Return the code of docs/usage.md that writes a corrected list by the table of `ppcls data clean`."""
    text = (ROOT / "docs/usage.md").read_text(encoding="utf-8")
    return next(
        block for block in re.findall(r"```python\n(.*?)\n```", text, re.DOTALL) if "doubtful" in block
    )


NETWORK_FILES = {"onnxruntime": "model.onnx", "openvino": "openvino.xml", "paddle": "inference.pdiparams"}


def damage(exported: Path, tmp_path: Path, engine: str) -> Path:
    """Copy an export, and replace the file of one engine by junk of the same size."""
    folder = tmp_path / "damaged"
    shutil.copytree(exported, folder)
    file = folder / NETWORK_FILES[engine]
    if not file.exists():
        pytest.skip(f"no {file.name} here")
    file.write_bytes(np.random.RandomState(0).bytes(file.stat().st_size))
    return folder


# Servers


class Served:
    """A server in a process of its own, as a context. `port` and `errors` are there when it says "ready"."""

    def __init__(self, command: list, ready: str = "ready", **variables: str) -> None:
        self._command, self._ready = [sys.executable, *map(str, command)], ready
        self._environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        self.errors: list[str] = []  # lines of its error stream
        self.log: list[dict] = []  # its access log

    def __enter__(self) -> "Served":
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "env": self._environment,
        }
        self.process = subprocess.Popen(self._command, **options)
        self._threads = [threading.Thread(target=self._read_errors), threading.Thread(target=self._read_log)]
        for thread in self._threads:
            thread.start()
        self.wait_for(self._ready)
        line = next(line for line in self.errors if line.startswith("listening on"))
        self.port = int(line.rsplit(":", 1)[1])
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.end()

    def end(self, signal_number: int | None = None) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        code = self.process.wait(300)
        for thread in self._threads:
            thread.join(300)
        return code

    def wait_for(self, start: str) -> None:
        """Wait for a line of the error stream that begins so."""
        until = time.monotonic() + 300
        while not any(line.startswith(start) for line in self.errors):
            assert self.process.poll() is None and time.monotonic() < until, self.errors
            time.sleep(0.01)

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Send a request on a connection of its own: status, headers in small letters, body. In the headers'
        names, _ stands for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET" if body is None else "POST", path, body, named)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return response.status, names, response.read()
        finally:
            connection.close()

    def memory(self) -> int:
        """Bytes that the process uses."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )

    def _read_errors(self) -> None:
        for line in self.process.stderr:
            self.errors.append(line.rstrip("\n"))

    def _read_log(self) -> None:
        for line in self.process.stdout:
            self.log.append(json.loads(line))
