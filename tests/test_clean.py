"""Likely wrong labels and near duplicates: planted in scikit-learn's digits, and as people run it."""

import csv
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import corrected_list, write_config
from PIL import Image
from sklearn.datasets import load_digits

from ppcls.config import Config, DataConfig, ModelConfig
from ppcls.config_files import load_config
from ppcls.data.__main__ import main
from ppcls.data.class_names import ClassNames
from ppcls.data.dataset import Dataset
from ppcls.data.open import open_path
from ppcls.errors import ConfigError, DataError
from ppcls.evaluation import clean
from ppcls.evaluation.clean_report import groups_of, write_clean_report
from ppcls.preprocessing import Preprocessing


def joined(labels):
    return clean.join_datasets([Dataset.of_files([str(n) for n in range(len(labels))], np.array(labels))])


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def smooth_picture(random, size=(60, 80), base=128):
    """A picture of a few smooth spots, unlike any other draw."""
    spots = random.randint(0, 256, (6, 8, 3)) // 2 + base // 2
    return Image.fromarray(spots.astype(np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)


def test_planted_wrong_labels_are_found():
    pixels, true = load_digits(return_X_y=True)
    random = np.random.RandomState(0)
    planted = random.choice(len(true), 90, replace=False)
    labels = true.copy()
    labels[planted] = (labels[planted] + random.randint(1, 10, 90)) % 10
    found = clean.find_wrong_labels(unit(pixels), joined(labels), np.arange(len(labels)))
    right = {item.position for item in found} & set(planted.tolist())
    assert len(right) / 90 > 0.8 and len(right) / len(found) > 0.85
    assert np.mean([item.suggested == true[item.position] for item in found]) > 0.85
    assert all(item.suggested != labels[item.position] for item in found)
    assert [item.probabilities[0] for item in found] == sorted(item.probabilities[0] for item in found)


def test_copies_are_never_predicted_from_each_other():
    labels = np.repeat([0, 1, 2], 20)
    groups = np.arange(60)
    groups[[1, 21, 41]] = groups[0]  # with other labels too
    groups[30:34] = groups[30]
    groups = np.unique(groups, return_inverse=True)[1]
    folds = clean._deal(labels, groups, "abc")
    assert all(len(set(folds[groups == group])) == 1 for group in groups)
    assert all(set(folds[labels == label]) == set(range(clean.FOLDS)) for label in range(3))


@pytest.fixture
def copies(tmp_path):
    """Twelve pictures, and four copies of the first."""
    random = np.random.RandomState(0)
    pictures = [smooth_picture(random, (180, 240)) for _ in range(12)]
    first = pictures[0]
    pictures += [first, first.resize((120, 90)), first.crop((5, 4, 235, 176)), first.point(lambda v: v * 0.9)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number:02}.jpg", quality=40 if number == 12 else 95)
    return sorted(map(str, tmp_path.glob("*.jpg")))


def test_copies_are_found_through_compression_size_crop_and_brightness(copies):
    images = clean.join_datasets([Dataset.of_files(copies, np.arange(16) % 2)])
    hashes = clean.hash_images(images, 2, lambda count: None)
    alike = np.ones((16, 4), np.float32) / 2  # a network that takes all for the same
    (group,) = groups_of(clean.find_near_duplicates(alike, hashes))
    assert group.tolist() == [0, 12, 13, 14, 15]
    apart = unit(np.random.RandomState(0).normal(size=(16, 64)))
    assert groups_of(clean.find_near_duplicates(apart, hashes)) == []


def test_copies_of_copies_join_across_blocks(monkeypatch):
    monkeypatch.setattr(clean, "_BLOCK", 2)
    hashes = np.zeros((9, 64), bool)
    hashes[:, ::2] = True
    for number, place in enumerate([7, 2, 5, 0]):  # a chain, each 10 bits from the one before
        hashes[place] = np.roll(hashes[8], 0) ^ (np.arange(64) < 10 * number)
    hashes[[1, 3, 4, 6, 8]] = np.random.RandomState(0).randint(0, 2, (5, 64)).astype(bool)
    (group,) = groups_of(clean.find_near_duplicates(np.ones((9, 1), np.float32), hashes))
    assert group.tolist() == [0, 2, 5, 7]


def test_unreadable_and_tiny_images_have_no_hash(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    for name in ("tiny.png", "tiny2.png"):
        smooth_picture(np.random.RandomState(0), (31, 60)).save(tmp_path / name)
    images = clean.join_datasets(
        [Dataset.of_files(sorted(map(str, tmp_path.iterdir())) * 5, np.arange(15) % 2)]
    )
    hashes = clean.hash_images(images, 2, lambda count: None)
    assert not hashes.any()
    assert groups_of(clean.find_near_duplicates(np.ones((15, 1), np.float32), hashes)) == []


@pytest.fixture
def lists(tmp_path):
    """Dark and bright pictures in two lists: one with the wrong label, one copied from list to list."""
    random = np.random.RandomState(0)
    lines = []
    for number in range(40):
        smooth_picture(random, base=(10, 240)[number % 2]).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png {number % 2}")
    lines[6] = "6.png 1"
    Image.open(tmp_path / "3.png").resize((100, 75)).save(tmp_path / "copy.jpg", quality=60)
    (tmp_path / "train.txt").write_text("\n".join(lines[:30]))
    (tmp_path / "val.txt").write_text("\n".join([*lines[30:], "copy.jpg 1"]))
    return tmp_path


def test_the_command_writes_a_page_and_a_table(lists, capsys):
    config = write_config(lists, 2, 36, 32)
    call = ["clean", str(config), str(lists / "train.txt"), str(lists / "val.txt"), "--engine", "eager"]
    call += ["--output", str(lists / "out")]
    (lists / "class_names.txt").write_text("d\tdark<i>\nb\tbright<i>\n")  # as `split` leaves them
    assert main(call) == 1
    assert "Likely wrong labels: 1\n" in capsys.readouterr().out
    with (lists / "out/doubtful.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wrong, first, second = rows
    assert wrong["kind"] == "label" and wrong["file"] == str(lists / "6.png") and wrong["line"] == "7"
    assert (wrong["list"], wrong["label"], wrong["suggested"]) == (str(lists / "train.txt"), "1", "0")
    assert float(wrong["probability"]) < 0.5 < float(wrong["suggested_probability"])
    assert [row["kind"] for row in (first, second)] == ["leak", "leak"]
    assert first["group"] == second["group"] == "1" and second["list"] == str(lists / "val.txt")
    assert {row["action"] for row in rows} == {""}
    page = (lists / "out/index.html").read_text()
    assert len(re.findall("<img src=.data:image/jpeg;base64,", page)) == 3
    assert not re.search(r"(?:src|href)=.(?!data:|#)", page) and "copy.jpg" in page
    assert (wrong["name"], wrong["suggested_name"]) == ("bright<i>", "dark<i>")
    assert "given: bright&lt;i&gt;," in page and "<i>" not in page
    with pytest.raises(ConfigError, match=r"doubtful\.csv.*--force"):
        main(call)


def test_names_of_classes_that_are_missing(lists):
    call = ["clean", str(write_config(lists, 2, 36, 32)), str(lists / "train.txt")]
    with pytest.raises(DataError, match=r"^--class-names: .*none\.txt"):
        main([*call, "--class-names", "none.txt", "--output", str(lists / "out")])


def test_the_documented_code_corrects_a_list(lists, monkeypatch):
    monkeypatch.chdir(lists)
    (lists / "photos").mkdir()
    (lists / "train.txt").rename("photos/train_list.txt")
    images = clean.join_datasets([open_path(Path("photos/train_list.txt"), Path("."))])
    wrong = [clean.Doubtful(6, 0, (0.1, 0.9))]
    preprocessing = Preprocessing(32, 32, "bilinear", False, (0.5,) * 3, (0.5,) * 3)
    write_clean_report(Path("clean"), images, wrong, [np.array([2, 4])], preprocessing, {})
    table = Path("clean/doubtful.csv").read_text().splitlines()
    table[1], table[3] = f"relabel{table[1]}", f"remove{table[3]}"
    Path("clean/doubtful.csv").write_text("\n".join(table))
    exec(corrected_list(), {})  # as the reader runs it
    before = Path("photos/train_list.txt").read_text().splitlines()
    assert before.pop(6) == "6.png 1" and before.pop(4) == "4.png 0"
    after = Path("photos/clean_list.txt").read_text().splitlines()
    assert after.pop(5) == "6.png 0" and after == before


def test_lists_are_named_by_a_file_as_far_as_it_goes():
    datasets = [Dataset.of_files(["x.jpg"] * 10, np.array([0, 2] * 5))]
    assert clean.join_datasets(datasets).names == ["0", "1", "2"]
    assert clean.join_datasets(datasets, ClassNames.of(["cat", "dog"])).names == ["cat", "dog", "2"]
    own = [replace(datasets[0], class_names=ClassNames.of(["a", "b", "c"]))]
    assert clean.join_datasets(own, ClassNames.of(["cat", "dog"])).names == ["a", "b", "c"]


@pytest.mark.parametrize(
    "labels, received",
    [([0] * 9, "same label"), ([0] * 9 + [1] * 4, "class 1 has 4"), (None, "no labels")],
)
def test_what_cannot_be_searched_is_refused(labels, received):
    count = 9 if labels is None else len(labels)
    dataset = Dataset.of_files(["x.jpg"] * count, None if labels is None else np.array(labels))
    with pytest.raises(DataError, match=received):
        clean.join_datasets([dataset])


def test_other_classes_are_refused(lists):
    for name in ("cat", "dog"):
        (lists / "folder" / name).mkdir(parents=True)
        smooth_picture(np.random.RandomState(0)).save(lists / "folder" / name / "0.png")
    datasets = [open_path(lists / "train.txt"), open_path(lists / "folder")]
    with pytest.raises(DataError, match=r"different classes.*0\.png and of .*cat.0\.png"):
        clean.join_datasets(datasets)


def test_too_few_different_images_are_refused():
    labels = [0] * 10 + [1] * 6
    copies = np.arange(16)
    copies[10:13] = 10
    with pytest.raises(DataError, match="class 1 has 4"):
        clean.find_wrong_labels(np.eye(16, dtype=np.float32), joined(labels), copies)


def test_a_run_that_was_trained_on_the_images_is_refused(lists, capsys):
    data = DataConfig(train_root=str(lists), train_list=str(lists / "train.txt"))
    config = Config(model=ModelConfig("EfficientNetB0", num_classes=2), data=data)
    (lists / "run" / "checkpoints").mkdir(parents=True)
    (lists / "run" / "train.yaml").write_text(config.to_yaml())
    config = load_config(lists / "run")
    both = clean.join_datasets([open_path(lists / "train.txt"), open_path(lists / "val.txt")])
    with pytest.raises(ConfigError, match="30 of the 41.*clean EfficientNetB0"):
        clean.require_unseen(config, both)
    clean.require_unseen(config, clean.join_datasets([open_path(lists / "val.txt")]))
    (lists / "train.txt").unlink()
    clean.require_unseen(config, both)
    assert "train.txt" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ConfigError, match=r"imagehash.*ppcls\[clean\]"):
        clean.require_packages()
