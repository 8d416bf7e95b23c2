"""Names that the screen cannot show, closed streams, readers that leave, and result files that stay whole."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, run_python, write_config

from ppcls import files

ODD = os.fsdecode(b"odd \xff.png")
NAMES = (ODD, "狗 €.png")


@pytest.fixture(scope="module")
def odd(pictures, tmp_path_factory) -> Path:
    """Six class folders of one picture each, two of them with names that few screens can show."""
    folder = tmp_path_factory.mktemp("odd")
    for number in range(6):
        (folder / "abcdef"[number]).mkdir()
        name = NAMES[number] if number < len(NAMES) else f"{number}.png"
        shutil.copy(pictures / f"picture {3 * number:02d}.png", folder / "abcdef"[number] / name)
    return folder


def in_shell(line: str, **variables) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which $INFER starts the command infer."""
    infer = f"{sys.executable} {ROOT / 'tools/infer.py'}"
    variables = {"PYTHONPATH": str(ROOT), "INFER": infer} | variables
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env=os.environ | variables,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {}], ids=str
)
def test_each_name_is_shown_in_every_encoding(odd, exported, variables):
    shown = in_shell(f'$INFER --exported "{exported}" -i "{odd}" --topk 1', **variables)
    assert shown.returncode == 0 and "Traceback" not in shown.stderr, shown.stderr
    assert shown.stdout.count(": class ") == 6 and r"odd \udcff.png: " in shown.stdout
    if "PYTHONIOENCODING" in variables:
        assert r"\u72d7 " in shown.stdout


def test_closed_streams_lose_no_result(odd, exported, tmp_path):
    output = tmp_path / "x.csv"
    command = f'$INFER --exported "{exported}" -i "{odd}"'
    run = in_shell(f'{command} --output "{output}" <&- >&- 2>&-')
    assert run.returncode == 0 and run.stdout == run.stderr == ""
    assert output.read_bytes().count(b"\n") == 1 + 6 * 5 and b"odd \xff.png" in output.read_bytes()
    run = in_shell(f"{command} >&-")
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
    run = in_shell(f"{command} 2>&-")
    assert run.returncode == 0 and run.stdout.count("class ") == 6 * 5


def test_a_reader_that_leaves_ends_no_run_that_writes(odd, exported, tmp_path):
    output = tmp_path / "x.json"
    run = in_shell(f'$INFER --exported "{exported}" -i "{odd}" --output "{output}" 2>&1 | true')
    assert run.returncode == 0, run.stderr
    assert [Path(row["file"]).name for row in json.loads(output.read_bytes())][:2] == list(NAMES)
    for options in ("--help", f'--exported "{exported}" -i "{odd}"'):
        run = in_shell(f"$INFER {options} | head -c 1")
        assert (run.returncode, len(run.stdout), run.stderr.count("Traceback")) == (0, 1, 0), run.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_is_lost_is_an_error(odd, exported):
    run = in_shell(f'$INFER --exported "{exported}" -i "{odd}" >/dev/full')
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith("error: ")


def test_an_evaluation_of_odd_names_writes_whole_files(odd, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(odd, folder)
    (folder / "a" / ODD).write_bytes(b"no image")
    config = write_config(tmp_path, 6, 72, 64, eval_root=str(folder), on_error="skip")
    options = ["-c", config, "--engine", "eager", "--report", tmp_path / "report"]
    run = run_python(ROOT / "tools/eval.py", *options, PYTHONIOENCODING="ascii")
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
    for folder in ("output", "report"):
        values = json.loads((tmp_path / folder / "metrics.json").read_text(encoding="utf-8"))
        assert values["count"] == 5 and values["skipped_files"][0]["file"].endswith(ODD)


@pytest.mark.parametrize("write", [files.write_json, files.write_text])
def test_a_file_that_cannot_be_written_leaves_the_earlier_one(tmp_path, write):
    path = tmp_path / "metrics.json"
    path.write_text("earlier")
    values = {"a": object()} if write is files.write_json else ODD
    with pytest.raises((TypeError, UnicodeEncodeError)):
        write(path, values)
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        files.write_json(pipe, {"name": ODD})
        assert json.loads(reader.communicate(timeout=20)[0]) == {"name": ODD}
    assert pipe.is_fifo()
