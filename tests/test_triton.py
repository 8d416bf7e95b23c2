"""The model repository for Triton Inference Server."""

import subprocess
import sys

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from ppcls.data.class_names import ClassNames
from ppcls.inference.artifact import read_artifact
from ppcls.inference.eager import describe
from ppcls.inference.engines import open_engine
from ppcls.inference.export import export_model
from ppcls.inference.formats import FORMATS
from ppcls.inference.formats.format import PLAIN, ExportOptions
from ppcls.inference.formats.triton import config_text

# Fields that are used here of triton-inference-server/common, protobuf/model_config.proto, with their types;
# True: repeated.
MESSAGES = {
    "ModelConfig": {
        "name": ("string", False),
        "backend": ("string", False),
        "max_batch_size": ("int32", False),
        "input": ("Tensor", True),
        "output": ("Tensor", True),
        "dynamic_batching": ("DynamicBatching", False),
    },
    "Tensor": {
        "name": ("string", False),
        "data_type": ("DataType", False),
        "dims": ("int64", True),
        "label_filename": ("string", False),
    },
    "DynamicBatching": {"default_queue_policy": ("QueuePolicy", False)},
    "QueuePolicy": {
        "timeout_action": ("TimeoutAction", False),
        "default_timeout_microseconds": ("uint64", False),
        "allow_timeout_override": ("bool", False),
        "max_queue_size": ("uint32", False),
    },
}
ENUMS = {"DataType": {"TYPE_INVALID": 0, "TYPE_FP32": 11}, "TimeoutAction": {"REJECT": 0, "DELAY": 1}}


def model_config():
    """The class of Triton's message, of the fields above. A text with any other field is not parsed."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="test", syntax="proto3")
    for name, values in ENUMS.items():
        kind = file.enum_type.add(name=name)
        for value, number in values.items():
            kind.value.add(name=value, number=number)
    for name, columns in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (column, (kind, is_repeated)) in enumerate(columns.items(), 1):
            field = message.field.add(name=column, number=number)
            field.label = field.LABEL_REPEATED if is_repeated else field.LABEL_OPTIONAL
            if kind in MESSAGES or kind in ENUMS:
                field.type = field.TYPE_MESSAGE if kind in MESSAGES else field.TYPE_ENUM
                field.type_name = f".test.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("test.ModelConfig")
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(found)
    return message_factory.MessageFactory(pool).GetPrototype(found)


@pytest.fixture(scope="module")
def repository(network, preprocessing, tmp_path_factory):
    """An export in this format alone, with embeddings and names, and its model's folder."""
    reason = FORMATS["triton"].why_not(network, PLAIN)
    if reason is not None:
        pytest.skip(reason)
    names = ClassNames.of([f'class "{number}"' for number in range(40)])
    folder = tmp_path_factory.mktemp("triton") / "model"
    export_model(
        network,
        folder,
        describe(network, preprocessing, names),
        formats=["triton"],
        threads=2,
        options=ExportOptions(embeddings=True, opset=15),
        log=lambda line: None,
    )
    return folder, folder / "triton" / "EfficientNetB0"


def test_the_repository_has_what_the_server_reads(repository):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, home = repository
    paths = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
    assert paths == ["1", "1/model.onnx", "config.pbtxt", "labels.txt"]
    assert (home / "labels.txt").read_text().splitlines() == [f'class "{number}"' for number in range(40)]
    config = text_format.Parse((home / "config.pbtxt").read_text(), model_config()())
    assert (config.name, config.backend, config.max_batch_size) == ("EfficientNetB0", "onnxruntime", 32)
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (64, 1_000_000)
    session = onnxruntime.InferenceSession(str(home / "1/model.onnx"))
    outputs = session.run(
        [tensor.name for tensor in config.output],
        {
            tensor.name: np.zeros([2, *(40 if size == -1 else size for size in tensor.dims)], np.float32)
            for tensor in config.input
        },
    )
    assert [list(tensor.dims) for tensor in config.output] == [list(found.shape[1:]) for found in outputs]
    assert [tensor.label_filename for tensor in config.output] == ["labels.txt", ""]
    assert all(
        tensor.data_type == ENUMS["DataType"]["TYPE_FP32"] for tensor in [*config.input, *config.output]
    )


def test_the_repository_is_an_export_like_others(repository):
    folder, home = repository
    artifact = read_artifact(folder)
    assert set(artifact.files) == set(artifact.parity) == {"triton"} and artifact.opset == 15
    assert "triton/EfficientNetB0/config.pbtxt" in artifact.files["triton"]
    assert {path.name for path in folder.iterdir()} == {"triton", "inference.yml"}
    engine = open_engine(folder, artifact, "onnxruntime", threads=1)
    assert engine.run(np.zeros((1, 3, 64, 64), np.float32)).shape == (1, 40)


def test_a_fixed_batch_is_not_batched_by_the_server():
    config = text_format.Parse(
        config_text("B0", {"logits": 7}, ExportOptions(batch_size=4, image_size=64)), model_config()()
    )
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [4, 3, 64, 64] and list(config.output[0].dims) == [4, 7]
    assert config.output[0].label_filename == ""


@pytest.mark.slow
def test_tritons_own_protobufs_read_the_settings(repository, tmp_path):
    """In an environment of its own: the client's protobuf is older than Paddle's."""
    python = tmp_path / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "tritonclient[grpc]>=2.56"], check=True)
    code = """
import sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
config = text_format.Parse(open(sys.argv[1]).read(), model_config_pb2.ModelConfig())
print(config.name, config.max_batch_size, config.dynamic_batching.default_queue_policy.max_queue_size)
"""
    settings = repository[1] / "config.pbtxt"
    run = subprocess.run([python, "-c", code, settings], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["EfficientNetB0", "32", "64"]
