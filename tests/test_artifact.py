"""inference.yml: reading returns what was written, and names what is wrong with a folder."""

from dataclasses import replace

import pytest
import yaml
from helpers import ARTIFACT

from ppcls.errors import ExportError
from ppcls.inference.artifact import read_artifact


@pytest.fixture
def folder(tmp_path):
    for sizes in ARTIFACT.files.values():
        for name, size in sizes.items():
            (tmp_path / name).write_bytes(b"x" * size)
    ARTIFACT.write(tmp_path)
    return tmp_path


def edit(folder, **values):
    tree = yaml.safe_load((folder / "inference.yml").read_text(encoding="utf-8"))
    (folder / "inference.yml").write_text(yaml.safe_dump(tree | values, explicit_end=True), encoding="utf-8")


def test_what_is_read_is_what_was_written(folder):
    assert read_artifact(folder) == ARTIFACT
    assert read_artifact(str(folder)) == ARTIFACT
    bare = replace(ARTIFACT, class_names=None, output="probabilities", weights=None)
    bare.write(folder)
    assert read_artifact(folder) == bare
    noted = replace(ARTIFACT, notes=("of another crop", "Äsche: yes"))
    noted.write(folder)
    assert read_artifact(folder) == noted


def test_preprocessing_that_the_weights_do_not_say_stays_unknown(folder):
    unknown = replace(ARTIFACT, preprocessing=None)
    unknown.write(folder)
    assert read_artifact(folder) == unknown
    assert (ARTIFACT.crop_size, unknown.crop_size) == (32, 224)  # then the size the network was published for


@pytest.mark.parametrize("name", ["model.onnx", "inference.json", "inference.pdiparams"])
def test_a_file_that_is_missing_or_cut_off(folder, name):
    size = (folder / name).stat().st_size
    (folder / name).write_bytes(b"x")
    with pytest.raises(ExportError, match=rf"{name} .*\b{size} bytes.*Received: 1\b"):
        read_artifact(folder)
    (folder / name).unlink()
    with pytest.raises(ExportError, match=f"{name} is missing"):
        read_artifact(folder)


def test_a_folder_that_is_missing_or_not_an_export(folder):
    with pytest.raises(ExportError, match="no folder .*none.*ppcls export"):
        read_artifact(folder / "none")
    with pytest.raises(ExportError, match="no folder .*model.onnx"):
        read_artifact(folder / "model.onnx")
    (folder / "inference.yml").unlink()
    with pytest.raises(ExportError, match="inference.yml"):
        read_artifact(folder)
    (folder / "inference.yml").write_bytes(b"\xff\xfe\x00junk")
    with pytest.raises(ExportError, match="inference.yml cannot be read"):
        read_artifact(folder)


@pytest.mark.parametrize("text", ["", "a: [1", "5", "- 1\n- 2", "model: B0", "!!python/name:os.system x"])
@pytest.mark.parametrize("end", ["", "\n...\n"])
def test_yaml_that_is_damaged(folder, text, end):
    (folder / "inference.yml").write_text(text + end)
    with pytest.raises(ExportError, match="inference.yml is damaged .*ppcls export"):
        read_artifact(folder)


def test_a_file_cut_off_at_any_line_is_damaged(folder):
    lines = (folder / "inference.yml").read_text(encoding="utf-8").splitlines(keepends=True)
    for count in range(len(lines)):
        (folder / "inference.yml").write_text("".join(lines[:count]), encoding="utf-8")
        with pytest.raises(ExportError, match="is damaged"):
            read_artifact(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"output": "classes"},
        {"num_classes": 4},
        {"num_classes": "three"},
        {"class_names": [["a"], ["b"], ["c"]]},
        {"class_names": []},
        {"files": {}},
        {"files": None},
        {"files": {"tensorrt": {"model.trt": 3}}},
        {"files": {"onnx": {}}},
        {"files": {"paddle": {"inference.pdiparams": 4}}},
        {"preprocessing": {"crop_size": 32}},
        {"preprocessing": ARTIFACT.preprocessing.to_dict() | {"interpolation": "nearest"}},
        {"preprocessing": ARTIFACT.preprocessing.to_dict() | {"crop_size": 40}},
        {"parity": 3},
    ],
)
def test_values_that_cannot_be(folder, values):
    edit(folder, **values)
    with pytest.raises(ExportError, match="is damaged"):
        read_artifact(folder)


def test_a_newer_format_is_told_from_a_damaged_one(folder):
    edit(folder, format_version=3, output="tokens")
    with pytest.raises(ExportError, match="version 3, .* up to 2"):
        read_artifact(folder)


@pytest.mark.parametrize("name", ["../../model.onnx", "a/../../model.onnx", "/model.onnx", r"..\model.onnx"])
def test_names_of_files_stay_inside_the_folder(folder, name):
    edit(folder, files={"onnx": {name: 5}})
    with pytest.raises(ExportError, match="is damaged .*model.onnx"):
        read_artifact(folder)
