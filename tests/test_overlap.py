"""Images that are training and evaluation data at once, by path and by contents; at a start of training."""

import shutil
from pathlib import Path

import pytest
from helpers import draw_classes, on_two_ranks, run_tool, write_config
from test_source import Memory

from ppcls import distributed
from ppcls.cli import train
from ppcls.config import DataConfig
from ppcls.config_files import parse_config
from ppcls.data import overlap
from ppcls.data.dataset import Dataset, open_split
from ppcls.data.overlap import check_overlap, find_equal_contents, find_shared_files, group_equal
from ppcls.errors import DataError
from ppcls.training.run import look_for_overlap


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """12 different pictures of three classes: the folder photos of the working folder."""
    monkeypatch.chdir(tmp_path)
    draw_classes(tmp_path / "photos", 12, 36, 36)
    return Path("photos")


def look(may_share=False, **places):
    data = DataConfig(**{name: str(place) for name, place in places.items()})
    train_set, eval_set = (
        open_split(data, part, num_classes=3, class_names=None) for part in ("train", "eval")
    )
    return check_overlap(data, train_set, eval_set, may_share=may_share)


def write_lists(train, evaluation):
    for name, images in (("train.txt", train), ("val.txt", evaluation)):
        lines = [f"{image} {'abc'.index(Path(image).parent.name)}" for image in images]
        Path(name).write_text("\n".join(lines) + "\n")
    return {"train_root": ".", "train_list": "train.txt", "eval_root": ".", "eval_list": "val.txt"}


def test_a_folder_is_not_trained_and_evaluated_on(photos):
    with pytest.raises(DataError) as caught:
        look(train_root=photos, eval_root=photos)
    for part in ("12 of 12", "photos/a/0.png", "data split photos", "-o data.allow_overlap=true"):
        assert part in str(caught.value)
    (note,) = look(may_share=True, train_root=photos, eval_root=photos)
    assert "12 of 12" in note


@pytest.mark.parametrize("place", ["link", "linked classes", "linked files", "other/../photos", "absolute"])
def test_other_ways_to_the_same_files(photos, place):
    for folder in ("other", "linked classes"):
        Path(folder).mkdir()
    Path("link").symlink_to("photos")
    for name in "abc":
        Path("linked classes", name).symlink_to(f"../photos/{name}")
        Path("linked files", name).mkdir(parents=True)
        for image in (photos / name).iterdir():
            Path("linked files", name, f"{image.stem} linked.png").symlink_to(image.resolve())
    other = photos.resolve() if place == "absolute" else place
    for train_root, eval_root in ((photos, other), (other, photos)):
        with pytest.raises(DataError, match="12 of 12"):
            look(train_root=train_root, eval_root=eval_root)


def test_lists_that_share_some_images(photos):
    Path("a").symlink_to("photos/a")
    assert look(**write_lists(["photos/a/0.png"], ["photos/b/1.png"])) == []
    trained = ["photos/a/0.png", "photos/b/1.png", "a/3.png"]
    places = write_lists(trained, ["photos/a/3.png", "photos/c/2.png", "photos/b/1.png"])
    with pytest.raises(DataError) as caught:
        look(**places)
    assert "2 of 3" in str(caught.value) and "photos/a/3.png (val.txt, line 1)" in str(caught.value)
    assert "Received: train.txt and val.txt" in str(caught.value) and "split" not in str(caught.value)


def test_equal_contents_are_noted(photos):
    shutil.copytree(photos, "copy")
    for name in ("a/0.png", "b/1.png"):
        Path("copy", name).unlink()
    (note,) = look(train_root=photos, eval_root="copy")
    assert "10 of 10" in note and "copy/a/3.png = photos/a/3.png" in note and "check photos copy" in note
    Path("copy/a/3.png").write_bytes(Path("copy/a/3.png").read_bytes() + b"x")
    places = write_lists(["photos/a/0.png", "photos/b/1.png"], ["copy/a/3.png", "photos/c/2.png"])
    assert look(**places) == []
    shutil.copy("photos/a/0.png", "copy/a/copy.png")
    with open("val.txt", "a") as file:
        file.write("copy/a/copy.png 0\n")
    (note,) = look(**places)
    assert (
        "1 of 3" in note and "copy/a/copy.png (val.txt, line 3) = photos/a/0.png (train.txt, line 1)" in note
    )
    assert "check train.txt val.txt --root ." in note


def test_the_contents_of_large_sets_are_not_compared(photos, monkeypatch):
    shutil.copytree(photos, "copy")
    monkeypatch.setattr(overlap, "MOST_COMPARED", 23)
    assert look(train_root=photos, eval_root="copy") == []
    with pytest.raises(DataError):
        look(train_root=photos, eval_root=photos)


def test_sources_without_files_are_left_alone(photos):
    memory = Dataset(Memory([("photos/a/0.png", Path("photos/a/0.png").read_bytes())]))
    files = Dataset.of_files(["photos/a/0.png"])
    for one, other in ((memory, files), (files, memory), (memory, memory)):
        assert find_shared_files(one, other) == [] and find_equal_contents(one, other) == []


def test_groups_of_equal_files(tmp_path):
    """Files that differ in size, in their first bytes, or in their last ones only; empty and missing ones."""
    long = bytes(50_000)
    contents = [long, b"ab", long, long[:-1] + b"x", b"ba", b"", b"ab", b"", long]
    paths = [str(tmp_path / str(index)) for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    paths.append(str(tmp_path / "missing"))
    assert sorted(group_equal(paths)) == [[0, 2, 8], [1, 6]]
    assert group_equal(paths, lambda group: len(group) > 2) == [[0, 2, 8]]


def test_only_files_of_equal_size_are_opened(tmp_path, monkeypatch):
    paths = [str(tmp_path / str(index)) for index in range(5)]
    for index, path in enumerate(paths):
        Path(path).write_bytes(bytes(max(index, 1)))
    opened = []
    own = overlap._digest
    monkeypatch.setattr(overlap, "_digest", lambda path, limit: opened.append(path) or own(path, limit))
    assert group_equal(paths) == [[0, 1]] and set(opened) == set(paths[:2])


# At a start of training


@pytest.fixture
def config(photos, tmp_path):
    return write_config(tmp_path, 3, 36, 32, train_root="photos", eval_root="photos", batch_size=4)


def test_a_check_of_training_does_not_pass_in_silence(config, capsys):
    with pytest.raises(DataError, match=r"12 of 12.*data\.allow_overlap=true"):
        train.main(["-c", str(config), "--check"])
    assert "check passed" not in capsys.readouterr().out
    assert train.main(["-c", str(config), "--check", "-o", "data.allow_overlap=true"]) == 0
    out = capsys.readouterr().out
    assert "note: 12 of 12 evaluation images are training images too" in out and "check passed" in out
    shutil.copytree("photos", "copy")
    assert train.main(["-c", str(config), "--check", "-o", "data.eval_root=copy"]) == 0
    assert "note: 12 of 12 evaluation images have the bytes" in capsys.readouterr().out


def test_other_ranks_than_the_first_do_not_look(photos, monkeypatch):
    notes = []
    same = Dataset.of_files(["photos/a/0.png"])
    config = parse_config({"model": {"name": "EfficientNetB0"}, "data": {"allow_overlap": True}})
    look_for_overlap(config, same, same, is_resumed=False, log=notes.append)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    look_for_overlap(config, same, same, is_resumed=False, log=notes.append)
    assert len(notes) == 1 and "1 of 1" in notes[0]


def test_two_ranks_end_with_the_same_reason(config, tmp_path):
    run = run_tool("train", "-c", config, "--check", launch=on_two_ranks(tmp_path / "log"))
    assert run.returncode != 0
    logs = [(tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in range(2)]
    assert all("12 of 12" in log and "Traceback" not in log for log in logs), logs
