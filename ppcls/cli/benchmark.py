"""Measure speed on this machine."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppcls import distributed
from ppcls.cli.common import num_workers, prepare, say
from ppcls.cli.engine import ENGINES, export_to_cache, run_exported
from ppcls.config import load_config
from ppcls.errors import ConfigError
from ppcls.processor import processor

GOAL = 0.9  # of decoding alone, for the whole pipeline with bilinear


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "data",
        help="reading images: decoding alone and the whole pipeline",
        description="Images a second and core, from file bytes in memory, in one thread: OpenCV's decoding "
        "alone, and the whole pipeline as the loader runs it, to normalised float32 batches. Each round "
        "takes turns batch by batch, so that all meet the same load of the machine.",
    )
    command.add_argument("source", type=Path, metavar="LIST_OR_FOLDER", help="images to read")
    command.add_argument("--root", type=Path, metavar="DIR", help="where a list's paths begin")
    command.add_argument("--resize-short", type=int, default=256, metavar="PIXELS")
    command.add_argument("--crop-size", type=int, default=224, metavar="PIXELS")
    command.add_argument("--batch-size", type=int, default=32, metavar="N")
    command.add_argument("--rounds", type=int, default=7, metavar="N")
    command.set_defaults(run=data)

    command = commands.add_parser(
        "engines",
        help="an image on each engine, with what the machine could do at best",
        description="Milliseconds a batch on each engine: blocks of at least half a second take turns, with "
        "a pause between them. Without model.weights the network is random, which costs the same time.",
    )
    _add_config(command)
    command.add_argument(
        "--engines", nargs="+", choices=ENGINES[2:], metavar="ENGINE", help="default: all installed"
    )
    command.add_argument(
        "--beside", nargs="+", type=Path, default=[], metavar="DIR", help="other projects' Paddle programs"
    )
    command.add_argument("--no-eager", action="store_true", help="leave the plain network out")
    command.add_argument("--batch-size", type=int, default=1, metavar="N")
    command.add_argument("--rounds", type=int, default=7, metavar="N")
    command.set_defaults(run=engines)

    command = commands.add_parser(
        "end2end",
        help="from files on disk to classes, against the engine alone",
        description="Images a second from files on disk to classes, the same engine on batches in memory, "
        "and the plain network: they take turns.",
    )
    _add_config(command)
    command.add_argument("-i", "--input", required=True, help="a folder or a glob pattern of images")
    command.add_argument("--engine", default="auto", help="default: the fastest for one image")
    command.add_argument("--repeat", type=int, default=1, metavar="N", help="take the files so many times")
    command.add_argument("--no-eager", action="store_true", help="leave the plain network out")
    command.add_argument("--rounds", type=int, default=3, metavar="N")
    command.set_defaults(run=end2end)

    command = commands.add_parser(
        "train",
        help="training steps: images a second, and what takes how long",
        description="Images a second of training, the seconds that a step spends on its parts, and the peak "
        "of resident memory, of each process: python -m paddle.distributed.launch runs several. Images come "
        "from data.train_list or data.train_root; --synthetic draws one batch and reads nothing.",
    )
    _add_config(command)
    command.add_argument("--steps", type=int, default=20, metavar="N", help="behind two that warm up")
    command.add_argument("--synthetic", action="store_true", help="without files")
    command.set_defaults(run=train)

    for command in commands.choices.values():
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args(argv)
    for name in ("resize_short", "crop_size", "batch_size", "rounds", "repeat", "steps"):
        value = getattr(args, name, 1)
        if value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1. Received: {value}")
    return args.run(args)


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("-c", "--config", required=True, help="YAML file of the network")
    command.add_argument(
        "-o", "--override", action="append", default=[], metavar="OPTION=VALUE", help="replace an option"
    )


def data(args: argparse.Namespace) -> int:
    if args.crop_size > args.resize_short:
        raise ConfigError(
            f"--crop-size ({args.crop_size}) must not exceed --resize-short ({args.resize_short})."
        )
    from ppcls.benchmarks.data import measure_data, read_images
    from ppcls.data.dataset import open_path

    files, left_out = read_images(open_path(args.source, args.root))
    figures = measure_data(files, args.resize_short, args.crop_size, args.batch_size, args.rounds)
    figures |= {"files": len(files), "left_out": left_out, "bytes": sum(map(len, files))}
    print(
        f"{len(files)} files, {figures['bytes'] / len(files) / 1000:.0f} kB on average; {left_out} left out"
    )
    print(f"OpenCV {figures['opencv']}, Pillow {figures['pillow']}, numpy {figures['numpy']}; one thread")
    print(f"{'':20}images a second and core  share of decode alone")
    print(f"{'':20}{'median':>8}{'min':>8}{'max':>8}{'median':>8}{'min':>8}{'max':>8}")
    for name, row in figures["rows"].items():
        cells = [f"{row['images_per_second'][key]:8.0f}" for key in ("median", "min", "max")]
        cells += [f"{row['share'][key]:8.3f}" for key in ("median", "min", "max")]
        print(f"{name:20}{''.join(cells)}")
    reached = figures["rows"]["bilinear"]["share"]["median"]
    print(
        f"The whole pipeline with bilinear reaches {reached:.3f} of decoding alone: it "
        f"{'meets' if reached >= GOAL else 'misses'} the goal of {GOAL}."
    )
    _write_json(args.json, figures)
    return 0


def engines(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.override)
    prepared = prepare(config, needs_weights=False)

    from ppcls.benchmarks.engines import measure_engines
    from ppcls.complexity import multiply_adds
    from ppcls.inference.artifact import read_artifact
    from ppcls.inference.engines import EagerEngine
    from ppcls.inference.versions import versions

    folder = export_to_cache(prepared)
    size = prepared.spec.crop_size
    figures = measure_engines(
        folder,
        read_artifact(folder),
        None if args.no_eager else EagerEngine(prepared.model),
        wanted=args.engines,
        beside=args.beside,
        batch_size=args.batch_size,
        threads=distributed.cores(),
        rounds=args.rounds,
        multiply_adds=multiply_adds(prepared.model, size, size),
        say=say,
    )
    figures |= {"processor": processor(), "versions": versions()}
    print(
        f"{figures['model']} at {size} pixels, batch {args.batch_size}, {figures['threads']} threads of "
        f"{figures['processor']}; at best {figures['ceiling_gflops']:.0f} GFLOP/s, "
        f"{figures['multiply_adds'] / 1e9:.2f} G multiply-adds an image"
    )
    print(f"{'':34}{'milliseconds a batch':>24}{'share of':>10}{'difference':>12}")
    print(f"{'':34}{'median':>8}{'min':>8}{'max':>8}{'ceiling':>10}{'to eager':>12}")
    for name, row in figures["rows"].items():
        times = "".join(f"{row['milliseconds'][key]:8.2f}" for key in ("median", "min", "max"))
        difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
        print(f"{name:34}{times}{row['share_of_ceiling']:10.2f}{difference:>12}")
    _write_json(args.json, figures)
    return 0


def end2end(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.override)

    from ppcls.inference.classify import find_images

    files = find_images(args.input) * args.repeat
    prepared = prepare(config, needs_weights=False)

    from ppcls.benchmarks.end2end import measure_end2end
    from ppcls.inference.engines import EagerEngine
    from ppcls.inference.versions import versions

    runner = run_exported(config, export_to_cache(prepared), prepared.spec, None, args.engine, is_many=True)
    figures = measure_end2end(
        runner.engine,
        None if args.no_eager else EagerEngine(prepared.model),
        files,
        prepared.spec,
        batch_size=runner.batch_size,
        eager_batch_size=config.data.batch_size,
        num_workers=runner.num_workers,
        rounds=args.rounds,
    )
    figures |= {"processor": processor(), "versions": versions()}
    print(
        f"{config.model.name} on {len(files)} files, {figures['streams']} streams of {figures['engine']}, "
        f"batch {figures['batch_size']}, {figures['processor']}"
    )
    print(f"{'images a second':28}{'median':>8}{'min':>8}{'max':>8}")
    for name, row in figures["images_per_second"].items():
        print(f"{name:28}" + "".join(f"{row[key]:8.1f}" for key in ("median", "min", "max")))
    print(f"The whole reaches {figures['share_of_engine']:.2f} of the engine alone", end="")
    if "times_the_plain_network" in figures:
        print(f", and is {figures['times_the_plain_network']:.1f} times as fast as the plain network", end="")
    print(".")
    _write_json(args.json, figures)
    return 0


def train(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.override)

    from ppcls.data.dataset import open_split, require_split

    data = config.data
    if not args.synthetic:
        require_split(data, "train")
    prepared = prepare(config, needs_weights=False)
    train_set = None
    if not args.synthetic:
        num_classes, names = config.model.num_classes, prepared.class_names
        train_set = open_split(data, "train", num_classes=num_classes, class_names=names)

    from ppcls.benchmarks.train import PARTS, measure_training
    from ppcls.inference.versions import versions

    own = measure_training(config, prepared.model, prepared.spec, train_set, num_workers(config), args.steps)
    ranks = distributed.gather(own)
    figures = {
        "model": config.model.name,
        "size": prepared.spec.crop_size,
        "batch_size": data.batch_size,
        "steps": args.steps,
        "synthetic": args.synthetic,
        "images_per_second": sum(rank["images_per_second"] for rank in ranks),
        "ranks": ranks,
        "processor": processor(),
        "versions": versions(),
    }
    say(
        f"{config.model.name} at {prepared.spec.crop_size} pixels, batch {data.batch_size} of each process, "
        f"{args.steps} steps, {figures['processor']}"
    )
    say(f"{'':9}{'images':>10}{'median seconds of a step':>32}{'peak':>12}")
    say(f"{'process':9}{'a second':>10}{''.join(f'{part:>10}' for part in PARTS)}{'memory':>12}")
    for number, rank in enumerate(ranks):
        cells = "".join(f"{rank['seconds'][part]:10.3f}" for part in PARTS)
        memory = f"{rank['peak_memory_bytes'] / 2**20:.0f} MiB"
        say(f"{number:<9}{rank['images_per_second']:10.2f}{cells}{memory:>12}")
    say(f"{'all':9}{figures['images_per_second']:10.2f}")
    if distributed.rank() == 0:
        _write_json(args.json, figures)
    return 0


def _write_json(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        print(f"written: {path}")
