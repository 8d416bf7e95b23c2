"""Write shards of a dataset's images, and index shards where they lie."""

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from ppcls.data.class_names import ClassNames
from ppcls.data.dataset import Dataset
from ppcls.data.folders import IMAGE_SUFFIXES
from ppcls.data.remote import RemoteFiles, list_remote, open_remote
from ppcls.data.seeding import random_state
from ppcls.data.shard_index import INDEX_FILE, Shard, is_url, write_index
from ppcls.data.tars import Members, list_members, resolve_labels
from ppcls.errors import DataError
from ppcls.files import require_place, sha256_of, write_aside

_RECORD = 512
_BUFFER = 4 << 20  # bytes that are written at a time: the page cache then holds larger pieces
_MOST = 1 << 16  # shards that a brace pattern may name
_THREADS = 16  # remote shards that are indexed at the same time

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Packed:
    """Result of packing or indexing: the index, and the numbers of images, shards and bytes."""

    index: Path
    images: int
    shards: int
    size: int


def pack(
    dataset: Dataset,
    root: Path | None,
    output: Path,
    *,
    shard_size: int,
    shuffle_seed: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = lambda count: None,
) -> Packed:
    """Write a dataset's images and labels into tars of about `shard_size` bytes, and their index.

    root: the folder below which an image's path is its name in the shards. shuffle_seed: mix the images, as
    remote training data should be; None: in the dataset's order. resume: keep the shards that an earlier
    call with the same arguments has written. progress: called with the images of each step.
    Raises DataError for a folder that has shards already or is `root`, and for an image that cannot be read.
    """
    if root is not None and output.resolve() == root.resolve():
        # then this folder would mean the shards; shards that are in it already would be lost
        raise DataError(f"{output} is the folder of the images. Choose another folder for the shards.")
    old = sorted(output.glob("shard-*.tar"))
    if (old or (output / INDEX_FILE).exists()) and not (overwrite or resume):
        raise DataError(
            f"{output} holds shards already. Choose another folder, or replace them with --overwrite."
        )
    numbers: Sequence[int] = range(len(dataset))
    if shuffle_seed is not None:
        numbers = random_state(shuffle_seed, 0).permutation(len(dataset)).tolist()
    names = _Names(root)
    shards: list[Shard] = []
    members: list[Members] = []
    first = 0
    while first < len(numbers):
        path = output / f"shard-{len(shards):06d}.tar"
        if resume and path.is_file():
            part = _written(path, dataset, numbers[first:], names)
            progress(len(part.names))
        else:
            part = _write(path, dataset, numbers[first:], names, shard_size, progress)
        first += len(part.names)
        shards.append(_describe(path, path.name))
        members.append(part)
    for path in set(old) - {output / shard.name for shard in shards}:
        path.unlink()
    index = output / INDEX_FILE
    labels, _ = resolve_labels(members, [shard.name for shard in shards], None)
    write_index(index, shards, members, labels, dataset.class_names)
    return Packed(index, len(dataset), len(shards), sum(shard.size for shard in shards))


def _write(
    path: Path,
    dataset: Dataset,
    numbers: Sequence[int],
    names: "_Names",
    shard_size: int,
    progress: Progress,
) -> Members:
    """Write a shard of the first images of `numbers`, as many as it takes. Returns what it holds."""
    part = Members()
    with (
        write_aside(path) as aside,
        aside.open("wb", _BUFFER) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for number in numbers:
            _add(tar, dataset, number, names, part)
            progress(1)
            if tar.offset >= shard_size:
                break
    return part


def _written(path: Path, dataset: Dataset, numbers: Sequence[int], names: "_Names") -> Members:
    """Return what a shard of an earlier call holds. Raises DataError if these are other images."""
    with path.open("rb") as file:
        part = list_members(file, str(path))
    for name, number in zip(part.names, numbers, strict=False):
        key, _ = names.of(dataset.name(number), b"")
        if name.decode(errors="surrogateescape").rpartition(".")[0] != key:
            raise DataError(f"{path} holds other images than these. Remove it, or choose another folder.")
    return part


def _add(tar: tarfile.TarFile, dataset: Dataset, number: int, names: "_Names", part: Members) -> None:
    try:
        data = dataset.read(number)
    except OSError as error:
        raise DataError(f"{dataset.where(number)} cannot be read: {error.strerror or error}.") from error
    key, ending = names.of(dataset.name(number), data)
    offset = _add_file(tar, f"{key}.{ending}", data)
    labels = None
    if dataset.label_sets is not None:  # as JSON, which other readers of shards know
        labels = tuple(dataset.label_sets[number])
        _add_file(tar, f"{key}.json", json.dumps({"labels": labels}).encode())
    elif dataset.labels is not None:
        labels = (int(dataset.labels[number]),)
        _add_file(tar, f"{key}.cls", str(labels[0]).encode())
    part.add(f"{key}.{ending}", offset, len(data), labels)


def _add_file(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file with nothing in its header that differs from run to run. Returns the offset of its bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))
    tar.members = []  # type: ignore[attr-defined]  # a kilobyte for each would fill the memory
    return tar.offset - (len(data) + _RECORD - 1) // _RECORD * _RECORD


class _Names:
    """Keys of the samples: the paths below a root without their endings, each once."""

    def __init__(self, root: Path | None) -> None:
        self.root, self.taken = root, set[str]()

    def of(self, path: str, data: bytes) -> tuple[str, str]:
        """Return an image's key and ending. A dot in the key would end it, so it becomes a line."""
        file = PurePosixPath(Path(path).as_posix())
        home = PurePosixPath(self.root.as_posix()) if self.root is not None else file.parent
        below = file.relative_to(home) if file.is_relative_to(home) else PurePosixPath(file.name)
        is_known = file.suffix.lower() in IMAGE_SUFFIXES
        stem = (below.stem if is_known else below.name).replace(".", "_") or "_"
        key = str(below.with_name(stem))
        if key in self.taken:  # a.jpg beside a.png
            key = next(k for n in range(2, len(self.taken) + 3) if (k := f"{key}-{n}") not in self.taken)
        self.taken.add(key)
        return key, file.suffix[1:] if is_known else _ending_of(data)


def _ending_of(data: bytes) -> str:
    """Return the ending of a file without one, by its first bytes."""
    kinds = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"))
    return next((ending for start, ending in kinds if data.startswith(start)), "img")


def _describe(path: Path, name: str) -> Shard:
    status = path.stat()
    return Shard(name, status.st_size, sha256_of(path), status.st_mtime_ns)


def index_shards(
    patterns: Sequence[str],
    output: Path | None,
    *,
    image: str | None = None,
    class_names: Sequence[str] | None = None,
    progress: Progress = lambda count: None,
    start: Callable[[int], object] = lambda total: None,
) -> Packed:
    """Write the index of tars that lie on a disk or at URLs.

    patterns: paths or URLs with * or braces, such as "train-{000000..000146}.tar", or folders. output: the
    index; None: index.safetensors in the folder of local shards. image: the ending of the images if samples
    hold several. class_names: the words of the labels, in the labels' order. start: called with the number of
    all bytes. Raises DataError for a pattern that matches nothing, and for shards that cannot be used.
    """
    files = RemoteFiles()
    places = [place for pattern in patterns for place in expand(pattern, files)]
    place, count = Counter(places).most_common(1)[0]
    if count > 1:
        raise DataError(f"{place} is named twice. Give each shard once.")
    if output is None:
        output = _output_of(places)
        require_place(output, "--output (by default beside the shards)")
    shards: list[Shard] = []
    members: list[Members] = []

    def read(place: str) -> tuple[Shard, Members]:
        if is_url(place):
            return _index_remote(place, files, image, progress)
        return _index_local(place, output, image, progress)

    start(sum(files.status(place).size if is_url(place) else Path(place).stat().st_size for place in places))
    with ThreadPoolExecutor(_THREADS if any(map(is_url, places)) else 1) as pool:
        for shard, part in pool.map(read, places):
            shards.append(shard)
            members.append(part)
    labels, classes = resolve_labels(members, [shard.name for shard in shards], class_names)
    write_index(output, shards, members, labels, ClassNames.of(classes) if classes else None)
    return Packed(output, sum(len(part.names) for part in members), len(shards), sum(s.size for s in shards))


def _output_of(places: Sequence[str]) -> Path:
    folders = {Path(place).parent for place in places if not is_url(place)}
    if any(map(is_url, places)) or len(folders) != 1:
        raise DataError(
            "The shards lie at a URL or in several folders, so their index needs a place: --output FILE"
            f"{Path(INDEX_FILE).suffix}."
        )
    return folders.pop() / INDEX_FILE


def _index_local(place: str, output: Path, image: str | None, progress: Progress) -> tuple[Shard, Members]:
    path = Path(place)
    home = output.parent
    name = path.relative_to(home) if path.is_relative_to(home) else path.absolute()
    try:
        with path.open("rb") as file:
            members = list_members(file, place, image, progress)
    except OSError as error:
        raise DataError(f"The shard {place} cannot be read: {error.strerror}.") from error
    return _describe(path, name.as_posix()), members


def _index_remote(
    url: str, files: RemoteFiles, image: str | None, progress: Progress
) -> tuple[Shard, Members]:
    status = files.status(url)
    with open_remote(url, files) as file:
        members = list_members(cast(BinaryIO, _Sized(file)), url, image, progress)
    return Shard(url, status.size, etag=status.etag), members


class _Sized:
    """A remote file whose short reads are errors of the connection, not the end of the file."""

    def __init__(self, file: Any) -> None:
        self.file, self.size = file, file.size

    def read(self, size: int = -1) -> bytes:
        place = self.file.tell()
        data = self.file.read(size)
        expected = self.size - place if size < 0 else min(size, self.size - place)
        if len(data) < expected:
            raise DataError(f"{self.file.path}: {len(data)} of {expected} bytes from {place} were received.")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def expand(pattern: str, files: RemoteFiles) -> list[str]:
    """Return the paths or URLs that a pattern names, with braces or *, or a folder's tars.

    Raises DataError if there are none.
    """
    names = list(_expand_braces(pattern))
    found: list[str] = []
    for name in names:
        if is_url(name):
            found += list_remote(name, files) if "*" in name else [name]
        elif Path(name).is_dir():
            found += sorted(map(str, Path(name).glob("*.tar")))
        elif "*" in name:
            found += sorted(glob(name))
        elif Path(name).is_file():
            found.append(name)
        elif len(names) > 1:
            raise DataError(f"The shard {name} of {pattern} is missing. Copy it, or correct the numbers.")
    if not found:
        raise DataError(
            f"There is no shard {pattern}. Expected: tars, by a path, a folder, a pattern or a URL."
        )
    return found


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that braces stand for: "{000..002}" as webdataset has them, and "{a,b}"."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    if match[3] is not None:
        values = match[3].split(",")
    else:
        first, last = int(match[1]), int(match[2])
        if last < first or last - first >= _MOST:
            raise DataError(f"{match[0]} in {pattern} names no shards. Expected: {{first..last}}.")
        values = [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
    for value in values:
        yield from _expand_braces(pattern[: match.start()] + value + pattern[match.end() :])
