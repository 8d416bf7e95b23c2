"""Predictions of many files: saved as they are made, resumed after a kill, merged in order."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ARTIFACT, on_two_ranks

from ppcls.cli import infer
from ppcls.errors import ConfigError, DataError, ExportError
from ppcls.inference.artifact import read_artifact
from ppcls.inference.eager import eager_predictor
from ppcls.inference.engines import installed_engines
from ppcls.inference.engines.engine import LoadedEngine
from ppcls.inference.predictions import Prediction
from ppcls.inference.predictor import Predictor
from ppcls.inference.saved import (
    PartWriter,
    files_done,
    find_parts,
    merge,
    next_part,
    require_no_parts,
    run_header,
)

ROOT = Path(__file__).parent.parent
FILES = [f"{number:02d}.png" for number in range(20)]


def header_of(files=FILES, sha256="ab", topk=2, crop_size=32):
    """Return the header of a run over these files."""
    preprocessing = replace(ARTIFACT.preprocessing, crop_size=crop_size)
    description = replace(ARTIFACT, parameters_sha256=sha256, preprocessing=preprocessing)
    engine = LoadedEngine("test", [lambda images: images])
    return run_header(Predictor(description, lambda streams: engine, topk=topk), files)


HEADER = header_of()


def prediction(file):
    number = int(file[:2])
    return Prediction(file, (number, 99), (f'a "{number}", b', "ü"), (0.75, 0.123456789))


def write(output, files, rank=0, header=HEADER):
    part = next_part(output, rank)
    writer = PartWriter(part, header)
    for file in files:
        writer.add(prediction(file))
    writer.close()
    return part


@pytest.fixture(params=["x.csv", "x[1]*.json"])
def output(request, tmp_path):
    return tmp_path / request.param


def rows_of(output):
    if output.suffix == ".json":
        return json.loads(output.read_text(encoding="utf-8"))
    with output.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_parts_of_several_ranks_and_runs_become_one_file_in_order(output):
    write(output, FILES[0:8:2], 0)
    write(output, FILES[1:6:2], 1)
    done = files_done(output, HEADER)
    assert done == {*FILES[0:8:2], *FILES[1:6:2]}
    left = [file for file in FILES if file not in done]
    for rank in range(3):
        write(output, left[rank::3], rank)
    assert len(find_parts(output)) == 5 and len({path.name for path in find_parts(output)}) == 5
    assert merge(output, FILES) == (20, 0)
    assert list(output.parent.iterdir()) == [output]
    rows = rows_of(output)
    if output.suffix == ".json":
        assert [row["file"] for row in rows] == FILES
        assert rows[3]["predictions"][0] == {"class_id": 3, "label": 'a "3", b', "probability": 0.75}
        return
    assert [row["file"] for row in rows[::2]] == [row["file"] for row in rows[1::2]] == FILES
    assert rows[7] == {
        "file": "03.png",
        "rank": "2",
        "class_id": "99",
        "label": "ü",
        "probability": "0.123457",
        "error": "",
    }


def test_a_torn_last_line_is_ignored(output):
    part = write(output, FILES[:6])
    whole = part.read_bytes()
    part.write_bytes(whole[:-20])
    assert files_done(output, HEADER) == set(FILES[:5])
    part.write_bytes(whole[:-1])  # all but the end of the line
    assert files_done(output, HEADER) == set(FILES[:5])
    write(output, FILES[5:])
    assert merge(output, FILES) == (20, 0)


@pytest.mark.parametrize("size", [0, 10])
def test_a_part_torn_in_its_first_line_has_nothing(output, size):
    part = write(output, FILES[:6])
    part.write_bytes(part.read_bytes()[:size])
    assert files_done(output, HEADER) == set()
    write(output, FILES)
    assert merge(output, FILES) == (20, 0)


@pytest.mark.parametrize("damage", [b"\0" * 30, b"[1, 2]", b"{", b"3"])
def test_a_damaged_line_is_an_error(output, damage):
    part = write(output, FILES[:6])
    lines = part.read_bytes().splitlines()
    lines[3] = damage
    part.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DataError, match="damaged in line 4.*--resume"):
        files_done(output, HEADER)


@pytest.mark.parametrize(
    ("header", "keys"),
    [
        (header_of(sha256="cd"), "parameters_sha256"),
        (header_of(topk=3), "topk"),
        (header_of(crop_size=36), "preprocessing"),
        (header_of([*FILES[:-1], "20.png"]), "files_sha256"),
        (header_of(FILES[1:]), "files, files_sha256"),
    ],
)
def test_parts_of_another_run_are_refused(output, header, keys):
    write(output, FILES[:3])
    with pytest.raises(DataError, match=f"another run: {keys} .*delete .*shard-\\*"):
        files_done(output, header)


def test_without_resume_an_unfinished_run_is_refused(output):
    require_no_parts(output)
    write(output, FILES[:3])
    with pytest.raises(DataError, match=r"\b1 file.*shard-.*--resume.*delete"):
        require_no_parts(output)
    require_no_parts(output.with_name("other.csv"))


def test_files_that_no_part_has_are_an_error_and_nothing_is_lost(output):
    write(output, FILES[:10])
    with pytest.raises(DataError, match="10.png .*shard-.*--resume"):
        merge(output, FILES)
    assert not output.exists() and files_done(output, HEADER) == set(FILES[:10])


def test_two_runs_never_write_into_one_part(output):
    part = next_part(output, 0)
    PartWriter(part, HEADER).close()
    with pytest.raises(FileExistsError):
        PartWriter(part, HEADER)
    assert next_part(output, 0) != part and next_part(output, 1) != next_part(output, 0)


def test_lines_are_in_the_file_when_add_returns(output):
    writer = PartWriter(next_part(output, 0), HEADER)
    for count, file in enumerate(FILES[:3], 1):
        writer.add(prediction(file))
        assert len(files_done(output, HEADER)) == count
    writer.close()


def test_names_that_are_not_utf8_are_preserved(tmp_path):
    output, name = tmp_path / "x.csv", os.fsdecode(b"\xff.png")
    writer = PartWriter(next_part(output, 0), HEADER)
    writer.add(Prediction(name, error="no image"))
    writer.close()
    assert merge(output, [name]) == (0, 1)
    assert b"\xff.png,,,,,no image" in output.read_bytes()


# The tool, on real files


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    """The pictures, and among them a file that is not an image."""
    folder = tmp_path_factory.mktemp("infer")
    for file in pictures.iterdir():
        shutil.copy(file, folder)
    (folder / "picture 10 broken.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def options(exported, folder):
    (name, *_) = installed_engines(read_artifact(exported))
    return ["--exported", str(exported), "--engine", name, "-i", str(folder), "--topk", "3"]


def run_infer(*arguments, launch=(), patch="", **options):
    """Run the tool as a process, with some lines of Python before it."""
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{patch}\nfrom ppcls.commands import run\n"
    script = Path(os.environ["PPCLS_HOME"]) / f"infer{abs(hash(patch))}.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(code + "from ppcls.cli.infer import main\nrun(main)\n")
    command = [sys.executable, *launch, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """The rows that one uninterrupted process writes."""
    output = tmp_path_factory.mktemp("whole") / "x.csv"
    assert infer.main([*options, "--output", str(output), "-o", f"output_dir={output.parent}"]) == 1
    return rows_of(output)


def require_same(rows, expected):
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert {**row, "probability": ""} == {**other, "probability": ""}
        if row["probability"]:
            assert float(row["probability"]) == pytest.approx(float(other["probability"]), abs=2e-5)


def test_each_file_has_its_rows_in_order(whole, folder):
    good = [row for row in whole if not row["error"]]
    (bad,) = (row for row in whole if row["error"])
    assert bad["file"] == str(folder / "picture 10 broken.png") and "not an image" in bad["error"]
    assert [row["rank"] for row in good] == ["1", "2", "3"] * 40
    names = [row["file"] for row in whole if row["rank"] in ("1", "")]
    assert names == sorted(map(str, folder.iterdir()))
    assert len({row["class_id"] for row in good}) > 10
    assert all(row["label"] == f"class {row['class_id']}" for row in good)


KILL = """
import os, signal
from ppcls import distributed
from ppcls.inference.saved import PartWriter
add, added = PartWriter.add, []
def add_and_die(self, prediction):
    if len(added) == {count} + distributed.rank():
        self._file.write('{{"file": "torn')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    added.append(prediction)
    add(self, prediction)
PartWriter.add = add_and_die
"""


def test_a_killed_run_resumes_where_it_was(options, folder, whole, tmp_path):
    output = tmp_path / "x.csv"
    here = [*options, "--output", str(output), "-o", f"output_dir={tmp_path}"]
    run = run_infer(*here, patch=KILL.format(count=15))
    assert run.returncode == -signal.SIGKILL and not output.exists()
    assert len(find_parts(output)) == 1
    with pytest.raises(DataError, match="--resume"):
        infer.main(here)
    with pytest.raises(DataError, match="another run: topk "):
        infer.main([*here[:-4], "--topk", "2", *here[-4:], "--resume"])
    with pytest.raises(DataError, match="another run: preprocessing "):
        infer.main([*here, "--resume", "-o", "data.preprocessing.resize_short=80"])
    assert len(find_parts(output)) == 1
    first = folder / "picture 00.png"
    kept = first.read_bytes()
    first.write_text("no image any more")  # it is done, and not read again
    try:
        run = run_infer(*here, "--resume", launch=on_two_ranks(tmp_path / "log"))
    finally:
        first.write_bytes(kept)
    assert "15 of 41" in run.stdout, run.stdout + run.stderr
    assert run.returncode != 0 and "written: " in run.stdout  # the launcher has exit codes of its own
    require_same(rows_of(output), whole)
    assert not find_parts(output)


def test_a_finished_run_whose_parts_were_not_yet_removed(options, whole, tmp_path, monkeypatch):
    output = tmp_path / "x.csv"
    here = [*options, "--output", str(output), "-o", f"output_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        infer.main(here)
    assert find_parts(output) and output.exists()
    with pytest.raises(DataError, match="--resume"):
        infer.main(here)
    assert infer.main([*here, "--resume"]) == 1
    require_same(rows_of(output), whole)
    assert not find_parts(output)


def test_two_processes_write_what_one_does(options, whole, tmp_path):
    output = tmp_path / "x.csv"
    here = [*options, "--output", str(output), "-o", f"output_dir={tmp_path}"]
    run = run_infer(*here, launch=on_two_ranks(tmp_path / "log"))
    assert "written: " in run.stdout, run.stdout + run.stderr
    assert run.returncode != 0  # one file is unreadable
    require_same(rows_of(output), whole)
    assert not find_parts(output)
    both = "".join(path.read_text() for path in (tmp_path / "log").iterdir())
    assert both.count("picture 10 broken.png: not an image") == 1


def test_several_processes_and_resume_need_a_file(options, monkeypatch):
    with pytest.raises(ConfigError, match="--resume .*--output"):
        infer.main([*options, "--resume"])
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    with pytest.raises(ConfigError, match="several processes .*--output"):
        infer.main(options)


def test_to_the_screen(options, whole, capsys):
    assert infer.main([*options, "-o", f"output_dir={os.environ['PPCLS_HOME']}"]) == 1
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if ": class " in line]
    assert len(lines) == 40 and "picture 10 broken.png: unreadable" in said.out
    assert "unreadable: " in said.err and "not an image" in said.err
    assert lines[0].split(": ", 1)[1].split()[1] == whole[0]["class_id"]


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        (["--engine", "eager"], ExportError, "engine eager .*exported"),
        (["--engine", "onnxrun"], ConfigError, "Received: onnxrun; .*onnxruntime"),
        (["-c", "configs/EfficientNetB1.yaml"], ConfigError, "model.name is EfficientNetB1.*EfficientNetB0"),
        (["-o", "model.num_classes=7"], ConfigError, r"model.num_classes is 7\b.* 40\b"),
        (["--exported", "none"], ExportError, "no folder none"),
        (["-i", "none.png"], DataError, "none.png"),
    ],
)
def test_what_goes_wrong_with_an_exported_model(options, monkeypatch, more, error, words):
    monkeypatch.chdir(ROOT)
    with pytest.raises(error, match=words):
        infer.main([*options, *more])


def test_without_config_or_export(options):
    with pytest.raises(ConfigError, match="MODEL.*YAML.*run.*export"):
        infer.main(options[4:])


# Embeddings


def add(output, files, rank):
    writer = PartWriter(next_part(output, rank), HEADER | {"embeddings": 2})
    for file in files:
        row = np.array([int(file[:2]), np.pi], np.float32)
        writer.add(
            Prediction(file, error="no image")
            if file == FILES[7]
            else replace(prediction(file), embedding=row)
        )
    writer.close()


@pytest.mark.parametrize("is_alone", [False, True])
def test_embeddings_of_several_parts_are_in_the_files_order(tmp_path, is_alone):
    path = tmp_path / "e.npy"
    output = path if is_alone else tmp_path / "x.csv"
    for rank in (0, 1):
        add(output, FILES[rank::2], rank)
    assert merge(output, FILES, path, 2) == (19, 1)
    rows = np.load(path)
    assert rows.dtype == np.float32 and np.isnan(rows[7]).all()
    expected = [[number, np.pi] for number in range(20) if number != 7]
    assert np.array_equal(np.delete(rows, 7, axis=0), np.array(expected, np.float32))
    names = rows_of(tmp_path / "e.csv")
    assert [row["file"] for row in names] == FILES and names[7]["error"] == "no image"
    assert [int(row["row"]) for row in names] == [*range(20)]
    others = set() if is_alone else {output}
    assert set(tmp_path.iterdir()) == {path, tmp_path / "e.csv"} | others
    if not is_alone:
        assert len(rows_of(output)) == 2 * 19 + 1


def test_without_all_files_no_embeddings_are_written(tmp_path):
    add(tmp_path / "e.npy", FILES[:5], 0)
    with pytest.raises(DataError, match="05.png .*--resume"):
        merge(tmp_path / "e.npy", FILES, tmp_path / "e.npy", 2)
    assert [*tmp_path.iterdir()] == find_parts(tmp_path / "e.npy") and len(
        find_parts(tmp_path / "e.npy")
    ) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_the_tool_writes_embeddings_and_classes_in_one_pass(
    embedding_export, network, preprocessing, folder, whole, tmp_path, count
):
    (name, *_) = installed_engines(read_artifact(embedding_export))
    options = ["--exported", embedding_export, "--engine", name, "-i", folder, "--topk", "3"]
    options += ["--embeddings", tmp_path / "e.npy", "-o", f"output_dir={tmp_path / 'more'}"]
    if count == 2:
        options += ["--output", tmp_path / "x.csv"]
    run = run_infer(*options, launch=on_two_ranks(tmp_path / "log") if count == 2 else ())
    assert "float32 [41, 1280]" in run.stdout and run.returncode != 0, run.stdout + run.stderr
    names = rows_of(tmp_path / "e.csv")
    eager = eager_predictor(network, preprocessing)
    found = list(eager.stream([row["file"] for row in names], embeddings=True))
    (unreadable,) = (number for number, prediction in enumerate(found) if prediction.error)
    rows = np.load(tmp_path / "e.npy")
    assert np.isnan(rows[unreadable]).all()
    rows = np.delete(rows, unreadable, axis=0)
    expected = np.array([prediction.embedding for prediction in found if not prediction.error])
    assert np.max(np.abs(rows - expected)) < 1e-5 * np.max(np.abs(expected))
    assert [row["file"] for row in names] == sorted(map(str, folder.iterdir()))
    assert "not an image" in names[unreadable]["error"]
    if count == 2:
        found = rows_of(tmp_path / "x.csv")
        assert [row["class_id"] for row in found] == [row["class_id"] for row in whole]


def test_embeddings_that_cannot_be_written_are_refused(options, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="--embeddings"):
        infer.main([*options, "--embeddings", str(tmp_path / "e.npy")])
    with pytest.raises(ConfigError, match="--embeddings .*Received: e.txt"):
        infer.main([*options, "--embeddings", "e.txt"])
    with pytest.raises(ConfigError, match="--output"):
        infer.main([*options, "--embeddings", "e.npy", "--output", "e.csv"])
    with pytest.raises(DataError, match="another run: embeddings "):
        write(tmp_path / "x.csv", FILES[:3])
        files_done(tmp_path / "x.csv", HEADER | {"embeddings": 1280})
