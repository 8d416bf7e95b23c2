"""Files of weights from other projects: read in full, refused if broken, never run."""

import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_entry
from pickled import tensor, text
from safetensors.numpy import save_file

from ppcls.errors import WeightsError
from ppcls.weights.readers import read_file

GOLDEN = Path(__file__).parent / "golden" / "readers"
EXPECTED = dict(np.load(GOLDEN / "expected.npz"))
WHOLE = [
    ("torch", "plain.zip.pth"),
    ("torch", "plain.stream.pth"),
    ("pdparams", "state.paddle2.2.pdparams"),
    ("pdparams", "state.paddle2.4.pdparams"),
    ("pdparams", "state.paddle3.2.pdparams"),
    ("pdparams", "state.paddle3.4.pdparams"),
    ("safetensors", "plain.safetensors"),
]
NAMES = [name for _, name in WHOLE]
# One of each format; those of Paddle 2 differ from those of 3 in one name only.
BREAK = [name for name in NAMES if "paddle2" not in name]


# What the writers meant


@pytest.mark.parametrize(("kind", "name"), WHOLE)
def test_all_values_come_back(kind, name, tmp_path):
    anything = tmp_path / "no ending tells"
    anything.write_bytes((GOLDEN / name).read_bytes())
    read_kind, entries, metadata = read_file(anything)
    assert read_kind == kind
    assert list(entries) == list(EXPECTED) or kind == "safetensors"
    assert set(entries) == set(EXPECTED)
    for key, expected in EXPECTED.items():
        assert_entry(entries[key], expected)
    if kind == "safetensors":
        assert metadata == {"model": "any", "licence": "none"}
    else:
        assert metadata == {"values": {}, "skipped": {}}


@pytest.mark.parametrize("name", ["nested.zip.pth", "nested.stream.pth"])
def test_tensors_in_a_dictionary_have_its_key_before_theirs(name):
    _, entries, metadata = read_file(GOLDEN / name)
    assert_entry(entries["model/module.0.weight"], EXPECTED["weight"])
    assert_entry(entries["model/module.0.bias"], EXPECTED["bias"])
    assert_entry(entries["model/module.1.num_batches_tracked"], np.array(1))
    assert len(entries) == 7 and metadata["skipped"] == {}
    values = {key: metadata["values"][key] for key in ("epoch", "accuracy", "arch", "args/lr")}
    assert values == {"epoch": 3, "accuracy": 0.86, "arch": "resnext", "args/lr": 0.1}


@pytest.mark.parametrize("paddle", [2, 3])
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_that_paddle_names_come_back(paddle, protocol):
    _, entries, metadata = read_file(GOLDEN / f"mixed.paddle{paddle}.{protocol}.pdparams")
    assert set(entries) == {"weight", "bias", "transposed"}
    for key, entry in entries.items():
        assert_entry(entry, EXPECTED[key])
    assert metadata == {"values": {"epoch": 3}, "skipped": {}}


@pytest.mark.parametrize("name", ["optimizer.paddle2.pdopt", "optimizer.paddle3.pdopt"])
def test_an_optimizers_state_is_told_apart(name, refused):
    refused((GOLDEN / name).read_bytes(), "optimizer.* linear_0.w_0_moment1_0")


@pytest.mark.parametrize("name", ["plain.zip.pth", "state.paddle3.4.pdparams", "state.paddle3.2.pdparams"])
def test_what_is_read_cannot_change_the_file(name):
    _, entries, _ = read_file(GOLDEN / name)
    entry = entries["base"]
    array = entry.read()
    if array.flags.writeable:  # a copy, because the file does not align it
        array += 1
    assert_entry(entry, EXPECTED["base"])


def test_a_tensor_stays_readable_after_the_other_entries_are_gone():
    entry = read_file(GOLDEN / "plain.zip.pth")[1]["weight"]
    assert_entry(entry, EXPECTED["weight"])


def test_a_safetensors_length_may_look_like_a_pickle(tmp_path):
    path = tmp_path / "file"
    for size in range(500, 700):
        save_file({"a": np.ones(2, np.float32)}, path, {"pad": "x" * size})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    kind, entries, _ = read_file(path)
    assert kind == "safetensors" and (entries["a"].read() == 1).all()


# Broken files


@pytest.mark.parametrize("name", BREAK)
def test_every_part_from_the_beginning_is_refused(name, tmp_path):
    path = tmp_path / "file"
    path.write_bytes((GOLDEN / name).read_bytes())
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        with pytest.raises(WeightsError, match=re.escape(str(path))):
            read_file(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", [b"\0", b".", b"PK\x05\x06" + bytes(18), bytes(70_000)])
def test_bytes_behind_the_end_are_refused(name, more, refused):
    refused((GOLDEN / name).read_bytes() + more)


@pytest.mark.parametrize("name", BREAK)
def test_a_changed_byte_gives_arrays_or_a_refusal(name, tmp_path):
    data = (GOLDEN / name).read_bytes()
    path = tmp_path / "file"
    path.write_bytes(data)
    choose = random.Random(0)
    outcomes = set()
    with path.open("r+b", buffering=0) as file:
        for place in range(0, len(data), 3):
            os.pwrite(file.fileno(), bytes([choose.randrange(256)]), place)
            try:
                for entry in read_file(path)[1].values():
                    assert entry.read().nbytes <= 10 * len(data)
                outcomes.add("read")
            except WeightsError:
                outcomes.add("refused")
            os.pwrite(file.fileno(), data[place : place + 1], place)
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS.*git lfs pull"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"a" * 257 + b"ustar\0", "tar"),
        (b"\x08\x07\x12\x07pytorch", "ONNX"),
        (b"\x89HDF\r\n", "HDF5"),
        (b'{"base_code": 1}', "JSON"),
        (bytes(40), "pdiparams"),
        (b"\x80\x05\x95", "protocol 5.* 2 to 4"),
        (b"GIF89a and more", "b'GIF89a and more'"),
    ],
)
def test_other_files_are_named_with_a_cure(data, words, refused):
    refused(data, words)


def test_no_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(WeightsError, match=re.escape(str(path))):
            read_file(path)


# Memory


def big_zip(path: Path, count: int, piece: bytes) -> None:
    pairs = b"".join(
        text(f"w{i}") + tensor(key=str(i), count=len(piece) // 4, shape=(len(piece) // 4,))
        for i in range(count)
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + pairs + b"u.")
        for i in range(count):
            archive.writestr(f"archive/data/{i}", piece)


def big_pickle(path: Path, count: int, piece: bytes) -> None:
    with path.open("wb") as file:
        pickle.dump({f"w{i}": np.frombuffer(piece, np.float32) for i in range(count)}, file, 4)


@pytest.mark.parametrize("write", [big_zip, big_pickle])
def test_a_large_file_needs_little_memory_of_its_own(write, tmp_path):
    path = tmp_path / "large"
    write(path, 8, np.ones(6_500_000, np.float32).tobytes())
    assert path.stat().st_size > 200e6
    code = f"""
import re
from pathlib import Path
from ppcls.weights.readers import read_file
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1000
before = anonymous()
_, entries, _ = read_file(Path({str(path)!r}))
assert len(entries) == 8
most = 0
for entry in entries.values():
    array = entry.read()
    assert array.sum() == 6_500_000
    most = max(most, anonymous() - before)
print(most)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    path.unlink()
    assert float(run.stdout) < 60
