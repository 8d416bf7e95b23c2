"""The commands `ppcls data pack` and `ppcls data index`: write shards, and index those that exist."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppcls.commands import command_line
from ppcls.errors import DataError, counted
from ppcls.files import require_place

if TYPE_CHECKING:
    from ppcls.data.pack import Packed


def add_shard_commands(commands: Any) -> None:
    add_pack_command(commands)
    add_index_command(commands)


def add_pack_command(commands: Any) -> None:
    command = commands.add_parser(
        "pack",
        help="write images into shards: tars with an index",
        description="Write the images of a list or a folder, with their labels, into tars as WebDataset has "
        "them, and an index of them. DIR then stands wherever a list or a folder of images stands.",
    )
    command.add_argument("source", type=Path, metavar="LIST_OR_FOLDER", help="images to pack")
    command.add_argument("--root", type=Path, metavar="DIR", help="folder of the paths in a list")
    command.add_argument("output", type=Path, metavar="DIR", help="folder to write")
    command.add_argument(
        "--shard-size", default="256MB", metavar="SIZE", help="of a tar, such as 256MB or 1GB (default 256MB)"
    )
    command.add_argument(
        "--shuffle", type=int, metavar="SEED", help="mix the images, as training data at a URL should be"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the shards in DIR")
    command.set_defaults(run=pack)


def add_index_command(commands: Any) -> None:
    command = commands.add_parser(
        "index",
        help="write the index of shards that exist, on a disk or at a URL",
        description="Write the index of WebDataset's tars where they lie: paths, folders, URLs, or patterns "
        "with * or braces, such as 'train-{000000..000146}.tar'. URLs need pip install 'ppcls[remote]'.",
    )
    command.add_argument("shards", nargs="+", metavar="PATTERN", help="paths, folders, patterns or URLs")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="the index (default: index.safetensors beside the shards)"
    )
    command.add_argument("--image", metavar="ENDING", help="of the images, if samples hold several")
    command.add_argument(
        "--class-names", metavar="FILE", help="the words of the labels, one on each line in the labels' order"
    )
    command.set_defaults(run=index)


def pack(args: argparse.Namespace) -> int:
    """Pack a list or a folder, and print the number of images and shards."""
    from ppcls.data.open import open_path
    from ppcls.data.pack import pack as pack_images
    from ppcls.progress import progress_bar

    shard_size = _bytes(args.shard_size)
    if args.shuffle is not None and args.shuffle < 0:
        raise DataError(f"--shuffle must be 0 or more. Received: {args.shuffle}")
    dataset = open_path(args.source, args.root)
    root = args.root or (args.source if args.source.is_dir() else args.source.parent)
    with progress_bar(len(dataset), "pack") as bar:
        packed = pack_images(
            dataset,
            root,
            args.output,
            shard_size=shard_size,
            shuffle_seed=args.shuffle,
            overwrite=args.overwrite,
            progress=bar.update,
        )
    print(f"{_written(packed)}, {packed.size / 1e6:.0f} MB")
    print(f"next: {command_line('data', 'check', args.output)}")
    return 0


def index(args: argparse.Namespace) -> int:
    """Index shards, and print their number and that of the images."""
    from ppcls.data.pack import index_shards
    from ppcls.data.text import read_lines
    from ppcls.progress import progress_bar

    if args.output is not None:
        require_place(args.output, "--output")
    names = None
    if args.class_names is not None:
        names = [
            line.strip() for line in read_lines(Path(args.class_names), "--class-names: ") if line.strip()
        ]
    with progress_bar(None, "index", unit="B") as bar:

        def start(total: int) -> None:
            bar.total = total

        packed = index_shards(
            args.shards,
            args.output,
            image=args.image,
            class_names=names,
            progress=bar.update,
            start=start,
        )
        bar.update(bar.total - bar.n)  # the ends of tars hold nothing to read
    print(_written(packed))
    return 0


def _written(packed: "Packed") -> str:
    images, shards = counted(packed.images, "image"), counted(packed.shards, "shard")
    return f"written: {packed.index}, {images} in {shards}"


def _bytes(text: str) -> int:
    """Return a size such as 256MB in bytes. Raises DataError for a text that is not a size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size < 1:
        raise DataError(f"--shard-size must be a size such as 256MB. Received: {text}")
    return size
