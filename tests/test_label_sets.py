"""Several labels of an image: in lists, in shards, by links; in sampling, weights and batches."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_sample_weight
from test_shards import jpeg, tar_of

from ppcls.cli.data import main
from ppcls.config import DataConfig
from ppcls.data.check import find_problems, inspect_images
from ppcls.data.class_weights import resolve_class_weights
from ppcls.data.dataset import Dataset, describe_classes
from ppcls.data.files import Files
from ppcls.data.folders import _join_linked
from ppcls.data.label_sets import LabelSets
from ppcls.data.loader import load_batch
from ppcls.data.mixing import Mix, mix_labels
from ppcls.data.open import open_path, open_split
from ppcls.data.sampling import repeat_factors
from ppcls.data.shard_index import INDEX_FILE, read_index
from ppcls.data.split import split_folder
from ppcls.data.transforms import EvalTransform
from ppcls.errors import ConfigError, DataError
from ppcls.preprocessing import Preprocessing

ROWS = [[3, 17, 256], [3], [0, 17], [256], [5, 17]]
SETS = LabelSets.of_sizes(sum(ROWS, []), [len(row) for row in ROWS])
PREPROCESSING = Preprocessing(8, 8, "bilinear", False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def rows_of(sets):
    return [sets[number] for number in range(len(sets))]


@pytest.fixture
def photos(tmp_path):
    """A list of five pictures, four of them with several labels or one, and one line of each kind."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(len(ROWS)):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    lines = ["0.jpg 256,3,17", "1.jpg 3", "2.jpg\t17,0", "3.jpg 256", "./4.jpg  5,17\r"]
    (folder / "list.txt").write_text("\n".join(lines))
    return folder


def open_list(folder, content, num_classes=1000):
    (folder / "list.txt").write_text(content)
    data = DataConfig(eval_root=str(folder), eval_list=str(folder / "list.txt"))
    return open_split(data, "eval", num_classes=num_classes, class_names=None)


def test_rows_of_any_length():
    assert rows_of(SETS) == ROWS and len(SETS) == 5 and not SETS.is_single
    assert rows_of(SETS.select([4, 1, 4])) == [ROWS[4], ROWS[1], ROWS[4]]
    assert rows_of(SETS.select([])) == [] and SETS.images.tolist() == [0, 0, 0, 1, 2, 2, 3, 4, 4]
    labels, shares = SETS.targets(np.array([1, 0, 2]))
    assert labels.tolist() == [[3, 3, 3], [3, 17, 256], [0, 17, 17]]
    np.testing.assert_allclose(shares, [[1, 0, 0], [1 / 3] * 3, [1 / 2, 1 / 2, 0]])
    assert (labels.dtype, shares.dtype) == (np.int64, np.float32)
    padded = LabelSets.of_labels(np.array([[1, 2, 2], [0, 0, 0]]))
    assert rows_of(padded) == [[1, 2], [0]]
    assert SETS.select([1, 2, 3]).first_outside(200) == (2, 256) and SETS.first_outside(257) is None


def test_a_list_mixes_one_label_and_several(photos):
    dataset = open_path(photos / "list.txt")
    assert dataset.labels is None and rows_of(dataset.label_sets) == ROWS == rows_of(dataset.all_labels)
    assert rows_of(dataset.select([2, 3]).label_sets) == [[0, 17], [256]]
    other = open_list(photos, "0.jpg 3,17,256\n1.jpg 3\n2.jpg 17,0\n3.jpg 256\n4.jpg 5,18")
    same = open_list(photos, "0.jpg 17,3,256\n1.jpg 3\n2.jpg 0,17\n3.jpg 256\n4.jpg 17,5")
    assert dataset.digest(str(photos)) == same.digest(str(photos)) != other.digest(str(photos))
    lists = "0.jpg 3,4\n1.jpg 5\n", "0.jpg 3\n1.jpg 4,5\n"
    assert len({open_list(photos, content).digest(str(photos)) for content in lists}) == 2
    single = open_list(photos, "0.jpg 3\n1.jpg 4\n")
    assert single.labels.tolist() == [3, 4] and single.label_sets is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1.jpg 3,4,3", "twice.*3,4,3"),
        ("1.jpg 3,,4", "3,,4"),
        ("1.jpg 3,", "3,"),
        ("1.jpg ,", "1.jpg ,"),
        ("1.jpg 3, 4", "3, 4"),
        ("1.jpg ", "1.jpg"),
        ("1.jpg 3,-4", "3,-4"),
        ("1.jpg 3,1000", "1000 is outside 0 to 999"),
    ],
)
def test_a_wrong_set_is_named_with_its_line(photos, line, words):
    with pytest.raises(DataError, match=words) as error:
        open_list(photos, f"0.jpg 1,2\n{line}\n")
    assert f"{photos / 'list.txt'}, line 2" in str(error.value)


def test_packing_and_indexing_keep_the_labels(photos, tmp_path):
    """As JSON, so that other readers of shards find numbers too. The index is a map of the file."""
    assert main(["pack", str(photos / "list.txt"), str(tmp_path / "shards"), "--shard-size", "2kB"]) == 0
    shards = open_path(tmp_path / "shards")
    assert rows_of(shards.label_sets) == ROWS and not shards.label_sets.values.flags.owndata
    assert len(list((tmp_path / "shards").glob("*.tar"))) > 1
    digest = shards.digest(None)
    (tmp_path / "shards" / INDEX_FILE).unlink()
    assert main(["index", str(tmp_path / "shards")]) == 0
    again = open_path(tmp_path / "shards")
    assert rows_of(again.label_sets) == ROWS and again.read(3) == (photos / "3.jpg").read_bytes()
    assert len(digest) == 16 and rows_of(again.select([4, 0]).label_sets) == [ROWS[4], ROWS[0]]


def test_webdataset_reads_the_labels(photos, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    main(["pack", str(photos / "list.txt"), str(tmp_path / "shards")])
    found = webdataset.WebDataset(str(tmp_path / "shards/shard-000000.tar"), shardshuffle=False).decode()
    assert [sample["json"]["labels"] for sample in found] == ROWS


@pytest.mark.parametrize(
    ("files", "rows", "names"),
    [
        ({"a.cls": "3, 17", "b.cls": "5"}, [[3, 17], [5]], None),
        ({"a.json": '{"labels": [17, 3], "w": 2}', "b.json": '{"label": 5}'}, [[3, 17], [5]], None),
        ({"a.json": '{"label": null, "labels": ["7"]}', "b.json": "[1, 2]"}, [[7], [1, 2]], None),
        ({"a.json": '{"labels": ["cat, wild", "ox"]}', "b.cls": "ox"}, [[0, 1], [1]], ["cat, wild", "ox"]),
    ],
)
def test_labels_of_other_peoples_shards(files, rows, names, tmp_path):
    members = [(f"{name[0]}.jpg", jpeg(0)) for name in files]
    parts = zip(members, ((name, text.encode()) for name, text in files.items()), strict=True)
    tar_of(tmp_path / "a.tar", [member for pair in parts for member in pair])
    assert main(["index", str(tmp_path)]) == 0
    dataset = open_path(tmp_path)
    assert rows_of(dataset.all_labels) == rows
    assert dataset.class_names is None if names is None else dataset.class_names.folders == tuple(names)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b.cls", "3,3"),
        ("b.cls", "3,,4"),
        ("b.cls", "3,-4"),
        ("b.json", '{"labels": []}'),
        ("b.json", '{"labels": [3, 3]}'),
        ("b.json", '{"labels": [3, null]}'),
        ("b.json", '{"labels": [3, 1.5]}'),
        ("b.json", '{"labels": [3, [4]]}'),
        ("b.json", '{"labels": ["cat", ""]}'),
        ("b.json", '{"label": 1000000000000000000000}'),
        ("b.json", "[" * 9999),
    ],
)
def test_wrong_labels_are_named_with_shard_and_key(name, text, tmp_path):
    files = [("a.jpg", jpeg(0)), ("a.cls", b"0"), ("b.jpg", jpeg(1)), (name, text.encode())]
    tar_of(tmp_path / "bad.tar", files)
    with pytest.raises(DataError, match=f"bad.tar: {name}"):
        main(["index", str(tmp_path / "bad.tar")])


def test_a_number_among_words_is_refused(tmp_path):
    tar_of(tmp_path / "bad.tar", [("a.jpg", jpeg(0)), ("a.json", b'{"labels": [3, "cat"]}')])
    with pytest.raises(DataError, match="bad.tar: a.jpg has a word"):
        main(["index", str(tmp_path / "bad.tar")])


def test_labels_outside_the_network_are_named_with_shard_and_key(photos, tmp_path):
    main(["pack", str(photos / "list.txt"), str(tmp_path / "shards")])
    data = DataConfig(eval_root=str(tmp_path / "shards"))
    with pytest.raises(DataError, match=r"0.jpg in .*shard-000000.tar: label 256 is outside 0 to 199"):
        open_split(data, "eval", num_classes=200, class_names=None)


def test_words_are_numbered_as_the_network_has_them(tmp_path):
    """A vocabulary of another size is an error."""
    texts = {"a": b'{"labels": ["cat", "ox"]}', "b": b'{"labels": ["dog", "ox"]}'}
    tar_of(
        tmp_path / "a.tar", [f for k, t in texts.items() for f in ((f"{k}.jpg", jpeg(0)), (f"{k}.json", t))]
    )
    main(["index", str(tmp_path)])
    data = DataConfig(eval_root=str(tmp_path))
    (tmp_path / "names.txt").write_text("ox\ndog\nbird\ncat\n")
    named = open_split(data, "eval", num_classes=4, class_names=str(tmp_path / "names.txt"))
    assert [set(row) for row in rows_of(named.label_sets)] == [{3, 0}, {1, 0}]
    own = open_split(data, "eval", num_classes=3, class_names=None)
    assert rows_of(own.label_sets) == [[0, 2], [1, 2]]
    with pytest.raises(ConfigError, match="names 3 classes, but model.num_classes is 17"):
        open_split(data, "eval", num_classes=17, class_names=None)
    (tmp_path / "names.txt").write_text("ox\nbird\ncat\n")
    with pytest.raises(DataError, match="dog"):
        open_split(data, "eval", num_classes=3, class_names=str(tmp_path / "names.txt"))


def test_an_index_of_one_label_each_is_that_of_earlier_versions(tmp_path):
    tar_of(tmp_path / "a.tar", [("a.jpg", jpeg(0)), ("a.json", b'{"labels": [4]}')])
    main(["index", str(tmp_path)])
    index = read_index(tmp_path / INDEX_FILE)
    assert "label_starts" not in index.columns and open_path(tmp_path).labels.tolist() == [4]
    header = (tmp_path / INDEX_FILE).read_bytes()
    assert (
        json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]["ppcls_index"] == "1"
    )
    tar_of(tmp_path / "a.tar", [("a.jpg", jpeg(0)), ("a.cls", b"4,5")])
    main(["index", str(tmp_path)])
    assert b'"ppcls_index":"2"' in (tmp_path / INDEX_FILE).read_bytes()[:2000]  # earlier ones refuse it


@pytest.fixture
def linked(tmp_path):
    """Three class folders; a picture of each kind of link is in two or three of them."""
    root = tmp_path / "classes"
    for name, count in (("cat", 3), ("dog", 2), ("ox", 0)):
        (root / name / "more").mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.jpg").write_bytes(jpeg(len(name) + number))
    (root / "dog/soft.jpg").symlink_to("../cat/0.jpg")
    (root / "ox/more/soft.jpg").symlink_to(root / "cat/0.jpg")
    os.link(root / "cat/1.jpg", root / "dog/more/hard.jpg")
    os.link(root / "cat/2.jpg", root / "cat/again.jpg")  # in one class, so two samples as before
    (root / "ox/2.jpg").symlink_to("../dog/1.jpg")
    return root


def test_a_picture_linked_into_several_class_folders_has_their_labels(linked):
    data = DataConfig(eval_root=str(linked))
    for dataset in (open_split(data, "eval", num_classes=3, class_names=None), open_path(linked)):
        found = {
            os.path.relpath(dataset.name(n), linked): row for n, row in enumerate(rows_of(dataset.label_sets))
        }
        assert found == {
            "cat/0.jpg": [0, 1, 2],
            "cat/1.jpg": [0, 1],
            "cat/2.jpg": [0],
            "cat/again.jpg": [0],
            "dog/0.jpg": [1],
            "dog/1.jpg": [1, 2],
        }


def test_each_path_of_a_linked_picture_has_all_of_its_classes(linked):
    """It is twice in one class, and both times it is of the other class too."""
    (linked / "ox/third.jpg").symlink_to("../cat/again.jpg")
    dataset = open_path(linked)
    rows = {Path(dataset.name(n)).name: row for n, row in enumerate(rows_of(dataset.label_sets))}
    assert rows["2.jpg"] == rows["again.jpg"] == [0, 2] and "third.jpg" not in rows


def test_files_of_the_same_number_on_two_disks_are_two_pictures(linked, monkeypatch):
    monkeypatch.setattr("ppcls.data.folders._numbers_in", lambda folder: dict.fromkeys(os.listdir(folder), 7))
    cat, dog = str(linked / "cat/1.jpg"), str(linked / "dog/0.jpg")
    assert _join_linked({"cat": [cat], "dog": [dog]}) == {cat: ("cat",), dog: ("dog",)}


def test_splitting_keeps_the_labels_of_links(linked, tmp_path):
    split = split_folder(linked, 0.5, 0)
    assert dict(split.train + split.evaluation)["cat/0.jpg"] == (0, 1, 2)
    assert main(["split", str(linked), "--output", str(tmp_path)]) == 0
    lists = (tmp_path / "train_list.txt").read_text() + (tmp_path / "val_list.txt").read_text()
    assert {"cat/0.jpg 0,1,2", "dog/1.jpg 1,2", "dog/0.jpg 1"} <= set(lists.splitlines())
    before = sorted(lists.splitlines())
    (linked / "ox/new.jpg").symlink_to("../dog/0.jpg")  # a line stands while its file is there
    (linked / "ox/own.jpg").write_bytes(jpeg(77))
    assert main(["split", str(linked), "--output", str(tmp_path)]) == 0
    lists = (tmp_path / "train_list.txt").read_text() + (tmp_path / "val_list.txt").read_text()
    assert sorted(lists.splitlines()) == sorted([*before, "ox/own.jpg 2"])


def test_classes_are_described_and_checked(photos, linked, capsys):
    dataset = open_path(linked)
    line = describe_classes(dataset, 3)
    assert "fewest images: 2 (ox), most: 4 (cat)" in line and "images with several labels: 3" in line
    (photos / "copy.jpg").write_bytes((photos / "0.jpg").read_bytes())
    for labels, expected in (("3,17", 1), ("3,17,256", 0)):
        (photos / "list.txt").write_text(f"0.jpg 3,17,256\ncopy.jpg {labels}\n")
        copies = open_path(photos / "list.txt")
        found = find_problems([inspect_images(copies, 1)])
        assert (found.conflicts.count, found.duplicates.count) == (expected, 1)


def test_a_large_label_by_mistake_is_described():
    """Such as a date: no array has as many classes."""
    sets = LabelSets.of_sizes([0, 2, 10**9 - 1, 2], [2, 1, 1])
    line = describe_classes(Dataset.of_sets(Files(["a", "b", "c"]), sets))
    assert "classes: 3 of 1000000000" in line and "999999997 without an image: 1, 3, 4, 5, 6, ..." in line


def test_a_batch_has_labels_and_their_shares(photos):
    dataset = open_path(photos / "list.txt")
    batch = load_batch(
        dataset, np.array([2, 6]), EvalTransform(PREPROCESSING), PREPROCESSING, on_error="fail"
    )  # 6 is a further use of 1
    assert batch.labels.tolist() == [[0, 17], [3, 3]] and batch.shares.tolist() == [[0.5, 0.5], [1, 0]]
    plain = batch._replace(labels=np.array([4, 2]), shares=None).with_shares()
    assert plain.labels.tolist() == [[4], [2]] and plain.shares.tolist() == [[1], [1]]
    labels, shares = mix_labels(batch.labels, batch.shares, Mix(0.75, None))
    assert labels.tolist() == [[0, 17, 3, 3], [3, 3, 0, 17]]
    assert shares.tolist() == [[0.375, 0.375, 0.25, 0], [0.75, 0, 0.125, 0.125]]


def test_an_image_is_repeated_by_the_largest_factor_of_its_labels():
    """The definition of https://arxiv.org/abs/1908.03195, written out."""
    random = np.random.RandomState(0)
    rows = [sorted({*(random.randint(0, 9, random.randint(1, 4)) ** 2 // 9).tolist()}) for _ in range(300)]
    sets = LabelSets.of_sizes(sum(rows, []), [len(row) for row in rows])
    share = {c: sum(c in row for row in rows) / 300 for row in rows for c in row}
    for sampling, power in (("sqrt", 0.5), ("balanced", 1.0)):
        expected = np.array([max((max(share.values()) / share[c]) ** power for c in row) for row in rows])
        np.testing.assert_allclose(repeat_factors(sets, sampling), expected / expected.mean(), rtol=1e-12)
    assert repeat_factors(sets, "natural") is None


def test_class_weights_count_an_image_of_k_labels_as_parts_of_its_classes():
    """scikit-learn's weights of the samples, if each label of an image is a sample of weight 1/k."""
    weights = resolve_class_weights("balanced", SETS, 257, None)
    shares = 1 / SETS.sizes[SETS.images]
    sums = np.bincount(SETS.values, shares)
    parts = sums[sums > 0]
    np.testing.assert_allclose((weights[:257] * sums)[sums > 0], np.full(len(parts), 5 / len(parts)))
    repeated = np.repeat(SETS.values, np.rint(shares * 6).astype(int))  # six samples an image
    expected = compute_sample_weight("balanced", repeated)
    np.testing.assert_allclose(weights[repeated], expected, rtol=1e-12)
    factors = repeat_factors(SETS, "balanced")
    both = resolve_class_weights("balanced", SETS, 257, factors)
    used = np.bincount(SETS.values, factors[SETS.images] * shares)
    np.testing.assert_allclose((both * used)[used > 0], np.full(len(parts), 5 / len(parts)))


def test_a_dataset_of_sets_is_one_of_labels_if_each_image_has_one():
    dataset = Dataset.of_files(["a", "b"], np.array([1, 0]))
    assert rows_of(dataset.all_labels) == [[1], [0]]
    assert Dataset.of_sets(dataset.source, dataset.all_labels).labels.tolist() == [1, 0]
    assert Dataset.of_files(["a"]).all_labels is None
