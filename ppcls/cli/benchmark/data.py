"""`ppcls benchmark data`: reading images."""

import argparse
from pathlib import Path
from typing import Any

from ppcls import distributed
from ppcls.cli.benchmark.figures import HEADING, cells, write_figures
from ppcls.errors import ConfigError

GOAL = 0.9  # speed of the whole pipeline with bilinear, relative to decoding alone


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "data",
        help="reading images: decoding alone and the whole pipeline",
        description="Images per second on one core, from file bytes in memory, in one thread: OpenCV's "
        "decoding alone, and the whole pipeline as the loader runs it, to normalised float32 batches. They "
        "take turns batch by batch, so that the load of the machine is the same for all.",
    )
    command.add_argument("source", type=Path, metavar="LIST_OR_FOLDER", help="images to read")
    command.add_argument("--root", type=Path, metavar="DIR", help="folder of the paths in a list")
    command.add_argument(
        "--resize-short", type=int, default=256, metavar="PIXELS", help="short side (default 256)"
    )
    command.add_argument("--crop-size", type=int, default=224, metavar="PIXELS", help="crop (default 224)")
    command.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images of a batch (default 32)"
    )
    command.add_argument("--rounds", type=int, default=7, metavar="N", help="measurements (default 7)")
    command.add_argument(
        "--beside",
        nargs="+",
        type=Path,
        default=[],
        metavar="PLACE",
        help="compare with the same images in other places, such as shards, instead: bare reads and the "
        "whole pipeline on all cores, in the order of training",
    )
    command.set_defaults(run=data)


def data(args: argparse.Namespace) -> int:
    if args.crop_size > args.resize_short:
        raise ConfigError(
            f"--crop-size ({args.crop_size}) must not exceed --resize-short ({args.resize_short})."
        )
    from ppcls.benchmarks.data import measure_data, read_images
    from ppcls.data.open import open_path

    if args.beside:
        return sources(args)
    files, left_out = read_images(open_path(args.source, args.root))
    figures = measure_data(files, args.resize_short, args.crop_size, args.batch_size, args.rounds)
    figures |= {"files": len(files), "left_out": left_out, "bytes": sum(map(len, files))}
    print(
        f"{len(files)} files, {figures['bytes'] / len(files) / 1000:.0f} kB on average; {left_out} left out"
    )
    print(f"OpenCV {figures['opencv']}, Pillow {figures['pillow']}, numpy {figures['numpy']}; one thread")
    print(f"{'':20}images per second, core  share of decode alone")
    print(f"{'':20}{2 * HEADING}")
    for name, row in figures["rows"].items():
        print(f"{name:20}{cells(row['images_per_second'], '8.0f')}{cells(row['share'], '8.3f')}")
    reached = figures["rows"]["bilinear"]["share"]["median"]
    print(
        f"The whole pipeline with bilinear reaches {reached:.3f} of decoding alone: it "
        f"{'meets' if reached >= GOAL else 'misses'} the goal of {GOAL}."
    )
    write_figures(args.json, figures)
    return 0


def sources(args: argparse.Namespace) -> int:
    from ppcls.benchmarks.sources import measure_sources
    from ppcls.data.open import open_path

    places = [args.source, *args.beside]
    figures = measure_sources(
        [open_path(args.source, args.root), *map(open_path, args.beside)],
        args.resize_short,
        args.crop_size,
        batch_size=args.batch_size,
        num_workers=distributed.cores(),
        rounds=args.rounds,
    )
    print(f"{figures['images']} images in each place, {distributed.cores()} threads of {figures['machine']}")
    print(f"{'':28}{'images per second':>24}{'ratio to the first':>24}")
    print(f"{'':28}{2 * HEADING}")
    for kind in ("reads", "pipeline"):
        for place, row in zip(places, figures[kind], strict=True):
            values = cells(row["images_per_second"], "8.0f") + cells(row["ratio"], "8.3f")
            print(f"{kind}, {str(place)[-18:]:{26 - len(kind)}}{values}")
    write_figures(args.json, figures | {"places": list(map(str, places))})
    return 0
