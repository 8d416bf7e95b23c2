"""Zip archives as torch writes them: each member is where the directory says, and apart from the others."""

import io
import struct
import zipfile

import numpy as np
import pytest
from pickled import one, tensor, torch_zip


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
