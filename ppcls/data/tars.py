"""Read the tars of WebDataset: which samples they hold, and where their images lie.

Files one behind another with the same path up to the first dot of the file's name are a sample: an image, and
its label as a number or a word in .cls, as "label" in .json, or as a word in .txt. Several labels of an image
stand as numbers in .cls, with commas between them, or as a list, "labels", in .json.
"""

import json
import re
import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from ppcls.data.folders import IMAGE_SUFFIXES
from ppcls.data.label_sets import LabelSets
from ppcls.errors import DataError

_BLOCK = 512
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_ARCHIVES = {".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip"}
_LABEL_ENDINGS = ("cls", "json", "txt")  # the first one that a sample has counts
_LONGEST_LABEL = 1 << 20  # bytes
_MOST_CLASSES = 10**9  # a label in a list has nine digits at most, too

Label = int | str
Labels = tuple[Label, ...]  # of one image: numbers or words, each once


class Names:
    """Names one behind another, as the index has them: bytes objects of a million would take 60 MB."""

    def __init__(self) -> None:
        self.text, self.ends = bytearray(), array("q")

    def append(self, name: bytes) -> None:
        self.text += name
        self.ends.append(len(self.text))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        return bytes(self.text[self.ends[index - 1] if index else 0 : self.ends[index]])

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self)))


@dataclass
class Members:
    """The images of one shard, in the order of the tar: their names, offsets and sizes in bytes, and their
    labels, None for an image without one."""

    names: Names = field(default_factory=Names)
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    labels: list[Labels | None] = field(default_factory=list)
    _seen: dict[Labels | None, Labels | None] = field(default_factory=dict)

    def add(self, name: str, offset: int, size: int, labels: Labels | None) -> None:
        self.names.append(name.encode(errors="surrogateescape"))
        self.offsets.append(offset)
        self.sizes.append(size)
        self.labels.append(self._seen.setdefault(labels, labels))  # images of a class share the object


@dataclass
class _Group:
    """The members of a sample by their endings, as far as they are read."""

    key: str
    members: dict[str, tarfile.TarInfo]
    texts: dict[str, bytes]


def list_members(
    file: BinaryIO, shard: str, image: str | None = None, progress: Callable[[int], object] = lambda n: None
) -> Members:
    """Return the images of an uncompressed tar with their labels, one for each sample.

    image: the ending of the images, such as "jpg", if samples hold several. progress: called with the bytes
    that each member takes. Raises DataError, with shard and key, for an archive that is compressed, cut off,
    nested or sparse, and for a sample without an image, or with a label that cannot be read.
    """
    start = file.read(_BLOCK)
    packed = next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)
    if packed is not None:
        raise DataError(f"{shard} is compressed ({packed}). Images are read at their place: unpack it.")
    file.seek(0)
    found = Members()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for group in _groups(tar, shard, progress):
                member = _image_of(group, shard, image)
                found.add(member.name, member.offset_data, member.size, _labels(group, shard))
            _require_end(file, tar, shard)
    except tarfile.TarError as error:
        raise DataError(
            f"{shard} is cut off or is not a tar: {error}. Copy it again, or make it anew."
        ) from error
    if not found.names:
        raise DataError(f"{shard} holds no sample. Expected: files such as 000.jpg and 000.cls.")
    return found


def _require_end(file: BinaryIO, tar: tarfile.TarFile, shard: str) -> None:
    """Raise DataError if the tar does not end as one: in a block of zeros."""
    file.seek(tar.offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise DataError(f"{shard} is cut off: it has no end mark. Copy it again, or make it anew.")


def _groups(tar: tarfile.TarFile, shard: str, progress: Callable[[int], object]) -> Iterator[_Group]:
    """Yield the samples' groups. Folders, links, hidden files and files without an ending are
    not parts of samples."""
    group: _Group | None = None
    before = 0
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # a million of them would fill the memory
        progress(tar.offset - before)
        before = tar.offset
        path = PurePosixPath(member.name)
        if member.issparse():
            raise DataError(f"{shard}: {member.name} is a sparse file. Pack it as a plain one.")
        stem, _, ending = path.name.partition(".")
        if not (member.isreg() and stem and ending):
            continue
        key, ending = str(path.with_name(stem)), ending.lower()
        if f".{ending.rpartition('.')[2]}" in _ARCHIVES:
            raise DataError(f"{shard}: {member.name} is an archive. Expected: images and labels.")
        if group is None or key != group.key:
            if group is not None:
                yield group
            group = _Group(key, {}, {})
        if ending in group.members:
            raise DataError(f"{shard}: the key {key} has two files .{ending}.")
        group.members[ending] = member
        if ending in _LABEL_ENDINGS:
            group.texts[ending] = _read_text(tar, member, shard)
    if group is not None:
        yield group


def _read_text(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: str) -> bytes:
    if member.size > _LONGEST_LABEL:
        raise DataError(f"{shard}: {member.name} has {member.size} bytes, too many for a label.")
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _image_of(group: _Group, shard: str, image: str | None) -> tarfile.TarInfo:
    """Return the sample's image. Raises DataError if there is none, or more than one to choose from."""
    endings = [e for e in group.members if f".{e.rpartition('.')[2]}" in IMAGE_SUFFIXES or e == "img"]
    if image is not None:
        endings = [ending for ending in endings if ending == image]
    if len(endings) != 1:
        found = ", ".join(f".{ending}" for ending in group.members)
        cure = "Choose one: --image ENDING." if endings else "Each sample needs one, such as .jpg."
        count = f"{len(endings)} images" if endings else "no image"
        raise DataError(f"{shard}: the sample {group.key} has {count}. Received: {found}. {cure}")
    return group.members[endings[0]]


def _labels(group: _Group, shard: str) -> Labels | None:
    """Return the labels that the sample's files state: numbers, or names of classes."""
    ending = next((ending for ending in _LABEL_ENDINGS if ending in group.texts), None)
    if ending is None:
        return None
    try:
        value: Any = group.texts[ending].decode("utf-8-sig").strip()
        if ending == "json":
            value = json.loads(value)
            if isinstance(value, dict):
                value = value.get("labels") if value.get("label") is None else value["label"]
        elif ending == "cls" and re.fullmatch(r"[-0-9,\s]*,[-0-9,\s]*", value):
            value = value.split(",")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shard}: {group.key}.{ending} cannot be read: {error}.") from error
    if value is None:  # other facts about the image
        return None
    is_words = ending == "txt"
    labels = tuple(_label(item, is_words) for item in (value if isinstance(value, list) else [value]))
    known = tuple(label for label in labels if label is not None)
    if not known or len(set(known)) < len(labels):
        raise DataError(
            f"{shard}: {group.key}.{ending}: expected a label from 0 up, or the name of a class; or several, "
            f"each once. Received: {str(value)[:100]!r}"
        )
    return known


def _label(value: Any, is_word: bool) -> Label | None:
    """Return a number from 0 up, or the name of a class; None for another value."""
    if isinstance(value, str):
        text = value.strip()
        if is_word or not re.fullmatch("-?[0-9]{1,9}", text):
            return text or None
        value = int(text)
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_CLASSES
    return value if is_number else None


def resolve_labels(
    members: Sequence[Members], shards: Sequence[str], class_names: Sequence[str] | None
) -> tuple[LabelSets | None, list[str] | None]:
    """Return the labels of all images, None if no image has one, and the classes that words name, None if the
    labels are numbers.

    class_names: the words in the order of the labels; None: the words themselves, sorted. Raises DataError if
    only some images have labels, or if some are numbers and some are words.
    """
    kinds: dict[type, str] = {}
    for shard, part in zip(shards, members, strict=True):
        for name, labels in zip(part.names, part.labels, strict=True):
            for label in labels or (None,):
                if type(label) not in kinds:
                    kinds[type(label)] = f"{shard}: {name.decode(errors='replace')}"
    if len(kinds) > 1:
        texts = {type(None): "no label", int: "a number", str: "a word"}
        found = "; ".join(f"{where} has {texts[kind]}" for kind, where in kinds.items())
        raise DataError(f"The labels are of different kinds: {found}. Expected: one kind for all.")
    if type(None) in kinds:
        return None, None
    rows = (labels or () for part in members for labels in part.labels)
    if int in kinds:
        return _sets_of(rows, int), None
    words = {str(label) for labels in set(rows) for label in labels}
    classes = sorted(words) if class_names is None else list(class_names)
    if unknown := words - set(classes):
        raise DataError(f"Labels name the class {min(unknown)!r}, which is not in the list. Add it.")
    number = {word: label for label, word in enumerate(classes)}
    rows = (labels or () for part in members for labels in part.labels)
    return _sets_of(rows, lambda label: number[str(label)]), classes


def _sets_of(rows: Iterable[Labels], number: Callable[[Label], int]) -> LabelSets:
    """Return the numbers of the labels of all images, in columns: lists of a million would take 100 MB."""
    values, sizes = array("q"), array("q")
    for labels in rows:
        values.extend(sorted(map(number, labels)))
        sizes.append(len(labels))
    return LabelSets.of_sizes(np.asarray(values), np.asarray(sizes))
