"""Files of weights from other projects: read in full, refused if broken, never run."""

import builtins
import io
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ppcls.errors import WeightsError
from ppcls.weights.readers import pickles, read_file
from ppcls.weights.readers.torch import MAGIC

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


def same(entry, expected):
    array = entry.read()
    assert entry.shape == array.shape == expected.shape
    assert entry.dtype == array.dtype == expected.dtype
    assert array.flags.aligned
    np.testing.assert_array_equal(array, expected)


@pytest.fixture
def refused(tmp_path):
    """Write the bytes, check the message with which they are refused, and return it."""

    def check(data: bytes, words: str | None = None) -> str:
        path = tmp_path / "file"
        path.unlink(missing_ok=True)  # to overwrite a file is much slower
        path.write_bytes(data)
        with pytest.raises(WeightsError) as error:
            read_file(path)
        message = str(error.value)
        assert message.startswith(f"{path} ")
        assert re.search(words or "", message.removeprefix(str(path))), message
        return message

    return check


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
        same(entries[key], expected)
    if kind == "safetensors":
        assert metadata == {"model": "any", "licence": "none"}
    else:
        assert metadata == {"values": {}, "skipped": {}}


@pytest.mark.parametrize("name", ["nested.zip.pth", "nested.stream.pth"])
def test_tensors_in_a_dictionary_have_its_key_before_theirs(name):
    _, entries, metadata = read_file(GOLDEN / name)
    same(entries["model/module.0.weight"], EXPECTED["weight"])
    same(entries["model/module.0.bias"], EXPECTED["bias"])
    same(entries["model/module.1.num_batches_tracked"], np.array(1))
    assert len(entries) == 7 and metadata["skipped"] == {}
    values = {key: metadata["values"][key] for key in ("epoch", "accuracy", "arch", "args/lr")}
    assert values == {"epoch": 3, "accuracy": 0.86, "arch": "resnext", "args/lr": 0.1}


@pytest.mark.parametrize("paddle", [2, 3])
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_that_paddle_names_come_back(paddle, protocol):
    _, entries, metadata = read_file(GOLDEN / f"mixed.paddle{paddle}.{protocol}.pdparams")
    assert set(entries) == {"weight", "bias", "transposed"}
    for key, entry in entries.items():
        same(entry, EXPECTED[key])
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
    same(entry, EXPECTED["base"])


def test_a_tensor_stays_readable_after_the_other_entries_are_gone():
    entry = read_file(GOLDEN / "plain.zip.pth")[1]["weight"]
    same(entry, EXPECTED["weight"])


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


# Pickles. Written by hand where the pickle module would not write them.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module: str, what: str) -> bytes:
    return f"c{module}\n{what}\n".encode()


NEW_ARRAY = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\0\x85C\x01b\x87R"


def dtype(kind="f4", order="<", names=b"N") -> bytes:
    state = b"(K\x03" + text(order) + b"N" + names + b"NJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t"
    return name("numpy", "dtype") + text(kind) + b"\x89\x88\x87R" + state + b"b"


def state(shape=(2,), data=b"C\x08" + bytes(8), kind=None, order=b"\x89") -> bytes:
    return b"(K\x01" + numbers(*shape) + (kind or dtype()) + order + data + b"t"


def array(**changes) -> bytes:
    return NEW_ARRAY + state(**changes) + b"b"


def one(value: bytes) -> bytes:
    """A pickle of a dictionary with this one value."""
    return b"\x80\x03}" + text("w") + value + b"s."


def tensor(kind="FloatStorage", key="0", count=4, offset=0, shape=(4,), strides=(1,)) -> bytes:
    storage = text("storage") + name("torch", kind) + text(key) + text("cpu") + number(count)
    view = number(offset) + numbers(*shape) + numbers(*strides)
    hooks = name("collections", "OrderedDict") + b")R"
    return (
        name("torch._utils", "_rebuild_tensor_v2") + b"((" + storage + b"tQ" + view + b"\x89" + hooks + b"tR"
    )


def torch_zip(pickled: bytes, storage=bytes(16), **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storage)
        for member, data in members.items():
            archive.writestr(f"archive/{member}", data)
    return file.getvalue()


def torch_stream(pickled: bytes, keys=("0",), storages=b"\4" + bytes(7 + 16)) -> bytes:
    head = [pickle.dumps(item, 2) for item in (MAGIC, 1001, {"little_endian": True})]
    return b"".join([*head, pickled, pickle.dumps(list(keys), 2), storages])


def test_the_files_made_here_are_read_unless_something_is_wrong(tmp_path):
    path = tmp_path / "file"
    for data in (one(array()), torch_zip(one(tensor())), torch_stream(one(tensor()))):
        path.write_bytes(data)
        assert (read_file(path)[1]["w"].read() == 0).all()


def test_pickles_of_python_2_are_read(tmp_path):
    def string(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    values = np.arange(3000, dtype=np.float32)
    new = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\0\x85U\x01b\x87R"
    kind = (
        name("numpy", "dtype") + b"U\x02f4K\0K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    pairs = b""
    for key, some in ((b"short", values[:3]), (b"long", values)):
        content = b"(K\x01" + number(len(some)) + b"\x85" + kind + b"\x89" + string(some.tobytes()) + b"tb"
        pairs += b"]" + string(key) + b"a" + new + content + b"aa"
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x02" + name("collections", "OrderedDict") + b"]" + pairs + b"\x85R.")
    entries = read_file(path)[1]
    same(entries["short"], values[:3])
    same(entries["long"], values)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call

    def __call__(self):
        """pickle wants something that can be called; what it will be when loaded is another matter."""


# Each leaves a mark when something runs it.
HOSTILE = [
    lambda mark: Hostile(os.system, f"touch {mark}"),
    lambda mark: Hostile(builtins.eval, f"open({mark!r}, 'w').close()"),
    lambda mark: Hostile(builtins.exec, f"open({mark!r}, 'w').close()"),
    lambda mark: Hostile(pickle.loads, pickle.dumps(Hostile(os.mkdir, mark))),
    lambda mark: Hostile(os.mkdir, mark),
    lambda mark: [[Hostile(os.mkdir, mark)]],
    lambda mark: Hostile(builtins.getattr, Hostile(os.mkdir, mark), "name"),
    lambda mark: Hostile(Hostile(getattr, Hostile(__import__, "os"), "mkdir"), mark),
]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_pickles_run_nothing(hostile, protocol, refused, tmp_path):
    mark = tmp_path / "mark"
    pickled = pickle.dumps({"weight": hostile(str(mark))}, protocol)
    for data in (pickled, torch_zip(pickled)):
        refused(data, "no tensors.* weight")
    refused(torch_stream(pickled), "storages")
    path = tmp_path / "beside"
    path.write_bytes(b"\x80\x04}" + text("w") + array() + b"s" + text("weight") + pickled[2:-1] + b"s.")
    _, entries, metadata = read_file(path)
    assert list(entries) == ["w"] and set(metadata["skipped"]) <= {"weight/weight"}
    assert not mark.exists()
    try:
        pickle.loads(pickled)
    except (AttributeError, TypeError):
        pass
    assert mark.exists(), "this pickle would not have done anything"


# A memo entry and names that are admitted, used for something else.
SETATTR = b"}" + text("append") + b"cos\nsystem\ns"
NAMESPACE = name("argparse", "Namespace")
SYSTEM = name("os", "system")
ORDERED = name("collections", "OrderedDict")
NDARRAY = name("numpy", "ndarray")
ENCODE = name("_codecs", "encode")
TUPLE = name("builtins", "tuple")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"(ios\nsystem\n", "has b'i'"),  # INST
        (b"(cos\nsystem\no", "has b'o'"),
        (SYSTEM + b")R}b", r"w \(os.system\)"),  # states, items and calls of what is not made are dropped
        (SYSTEM + b")\x81)R]a", r"w \(os.system\)"),
        (SYSTEM + b")R" + b"(K\x01K\x02u", r"w \(os.system\)"),
        (SYSTEM + b")R" + b"(K\x01u", "key without"),
        (b"\x8f(" + SYSTEM + b"\x90", r"w \(a set\)"),
        (b"(" + SYSTEM + b"\x91", r"w \(a set\)"),
        (b"\x90", "a value that does not exist"),
        (b"(" + NAMESPACE + b"o", "has b'o'"),  # OBJ
        (NAMESPACE + b")}\x92", r"has b'\\x92'"),  # NEWOBJ_EX
        (NDARRAY + b")\x81", "calls"),  # NEWOBJ
        (ENCODE + b")\x81", "_codecs.encode"),
        (ORDERED + b")\x81", "collections.OrderedDict"),
        (b"\x82\x01", r"has b'\\x82'"),  # EXT1
        (b"\x83\x01\0", r"has b'\\x83'"),
        (b"\x84\x01\0\0\0", r"has b'\\x84'"),
        (b"Pthe id\n", "has b'P'"),  # PERSID
        (text("storage") + b"Q", "outside"),  # BINPERSID
        (text("os") + text("system") + b"\x93", "os.system"),
        (b"]K\x01\x93", "name"),
        (text("numpy") + text("ndarray.tofile") + b"\x93", "numpy.ndarray.tofile"),
        (b"c" + b"a" * 300 + b"\nb\n", "name"),
        (b"\x8b\xff\xff\xff\x7f", r"has b'\\x8b'"),  # LONG4
        (b"\x8a\xff" + bytes(255), "integer of 255"),
        (b"L" + b"9" * 10_000 + b"L\n", "has b'L'"),
        (b"h\x07", "a value that does not exist"),
        (b"j\xff\xff\xff\xff", "a value that does not exist"),
        (b"t", "a value that does not exist"),
        (b"(0", "has b'0'"),
        (b"NNNNN" + b"s", "not a dictionary"),
        (b"]K\x01K\x02s", "not a dictionary"),
        (b"}K\x01a", "not a list"),
        (b"}(K\x01u", "key without"),
        (b"})" + array() + b"s", "no tensors"),  # a key that is a tuple, one that is a name
        (b"}" + TUPLE + array() + b"s", "no tensors"),
        (b"}(K\x01NK\x01Nu", "twice"),
        (b"K\x01)R", "calls"),
        (array() + b")R", "calls"),
        (ENCODE + b"]R", "calls"),
        (ORDERED + text("x") + b"b", "state"),
        (TUPLE + b"}b", "state"),
        (b"]}b", "state"),
        (b"}" + text("x") + b"b", "state"),
        (ORDERED + b")R" + SETATTR + b"b", "no tensors"),
        (ORDERED + b"]]a\x85R", "OrderedDict.*pairs"),
        (ORDERED + b"}\x85R", "OrderedDict.*pairs"),
        (ENCODE + text("a") + text("rot13") + b"\x86R", "codec.*latin1"),
        (ENCODE + text("\u20ac") + text("latin1") + b"\x86R", "bytes"),
        (ENCODE + text("\u20ac" * 3000) + text("latin1") + b"\x86R", "bytes"),
        (ENCODE + b"K\x01" + text("latin1") + b"\x86R", "not text"),
        (TUPLE + text("abc") + b"\x85R", "not a tuple"),
        (name("__builtin__", "bytes") + number(2**40) + b"\x85R", "bytes"),
        (b"X\x02\0\0\0\xff\xfe", "UTF-8"),
        (b"X\xff\xff\xff\xff", "cut off"),
        (b"\x8d" + b"\xff" * 8, "cut off"),
        (b"\x8e" + b"\xff" * 8, "cut off"),
        (name("numpy.core.multiarray", "_reconstruct") + b")R", "numpy.ndarray"),
        (name("numpy.core.multiarray", "_reconstruct") + TUPLE + b"K\0\x85C\x01b\x87R", "numpy.ndarray"),
        (name("numpy.core.multiarray", "scalar"), "numpy.core.multiarray.scalar"),
        (name("numpy", "load"), "numpy.load"),
        (NEW_ARRAY, "array"),
        (array() + state() + b"b", "of an array"),
        (array(kind=dtype("O8")), "dtype O8"),
        (array(kind=dtype("V8")), "dtype V8"),
        (array(kind=dtype("U2")), "dtype U2"),
        (array(kind=dtype("f4,f4")), "dtype f4,f4"),
        (array(kind=dtype(order=">")), "byte order '>'"),
        (array(kind=dtype(names=text("x") + b"\x85")), "fields"),
        (array(kind=text("f4")), "of an array"),
        (array(order=b"K\x01"), "of an array"),
        (array(data=b"]"), "of an array"),
        (array(shape=(3,)), "8 bytes"),
        (array(shape=(1,)), "8 bytes"),
        (array(shape=(-2,)), "of an array"),
        (array(shape=(2**62, 4)), "8 bytes"),
        (array(shape=(2**33, 2**31)), "8 bytes"),
        (array(shape=(0, 2**40), data=b"C\0"), "storage"),
        (array(shape=(1,) * 16 + (2,)), "17 sizes"),
    ],
)
def test_tricks_of_pickles_are_refused(value, words, refused):
    refused(one(value), words)
    refused(torch_zip(one(value)))
    refused(torch_stream(one(value)))


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x03" + b"]" * 100_000 + b"a" * 99_999 + b".",  # deep, to build and to free
        b"\x80\x03" + b")" + b"\x85" * 100_000 + b".",
        b"\x80\x03}\x94" + text("w") + b"h\0s.",  # holds itself
        b"\x80\x03}" + text("w") + b"]" + b"\x94h\0h\0\x86" * 200 + b"s.",  # wide as 2 ** 200 when printed
        b"\x80\x03]" + array() + b"a.",
        b"\x80\x03}.",
        b"\x80\x03NN.",
        b"\x80\x03(N.",
        b"\x80\x03.",
    ],
)
def test_pickles_of_something_else_are_refused(pickled, refused):
    for data in (pickled, torch_zip(pickled), torch_stream(pickled)):
        refused(data)


def test_a_pickle_leaves_one_value(refused):
    for before in (b"N", b"(", b"(N"):
        refused(b"\x80\x03" + before + dictionary(w=array()) + b".", "values")


def test_a_pickle_has_an_end(refused, monkeypatch):
    monkeypatch.setattr(pickles, "_MAX_OPCODES", 10_000)
    refused(b"\x80\x03" + b"N" * 20_000 + b".", "10,000")


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (tensor(count=5), "storage 0 .*20|storage 0 .* 4 .*5"),
        (tensor(count=2**62), f"{2**64}|{2**62}"),
        (tensor(count=-4), "of a storage"),
        (tensor(kind="HalfStorage"), "expect 8|8 bytes"),
        (tensor(kind="UntypedStorage"), "torch.UntypedStorage"),
        (tensor(kind="ComplexFloatStorage"), "torch.ComplexFloatStorage"),
        (tensor(key="1"), "storage 1|list of storages"),
        (tensor(key="../0"), "storage ../0|list of storages"),
        (tensor(shape=(5,)), "storage of 4 elements"),
        (tensor(shape=(2,), strides=(4,)), "storage"),
        (tensor(offset=1), "storage"),
        (tensor(offset=2**63), "storage"),
        (tensor(offset=-1), "of a tensor"),
        (tensor(strides=(-1,)), "of a tensor"),
        (tensor(shape=(-4,)), "of a tensor"),
        (tensor(shape=(2**40,), strides=(0,)), "storage"),  # 4 TB out of 4 bytes
        (tensor(shape=(2**32, 2**32), strides=(0, 0)), "storage"),  # 0 in 64 bits
        (tensor(shape=(0, 2**62), strides=(1, 1)), "storage"),
        (tensor(shape=(0,), offset=5), "storage"),
        (tensor(shape=(4,), strides=()), "1 .*0 "),
        (tensor(shape=(1,) * 17, strides=(1,) * 17), "17 sizes"),
        (name("torch._utils", "_rebuild_tensor_v2") + b")R", "of a tensor"),
        (name("torch._utils", "_rebuild_tensor_v2") + b"(NK\0))\x89NtR", "of a tensor"),
        (name("torch._utils", "_rebuild_parameter") + b"}\x88}\x87R", "of a parameter"),
        (name("torch._utils", "_rebuild_tensor_v3"), "torch._utils._rebuild_tensor_v3"),
        (name("torch", "load"), "torch.load"),
        (name("torch", "Size") + text("x") + b"\x85R", "torch.Size"),
        (text("x") + b"Q", "of a storage"),
        (tensor() + b"s" + text("v") + tensor(count=3, shape=(3,)), "storage 0"),
    ],
)
def test_views_stay_inside_their_storage(view, words, refused):
    refused(torch_zip(one(view)), words)
    has_storage = b"cpu" in view
    keys = (("1",) if b"1cpu" in view else ("0",)) if has_storage else ()
    refused(torch_stream(one(view), keys, b"\4" + bytes(7 + 16) if has_storage else b""), words)


def test_the_stride_of_a_single_row_does_not_matter(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(torch_zip(one(tensor(shape=(1, 4), strides=(2**62, 1)))))
    assert read_file(path)[1]["w"].read().shape == (1, 4)


def test_the_storages_of_a_stream_are_those_of_its_tensors(refused):
    refused(torch_stream(one(tensor()), keys=("0", "0")), "list of storages")
    refused(torch_stream(one(tensor()), keys=("0", "1")), "list of storages")
    refused(torch_stream(one(tensor()), keys=()), "list of storages")
    refused(torch_stream(one(tensor()), storages=struct.pack("<q", 3) + bytes(12)), "cut off")
    refused(torch_stream(one(tensor()), storages=struct.pack("<q", -1) + bytes(16)), "-1 elements")


# Which dictionary is the weights


def dictionary(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


WEIGHTS = dictionary(w=array())


def entries_of(tmp_path, pickled):
    path = tmp_path / "file"
    path.write_bytes(pickled)
    _, entries, metadata = read_file(path)
    return list(entries), metadata


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"model": WEIGHTS}, ["model/w"]),
        ({"a.b": dictionary(c=WEIGHTS), "w": array()}, ["w", "a.b/c/w"]),
        ({"module.a": array(), "epoch": array()}, ["module.a", "epoch"]),
        ({"model": WEIGHTS, "optimizer": dictionary(master_weights=WEIGHTS)}, ["model/w"]),
        ({"model": WEIGHTS, "best_acc": name("numpy.core.multiarray", "scalar")}, ["model/w"]),
        ({"model": WEIGHTS, "more": array(kind=dtype("O8"))}, ["model/w"]),
        ({"model": WEIGHTS, "more": b"\x8a\x18" + bytes(24)}, ["model/w"]),
    ],
)
def test_tensors_are_found_in_all_dictionaries(values, keys, tmp_path):
    assert entries_of(tmp_path, b"\x80\x03" + dictionary(**values) + b".")[0] == keys


def test_what_is_not_an_array_is_named(tmp_path):
    values = {"w": array(), "at": name("pathlib", "PosixPath") + text("a") + b"\x85R", "by": TUPLE}
    values["text"] = array(kind=dtype("U2"))
    _, metadata = entries_of(tmp_path, b"\x80\x03" + dictionary(**values, epoch=b"K\x03") + b".")
    skipped = {"at": "pathlib.PosixPath", "by": "builtins.tuple", "text": "an array of dtype U2"}
    assert metadata == {"values": {"epoch": 3}, "skipped": skipped}


def test_a_dictionary_in_many_places_is_read_once(tmp_path):
    inner = dictionary(w=array()) + b"\x94"
    twice = b"\x80\x03}(" + text("a") + inner + text("b") + b"h\0" + b"u."
    assert entries_of(tmp_path, twice)[0] == ["a/w"]
    deep = array()
    for _ in range(12):
        deep = dictionary(x=deep)
    assert entries_of(tmp_path, one(array())[:-2] + b"s" + text("deep") + deep + b"s.")[0] == ["w"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"LR_Scheduler": dictionary(last_epoch=b"K\x03")}, "optimizer.*LR_Scheduler"),
        ({"master_weights": WEIGHTS}, "optimizer.*master_weights"),
        ({"conv2d_0.w_0_velocity_0": array()}, "optimizer.*velocity_0"),
        ({"state": b"}K\0" + WEIGHTS + b"s", "param_groups": b"]"}, "optimizer.*param_groups"),
        ({"w@@.0": array(), "UnpackBigParamInfor@@": b"}"}, "protocol=4"),
        ({"model": name("timm.models", "Net") + b")\x81}b"}, r"timm\.models\.Net.*state_dict"),
    ],
)
def test_other_things_than_weights_are_refused(values, words, refused):
    refused(b"\x80\x03" + dictionary(**values) + b".", words)


def test_a_list_of_optimizers_and_a_whole_model_are_named(refused):
    """As PaddleClas 2.6 and torch.save(model) write them."""
    optimizer = dictionary(**{"conv2d_0.w_0_velocity_0": array()})
    refused(b"\x80\x03]" + optimizer + b"a.", "optimizer.*velocity_0.*pdparams")
    refused(
        b"\x80\x03" + name("torchvision.models", "Net") + b")\x81}b.", r"torchvision\.models\.Net.*state_dict"
    )


# Zip archives


def test_zip_archives_of_others_are_refused(refused):
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    refused(file.getvalue(), "'a.npy'")
    refused(torch_zip(one(tensor()), **{"constants.pkl": b"."}), "TorchScript")
    refused(torch_zip(one(tensor()), byteorder=b"big"), "big-endian")
    refused(torch_zip(one(tensor())).replace(b"data.pkl", b"data.pkk"), "data.pkl")


def test_bytes_behind_the_pickle_of_a_zip_are_refused(refused):
    refused(torch_zip(one(tensor()) + b"."), "1 bytes.*data.pkl")


@pytest.mark.parametrize("member", ["../x", "a/../../x", "/x", "x//y", "a\\b", "./x", "", "x/"])
def test_members_that_point_elsewhere_are_refused(member, refused):
    refused(torch_zip(one(tensor()), **{member: b"x"}), "zip.*member")


def test_a_second_folder_is_refused(refused):
    data = torch_zip(one(tensor()), version=b"3")
    refused(data.replace(b"archive/version", b"anotherOversion".replace(b"O", b"/")), "folder")


def test_members_with_the_same_name_are_refused(refused):
    with pytest.warns(UserWarning, match="Duplicate"):
        data = torch_zip(one(tensor()), **{"data/0": bytes(16)})
    refused(data, "'data/0'")


def test_compressed_members_are_refused(refused):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", one(tensor()))
        archive.writestr("archive/data/0", bytes(16))
    refused(file.getvalue(), "compressed")


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [(6, "<H", 1), (6, "<H", 8), (8, "<H", 8), (14, "<I", 5), (18, "<I", 17), (22, "<I", 15), (30, "<B", 98)],
)
def test_a_header_that_differs_from_the_directory_is_refused(offset, form, value, refused):
    """Flags, method, CRC, the two sizes and the name, in the header before the storage."""
    data = bytearray(torch_zip(one(tensor())))
    start = data.rindex(b"PK\x03\x04")
    refused_before = bytes(data)
    struct.pack_into(form, data, start + offset, value)
    assert data != refused_before
    refused(bytes(data), "headers")


@pytest.mark.parametrize(("offset", "value"), [(20, 2**31), (42, 2**31), (42, 0)])
def test_members_stay_inside_the_file_and_apart(offset, value, refused):
    """Size and place of the storage, in the directory. At 0 lies data.pkl."""
    data = bytearray(torch_zip(one(tensor())))
    start = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, start + offset, value)
    if offset == 20:
        struct.pack_into("<I", data, start + 24, value)
        header = data.rindex(b"PK\x03\x04")
        struct.pack_into("<II", data, header + 18, value, value)
    refused(bytes(data), "zip archive")


def test_overlapping_members_are_refused(refused):
    """The first member is made long enough to reach into the second."""
    data = bytearray(torch_zip(one(tensor())))
    size = len(one(tensor())) + 40
    struct.pack_into("<II", data, 18, size, size)
    struct.pack_into("<II", data, data.index(b"PK\x01\x02") + 20, size, size)
    refused(bytes(data), "overlaps")


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
