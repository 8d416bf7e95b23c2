"""`ppcls benchmark data`: decoding, transforms and loading."""

import json

import pytest
from helpers import SAMPLE, write_picture

from ppcls.benchmarks.data import measure_data
from ppcls.cli import benchmark
from ppcls.data.check import find_problems, inspect_images
from ppcls.data.open import open_path
from ppcls.errors import ConfigError, DataError


def test_benchmark_prints_and_writes_the_figures(photos, tmp_path, capsys):
    for number in range(5):
        write_picture(photos / "jpeg" / f"{number}.jpg", number, size=(60, 80))
    arguments = ["--resize-short", "32", "--crop-size", "24", "--rounds", "2", "--batch-size", "3"]
    assert (
        benchmark.main(["data", str(photos / "jpeg"), *arguments, "--json", str(tmp_path / "figures.json")])
        == 0
    )
    text = capsys.readouterr().out
    assert "5 files" in text and "bicubic, antialias" in text and "0.9" in text
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (
        set(figures["rows"]) == {"decode alone", "bilinear", "bicubic, antialias"} and figures["files"] == 5
    )
    for row in figures["rows"].values():
        for values in (row["images_per_second"], row["share"]):
            assert 0 < values["min"] <= values["median"] <= values["max"]
    assert figures["rows"]["decode alone"]["share"] == {"median": 1, "min": 1, "max": 1}


def test_benchmark_leaves_out_what_opencv_cannot_decode(photos, capsys):
    write_picture(photos / "mixed" / "1.jpg", 0)
    (photos / "mixed" / "2.jpg").write_bytes(b"")
    (photos / "mixed" / "3.jpg").write_bytes(b"no image")
    assert benchmark.main(["data", str(photos / "mixed"), "--rounds", "1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("1 files") and "2 left out" in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["none"], DataError),
        (["empty"], DataError),
        (["good", "--crop-size", "300"], ConfigError),
        (["good", "--rounds", "0"], ConfigError),
        (["bad"], DataError),
    ],
)
def test_benchmark_refuses_wrong_input(tmp_path, monkeypatch, arguments, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_picture(tmp_path / "good" / "1.png", 0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(error):
        benchmark.main(["data", *arguments])


@pytest.mark.skipif(
    not SAMPLE.is_dir(), reason=f"no photographs in {SAMPLE}; name their folder in PPCLS_SAMPLE"
)
def test_photographs_are_sound_and_the_pipeline_keeps_pace():
    """A wide margin, for the machine may be busy; tools/benchmark.py data measures."""
    dataset = open_path(SAMPLE)
    assert len(find_problems([inspect_images(dataset, 2)])) == 0 and len(dataset) >= 100
    files = [dataset.read(index) for index in range(64)]
    share = measure_data(files, 256, 224, 32, 3)["rows"]["bilinear"]["share"]
    assert share["max"] > 0.7
