"""The scripts of experiments/, as far as they go without training."""

import importlib.util
import sys

import numpy as np
import pytest
from helpers import ROOT, run_python
from PIL import Image

from ppcls import MODELS


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"experiments/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_quarter_of_each_kind_is_held_out(tmp_path, monkeypatch):
    animals = script("animals")
    monkeypatch.setattr(animals, "OUTPUT", tmp_path / "out")
    lines = [f"a picture {label}.jpg {label}\n" for label in range(0, 1000, 5)]
    (tmp_path / "val_list.txt").write_text("".join(lines))
    animals.split(tmp_path)
    parts = [
        (tmp_path / "out" / name).read_text().splitlines() for name in ("train_list.txt", "val_list.txt")
    ]
    assert [len(part) for part in parts] == [150, 50]
    assert [sum(line.endswith(" 1") for line in part) for part in parts] == [60, 20]
    files = {line.rsplit(maxsplit=1)[0]: line[-1] for part in parts for line in part}
    assert len(files) == 200
    assert files["a picture 395.jpg"] == "1" and files["a picture 400.jpg"] == "0"


def test_of_one_digit_five_are_left_to_train_on(tmp_path, monkeypatch):
    digits = script("unequal_digits")
    monkeypatch.setattr(digits, "DIGITS", tmp_path)
    monkeypatch.setattr(digits, "OUTPUT", tmp_path / "out")
    for name in ("train_list.txt", "val_list.txt"):
        (tmp_path / name).write_text("".join(f"images/{n:04d}.png {n % 10}\n" for n in range(200)))
    digits.write_lists()
    counts = []
    for name in ("train_list.txt", "val_list.txt"):
        rows = [line.split() for line in (tmp_path / "out" / name).read_text().splitlines()]
        assert all(path[-5] == "389"[int(label)] for path, label in rows)
        counts.append([sum(row[1] == label for row in rows) for label in "012"])
    assert counts == [[20, 5, 20], [20, 20, 20]]


def test_the_shallow_network_can_be_trained_by_its_script(tmp_path):
    for index in range(4):
        pixels = np.random.RandomState(index).randint(0, 256, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    (tmp_path / "list.txt").write_text("".join(f"{index}.png {index}\n" for index in range(4)))
    options = ["data.batch_size=2", "data.class_names=null", "data.allow_overlap=true"]
    for part in ("train", "eval"):
        options += [f"data.{part}_root={tmp_path}", f"data.{part}_list={tmp_path / 'list.txt'}"]
    script = ROOT / "experiments/shallow_resnext.py"
    arguments = [part for option in options for part in ("-o", option)]
    run = run_python(script, "--check", "-c", script.with_suffix(".yaml"), *arguments)
    assert run.returncode == 0, run.stderr
    assert "[2, 3, 32, 32]" in run.stdout


@pytest.fixture
def two_digits(tmp_path, monkeypatch):
    """The script, with ten noisy digits of each class, and an output folder of its own."""
    monkeypatch.delitem(sys.modules, "shallow_resnext", raising=False)
    had = dict(MODELS)
    module = script("two_digits")
    monkeypatch.setattr(module, "DIGITS", tmp_path / "digits")
    monkeypatch.setattr(module, "OUTPUT", tmp_path / "out")
    (tmp_path / "digits").mkdir()
    random = np.random.RandomState(0)
    for index in range(100):
        pixels = random.randint(20 * (index % 10) + 1, 20 * (index % 10) + 20, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"digits/{index}.png")
    lines = "".join(f"{index}.png {index % 10}\n" for index in range(100))
    for name in ("train_list.txt", "val_list.txt"):
        (tmp_path / "digits" / name).write_text(lines)
    yield module
    for name in MODELS.keys() - had.keys():
        del MODELS[name]


def test_a_picture_has_the_labels_of_its_two_digits(two_digits):
    images, labels = two_digits.draw_pictures("train_list.txt", 300, 1.5, 0)
    for image, own in zip(images, labels, strict=True):
        assert image.shape == (64, 64)
        halves = [half.max(axis=1) for half in (image[:, 8:24], image[:, 40:56])]  # inside of the digits
        assert sorted({int(np.median(half[half > 0])) // 20 for half in halves}) == own
    counts = np.bincount(np.concatenate(labels), minlength=10)
    assert counts[0] > 5 * counts[5] > 0 and counts[7:].sum() < 60
    assert two_digits.draw_pictures("train_list.txt", 300, 1.5, 0).labels == labels


def test_planted_copies_are_found_and_left_out(two_digits, monkeypatch, tmp_path, capsys):
    for name, value in (("TRAIN", 40), ("HELD_OUT", 12), ("PLANTED", 3)):
        monkeypatch.setattr(two_digits, name, value)
    two_digits.make_data()
    out = capsys.readouterr().out
    assert "planted, same: 3 of 3 found" in out and "planted, smaller: 3 of 3 found" in out
    found, left = (
        (tmp_path / f"out/files/{name}.txt").read_text().splitlines() for name in ("found", "train")
    )
    others = int(out.split("taken for copies: ")[1].split()[0])
    assert len(found) == 46 and len(left) == 40 - others and set(left) < set(found)
    assert all(line.startswith("train_") for line in left)
    assert (tmp_path / "out/train/index.safetensors").exists()


@pytest.mark.parametrize("line", ["tools/quickstart.py --help-me", "experiments/finetune.py none"])
def test_a_script_does_not_begin_with_wrong_arguments(line, tmp_path):
    name, argument = line.split()
    found = run_python(ROOT / name, argument, cwd=tmp_path)
    assert found.returncode == 2 and argument in found.stderr and "Traceback" not in found.stderr
