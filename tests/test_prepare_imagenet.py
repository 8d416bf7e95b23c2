"""ImageNet from its own archives, on small ones of the same layout: a tar of tars, a flat tar, the devkit."""

import io
import runpy
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image
from scipy.io import savemat
from test_shards import jpeg

from ppcls.config import DataConfig
from ppcls.data.class_names import read_class_names
from ppcls.data.open import open_split
from ppcls.errors import DataError

SYNSETS = read_class_names("imagenet1k", 1000).folders
main = runpy.run_path(str(ROOT / "dataset" / "prepare_imagenet.py"))["main"]


def picture(kind, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (16, 12)).save(buffer, kind)
    return buffer.getvalue()


TRAIN = (
    {  # with the odd files of the real set: a PNG named .JPEG, a CMYK JPEG
        f"{synset}/{synset}_{number}.JPEG": jpeg(100 * label + number)
        for label, synset in enumerate(SYNSETS[:3])
        for number in range(4)
    }
    | {
        "n02105855/n02105855_2933.JPEG": picture("png"),
        "n01739381/n01739381_1309.JPEG": picture("jpeg", "CMYK"),
    }
)
EVAL = {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(900 + number) for number in range(1, 7)}


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def archives(tmp_path):
    """The three archives. The devkit numbers the synsets from the last one on."""
    folder = tmp_path / "archives"
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for synset in sorted({name.partition("/")[0] for name in TRAIN}):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for name, data in TRAIN.items():
                    if name.startswith(synset):
                        add(inner, name.partition("/")[2], data)
            add(outer, f"{synset}.tar", buffer.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for name in sorted(EVAL, reverse=True):
            add(tar, name, EVAL[name])
    rows = np.zeros(1001, [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("num_children", "i4")])
    for number, synset in enumerate(reversed(SYNSETS), 1):
        rows[number - 1] = (number, synset, 0)
    rows[1000] = (1001, "n00001740", 7)  # an inner node of WordNet
    table = io.BytesIO()
    savemat(table, {"synsets": rows})
    truth = "".join(f"{1000 - 7 * number}\n" for number in range(1, 7)).encode()  # labels 7, 14, ...
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", table.getvalue())
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)
    return folder


def prepare(archives, kind, output):
    return main([str(archives), "--to", kind, "--output", str(output), "--any-count"])


def check(data):
    """The images and labels of both parts, whatever holds them."""
    options = {"num_classes": 1000, "class_names": "imagenet1k"}
    evaluation = open_split(data, "eval", **options)
    found = {evaluation.read(i): int(evaluation.labels[i]) for i in range(len(evaluation))}
    assert found == {EVAL[f"ILSVRC2012_val_{number:08d}.JPEG"]: 7 * number for number in range(1, 7)}
    train = open_split(data, "train", **options)
    found = {train.read(i): SYNSETS[train.labels[i]] for i in range(len(train))}
    assert found == {image: name.partition("/")[0] for name, image in TRAIN.items()}


def test_files_with_both_lists(archives, tmp_path, capfd):
    out = tmp_path / "out"
    prepare(archives, "files", out)
    lists = {
        f"{part}_list": str(out / f"{part[:5].replace('eval', 'val')}_list.txt") for part in ("train", "eval")
    }
    check(DataConfig(train_root=str(out), eval_root=str(out), **lists))
    assert "1 PNG" in (text := capfd.readouterr().out) and "1 CMYK JPEG" in text
    first = out / "train" / SYNSETS[0] / f"{SYNSETS[0]}_0.JPEG"
    first.write_bytes(first.read_bytes()[:10])  # cut off
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.JPEG")}
    prepare(archives, "files", out)
    changed = [path for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == [first]
    check(DataConfig(train_root=str(out), eval_root=str(out), **lists))


def test_class_folders(archives, tmp_path):
    prepare(archives, "folders", tmp_path / "out")
    check(DataConfig(train_root=str(tmp_path / "out/train"), eval_root=str(tmp_path / "out/val")))


def test_shards_without_an_unpacked_copy(archives, tmp_path, monkeypatch):
    monkeypatch.setitem(main.__globals__, "SHARD_BYTES", 4000)
    out = tmp_path / "out"
    prepare(archives, "shards", out)
    data = DataConfig(train_root=str(out / "train"), eval_root=str(out / "val"))
    check(data)
    assert not list(out.rglob("*.JPEG")) and len(list((out / "train").glob("*.tar"))) > 2
    labels = open_split(data, "train", num_classes=1000, class_names="imagenet1k").labels.tolist()
    assert labels != sorted(labels)
    whole = {path.name: path.read_bytes() for path in (out / "train").iterdir()}
    kept = (out / "train" / "shard-000000.tar").stat().st_mtime_ns
    for path in sorted((out / "train").iterdir())[:1] + sorted((out / "train").glob("*.tar"))[1:]:
        path.unlink()  # as a run leaves them that was killed within the second shard
    prepare(archives, "shards", out)
    assert (out / "train" / "shard-000000.tar").stat().st_mtime_ns == kept
    tars = {path.name: path.read_bytes() for path in (out / "train").glob("*.tar")}
    assert tars == {name: data for name, data in whole.items() if name.endswith(".tar")}
    check(data)


def test_wrong_archives(archives, tmp_path):
    with pytest.raises(DataError, match="50000"):
        main([str(archives), "--to", "files", "--output", str(tmp_path / "out")])
    with pytest.raises(DataError, match="ILSVRC2012_img_val.tar"):
        main([str(tmp_path), "--to", "files"])
    path = archives / "ILSVRC2012_img_train.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="ILSVRC2012_img_train.tar"):
        prepare(archives, "files", tmp_path / "out")
    (archives / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="devkit"):
        prepare(archives, "files", tmp_path / "out")


def test_as_a_command(archives, tmp_path):
    """From the archives to the line that evaluates them."""
    command = [sys.executable, "dataset/prepare_imagenet.py", str(archives), "--to", "folders", "--any-count"]
    result = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert f"data.eval_root={tmp_path / 'out' / 'val'}" in result.stdout
