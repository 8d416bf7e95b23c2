"""Shards: WebDataset's tars, written, indexed and read at their place. The package webdataset is the peer."""

import io
import os
import pickle
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import webdataset
from helpers import value_from
from PIL import Image

from ppcls.config import DataConfig
from ppcls.data.__main__ import main
from ppcls.data.loader import eval_batch_indices, load_batches, train_batch_indices
from ppcls.data.open import open_images, open_path, open_split
from ppcls.data.shard_index import INDEX_FILE, Shard, read_index, write_index
from ppcls.data.tars import Members, resolve_labels
from ppcls.data.transforms import EvalTransform
from ppcls.errors import ConfigError, DataError, PpclsError
from ppcls.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(8, 8, "bilinear", False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def jpeg(seed, size=24):
    pixels = np.random.RandomState(seed).randint(0, 256, (size, size, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path):
    """23 pictures in three class folders: odd names, equal stems, a PNG, a name without an ending."""
    folder = tmp_path / "photos"
    names = {
        "cat": ["a.jpg", "a.png", "b.c.jpeg", "ж ö.JPG", "x" * 150 + ".jpg", "raw"],
        "dog": [f"{number}.jpg" for number in range(12)],
        "ox": [f"{number:02}.jpg" for number in range(5)],
    }
    for label, (name, files) in enumerate(names.items()):
        (folder / name).mkdir(parents=True)
        for number, file in enumerate(files):
            data = jpeg(100 * label + number)
            if file.endswith(".png"):
                buffer = io.BytesIO()
                Image.open(io.BytesIO(data)).save(buffer, "png")
                data = buffer.getvalue()
            (folder / name / file).write_bytes(data)
    return folder


def packed(source, output, *options):
    assert main(["pack", str(source), str(output), "--shard-size", "8kB", *options]) == 0
    return open_path(output)


def tar_of(path, files):
    """Write a tar of (name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_a_folder_is_packed_and_read(photos, tmp_path, capfd):
    shards, files = packed(photos, tmp_path / "out"), open_path(photos)
    assert (
        f"{len(files)} images in {len(list((tmp_path / 'out').glob('*.tar')))} shards"
        in capfd.readouterr().out
    )
    assert len(list((tmp_path / "out").glob("*.tar"))) > 2
    assert (
        len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
    )  # others may read the index
    assert [shards.read(i) for i in range(len(shards))] == [files.read(i) for i in range(len(files))]
    assert shards.labels.tolist() == files.labels.tolist()
    assert shards.class_names.folders == ("cat", "dog", "ox")
    assert shards.name(0) == "cat/a.jpg" and shards.name(1) == "cat/a-2.png"
    assert "cat/b_c.jpeg in" in shards.where(2) and "shard-000000.tar" in shards.where(2)
    one = shards.select([7, 2]).select([1])
    assert (one.name(0), one.labels.tolist(), one.read(0)) == (shards.name(2), [0], files.read(2))


def test_webdataset_reads_the_same(photos, tmp_path):
    shards = packed(photos, tmp_path / "out")
    urls = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in theirs] == [
        shards.name(i).rpartition(".")[0] for i in range(len(shards))
    ]
    assert [int(sample["cls"]) for sample in theirs] == shards.labels.tolist()
    images = [next(v for k, v in s.items() if k in ("jpg", "jpeg", "png", "JPG")) for s in theirs]
    assert images == [shards.read(i) for i in range(len(shards))]


@pytest.mark.parametrize("kind", ["cls", "json", "txt"])
def test_shards_of_webdataset_are_indexed(kind, tmp_path):
    """Other members beside the image, long and non-ASCII keys; labels as numbers and as words."""
    labels = {
        "cls": lambda i: i % 3,
        "json": lambda i: {"label": i % 3, "x": [1]},
        "txt": lambda i: "abc"[i % 3],
    }
    with webdataset.ShardWriter(str(tmp_path / "s-%06d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            key = f"sub/žal_{number:03d}" + "y" * (150 if number == 3 else 0)
            sample = {
                "__key__": key,
                "meta.json": {"no": "label"},
                "jpg": jpeg(number),
                kind: labels[kind](number),
            }
            writer.write(sample)
    assert main(["index", str(tmp_path / "s-{000000..000002}.tar")]) == 0
    shards = open_path(tmp_path)
    assert shards.labels.tolist() == [number % 3 for number in range(10)]
    assert [shards.read(number) for number in range(10)] == [jpeg(number) for number in range(10)]
    assert (shards.class_names is None) == (kind != "txt")
    assert shards.name(3).startswith("sub/žal_003yyy")


def test_a_pax_header_before_each_member_and_the_label_before_the_image(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(3):
            for name, data in ((f"{number}.cls", b"1\n"), (f"{number}.jpg", jpeg(number))):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(data), 1.5  # not a whole number: pax has to say it
                tar.addfile(member, io.BytesIO(data))
    main(["index", str(tmp_path)])
    shards = open_path(tmp_path)
    assert shards.labels.tolist() == [1, 1, 1] and shards.read(2) == jpeg(2)


def test_batches_are_those_of_the_files(photos, tmp_path):
    shards, files = packed(photos, tmp_path / "out"), open_path(photos)
    images = []
    for dataset in (shards, files):
        batches = load_batches(
            dataset,
            eval_batch_indices(len(dataset), 5),
            EvalTransform(PREPROCESSING),
            PREPROCESSING,
            num_workers=2,
        )
        found = np.concatenate([batch.images for batch in batches])
        images.append(found)
    np.testing.assert_array_equal(*images)
    order = [d.source.shuffle(np.arange(23), np.random.RandomState(3)).tolist() for d in (shards, files)]
    assert order[0] == order[1]


def test_shards_stand_for_a_list_and_for_a_folder(photos, tmp_path):
    out = tmp_path / "out"
    packed(photos, out)
    options = {"num_classes": 3, "class_names": None}
    for data in (
        DataConfig(train_root=str(out)),
        DataConfig(train_root="elsewhere", train_list=str(out / INDEX_FILE)),
        DataConfig(train_root="elsewhere", train_list=str(out)),
    ):
        dataset = open_split(data, "train", **options)
        assert len(dataset) == 23 and dataset.class_names.names == ("cat", "dog", "ox")
    names = tmp_path / "names.txt"
    names.write_text("ox\ncat\ndog\n")
    dataset = open_split(data, "train", num_classes=3, class_names=str(names))
    assert np.bincount(dataset.labels).tolist() == [5, 6, 12]
    with pytest.raises(ConfigError, match="model.num_classes=3"):
        open_split(data, "train", num_classes=4, class_names=None)
    names.write_text("ox\ncat\ndig\n")
    with pytest.raises(DataError, match="dog"):
        open_split(data, "train", num_classes=3, class_names=str(names))


def test_a_moved_set_is_read_and_its_digest_stays(photos, tmp_path):
    shards = packed(photos, tmp_path / "out")
    digest, data = shards.digest(None), shards.read(3)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert open_path(tmp_path / "moved").digest(None) == digest
    assert open_path(tmp_path / "moved").read(3) == data
    assert shards.select([0, 1]).digest(None) != shards.select([1, 0]).digest(None) != digest
    again = packed(photos, tmp_path / "again")
    assert [s.sha256 for s in again.source.index.shards] == [s.sha256 for s in shards.source.index.shards]


def test_packing_mixes_on_request_and_keeps_what_is_there(photos, tmp_path):
    plain, mixed = packed(photos, tmp_path / "a"), packed(photos, tmp_path / "b", "--shuffle", "1")
    assert mixed.labels.tolist() != plain.labels.tolist() == sorted(plain.labels.tolist())
    assert {mixed.read(i) for i in range(23)} == {plain.read(i) for i in range(23)}
    with pytest.raises(DataError, match="--overwrite"):
        main(["pack", str(photos), str(tmp_path / "a")])
    main(["pack", str(photos), str(tmp_path / "a"), "--overwrite"])
    assert len(list((tmp_path / "a").glob("*.tar"))) == 1 and len(open_path(tmp_path / "a")) == 23
    for folder in (photos, tmp_path / "b"):  # which would mean the shards, or lose those it holds
        before = sorted(folder.rglob("*"))
        with pytest.raises(DataError, match=str(folder)):
            main(["pack", str(folder), str(folder), "--overwrite"])
        assert sorted(folder.rglob("*")) == before
    assert len(open_path(tmp_path / "b")) == 23


def test_threads_forks_and_pickles_read_alike(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("ppcls.data.shards._OPEN", 2)  # fewer than there are shards
    shards = packed(photos, tmp_path / "out")
    expected = [shards.read(index) for index in range(23)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shards.read, list(range(23)) * 20)) == expected * 20
    assert pickle.loads(pickle.dumps(shards)).read(5) == expected[5]
    child = os.fork()
    if not child:
        os._exit([shards.read(index) for index in range(23)] != expected)
    assert os.waitpid(child, 0)[1] == 0


def changed(path, edit):
    """Change a file's bytes and let its time say so."""
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


def test_shards_that_changed_are_refused(photos, tmp_path, capfd):
    shards = packed(photos, tmp_path / "out")
    first = tmp_path / "out" / "shard-000000.tar"
    os.utime(first, ns=(1, 1))  # copied: the same bytes, another time
    assert open_path(tmp_path / "out").read(0) == shards.read(0)
    assert "SHA-256" in capfd.readouterr().err
    changed(first, lambda data: data.__setitem__(700, data[700] ^ 1))
    for read in (
        open_path(tmp_path / "out").read,
        lambda i: next(batches(open_path(tmp_path / "out"), "skip")),
    ):
        with pytest.raises(PpclsError, match=r"shard-000000\.tar.*ppcls data index"):
            read(0)
    changed(first, lambda data: data.__delitem__(slice(1024, 1536)))
    with pytest.raises(PpclsError, match=r"shard-000000\.tar"):
        open_path(tmp_path / "out").read(0)
    first.unlink()
    with pytest.raises(PpclsError, match=r"shard-000000\.tar"):
        open_path(tmp_path / "out").read(0)


def batches(dataset, on_error):
    options = {"num_workers": 2, "on_error": on_error}
    indices = eval_batch_indices(len(dataset), 4)
    return load_batches(dataset, indices, EvalTransform(PREPROCESSING), PREPROCESSING, **options)


def test_images_are_used_again_as_in_training(photos, tmp_path):
    """A small set fills more batches than it has images: further uses have larger numbers."""
    whole = packed(photos, tmp_path / "out")
    for dataset in (whole, whole.select(range(0, 23, 2))):
        order = train_batch_indices(dataset.source, 8, seed=0, epoch=0, min_batches=9)
        loaded = load_batches(dataset, order, EvalTransform(PREPROCESSING), PREPROCESSING, num_workers=2)
        used = np.concatenate([batch.indices for batch in loaded])
        assert len(used) == 72 and set(used.tolist()) == set(range(len(dataset)))


def test_a_damaged_picture_is_named_by_shard_and_key(tmp_path):
    tar_of(tmp_path / "a.tar", [("0.jpg", jpeg(0)), ("0.cls", b"0"), ("1.jpg", b"no image"), ("1.cls", b"1")])
    main(["index", str(tmp_path)])
    with pytest.raises(DataError, match=r"1\.jpg in .*a\.tar"):
        list(batches(open_path(tmp_path), "fail"))
    assert [item.name for batch in batches(open_path(tmp_path), "skip") for item in batch.unreadable] == [
        "1.jpg"
    ]


J = jpeg(0)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            [("a.jpg", J), ("a.cls", b"0"), ("b.jpg", J), ("b.cls", b"1"), ("a.jpg", J), ("a.cls", b"0")],
            "key a",
        ),
        ([("a.jpg", J), ("a.cls", b"0"), ("b.jpg", J)], "b.jpg has no label"),
        ([("a.jpg", J), ("a.cls", b"0"), ("b.cls", b"1")], "b has no image"),
        ([("a.jpg", J), ("a.png", J), ("a.cls", b"0")], "--image"),
        ([("a.jpg", J), ("a.cls", b"-1")], "a.cls"),
        ([("a.jpg", J), ("a.json", b"{")], "a.json"),
        ([("a.jpg", J), ("a.json", b'{"label": 1.5}')], "1.5"),
        ([("a.jpg", J), ("a.cls", b"0"), ("b.jpg", J), ("b.cls", b"cat")], "b.jpg has a word"),
        ([("a.jpg", J), ("a.cls", b"0"), ("b.tar", J)], "b.tar is an archive"),
        ([("readme", b"x")], "no sample"),
    ],
)
def test_wrong_archives_are_refused(files, words, tmp_path):
    tar_of(tmp_path / "bad.tar", files)
    with pytest.raises(DataError, match=words) as error:
        main(["index", str(tmp_path / "bad.tar")])
    assert "bad.tar" in str(error.value)
    assert not (tmp_path / INDEX_FILE).exists()


@pytest.mark.parametrize("place", ["member", "end", "middle"])
def test_a_cut_archive_is_refused(place, tmp_path):
    path = tar_of(tmp_path / "cut.tar", [("a.jpg", J), ("a.cls", b"0"), ("b.jpg", J), ("b.cls", b"0")])
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    size = {"member": last.offset, "end": last.offset_data + 512, "middle": last.offset - 700}[place]
    os.truncate(path, size)
    with pytest.raises(DataError, match=r"cut\.tar is cut off"):
        main(["index", str(path)])


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_archive_is_refused(mode, tmp_path):
    with tarfile.open(tmp_path / "a.tar", mode) as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(DataError, match=r"a\.tar is compressed"):
        main(["index", str(tmp_path / "a.tar")])


@pytest.mark.parametrize("open_it", [lambda path: open_path(path), lambda path: open_images(str(path))])
def test_a_tar_without_its_index_names_the_command_that_makes_it(open_it, tmp_path):
    (tmp_path / "x.tar").write_bytes(b"\0" * 1024)
    with pytest.raises(DataError, match=r"data index .*x\.tar"):
        open_it(tmp_path / "x.tar")
    folder = tmp_path / "folder.tar"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    assert len(open_it(folder)) == 1


def test_wrong_places_are_refused(photos, tmp_path):
    with pytest.raises(DataError, match=r"none-\{000\.\.002\}|none-000"):
        main(["index", str(tmp_path / "none-{000..002}.tar")])
    with pytest.raises(DataError, match=r"\{2\.\.1\}"):
        main(["index", str(tmp_path / "none-{2..1}.tar")])
    packed(photos, tmp_path / "out")
    with pytest.raises(DataError, match="--output"):
        main(["index", "s3://bucket/a.tar"])
    with pytest.raises(DataError, match="shard-size"):
        main(["pack", str(photos), str(tmp_path / "x"), "--shard-size", "big"])
    with pytest.raises(DataError, match="--shuffle.*-1"):
        main(["pack", str(photos), str(tmp_path / "x"), "--shuffle", "-1"])
    index = tmp_path / "out" / INDEX_FILE
    index.write_bytes(index.read_bytes()[:200])
    with pytest.raises(DataError, match="cut off"):
        open_path(tmp_path / "out")
    with pytest.raises(DataError, match="ppcls data index"):
        open_split(DataConfig(train_root="s3://b/{0..3}.tar"), "train", num_classes=2, class_names=None)


def test_several_images_of_a_sample(tmp_path):
    tar_of(
        tmp_path / "a.tar",
        [("a.left.jpg", J), ("a.right.jpg", jpeg(1)), ("a.json", b'{"label": 2}')],
    )
    assert main(["index", str(tmp_path), "--image", "right.jpg"]) == 0
    assert open_path(tmp_path).read(0) == jpeg(1)


def test_an_index_is_made_in_columns(tmp_path):
    """The memory for each image while shards are read and their index is written: no lists of texts."""
    shards, images = 4, 40_000
    members = [Members() for _ in range(shards)]
    tracemalloc.start()
    for number in range(images):
        name = f"train/n{number % 1000:08}/{number:010}.jpg"
        members[number * shards // images].add(name, number, 100, (number % 1000,))
    names = [f"{number}.tar" for number in range(shards)]
    labels, _ = resolve_labels(members, names, None)
    write_index(tmp_path / INDEX_FILE, [Shard(name, 1) for name in names], members, labels, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    index = read_index(tmp_path / INDEX_FILE)
    assert index.name(0) == "train/n00000000/0000000000.jpg"
    assert index.name(images - 1) == f"train/n00000999/{images - 1:010}.jpg"
    assert index.name(10_000) == "train/n00000000/0000010000.jpg" and len(index) == images
    assert index.labels.values.tolist() == [number % 1000 for number in range(images)]
    assert peak / images < 185  # 156 with these names of 30 bytes; lists of texts and labels took 330


def test_a_million_samples_open_at_once(tmp_path):
    """Opening reads the header alone: time and memory do not grow with the images."""
    code = f"""
import numpy as np
from safetensors.numpy import save_file
import json
n = 1_000_000
names = np.frombuffer(b"".join(b"train/n%08d/%010d.jpg" % (i % 1000, i) for i in range(n)), np.uint8)
columns = dict(offset=np.arange(n) * 1000, size=np.full(n, 900), names=names, labels=np.arange(n) % 1000,
    name_ends=np.arange(1, n + 1) * 30, starts=np.array([0, n]))
shards = [dict(name="a.tar", size=1, sha256="0", mtime_ns=1)]
metadata = dict(ppcls_index="1", shards=json.dumps(shards), class_names="null")
save_file(columns, {str(tmp_path / INDEX_FILE)!r}, metadata)
"""
    value_from(code + "print(1)")
    opened = value_from(
        f"""
import time
from pathlib import Path
from ppcls.data.open import open_path
def kilobytes():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
before, start = kilobytes(), time.perf_counter()
dataset = open_path(Path({str(tmp_path)!r}))
print((time.perf_counter() - start, kilobytes() - before, len(dataset), dataset.name(999_999)))
"""
    )
    assert opened[0] < 1 and opened[1] < 60_000
    assert opened[2:] == (1_000_000, "train/n00000999/0000999999.jpg")
