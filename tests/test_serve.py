"""The server: its answers are the predictor's, in the protocol that others' clients speak."""

import base64
import json
import re
import signal
import time

import numpy as np
import pytest
from helpers import ROOT, Served, damage, run_python
from prometheus_client.parser import text_string_to_metric_families

import ppcls
from ppcls.cli.serve import default_name, main, name_models, parse
from ppcls.data.folders import find_images
from ppcls.errors import ConfigError
from ppcls.inference.artifact import read_artifact
from ppcls.inference.engines import installed_engines
from ppcls.serving.limits import Limits
from ppcls.serving.protocol import MAX_JSON, Requested, RequestError, pack_bytes, parse_infer

http = pytest.importorskip("tritonclient.http")
utils = pytest.importorskip("tritonclient.utils")


@pytest.fixture(scope="module")
def engine(exported):
    return installed_engines(read_artifact(exported))[0]


@pytest.fixture(scope="module")
def server(exported, embedding_export, engine):
    """Two models on one engine; waiting pictures are computed in batches of three."""
    models = [f"plain={exported}", f"fixed={embedding_export}"]
    options = ["--port", 0, "--engine", engine, "--batch", 3, "--topk", 3, "--deadline", 300]
    with Served(["-m", "ppcls", "serve", *models, *options]) as served:
        yield served


@pytest.fixture
def client(server):
    with http.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4, network_timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def predictor(exported, engine):
    return ppcls.load(exported, engine, topk=3, log=lambda line: None)


@pytest.fixture(scope="module")
def files(pictures):
    return find_images(str(pictures))


def contents(files):
    return [open(file, "rb").read() for file in files]


def image_input(files):
    tensor = http.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(contents(files), dtype=object))
    return tensor


def x_input(x, *, binary=True):
    tensor = http.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    return tensor


def requested(*names, binary=True, **options):
    return [http.InferRequestedOutput(name, binary_data=binary, **options) for name in names]


def as_json(server, path, values):
    status, _, body = server.ask(path, json.dumps(values).encode())
    return status, json.loads(body)


# The protocol


def test_health_and_metadata(client, server):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("plain") and client.is_model_ready("fixed", "1")
    metadata = client.get_server_metadata()
    assert metadata["version"] == ppcls.__version__ and "binary_tensor_data" in metadata["extensions"]
    model = client.get_model_metadata("plain")
    assert (model["name"], model["versions"]) == ("plain", ["1"])
    shapes = {row["name"]: (row["datatype"], row["shape"]) for row in model["inputs"] + model["outputs"]}
    assert shapes == {
        "image": ("BYTES", [-1]),
        "x": ("FP32", [-1, 3, -1, -1]),
        "probabilities": ("FP32", [-1, 40]),
        "logits": ("FP32", [-1, 40]),
    }
    fixed = client.get_model_metadata("fixed", "1")
    assert {"name": "embeddings", "datatype": "FP32", "shape": [-1, 1280]} in fixed["outputs"]
    assert json.loads(server.ask("/v2/models")[2]) == {"models": ["plain", "fixed"]}
    assert not client.is_model_ready("plain", "2")


@pytest.mark.parametrize("binary", [True, False])
def test_pictures_are_answered_as_the_predictor_answers_files(client, predictor, files, binary):
    some = files[:5]  # more than a batch
    outputs = requested("logits", "probabilities", binary=binary)
    answer = client.infer("plain", [image_input(some)], outputs=outputs, request_id="number 7")
    assert answer.get_response()["id"] == "number 7" and answer.get_response()["model_name"] == "plain"
    for row, file in zip(answer.as_numpy("probabilities"), some, strict=True):
        prediction = predictor(file)
        assert np.array_equal(row[list(prediction.class_ids)], np.float32(prediction.probabilities))
        assert np.argsort(-row, kind="stable")[:3].tolist() == list(prediction.class_ids)
    assert answer.as_numpy("logits").shape == (5, 40)


@pytest.mark.parametrize("binary", [True, False])
def test_prepared_images_are_answered_as_the_predictor_answers_arrays(client, predictor, binary):
    x = np.random.RandomState(0).normal(size=(4, 3, 64, 64)).astype(np.float32)
    answer = client.infer("plain", [x_input(x, binary=binary)], outputs=requested("logits", binary=binary))
    expected = np.concatenate([predictor.logits(x[i : i + 1]) for i in range(4)])
    assert np.array_equal(answer.as_numpy("logits"), expected)
    other = np.ascontiguousarray(x[:, :, :50, :40])
    answer = client.infer("plain", [x_input(other)])  # the default output, in text
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["probabilities"]
    expected = np.concatenate([predictor.probabilities(other[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(answer.as_numpy("probabilities"), expected, rtol=1e-4)


def test_embeddings_of_an_export_of_a_fixed_size(client, embedding_export, engine, files):
    predictor = ppcls.load(embedding_export, engine, log=lambda line: None)
    answer = client.infer("fixed", [image_input(files[:4])], outputs=requested("embeddings", "logits"))
    expected = np.stack([predictor.embed(file) for file in files[:4]])
    assert np.array_equal(answer.as_numpy("embeddings"), expected)
    with pytest.raises(utils.InferenceServerException, match="64"):
        client.infer("fixed", [x_input(np.zeros((1, 3, 32, 32), np.float32))])


@pytest.mark.parametrize("binary", [True, False])
def test_classification(client, predictor, files, binary):
    outputs = requested("probabilities", binary=binary, class_count=3)
    rows = client.infer("plain", [image_input(files[:2])], outputs=outputs).as_numpy("probabilities")
    assert rows.shape == (2, 3)
    for row, file in zip(rows, files, strict=False):
        prediction = predictor(file)
        texts = [item.decode() if binary else item for item in row]
        values, numbers, labels = zip(*(text.split(":", 2) for text in texts), strict=True)
        assert tuple(map(int, numbers)) == prediction.class_ids and labels == prediction.labels
        assert np.array_equal(np.float32(values), np.float32(prediction.probabilities))


def test_a_request_in_text(server, predictor, files):
    image = base64.b64encode(contents(files[:1])[0]).decode()
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [image]}
    status, answer = as_json(server, "/v2/models/plain/versions/1/infer", {"inputs": [given]})
    assert status == 200 and "id" not in answer and answer["model_version"] == "1"
    (output,) = answer["outputs"]
    assert (output["name"], output["shape"]) == ("probabilities", [1, 40])
    assert max(output["data"]) == np.float32(predictor(files[0]).probabilities[0])


def test_requests_side_by_side_have_the_same_answers(server, client, predictor, files):
    """Whatever the batch and the stream."""
    expected = {file: predictor(file) for file in files}
    inputs = {file: image_input([file]) for file in files}
    answers = [(file, client.async_infer("plain", [inputs[file]])) for file in files * 2]
    for file, answer in answers:
        row, prediction = answer.get_result().as_numpy("probabilities")[0], expected[file]
        assert np.array_equal(row[list(prediction.class_ids)], np.float32(prediction.probabilities))
    assert figures(server)["ppcls_batch_size_sum", "plain"] >= 80


# For people with curl


def test_predict(server, predictor, files):
    (content,) = contents(files[1:2])
    prediction = predictor(files[1])
    expected = [
        {"class": number, "name": name, "probability": probability}
        for number, name, probability in zip(
            prediction.class_ids, prediction.labels, prediction.probabilities, strict=True
        )
    ]
    status, headers, body = server.ask("/predict", content)
    answer = json.loads(body)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert answer["model"] == "plain" and answer["predictions"] == expected and answer["milliseconds"] > 0
    note = b'--edge\r\nContent-Disposition: form-data; name="note"\r\n'
    note += b"Content-Type: text/plain; filename=no\r\n\r\nhello\r\n"
    head = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="../../x.jpg"\r\n\r\n'
    form = note + head + content + b"\r\n--edge--\r\n"
    kind = "multipart/form-data; boundary=edge"
    status, _, body = server.ask("/predict?topk=2&model=plain", form, Content_Type=kind)
    assert status == 200 and json.loads(body)["predictions"] == expected[:2]
    for cut in (form[:-30], head + content + b"\r\n" + note[:20], b"--edge+"):  # in the file, and behind it
        assert server.ask("/predict", cut, Content_Type=kind)[0] == 400
    assert not any("boundary" in line for line in server.errors)  # who sends damaged forms writes no log
    status, _, body = server.ask("/predict", note + b"--edge--\r\n", Content_Type=kind)
    assert status == 400 and b"file" in body
    status, _, body = server.ask("/predict", b"--edge\r\n\r\n\r\n" * 101 + b"--edge--\r\n", Content_Type=kind)
    assert status == 400 and b"100 parts" in body
    assert json.loads(server.ask("/predict?model=fixed", content)[2])["model"] == "fixed"


# Errors


IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="]}
X = {"name": "x", "datatype": "FP32", "shape": [1, 3, 2, 2], "data": [0.5] * 12}


@pytest.mark.parametrize(
    ("status", "words", "request_"),
    [
        (400, "JSON", b"{"),
        (400, "JSON", b"[" * 100_000),
        (400, "object", b"[]"),
        (400, "one input", {}),
        (400, "one input", {"inputs": [IMAGE, X]}),
        (400, "one input", {"inputs": [3]}),
        (400, "list", {"inputs": 3}),
        (400, "picture", {"inputs": [IMAGE | {"name": "picture"}]}),
        (400, "FP64", {"inputs": [X | {"datatype": "FP64"}]}),
        (400, "[-1]", {"inputs": [IMAGE | {"shape": [1, 1]}]}),
        (400, "[0]", {"inputs": [IMAGE | {"shape": [0]}]}),
        (400, "True", {"inputs": [IMAGE | {"shape": [True]}]}),
        (400, "1.0", {"inputs": [IMAGE | {"shape": [1.0]}]}),
        (400, "-1", {"inputs": [X | {"shape": [1, 3, -2, 2]}]}),
        (400, "[-1, 3, -1, -1]", {"inputs": [X | {"shape": [1, 4, 2, 2]}]}),
        (400, "27 numbers", {"inputs": [X | {"shape": [1, 3, 3, 3]}]}),
        (400, "12 numbers", {"inputs": [X | {"data": ["1"] * 12}]}),
        (400, "12 numbers", {"inputs": [X | {"data": [[1], [1, 2]]}]}),
        (400, "12 numbers", {"inputs": [X | {"data": [True] * 12}]}),
        (400, "12 numbers", {"inputs": [X | {"data": [10**30] * 12}]}),
        (400, "x has values", {"inputs": [X | {"data": [1e300] * 12}]}),
        (400, "x has values", {"inputs": [X | {"data": [float("nan")] * 12}]}),
        (400, "binary_data_size 7", {"inputs": [IMAGE | {"parameters": {"binary_data_size": 7}}]}),
        (400, "base64", {"inputs": [IMAGE | {"data": ["Ã¤!"]}]}),
        (400, "base64", {"inputs": [IMAGE | {"data": ["aGVs!bG8="]}]}),
        (400, "1 strings", {"inputs": [IMAGE | {"data": [3]}]}),
        (400, "id", {"id": 3, "inputs": [IMAGE]}),
        (400, "probabilities, logits", {"inputs": [IMAGE], "outputs": [{"name": "embeddings"}]}),
        (400, "twice", {"inputs": [IMAGE], "outputs": [{"name": "logits"}] * 2}),
        (400, "An output", {"inputs": [IMAGE], "outputs": ["logits"]}),
        (
            400,
            "classification",
            {"inputs": [IMAGE], "outputs": [{"name": "logits", "parameters": {"classification": -1}}]},
        ),
        (400, "timeout", {"inputs": [IMAGE], "parameters": {"timeout": "soon"}}),
        (413, "32 images", {"inputs": [IMAGE | {"shape": [33], "data": ["aGVsbG8="] * 33}]}),
        (422, "not an image", {"inputs": [IMAGE]}),
        (422, "image 2 of 2", {"inputs": [IMAGE | {"shape": [2], "data": [None, "aGVsbG8="]}]}),
    ],
    ids=str,
)
def test_wrong_requests(server, files, status, words, request_):
    if not isinstance(request_, bytes):
        picture = base64.b64encode(contents(files[:1])[0]).decode()
        text = json.dumps(request_)
        request_ = text.replace("[null, ", f'["{picture}", ').encode()
    actual, _, body = server.ask("/v2/models/plain/infer", request_)
    assert actual == status and words in json.loads(body)["error"], body


@pytest.mark.parametrize(
    ("length", "tail"),
    [
        ("-1", b""),
        ("x", b""),
        ("9999", b""),
        ("9" * 5000, b""),
        ("size", b"\x01"),
        ("size", b"\xff\xff\xff\xff"),
        ("0", b""),
    ],
)
def test_wrong_binary_tensors(server, length, tail):
    given = {name: value for name, value in IMAGE.items() if name != "data"}
    text = json.dumps({"inputs": [given | {"parameters": {"binary_data_size": len(tail)}}]}).encode()
    is_wrong, length = length not in ("size", "0"), str(len(text)) if length == "size" else length
    status, _, body = server.ask(
        "/v2/models/plain/infer", text + tail, Inference_Header_Content_Length=length
    )
    assert status == 400 and (b"Inference-Header" in body) == is_wrong, body


def test_numbers_and_texts_of_any_length(server, files):
    """Python writes numbers of 4300 digits at most, and NumPy gives each text the memory of the longest."""
    digits = "0" * 8 + "1" * 5000
    texts = ["x" * 2_000_000, *[""] * 400_000]
    for status, request in (
        (422, {"inputs": [IMAGE], "parameters": {"timeout": 10**400}}),
        (400, {"inputs": [X | {"shape": [1, 3, 10**4000, 10**4000]}]}),
        (400, {"inputs": [X | {"data": texts}]}),
        (400, {"inputs": [X | {"data": [texts]}]}),
    ):
        assert as_json(server, "/v2/models/plain/infer", request)[0] == status
    path = "/v2/models/plain/infer"
    assert server.ask(path, b"{}", Inference_Header_Content_Length=f"{'0' * 17}{digits}")[0] == 400
    assert server.ask(f"/predict?topk={digits}", contents(files[:1])[0])[0] == 400


NAMES = ["probabilities", "logits", "embeddings"]


def parse_parts(values, binary=None, length=0, most=2):
    """Read a request whose JSON is filled with blanks to `length`, and a tensor behind it."""
    text = json.dumps(values).encode().ljust(length)
    header = None if binary is None else str(len(text))
    return parse_infer(text + (binary or b""), header, NAMES, most)


def with_binary(given, size):
    parameters = {"parameters": {"binary_data_size": size}}
    return {"inputs": [{key: value for key, value in given.items() if key != "data"} | parameters]}


def test_requests_at_the_border_of_what_is_allowed():
    two = {"inputs": [IMAGE | {"shape": [2], "data": ["aGVsbG8="] * 2}]}
    assert parse_parts(two, b"", MAX_JSON).inputs == [b"hello"] * 2  # the header is the whole length
    packed = pack_bytes([b"a", b""])
    assert parse_parts(with_binary(IMAGE | {"shape": [2]}, len(packed)), packed).inputs == [b"a", b""]
    x = np.arange(12, dtype="<f4").reshape(1, 3, 2, 2)
    found = parse_parts(
        with_binary(X, 48) | {"parameters": {"binary_data_output": True, "timeout": -1}}, x.tobytes()
    )
    assert np.array_equal(found.inputs, x) and found.timeout is None
    assert found.outputs == (Requested("probabilities", is_binary=True),)


@pytest.mark.parametrize(
    ("status", "words", "given"),
    [
        (413, f"{MAX_JSON} bytes", ({"inputs": [IMAGE]}, b"", MAX_JSON + 1)),
        (413, "2 images", ({"inputs": [IMAGE | {"shape": [3], "data": ["aGVsbG8="] * 3}]},)),
        (400, "2 strings", ({"inputs": [IMAGE | {"shape": [2]}]},)),
        (400, "48 bytes", (with_binary(X, 44), bytes(44))),
        (400, "not finite", (with_binary(X, 48), b"\xff" * 48)),
        (
            400,
            "Give one",
            (with_binary(X, 48) | {"inputs": [X | {"parameters": {"binary_data_size": 48}}]}, bytes(48)),
        ),
        (400, "whole number", (with_binary(X, True), bytes(1))),
        (
            400,
            "classification",
            (
                {
                    "inputs": [IMAGE],
                    "outputs": [{"name": "embeddings", "parameters": {"classification": 1}}],
                },
            ),
        ),
    ],
)
def test_requests_behind_the_border(status, words, given):
    with pytest.raises(RequestError, match=words) as caught:
        parse_parts(*given)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("status", "path", "body", "headers"),
    [
        (404, "/v2/models/other/infer", b"{}", {}),
        (404, "/v2/models/plain/versions/2/infer", b"{}", {}),
        (404, "/v2/models/other", None, {}),
        (404, "/predict?model=other", b"", {}),
        (404, "/v2/models/..%2f..%2fetc%2fpasswd", None, {}),
        (404, "/etc/passwd", None, {}),
        (405, "/predict", None, {}),
        (405, "/v2/health/live", b"", {}),
        (400, "/predict?topk=0", b"", {}),
        (400, "/predict?topk=41", b"", {}),
        (400, "/predict", b"", {"X_Request_Timeout_Ms": "soon"}),
        (415, "/predict", b"", {"Content_Encoding": "gzip"}),
        (422, "/predict", b"", {}),
        (422, "/predict", b"/etc/passwd", {}),
        (422, "/predict", b"http://127.0.0.1/picture.jpg", {}),
    ],
)
def test_wrong_addresses_and_headers(server, status, path, body, headers):
    actual, _, answer = server.ask(path, body, **headers)
    assert actual == status and json.loads(answer)["error"]


def test_errors_reach_tritonclient_as_exceptions(client):
    with pytest.raises(utils.InferenceServerException, match=r"404.*plain, fixed") as caught:
        client.infer("other", [x_input(np.zeros((1, 3, 8, 8), np.float32))])
    assert "other" in caught.value.message()
    with pytest.raises(utils.InferenceServerException, match="422"):
        tensor = http.InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([b"not a picture"], dtype=object))
        client.infer("plain", [tensor])


# Figures and the log


def figures(server):
    """The samples by their names and models, or names, models and causes. Names have no _total."""
    families = text_string_to_metric_families(server.ask("/metrics")[2].decode())
    samples = [sample for family in families for sample in family.samples]
    return {
        (
            sample.name.removesuffix("_total"),
            *(sample.labels[key] for key in ("model", "cause", "le") if key in sample.labels),
        ): sample.value
        for sample in samples
    }


def test_metrics(server, client, files):
    before, began = figures(server), time.monotonic()
    client.infer("plain", [image_input(files[:4])])
    server.ask("/predict", b"junk")
    passed = 1e6 * (time.monotonic() - began)
    after = figures(server)

    def grown(name, *labels):
        return after[(name, "plain", *labels)] - before.get((name, "plain", *labels), 0)

    assert (grown("nv_inference_request_success"), grown("nv_inference_request_failure")) == (1, 1)
    assert (grown("nv_inference_count"), grown("nv_inference_exec_count")) == (4, 2)
    assert passed > grown("nv_inference_request_duration_us") > grown("nv_inference_queue_duration_us") > 0
    assert (grown("ppcls_rejected", "unreadable"), after["ppcls_queue_depth", "plain"]) == (1, 0)
    assert (grown("ppcls_batch_size_bucket", "1.0"), grown("ppcls_batch_size_count")) == (1, 2)
    text = server.ask("/metrics")[2].decode()
    assert '\nnv_inference_count{model="fixed",version="1"}' in text
    assert "# TYPE nv_inference_request_success counter" in text


def test_the_log_has_a_line_for_each_request_and_no_personal_data(server, files):
    (content,) = contents(files[:1])
    _, headers, _ = server.ask(
        "/predict?model=plain&name=Erika", content, X_Request_Id="mine-1", User_Agent="Me 1.0"
    )
    assert headers["x-request-id"] == "mine-1"
    _, headers, _ = server.ask("/v2/models/Erika/ready", X_Request_Id="two words")
    new = headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", new)
    server.ask("/v2/health/live")
    found = {}
    while not {"mine-1", new} <= found.keys():
        found = {line["request_id"]: line for line in server.log}
    line = found["mine-1"]
    assert (line["method"], line["route"], line["status"], line["model"]) == (
        "POST",
        "/predict",
        200,
        "plain",
    )
    assert (line["images"], line["bytes"]) == (1, len(content))
    assert line["milliseconds"] >= line["queue_milliseconds"] >= 0
    assert (found[new]["status"], found[new]["cause"]) == (404, "unknown")
    text = json.dumps(server.log)
    assert not any(word in text for word in ("Erika", "127.0.0.1", "Me 1.0", "two words"))


# Starting


def test_names_of_models():
    named = name_models(
        ["EfficientNetB0", "cats=output/a", "configs/digits.yaml", "output/run/exported", "lite0"]
    )
    assert list(named) == ["EfficientNetB0", "cats", "digits", "run", "lite0"]
    assert named["cats"] == "output/a" and default_name(".") == ROOT.name or default_name(".")
    with pytest.raises(ConfigError, match="NAME=b/lite"):
        name_models(["a/lite", "b/lite"])
    with pytest.raises(ConfigError, match="my model"):
        name_models(["my model=EfficientNetB0"])


def test_limits_are_options(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name} " in text for name in vars(Limits()))
    run = run_python("-m", "ppcls", "serve", "EfficientNetB0", "--queue", "0")
    assert run.returncode == 2 and "--queue must be at least 1" in run.stderr
    for name in ("reopen", "wait", "drain"):  # for longer, the system cannot wait
        with pytest.raises(ConfigError, match=f"--{name}.*1e9"):
            main(["NoSuchModel", f"--{name}", "1e10"])
    run = run_python("-m", "ppcls", "serve", "NoSuchModel")
    assert run.returncode == 2 and "NoSuchModel" in run.stderr
    with pytest.raises(ConfigError, match="--port.*65536"):
        parse(["EfficientNetB0", "--port", "65536"])


def test_a_port_that_is_taken(server, exported):
    run = run_python("-m", "ppcls", "serve", exported, "--port", server.port)
    assert run.returncode == 2 and "--port" in run.stderr and str(server.port) in run.stderr
    assert server.ask("/v2/health/ready")[0] == 200
    assert run_python("-m", "ppcls", "serve", exported, "--host", "no.such.host.invalid").returncode == 2


def test_the_requested_precision_is_that_of_the_engine(exported):
    run = run_python("-m", "ppcls", "serve", exported, "--port", 0, "--precision", "int8", timeout=60)
    assert run.returncode == 2 and "--int8" in run.stderr  # the export has no int8 form


def test_a_damaged_file_is_the_next_engines_work(exported, tmp_path, files):
    engines = installed_engines(read_artifact(exported))
    if len(engines) < 2:
        pytest.skip("one engine is installed")
    folder = damage(exported, tmp_path, engines[0])
    with Served(["-m", "ppcls", "serve", folder, "--port", 0]) as served:
        assert any(engines[0] in line and "cannot load" in line for line in served.errors)
        platform = json.loads(served.ask("/v2/models/damaged")[2])["platform"]
        assert platform.removeprefix("ppcls_") in engines[1:]
        assert served.ask("/predict", contents(files[:1])[0])[0] == 200
        assert served.end(signal.SIGTERM) == 0


def test_an_export_that_no_engine_opens_ends_the_server(exported, tmp_path, engine):
    folder = damage(exported, tmp_path, engine)
    run = run_python("-m", "ppcls", "serve", folder, "--port", 0, "--engine", engine)
    assert run.returncode == 2 and engine in run.stderr and "ready" not in run.stderr.splitlines()


def test_the_tool_of_a_clone(exported):
    run = run_python(ROOT / "tools" / "serve.py", "--help")
    assert run.returncode == 0 and "--port" in run.stdout
