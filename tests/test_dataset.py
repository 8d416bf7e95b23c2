"""List files, class folders and class names, as people write them."""

import io
import os
import unicodedata
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image

from ppcls.config import DataConfig
from ppcls.data.class_names import IMAGENET1K, ClassNames, read_class_names
from ppcls.data.dataset import Dataset, describe_classes
from ppcls.data.folders import IMAGE_SUFFIXES, find_images, list_images
from ppcls.data.list_file import join_paths
from ppcls.data.open import open_path, open_split, require_images, require_split
from ppcls.data.split import split_folder
from ppcls.errors import ConfigError, DataError, PpclsError


def open_list(folder, content, num_classes=10, **options):
    (folder / "list.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    data = DataConfig(eval_root=str(folder / "images"), eval_list=str(folder / "list.txt"))
    return open_split(data, "eval", num_classes=num_classes, **{"class_names": None} | options)


def names(dataset):
    return [dataset.name(index) for index in range(len(dataset))]


@pytest.mark.parametrize(
    "content",
    [
        b"a.jpg 0\nsub/b c.jpg 9\n",
        b"a.jpg 0\nsub/b c.jpg 9",
        b"a.jpg 0\r\nsub/b c.jpg 9\r\n",
        b"\xef\xbb\xbfa.jpg 0\nsub/b c.jpg 9\n",
        b"a.jpg\t0\nsub/b c.jpg\t9\n",
        b"  a.jpg   0  \n\n   \nsub/b c.jpg \t 09\n\n",
        b"a.jpg 0\nsub\\b c.jpg 9\n",
    ],
    ids=["plain", "no last line end", "CRLF", "BOM", "tabs", "blanks", "backslashes"],
)
def test_lists_as_people_write_them(tmp_path, content):
    dataset = open_list(tmp_path, content)
    images = tmp_path / "images"
    assert names(dataset) == [str(images / "a.jpg"), str(images / "sub" / "b c.jpg")]
    assert dataset.labels.dtype == np.int64 and dataset.labels.tolist() == [0, 9]


def test_names_of_other_alphabets_and_odd_blanks(tmp_path):
    dataset = open_list(tmp_path, "тест/猫\u3000\u2028.jpg 1\nlabels 12/3 4.jpg 2\n")
    images = tmp_path / "images"
    assert names(dataset) == [
        str(images / "тест" / "猫\u3000\u2028.jpg"),
        str(images / "labels 12" / "3 4.jpg"),
    ]
    assert dataset.labels.tolist() == [1, 2]


def test_without_a_root_paths_are_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a/b.jpg 0\n/c.jpg 1\n")
    dataset = open_split(DataConfig(train_list="list.txt"), "train", num_classes=2, class_names=None)
    assert [path.replace("\\", "/") for path in names(dataset)] == ["a/b.jpg", "/c.jpg"]


@pytest.mark.parametrize(
    ("content", "line", "received"),
    [
        ("a.jpg 0\nb.jpg 10\n", 2, "10"),
        ("a.jpg 0\n\n\nb.jpg\n", 4, "'b.jpg'"),
        ("a.jpg -1\n", 1, "'a.jpg -1'"),
        ("a.jpg 1.0\n", 1, "'a.jpg 1.0'"),
        ("a.jpg ٣\n", 1, "'a.jpg ٣'"),
        ("a.jpg 1_0\n", 1, "'a.jpg 1_0'"),
        ("7\n", 1, "'7'"),
        ("a.jpg " + "9" * 5000 + "\n", 1, "'a.jpg 999"),
        ("a\0.jpg 1\n", 1, r"'a\x00.jpg 1'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, line, received):
    with pytest.raises(DataError) as caught:
        open_list(tmp_path, content)
    message = str(caught.value)
    assert f"list.txt, line {line}" in message and received in message and len(message) < 500


@pytest.mark.parametrize("content", [b"", b"\n \r\n"])
def test_a_list_without_images(tmp_path, content):
    with pytest.raises(DataError, match=r"list\.txt"):
        open_list(tmp_path, content)


def test_a_list_in_another_encoding(tmp_path):
    with pytest.raises(DataError, match="UTF-8.*binary file"):
        open_list(tmp_path, "a.jpg 0\n".encode("utf-16"))


def test_a_missing_list_says_how_else_to_give_data(tmp_path):
    for place in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError) as caught:
            open_split(DataConfig(eval_list=str(place)), "eval", num_classes=2, class_names=None)
        assert str(place) in str(caught.value) and "data.eval_root" in str(caught.value)


def test_no_data_at_all():
    with pytest.raises(ConfigError, match=r"data\.train_root.*data\.train_list"):
        open_split(DataConfig(eval_root="."), "train", num_classes=2, class_names=None)
    with pytest.raises(ConfigError, match=r"data\.eval_root.*data\.eval_list"):
        require_split(DataConfig(train_root="."), "eval")


def test_an_image_of_a_list_is_named_with_its_line(tmp_path):
    dataset = open_list(tmp_path, "a.jpg 0\n\nb.jpg 1\n")
    assert dataset.where(1) == f"{tmp_path / 'images' / 'b.jpg'} ({tmp_path / 'list.txt'}, line 3)"


@pytest.fixture
def folders(tmp_path):
    for name in ("cat/2.PNG", "cat/10.jpg", "cat/deep/er/1.jpeg", "a dog/x y.webp", "a dog/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in (".git/a.jpg", "cat/.thumbnails/2.jpg", "cat/._10.jpg", "beside.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def open_folders(root, num_classes=2, class_names=None):
    data = DataConfig(train_root=str(root))
    return open_split(data, "train", num_classes=num_classes, class_names=class_names)


def test_folders_are_classes_in_the_order_of_their_names(folders):
    dataset = open_folders(folders)
    paths = ["a dog/x y.webp", "cat/10.jpg", "cat/2.PNG", "cat/deep/er/1.jpeg"]
    assert names(dataset) == [str(folders / path) for path in paths]
    assert dataset.labels.tolist() == [0, 1, 1, 1] and dataset.labels.dtype == np.int64
    assert dataset.class_names == ClassNames.of(["a dog", "cat"])
    assert dataset.where(0) == str(folders / "a dog/x y.webp")


def test_every_suffix_in_any_case_is_an_image(tmp_path):
    found = ["a.JPG", "b.jpeg", "c.PnG", "d.bmp", "e.webp", "f.gif", "g.tif", "h.TIFF", "i.ppm", "j.jfif"]
    for name in [*found, "k.txt", "l.jpg.part", "m"]:
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [str(tmp_path / name) for name in found]


def test_a_link_that_leads_nowhere_is_listed_so_that_it_is_missed(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    assert list_images(tmp_path) == [str(tmp_path / "a.jpg")]


def test_folders_are_matched_with_known_names(folders, tmp_path):
    known = ClassNames(("a bird", "a cat", "a dog"), ("bird", "cat", "a dog"))
    dataset = open_folders(folders, num_classes=3, class_names=known)
    assert dataset.labels.tolist() == [2, 1, 1, 1] and dataset.class_names == known
    file = tmp_path / "names.txt"
    file.write_text("bird\ta bird\ncat\ta cat\na dog\ta dog\n")
    assert open_folders(folders, num_classes=3, class_names=str(file)).labels.tolist() == [2, 1, 1, 1]


def test_a_folder_that_is_no_class(folders):
    with pytest.raises(DataError, match=r"cat\b.*cats"):
        open_folders(folders, class_names=ClassNames.of(["a dog", "cats"]))
    many = ClassNames.of([f"n{number:08}" for number in range(1000)])
    with pytest.raises(DataError) as caught:
        open_folders(folders, num_classes=1000, class_names=many)
    assert "1000" in str(caught.value) and "n00000999" in str(caught.value) and len(str(caught.value)) < 400


def test_a_number_of_folders_that_does_not_fit(folders):
    with pytest.raises(ConfigError, match=r"data\.train_root.*10.*model\.num_classes=2"):
        open_folders(folders, num_classes=10)


def test_folders_that_are_missing_or_empty(tmp_path):
    with pytest.raises(DataError, match=r"none.*data\.train_root"):
        open_folders(tmp_path / "none")
    (tmp_path / "root" / "class").mkdir(parents=True)
    with pytest.raises(DataError, match=r"root.*data\.train_root"):
        open_folders(tmp_path / "root", num_classes=1)


# Links to folders, and files that are left out.


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target, target_is_directory=True)


@pytest.fixture
def linked(tmp_path):
    """A root of links: cat is a link, and holds a link to more cats; dog holds a folder, and a link to it."""
    touch(tmp_path, "store/cats/1.jpg", "more/2.jpg", "more/deep/3.jpg", "root/dog/z/4.jpg", "root/dog/5.jpg")
    link(tmp_path / "root" / "cat", tmp_path / "store" / "cats")
    link(tmp_path / "store" / "cats" / "part", tmp_path / "more")
    link(tmp_path / "more" / "deep" / "again", tmp_path / "more")
    link(tmp_path / "root" / "dog" / "a", "z")
    return tmp_path / "root"


CATS, DOGS = ["cat/1.jpg", "cat/part/2.jpg", "cat/part/deep/3.jpg"], ["dog/5.jpg", "dog/z/4.jpg"]


def test_links_to_folders_are_followed_by_all_and_each_folder_is_entered_once(linked):
    expected = [str(linked / name) for name in CATS + DOGS]
    for dataset in (open_folders(linked), open_path(linked)):
        assert names(dataset) == expected and dataset.labels.tolist() == [0, 0, 0, 1, 1]
    split = split_folder(linked, 0.5, 0)
    assert sorted(split.train + split.evaluation) == [(n, (0,)) for n in CATS] + [(n, (1,)) for n in DOGS]
    assert find_images(str(linked)) == expected
    assert sorted(map(os.path.basename, find_images(str(linked / "**" / "*.jpg")))) == [
        f"{number}.jpg" for number in range(1, 6)
    ]


@pytest.mark.parametrize("target", ["root", "", "store", "/"])
def test_a_link_that_leads_back_above_its_class_is_refused(linked, tmp_path, target):
    link(linked / "cat" / "back", tmp_path / target)
    for opener in (open_folders, open_path, lambda root: split_folder(root, 0.5, 0)):
        with pytest.raises(DataError, match=r"cat/back .*above"):
            opener(linked)


def test_a_folder_in_two_classes_is_an_error_that_names_both(linked, tmp_path):
    link(linked / "dog" / "mixed", tmp_path / "more")
    for opener in (open_folders, open_path, lambda root: split_folder(root, 0.5, 0)):
        with pytest.raises(DataError, match=r"'cat' and 'dog'.*cat/part.*dog/mixed"):
            opener(linked)
    assert len(find_images(str(linked))) == 5  # without classes


def test_a_class_folder_that_is_a_broken_link_is_named(linked):
    link(linked / "bird", "nowhere")
    for opener in (open_folders, open_path, lambda root: split_folder(root, 0.5, 0)):
        with pytest.raises(DataError, match=r"bird.* nowhere"):
            opener(linked)


def test_walking_from_a_folder_above_the_working_folder(linked, monkeypatch):
    monkeypatch.chdir(linked / "dog" / "z")
    assert find_images("..") == ["../5.jpg", "../z/4.jpg"] and find_images(".") == ["./4.jpg"]


def test_a_folder_that_cannot_be_read_is_named(folders, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cat/deep .*Permission denied"):
        open_folders(folders)


def test_what_is_left_out_is_counted_by_ending(folders, capsys):
    touch(folders, "cat/1.heic", "cat/deep/2.HEIC", "a dog/read.me.md")
    (folders / "cat" / "README").write_text("BMW and other cats")
    open_folders(folders)
    line = f"note: {folders}: 6 files left out: 2 .heic, 1 .md, 1 .txt, 1 beside the class folders, "
    assert capsys.readouterr().err == line + "1 without an ending\n"
    (folders / "beside.jpg").unlink()
    for opener in (open_path, lambda root: split_folder(root, 0.5, 0), lambda root: find_images(str(root))):
        opener(folders)
        assert "5 files left out: 2 .heic, 1 .md, 1 .txt, 1 without an ending" in capsys.readouterr().err
    touch(folders, *(f"cat/{number}.x{number:02}" for number in range(20)))
    open_path(folders)
    assert capsys.readouterr().err.endswith(" 1 .x06, 14 of 14 other endings\n")
    touch(folders, "beside.jpg")
    find_images(str(folders / "*"))
    assert "2 folders" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000"])
def test_a_file_without_an_ending_is_an_image_if_it_begins_as_one(tmp_path, kind):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, kind)
    (tmp_path / "4f2a").write_bytes(buffer.getvalue())
    (tmp_path / "text").write_bytes(b"P. is a letter")
    (tmp_path / "empty").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")  # so that it is missed
    os.mkfifo(tmp_path / "pipe")
    assert list_images(tmp_path) == [str(tmp_path / "4f2a"), str(tmp_path / "gone")]


def test_endings_of_every_format_that_is_read():
    Image.init()
    formats = {"JPEG", "MPO", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "TGA", "JPEG2000", "AVIF"}
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in formats}
    assert known - IMAGE_SUFFIXES <= {".pfm"}  # floats


# Folders that are not classes.


def test_folders_of_other_programs_are_named(folders):
    touch(folders, "__MACOSX/._1.jpg")
    (folders / "beside.jpg").unlink()
    for opener in (open_folders, open_path, lambda root: split_folder(root, 0.5, 0)):
        with pytest.raises(DataError, match="__MACOSX"):
            opener(folders)
    known = ClassNames.of(["__MACOSX", "a dog", "cat"])
    assert len(open_folders(folders, 3, known)) == 4


@pytest.mark.parametrize("parts", [("train", "val"), ("Training", "test"), ("train", "valid")])
def test_the_parts_of_a_dataset_are_no_classes(tmp_path, parts):
    touch(tmp_path, *(f"{part}/{name}/1.jpg" for part in parts for name in ("cat", "dog")))
    for opener in (open_folders, open_path, lambda root: split_folder(root, 0.5, 0)):
        with pytest.raises(DataError) as caught:
            opener(tmp_path)
        assert all(str(tmp_path / part) in str(caught.value) for part in parts)
    assert len(open_folders(tmp_path / parts[0])) == 2 and len(find_images(str(tmp_path))) == 4
    assert open_folders(tmp_path, 2, ClassNames.of(sorted(parts))).labels.tolist() == [0, 0, 1, 1]


def test_the_use_of_the_classes_in_a_line(tmp_path):
    labels = np.array([0, 0, 2, 2, 2])
    line = describe_classes(Dataset.of_files(["x"] * 5, labels, ClassNames.of(["a", "b", "c", "d"])), 4)
    assert "classes: 2 of 4; fewest images: 2 (a), most: 3 (c); 2 without an image: b, d" in line
    assert "model.num_classes=3" in line
    line = describe_classes(Dataset.of_files(["x"] * 5, np.array([0, 0, 1, 1, 1])), 2)
    assert line == "classes: 2; fewest images: 2 (0), most: 3 (1)"


# Lists of many lines, and files that are not there.


ODD = ["./b", "sub//c", "sub/./d", "/abs/e", "sub/../f", "x/", ".", "..", ".hid/g", "//", "a/b/.", "~"]


@pytest.mark.parametrize("root", [".", "/data", "data/", "./data", "/", "//x", "a/../b"])
def test_paths_are_joined_as_pathlib_does(root):
    assert join_paths(Path(root), ODD) == [str(Path(root) / path) for path in ODD]


def test_plain_paths_of_a_list_take_no_pathlib(tmp_path, monkeypatch):
    """It takes 8 of 11 seconds for a million lines."""
    calls = []
    join = PurePath.__truediv__
    monkeypatch.setattr(PurePath, "__truediv__", lambda *both: calls.append(both) or join(*both))
    dataset = open_list(tmp_path, "".join(f"train/n{n % 10}/{n}.JPEG {n % 10}\n" for n in range(1000)))
    assert len(dataset) == 1000 and len(calls) < 20
    assert dataset.digest(str(tmp_path / "images")) == "05e7fc43ecc4eab5"


def test_byte_order_marks_wherever_files_were_joined(tmp_path):
    dataset = open_list(tmp_path, b"\xef\xbb\xbf" * 2 + b"a.jpg 0\n\xef\xbb\xbfb.jpg 9\n")
    assert names(dataset) == [str(tmp_path / "images" / name) for name in ("a.jpg", "b.jpg")]
    assert read(tmp_path, b"\xef\xbb\xbf" * 2 + b"a\n\xef\xbb\xbfb\n", 2) == ClassNames.of(["a", "b"])


def test_a_name_in_another_unicode_form_is_explained(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    touch(tmp_path, f"images/{decomposed}/1.jpg", "images/tea/1.jpg")
    dataset = open_list(tmp_path, f"{composed}/1.jpg 0\n")
    with pytest.raises(FileNotFoundError) as caught:
        dataset.read(0)
    assert "decomposed" in caught.value.strerror
    with pytest.raises(DataError, match="decomposed"):
        find_images(dataset.name(0))
    with pytest.raises(DataError, match="decomposes"):
        open_folders(tmp_path / "images", class_names=ClassNames.of([composed, "tea"]))
    with pytest.raises(FileNotFoundError) as caught:
        Dataset.of_files([str(tmp_path / "gone.jpg")]).read(0)
    assert caught.value.strerror == "No such file or directory"


def test_a_wrong_root_is_named_with_the_right_one(tmp_path):
    touch(tmp_path, "images/cat/1.jpg")
    (tmp_path / "list.txt").write_text("cat/1.jpg 0\ncat/2.jpg 1\n")
    data = DataConfig(eval_list=str(tmp_path / "list.txt"))
    dataset = open_split(data, "eval", num_classes=2, class_names=None)
    with pytest.raises(DataError, match=r"2 files of .*list\.txt.*data\.eval_root=DIR"):
        require_images(dataset, None, "-o data.eval_root=")
    dataset = open_list(tmp_path, "cat/1.jpg 0\n")
    require_images(dataset, tmp_path / "images", "-o data.eval_root=")
    with pytest.raises(DataError) as caught:
        open_path(tmp_path / "list.txt", tmp_path / "images" / "cat")
    assert f"--root {tmp_path / 'images'}." in str(caught.value)


# Class names.


def read(tmp_path, content, num_classes):
    (tmp_path / "names.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_class_names(str(tmp_path / "names.txt"), num_classes)


def test_class_names_with_and_without_folders(tmp_path):
    assert read(tmp_path, "cat\ndog, big\n", 2) == ClassNames.of(["cat", "dog, big"])
    assert read(tmp_path, b"\xef\xbb\xbfn1\tcat\r\nn2\tdog\tbig\r\n\r\n", 2) == ClassNames(
        ("cat", "dog\tbig"), ("n1", "n2")
    )
    assert len(read(tmp_path, "a\u2028b\nc", 2)) == 2


def test_imagenet_class_names():
    names = read_class_names("imagenet1k", 1000)
    assert (names.folders[0], names.folders[999]) == ("n01440764", "n15075141")
    assert names.names[0].startswith("tench") and list(names.folders) == sorted(names.folders)
    assert IMAGENET1K.is_file()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a\nb\nc\n", r"3 .*model\.num_classes is 2"),
        ("a\n\nb\n", "line 2"),
        ("a\na\n", "'a'"),
        ("n1\tcat\nn1\tdog\n", "'n1'"),
        ("", r"0 .*model\.num_classes is 2"),
        (b"\xff\xfea\0", "UTF-8"),
    ],
)
def test_class_names_that_do_not_fit(tmp_path, content, reason):
    with pytest.raises(PpclsError, match=rf"data\.class_names.*names\.txt.*{reason}"):
        read(tmp_path, content, 2)


def test_missing_class_names(tmp_path):
    with pytest.raises(DataError, match=r"data\.class_names.*none\.txt"):
        read_class_names(str(tmp_path / "none.txt"), 2)


# Lists and folders without a config, and patterns.


def test_a_list_is_opened_below_its_own_folder_or_a_root(folders, tmp_path):
    (tmp_path / "list.txt").write_text("cat/10.jpg 1\n\ncat/gone.jpg 999\n")
    dataset = open_path(tmp_path / "list.txt")
    assert names(dataset) == [str(tmp_path / "cat" / "10.jpg"), str(tmp_path / "cat" / "gone.jpg")]
    assert dataset.labels.tolist() == [1, 999] and dataset.class_names is None
    assert dataset.where(1).endswith("list.txt, line 3)")
    with pytest.raises(DataError, match="--root"):
        open_path(tmp_path / "list.txt", tmp_path / "cat")


def test_a_folder_is_opened_with_its_classes_unless_images_are_beside_them(folders):
    everything = open_path(folders)
    assert everything.labels is None and str(folders / "beside.jpg") in names(everything)
    (folders / "beside.jpg").unlink()
    dataset = open_path(folders)
    assert dataset.labels.tolist() == [0, 1, 1, 1] and dataset.class_names == ClassNames.of(["a dog", "cat"])
    assert names(dataset) == [name for name in names(everything) if "beside" not in name]


def test_a_pattern_names_files_a_folder_or_one_file(folders):
    assert find_images(str(folders / "cat")) == list_images(folders / "cat")
    assert find_images(str(folders / "*" / "*.jpg")) == [str(folders / "cat" / "10.jpg")]
    assert find_images(str(folders / "a dog" / "notes.txt")) == [str(folders / "a dog" / "notes.txt")]
    (folders / "empty").mkdir()
    for pattern in (str(folders / "empty"), str(folders / "none" / "*.jpg")):
        with pytest.raises(DataError) as caught:
            find_images(pattern)
        assert pattern in str(caught.value)
    with pytest.raises(DataError, match="Received: an empty text"):
        find_images("")


# Lists of labels as PaddleClas writes them.


def test_numbers_before_the_names_are_the_labels(tmp_path, capsys):
    expected = ClassNames(("crane", "tench, Tinca tinca", "crane"), ("0", "1", "2"))
    assert read(tmp_path, "0 crane\n1 tench, Tinca tinca\n2 crane\n", 3) == expected
    assert "names.txt" in capsys.readouterr().err
    assert read(tmp_path, "2 crane\n0 crane\n1 tench, Tinca tinca\n", 3) == expected
    assert read(tmp_path, "2\tcrane\n0\tcrane\n1\ttench, Tinca tinca\n", 3) == expected
    ten = [f"{number} name {number}" for number in range(11)]
    assert read(tmp_path, "\n".join(sorted(ten)), 11).names[2:] == tuple(f"name {n}" for n in range(2, 11))


def test_numbers_of_folders_stay_folders(tmp_path, capsys):
    """Names as `split` writes them, and folders with names behind a tab."""
    numbers = sorted(map(str, range(11)))
    assert read(tmp_path, "\n".join(numbers), 11) == ClassNames.of(numbers)
    assert read(tmp_path, "1\tpink primrose\n3\tiris\n", 2).folders == ("1", "3")
    assert read(tmp_path, "00\tzero\n01\tone\n", 2) == ClassNames(("zero", "one"), ("00", "01"))
    assert read(tmp_path, "12 monkeys\nheat\n", 2) == ClassNames.of(["12 monkeys", "heat"])
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match="alphabetical"):  # labels or folders?
        read(tmp_path, "\n".join(f"{number}\tname" for number in numbers), 11)


@pytest.mark.parametrize(
    ("content", "received"), [("0 a\n2 b\n", "2"), ("0 a\n0 b\n", "0"), ("1 a\n2 b\n", "2")]
)
def test_labels_with_gaps_or_twice_are_refused(tmp_path, content, received):
    with pytest.raises(DataError, match=rf"names\.txt.*0 to 1.*Received: {received}\b.*folder<TAB>name"):
        read(tmp_path, content, 2)


def test_two_equal_names_are_refused_with_the_cure(tmp_path):
    with pytest.raises(DataError, match=r"'crane'.*folder<TAB>name"):
        read(tmp_path, "crane\ntench\ncrane\n", 3)
    assert read(tmp_path, "n1\tcrane\nn2\tcrane\n", 2).names == ("crane", "crane")


def test_the_classes_of_a_network_are_two_or_more():
    from ppcls import build_model
    from ppcls.config_files import parse_config

    for open_one in (
        lambda: parse_config({"model": {"name": "EfficientNetB0", "num_classes": 1}}),
        lambda: build_model("EfficientNetB0", num_classes=1),
    ):
        with pytest.raises(ConfigError, match=r"num_classes must be at least 2.*Received: 1"):
            open_one()


def test_lists_that_number_the_classes_otherwise_are_refused(tmp_path):
    """As after a new draw with another class: the labels would count for other classes."""
    (tmp_path / "val_list.txt").write_text("a.jpg 0\n")
    data = DataConfig(eval_root=str(tmp_path), eval_list=str(tmp_path / "val_list.txt"))
    options = {"num_classes": 2, "class_names": ClassNames.of(["cat", "dog"])}
    for beside in ("cat\ndog\n", "cat\ndog\nowl\n"):
        (tmp_path / "class_names.txt").write_text(beside)
        assert len(open_split(data, "eval", **options)) == 1
    (tmp_path / "class_names.txt").write_text("ant\ncat\ndog\n")
    with pytest.raises(DataError, match=r"class_names\.txt: class 0 is ant, but cat"):
        open_split(data, "eval", **options)
