"""Images that are training and evaluation data at once: by path, bytes and look; at a start of training."""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import SAMPLE, draw_classes, on_two_ranks, run_tool, write_config
from PIL import Image
from test_clean import smooth_picture
from test_source import Memory

from ppcls import distributed
from ppcls.cli import train
from ppcls.config import DataConfig
from ppcls.config_files import parse_config
from ppcls.data import overlap
from ppcls.data.__main__ import main
from ppcls.data.copies import COPY_BITS, HASH_ROWS, Album, find_copies, perceptual_hash
from ppcls.data.dataset import Dataset
from ppcls.data.decode import decode
from ppcls.data.open import open_path, open_split
from ppcls.data.overlap import check_overlap, find_equal_contents, find_shared_images, group_equal
from ppcls.errors import ConfigError, DataError
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
        assert find_shared_images(one, other) == [] and find_equal_contents(one, other) == []


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
    own = overlap._read_file
    monkeypatch.setattr(overlap, "_read_file", lambda path, limit: opened.append(path) or own(path, limit))
    assert group_equal(paths) == [[0, 1]] and set(opened) == set(paths[:2])


# Shards


@pytest.fixture
def shards(photos):
    """The photos as shards, and eight of them in a folder and in shards of their own."""
    shutil.copytree(photos, "some")
    for name in ("a/0", "b/1", "c/2", "a/3"):
        Path("some", f"{name}.png").unlink()
    for source, output in (("photos", "packed"), ("some", "packed-some")):
        assert main(["pack", source, output, "--shard-size", "30kB"]) == 0
    return Path("packed")


def test_shards_are_not_trained_and_evaluated_on(shards):
    shutil.copytree(shards, "copy", copy_function=shutil.copy2)
    assert main(["index", "packed/shard-*1.tar", "--output", "one.safetensors"]) == 0
    share = len(open_path(Path("one.safetensors")))
    assert 0 < share < 12
    for eval_root, count in (("packed", 12), ("packed/index.safetensors", 12), ("copy", 12)):
        with pytest.raises(DataError) as caught:
            look(train_root=shards, eval_root=eval_root)
        for part in (f"{count} of 12", "a/0.png in", "Received: packed and", "-o data.allow_overlap=true"):
            assert part in str(caught.value)
        assert "data split" not in str(caught.value)
        (note,) = look(may_share=True, train_root=shards, eval_root=eval_root)
        assert "12 of 12" in note
    with pytest.raises(DataError, match=f"{share} of {share}"):
        look(train_root=shards, eval_list="one.safetensors", eval_root=".")
    with pytest.raises(DataError, match=f"{share} of 12"):
        look(train_list="one.safetensors", train_root=".", eval_root=shards)


def test_a_selection_of_shards_is_compared_by_its_images(shards):
    images = open_path(shards)
    odd, even = images.select(range(1, 12, 2)), images.select(range(0, 12, 2))
    assert find_shared_images(odd, even) == [] and find_equal_contents(odd, even) == []
    assert find_shared_images(images, odd) == list(range(6))
    assert find_shared_images(odd, images) == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize("swap", [False, True])
def test_equal_contents_of_shards_are_noted(shards, swap):
    """Other shards of the same files, and shards beside files, in both directions."""
    for first, second in (("packed", "packed-some"), ("packed", "some"), ("photos", "packed-some")):
        train_root, eval_root = (second, first) if swap else (first, second)
        train_set, eval_set = open_path(Path(train_root)), open_path(Path(eval_root))
        pairs = find_equal_contents(train_set, eval_set)
        assert [train_set.read(one) for one, _ in pairs] == [eval_set.read(other) for _, other in pairs]
        assert len(pairs) == 8
        (note,) = look(train_root=train_root, eval_root=eval_root)
        assert f"8 of {len(eval_set)}" in note and f"check {train_root} {eval_root}" in note


def test_few_images_of_large_shards_are_read(shards, monkeypatch):
    """Only those whose size is there twice."""
    train_set, eval_set = open_path(shards), open_path(Path("packed-some")).select([2])
    sizes = train_set.source.sizes
    candidates = 1 + int((sizes == eval_set.source.sizes[0]).sum())
    monkeypatch.setattr(overlap, "MOST_COMPARED", candidates)
    assert len(find_equal_contents(train_set, eval_set)) == 1 and candidates < 12
    monkeypatch.setattr(overlap, "MOST_COMPARED", candidates - 1)
    assert find_equal_contents(train_set, eval_set) == []


def test_contents_are_equal_to_their_end(tmp_path):
    """Not those of one size that begin alike, nor evaluation images that are equal to one another alone."""
    for name, end in (("trained", b"1"), ("one", b"2"), ("other", b"2")):
        (tmp_path / name).write_bytes(bytes(20_000) + end)
    train_set = Dataset.of_files([str(tmp_path / "trained")])
    eval_set = Dataset.of_files([str(tmp_path / "one"), str(tmp_path / "other")])
    assert find_equal_contents(train_set, eval_set) == []
    assert find_equal_contents(eval_set, eval_set) == [(0, 0), (0, 1)]


# Copies by their look: `ppcls data check --against`

ORIGINALS = 12


def as_jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    return buffer.getvalue()


def as_png(image):
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def cropped(image):
    x, y = (side // 50 for side in image.size)
    return as_jpeg(image.crop((x, y, image.width - x, image.height - y)), 90)


KINDS = {
    "bytes": lambda data, image: data,
    "pixels": lambda data, image: as_png(image),
    "quality 30": lambda data, image: as_jpeg(image, 30),
    "half": lambda data, image: as_jpeg(image.reduce(2), 85),
    "square": lambda data, image: as_jpeg(image.resize((96, 96)), 90),
    "grey": lambda data, image: as_jpeg(image.convert("L"), 80),
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Smooth pictures in eval/, others and copies of the first ones in train/, as folders, lists and shards.

    Returns the folder and the expected kind and original of each image of train/, by its name."""
    home = tmp_path_factory.mktemp("copies")
    (home / "eval").mkdir()
    (home / "train").mkdir()
    random = np.random.RandomState(0)
    expected = {}
    for number in range(ORIGINALS):
        data = as_jpeg(smooth_picture(random, (150, 200)), 95)
        (home / "eval" / f"{number:02}.jpg").write_bytes(data)
        if number < len(KINDS):
            kind = list(KINDS)[number]
            image = Image.open(io.BytesIO(data))
            image.load()
            ending = "png" if kind == "pixels" else "jpg"
            (home / "train" / f"copy{number}.{ending}").write_bytes(KINDS[kind](data, image))
            expected[f"copy{number}"] = (kind if kind in ("bytes", "pixels") else "near", f"{number:02}")
    for number in range(8):
        smooth_picture(random, (150, 200)).save(home / "train" / f"other{number}.jpg")
        expected[f"other{number}"] = ("new", "")
    (home / "train" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    Image.new("RGB", (60, 60), (9, 90, 9)).save(home / "train" / "flat.png")
    smooth_picture(random, (31, 60)).save(home / "train" / "tiny.png")
    expected |= {"broken": ("unreadable", ""), "flat": ("plain", ""), "tiny": ("plain", "")}
    for name in ("eval", "train"):
        lines = [f"{name}/{path.name} 0" for path in sorted((home / name).iterdir())]
        (home / f"{name}.txt").write_text("\n".join(lines))
        assert main(["pack", str(home / name), str(home / f"{name}-shards"), "--shard-size", "40kB"]) == 0
    return home, expected


@pytest.mark.parametrize("place", ["train", "train.txt", "train-shards"])
@pytest.mark.parametrize("known", ["eval", "eval.txt", "eval-shards"])
def test_copies_are_found_wherever_they_lie(place, known, copies, monkeypatch):
    home, expected = copies
    monkeypatch.setattr("ppcls.data.copies.CHUNK", 5)
    monkeypatch.setattr("ppcls.data.copies._BLOCK", 3)
    dataset = open_path(home / place)
    album = Album.of([open_path(home / known)], 2)
    found = {}
    for match in find_copies(dataset, album, COPY_BITS, 2):
        original = Path(album.datasets[0].name(match.place[1])).stem if match.place[0] == 0 else ""
        found[Path(dataset.name(match.image)).stem] = (match.kind, original)
    assert found == expected


def test_a_copy_with_another_pixel_is_near(tmp_path):
    picture = smooth_picture(np.random.RandomState(0), (150, 200))
    picture.save(tmp_path / "original.png")
    picture.putpixel((9, 9), tuple(value ^ 1 for value in picture.getpixel((9, 9))))
    picture.save(tmp_path / "copy.png")
    Image.new("RGB", (60, 60)).save(tmp_path / "flat.png")  # without a hash
    copy = Dataset.of_files([str(tmp_path / "copy.png")])
    originals = Dataset.of_files([str(tmp_path / f"{name}.png") for name in ("flat", "original")])
    (match,) = find_copies(copy, Album.of([originals], 1), COPY_BITS, 1)
    assert (match.kind, match.bits, match.place) == ("near", 0, (0, 1))


def test_the_command_lists_copies_with_their_places(copies, capsys):
    home, _ = copies
    places = [str(home / name) for name in ("train-shards", "eval.txt")]
    assert main(["check", places[0], "--against", places[1]]) == 1
    out = capsys.readouterr().out
    assert f"copy0.jpg in {places[0]}/shard-000000.tar = {home}/eval/00.jpg ({places[1]}, line 1)" in out
    assert "17 images, 6 of them copies" in out and "1 with the same bytes" in out
    assert "2 too small or too flat" in out and "1 unreadable" in out and out.count("near") == 4
    assert main(["check", places[0], "--against", places[1], "--near-bits", "0"]) == 1
    assert "1 with the same pixels" in (out := capsys.readouterr().out) and "6 of them" not in out
    for folder, names in (("single", ("other1.jpg", "flat.png")), ("damaged", ("other2.jpg", "broken.jpg"))):
        (home / folder).mkdir()
        for name in names:
            shutil.copy(home / "train" / name, home / folder)
    assert main(["check", str(home / "single"), "--against", places[1]]) == 0
    assert "2 images, 0 of them copies" in capsys.readouterr().out
    for one, other in (("damaged", "eval"), ("single", "damaged")):  # what is unreadable may be a copy
        assert main(["check", str(home / one), "--against", str(home / other)]) == 1
        assert "0 of them copies" in (out := capsys.readouterr().out) and "unreadable" in out
    assert main(["check", str(home / "single"), "--against", places[1], "--against", places[0]]) == 1
    assert "= other1.jpg in" in capsys.readouterr().out


def test_options_of_copies(copies, monkeypatch, capsys):
    place = str(copies[0] / "eval")
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert f"default {COPY_BITS}" in " ".join(capsys.readouterr().out.split())
    for bits in ("-1", "97"):
        with pytest.raises(DataError, match=f"--near-bits.*{bits}"):
            main(["check", place, "--against", place, "--near-bits", bits])
    with pytest.raises(DataError, match="--against"):
        main(["check", place, "--near-bits", "9"])
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ConfigError, match=r"ppcls\[clean\]"):
        main(["check", place, "--against", place])


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no photographs in {SAMPLE}")
def test_photographs_are_not_copies_of_one_another():
    """None of the pairs of 200 photographs is near, by a margin; a copy of each of them is."""
    photographs = open_path(SAMPLE)
    album = Album.of([photographs], 2)
    signs = np.where(album.hashes, 1, -1)
    apart = (256 - signs @ signs.T) // 2
    others = apart[np.triu_indices(len(apart), 1)]
    assert len(others) == len(photographs) * (len(photographs) - 1) // 2 and others.min() > COPY_BITS + 30
    for index in range(0, len(photographs), 20):
        image = Image.open(io.BytesIO(photographs.read(index))).convert("RGB")
        for kind in (*KINDS, "cropped"):
            pixels = decode(KINDS[kind](photographs.read(index), image) if kind in KINDS else cropped(image))
            hashes = perceptual_hash(pixels, HASH_ROWS)[None]
            (best,), (bits,) = album.nearest(hashes)
            assert (album.places[best][1], bits <= COPY_BITS) == (index, True), (kind, bits)


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
    assert all("Traceback" not in log for log in logs), logs
    assert any("12 of 12" in log for log in logs), (
        logs
    )  # the launcher may end the other one before its sentence
