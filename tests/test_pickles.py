"""Pickles of weights: tricks are refused and run nothing, and the dictionary of weights is found."""

import builtins
import os
import pickle
import struct

import numpy as np
import pytest
from helpers import assert_entry
from pickled import NEW_ARRAY, array, dtype, name, number, one, state, tensor, text, torch_stream, torch_zip

from ppcls.weights.readers import pickles, read_file


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
    assert_entry(entries["short"], values[:3])
    assert_entry(entries["long"], values)


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
