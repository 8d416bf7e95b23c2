"""Make ImageNet-1k of its own archives: image files with lists, class folders, or shards.

python dataset/prepare_imagenet.py ARCHIVES --to files|folders|shards [--output dataset/ILSVRC2012]

ARCHIVES is the folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz,
as image-net.org gives them; without the first one, the evaluation data alone are made. Needs scipy, which
reads the devkit's table. An interrupted run is resumed by the same command.

files    train/SYNSET/*.JPEG, val/*.JPEG, train_list.txt, val_list.txt: what the configs expect
folders  train/SYNSET/*.JPEG, val/SYNSET/*.JPEG, as torchvision and timm expect
shards   train/ and val/ with tars and their index, straight from the archives; the training images are mixed
"""

import argparse
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ppcls.commands import run
from ppcls.data.class_names import read_class_names
from ppcls.data.dataset import Dataset
from ppcls.data.pack import pack
from ppcls.errors import DataError
from ppcls.files import write_text
from ppcls.progress import progress_bar

TRAIN, EVAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
COUNTS = {"train": 1_281_167, "val": 50_000}
SHARD_BYTES = 256_000_000
FORMS = {b"\xff\xd8": "JPEG", b"\x89P": "PNG"}  # by the first two bytes: one PNG is named .JPEG


@dataclass(frozen=True)
class Archive:
    """Source of the images in a tar, at any depth. It has what packing and extracting need of
    `ppcls.data.source.Source`."""

    path: Path
    names: Sequence[str]
    offsets: np.ndarray
    sizes: np.ndarray
    descriptor: int

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        data = os.pread(self.descriptor, int(self.sizes[index]), int(self.offsets[index]))
        if len(data) != self.sizes[index]:
            raise DataError(f"{self.path} is cut off: {self.names[index]} is not whole. Download it again.")
        return data

    def name(self, index: int) -> str:
        return self.names[index]

    def where(self, index: int) -> str:
        return f"{self.names[index]} in {self.path}"

    def identity(self, root: str | None) -> bytes:
        return "\n".join(self.names).encode()

    def select(self, indices: Sequence[int]) -> "Archive":
        names = [self.names[index] for index in indices]
        return Archive(self.path, names, self.offsets[indices], self.sizes[indices], self.descriptor)

    def shuffle(self, indices: np.ndarray, random: np.random.RandomState, parts: int = 1) -> np.ndarray:
        return indices[random.permutation(len(indices))]

    @property
    def is_remote(self) -> bool:
        return False

    def prefetch(self, indices: Sequence[int]) -> None:
        pass


def open_archive(path: Path) -> Archive:
    """List the images of a tar, and of the tars in it: reads headers alone."""
    names: list[str] = []
    offsets: list[int] = []
    sizes: list[int] = []

    def add(file: BinaryIO, base: int, folder: str) -> None:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]
                if member.isreg() and member.name.endswith(".tar"):
                    inner = tar.extractfile(member)
                    if inner is not None:
                        add(inner, base + member.offset_data, f"{Path(member.name).stem}/")  # type: ignore[arg-type]
                        bar.update(1)
                elif member.isreg():
                    names.append(folder + Path(member.name).name)
                    offsets.append(base + member.offset_data)
                    sizes.append(member.size)
            if base == 0 and tar.offset > path.stat().st_size:
                raise tarfile.ReadError("unexpected end of data")

    try:
        with path.open("rb") as file, progress_bar(None, f"list {path.name}", unit="class") as bar:
            add(file, 0, "")
        descriptor = os.open(path, os.O_RDONLY)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read: {error}. Download it again, and compare its MD5.") from error
    return Archive(path, names, np.array(offsets, np.int64), np.array(sizes, np.int64), descriptor)


def read_devkit(path: Path) -> tuple[list[str], list[int]]:
    """Return the synsets in the devkit's own order, and for each evaluation image its number from 1 in it.

    That order is not the labels': those are the places of the synsets in alphabetical order.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError("The devkit's meta.mat needs scipy to be read: pip install scipy") from error
    try:
        with tarfile.open(path) as tar:
            files = {Path(member.name).name: member for member in tar if member.isreg()}
            table, truth = (
                tar.extractfile(files[name])
                for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
            )
            if table is None or truth is None:
                raise KeyError("meta.mat")
            rows = loadmat(table, squeeze_me=True)["synsets"]
            numbers = [int(line) for line in truth.read().split()]
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{path} is not the devkit of ILSVRC2012: {error}. Download {DEVKIT}.") from error
    leaves = sorted((int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in rows if not row["num_children"])
    return [synset for _, synset in leaves], numbers


def open_eval(archives: Path, synsets: Sequence[str]) -> Dataset:
    """Open the evaluation images, in the order of their names, with the devkit's labels."""
    order, numbers = read_devkit(archives / DEVKIT)
    if sorted(order) != list(synsets):
        raise DataError(f"The synsets of {DEVKIT} are not those of data.class_names: imagenet1k.")
    archive = open_archive(archives / EVAL)
    if len(numbers) != len(archive):
        raise DataError(
            f"{EVAL} has {len(archive)} images, but the devkit labels {len(numbers)}. Download both again."
        )
    archive = archive.select(np.argsort(archive.names))
    label_of = {synset: label for label, synset in enumerate(synsets)}
    return Dataset(archive, np.array([label_of[order[number - 1]] for number in numbers], np.int64))


def open_train(archives: Path, synsets: Sequence[str]) -> Dataset:
    """Open the training images: the class of each is the archive in the archive that holds it."""
    archive = open_archive(archives / TRAIN)
    label_of = {synset: label for label, synset in enumerate(synsets)}
    unknown = {name.partition("/")[0] for name in archive.names} - set(label_of)
    if unknown:
        raise DataError(f"{TRAIN} holds {min(unknown)}, which is not a synset of imagenet1k.")
    labels = np.array([label_of[name.partition("/")[0]] for name in archive.names], np.int64)
    return Dataset(archive, labels)


def extract(dataset: Dataset, folder: Path, part: str, synsets: Sequence[str], by_class: bool) -> list[str]:
    """Write the images that are not there yet. Returns the lines of their list."""
    lines, forms = [], Counter[str]()
    labels = [] if dataset.labels is None else dataset.labels.tolist()
    with progress_bar(len(dataset), part) as bar:
        for index, label in enumerate(labels):
            name = dataset.name(index)
            inside = f"{synsets[label]}/{Path(name).name}" if by_class else name
            path = folder / part / inside
            data = dataset.read(index)
            forms[form_of(data)] += 1
            if not (path.is_file() and path.stat().st_size == len(data)):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            lines.append(f"{part}/{inside} {label}\n")
            bar.update(1)
    print(f"written: {folder / part}, {len(lines)} images: " + describe(forms))
    return lines


def form_of(data: bytes) -> str:
    """Return the kind of an image by its bytes. A JPEG of four colours is CMYK: ppcls reads it as such."""
    form = FORMS.get(data[:2], "of another kind")
    place = 2
    while form == "JPEG" and place + 9 < len(data) and data[place] == 0xFF:
        marker, size = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):
            return "CMYK JPEG" if data[place + 9] == 4 else "JPEG"
        place += 2 + size
    return form


def describe(forms: Counter[str]) -> str:
    return ", ".join(f"{count} {form}" for form, count in forms.most_common())


def write_shards(dataset: Dataset, folder: Path, part: str) -> None:
    """Write the images into shards; those that an interrupted run has written stay."""
    seed = 0 if part == "train" else None
    with progress_bar(len(dataset), part) as bar:
        packed = pack(
            dataset,
            Path("."),
            folder / part,
            shard_size=SHARD_BYTES,
            shuffle_seed=seed,
            resume=True,
            progress=bar.update,
        )
    print(f"written: {packed.index}, {packed.images} images in {packed.shards} shards")


def require_count(dataset: Dataset, part: str, any_count: bool) -> None:
    """Raise DataError for an archive that is not the whole one."""
    if len(dataset) != COUNTS[part] and not any_count:
        raise DataError(
            f"The archive of {part} has {len(dataset)} images. Expected: {COUNTS[part]}. Download it again; "
            "a part of ImageNet is accepted with --any-count."
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", type=Path, metavar="ARCHIVES", help="folder of the three archives")
    parser.add_argument("--to", choices=("files", "folders", "shards"), required=True, help="see above")
    parser.add_argument(
        "--output", type=Path, default=Path("dataset/ILSVRC2012"), metavar="DIR", help="folder to write"
    )
    parser.add_argument("--any-count", action="store_true", help="accept a part of the images")
    args = parser.parse_args(argv)
    for name in (EVAL, DEVKIT):
        if not (args.archives / name).is_file():
            raise DataError(f"{args.archives} does not hold {name}. It comes from https://image-net.org.")
    synsets = read_class_names("imagenet1k", 1000).folders
    parts = {"val": open_eval(args.archives, synsets)}
    if (args.archives / TRAIN).is_file():
        parts["train"] = open_train(args.archives, synsets)
    for part, dataset in parts.items():
        require_count(dataset, part, args.any_count)
    for part, dataset in parts.items():
        if args.to == "shards":
            write_shards(dataset, args.output, part)
            continue
        by_class = part == "train" or args.to == "folders"
        lines = extract(dataset, args.output, part, synsets, by_class)
        if args.to == "files":
            write_text(args.output / f"{part}_list.txt", "".join(lines))
    print(f"next: python tools/eval.py -c configs/EfficientNetB4.yaml{options(args)}")
    return 0


def options(args: argparse.Namespace) -> str:
    """Return the options with which the configs find what was written."""
    folder = args.output
    if args.to != "files":
        return f" -o data.eval_list=null -o data.eval_root={folder / 'val'}"
    is_usual = folder == Path("dataset/ILSVRC2012")
    return "" if is_usual else f" -o data.eval_root={folder} -o data.eval_list={folder / 'val_list.txt'}"


if __name__ == "__main__":
    run(main)
