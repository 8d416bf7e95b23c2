"""List files, class folders and class names, as people write them."""

import numpy as np
import pytest

from ppcls.config import DataConfig
from ppcls.data.class_names import IMAGENET1K, ClassNames, read_class_names
from ppcls.data.dataset import open_path, open_split, require_split
from ppcls.data.files import find_images, list_images
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
    with pytest.raises(DataError, match="UTF-8"):
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
