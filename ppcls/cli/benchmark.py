"""Measure speed on this machine."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ppcls import distributed
from ppcls.cli.common import (
    add_config_options,
    add_precision_option,
    log,
    num_workers,
    read_config,
    read_model,
    require_engine,
)
from ppcls.config import Config, KernelsOption
from ppcls.errors import ConfigError
from ppcls.files import write_json
from ppcls.processor import processor

if TYPE_CHECKING:
    from ppcls.build import Network

GOAL = 0.9  # speed of the whole pipeline with bilinear, relative to decoding alone


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_data_command(commands)
    add_engines_command(commands)
    add_end2end_command(commands)
    add_train_command(commands)
    add_serve_command(commands)
    for command in commands.choices.values():
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args(argv)
    for name in ("resize_short", "crop_size", "batch_size", "rounds", "repeat", "steps", "requests", "queue"):
        value = getattr(args, name, 1)
        if value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1. Received: {value}")
    return args.run(args)


def add_data_command(commands: Any) -> None:
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


def add_engines_command(commands: Any) -> None:
    command = commands.add_parser(
        "engines",
        help="an image on each engine, compared with the peak speed of the machine",
        description="Milliseconds per batch on each engine: blocks of at least half a second take turns, "
        "with a pause between them. Published weights are not downloaded: random ones take the same time. Of "
        "an exported model its own files are measured, int8 forms beside float ones.",
    )
    add_config_options(command, takes_exports=True)
    add_precision_option(command)
    command.add_argument("--engines", nargs="+", metavar="ENGINE", help="default: all that are installed")
    command.add_argument(
        "--beside",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders with Paddle programs of other projects, which are measured too",
    )
    command.add_argument("--no-eager", action="store_true", help="leave the eager network out")
    command.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images of a batch (default 1)"
    )
    command.add_argument("--rounds", type=int, default=7, metavar="N", help="measurements (default 7)")
    command.set_defaults(run=engines)


def add_end2end_command(commands: Any) -> None:
    command = commands.add_parser(
        "end2end",
        help="from image files to classes, compared with the engine alone",
        description="Images per second from files on disk to classes, with the same engine on batches in "
        "memory, and with the eager network. They take turns.",
    )
    add_config_options(command, takes_exports=True)
    command.add_argument("-i", "--input", required=True, help="a folder or a glob pattern of images")
    command.add_argument("--engine", default="auto", help="default: the fastest for one image")
    add_precision_option(command)
    command.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="read the files N times (default 1)"
    )
    command.add_argument("--no-eager", action="store_true", help="leave the eager network out")
    command.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements (default 3)")
    command.set_defaults(run=end2end)


def add_train_command(commands: Any) -> None:
    command = commands.add_parser(
        "train",
        help="training steps: images per second, and the time of each stage",
        description="Images per second of training, the seconds of each stage of a step, and the peak of "
        "resident memory, for each process; python -m paddle.distributed.launch runs several. Images come "
        "from data.train_list or data.train_root; --synthetic reads no files.",
    )
    add_config_options(command)
    command.add_argument(
        "--steps", type=int, default=20, metavar="N", help="measured steps, after two others (default 20)"
    )
    command.add_argument("--synthetic", action="store_true", help="use one random batch, without files")
    command.add_argument(
        "--kernels",
        nargs="+",
        choices=get_args(KernelsOption),
        metavar="KERNELS",
        help=f"compare these of {', '.join(get_args(KernelsOption))} in turns, on one random batch",
    )
    command.add_argument(
        "--beside-torch",
        metavar="PYTHON",
        help="compare with timm's network on torch too, by the Python of another environment",
    )
    command.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each (default 5)")
    command.set_defaults(run=train)


def add_serve_command(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="a server under load, compared with the predictor itself",
        description="Start `ppcls serve` on this machine, and measure it by a load generator in a process of "
        "its own: the throughput for 8 clients and the time of one client, in turns with the predictor on "
        "the same files; then an overload of planned arrivals at 4 times the throughput.",
    )
    command.add_argument(
        "model", metavar="MODEL", help="as for `ppcls serve`: an export or what it is made of"
    )
    command.add_argument("-i", "--input", required=True, help="a folder or a glob pattern of images")
    command.add_argument("--engine", default="auto", help="default: the fastest for one image")
    command.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="measurements of each (default 3)"
    )
    command.add_argument(
        "--seconds", type=float, default=8.0, metavar="S", help="of each measurement (default 8)"
    )
    command.add_argument(
        "--requests", type=int, default=10_000, metavar="N", help="of the overload (default 10000)"
    )
    command.add_argument("--queue", type=int, default=64, metavar="N", help="the server's queue (default 64)")
    command.set_defaults(run=serve)


def data(args: argparse.Namespace) -> int:
    if args.crop_size > args.resize_short:
        raise ConfigError(
            f"--crop-size ({args.crop_size}) must not exceed --resize-short ({args.resize_short})."
        )
    from ppcls.benchmarks.data import measure_data, read_images
    from ppcls.data.dataset import open_path

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


def sources(args: argparse.Namespace) -> int:
    from ppcls.benchmarks.sources import measure_sources
    from ppcls.data.dataset import open_path

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
    print(f"{'':28}{'median':>8}{'min':>8}{'max':>8}{'median':>8}{'min':>8}{'max':>8}")
    for kind in ("reads", "pipeline"):
        for place, row in zip(places, figures[kind], strict=True):
            cells = [f"{row['images_per_second'][key]:8.0f}" for key in ("median", "min", "max")]
            cells += [f"{row['ratio'][key]:8.3f}" for key in ("median", "min", "max")]
            print(f"{kind}, {str(place)[-18:]:{26 - len(kind)}}{''.join(cells)}")
    _write_json(args.json, figures | {"places": list(map(str, places))})
    return 0


def engines(args: argparse.Namespace) -> int:
    for name in args.engines or ():
        require_engine(name)
    from ppcls.benchmarks.engines import measure_engines
    from ppcls.inference.load import open_export
    from ppcls.inference.versions import versions

    config, folder, network = _export(args)
    figures = measure_engines(
        folder,
        network and network.model,
        open_export(folder, "auto", precision=args.precision, config=config, log=log),
        requested=args.engines,
        beside=args.beside,
        with_eager=not args.no_eager,
        batch_size=args.batch_size,
        rounds=args.rounds,
    )
    figures |= {"processor": processor(), "versions": versions()}
    print(
        f"{figures['model']} at {figures['size']} pixels, batch {args.batch_size}, {figures['threads']} "
        f"threads of {figures['processor']}"
    )
    if "ceiling_gflops" in figures:
        print(
            f"peak {figures['ceiling_gflops']:.0f} GFLOP/s, {figures['multiply_adds'] / 1e9:.2f} G "
            "multiply-adds per image"
        )
    print(f"{'':34}{'milliseconds per batch':>24}{'share of':>10}{'difference':>16}")
    compared = f"to {figures['reference']}" if figures["reference"] else ""
    print(f"{'':34}{'median':>8}{'min':>8}{'max':>8}{'ceiling':>10}{compared:>16}")
    for name, row in figures["rows"].items():
        times = "".join(f"{row['milliseconds'][key]:8.2f}" for key in ("median", "min", "max"))
        difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
        share = "" if row["share_of_ceiling"] is None else f"{row['share_of_ceiling']:.2f}"
        print(f"{name:34}{times}{share:>10}{difference:>16}")
    _write_json(args.json, figures)
    return 0


def end2end(args: argparse.Namespace) -> int:
    require_engine(args.engine, "auto", "measure")
    from ppcls.benchmarks.end2end import measure_end2end
    from ppcls.data.files import find_images
    from ppcls.inference.load import open_export, over_network
    from ppcls.inference.versions import versions

    files = find_images(args.input) * args.repeat
    config, folder, network = _export(args)
    predictor = open_export(folder, args.engine, precision=args.precision, config=config, bulk=True, log=log)
    eager = None if args.no_eager or network is None else over_network(config, network)
    figures = measure_end2end(predictor, eager, files, rounds=args.rounds)
    figures |= {"processor": processor(), "versions": versions()}
    print(
        f"{config.model.name} on {len(files)} files, {figures['streams']} streams of {figures['engine']}, "
        f"batch {figures['batch_size']}, {figures['processor']}"
    )
    print(f"{'images per second':28}{'median':>8}{'min':>8}{'max':>8}")
    for name, row in figures["images_per_second"].items():
        print(f"{name:28}" + "".join(f"{row[key]:8.1f}" for key in ("median", "min", "max")))
    print(f"End to end reaches {figures['share_of_engine']:.2f} of the engine alone", end="")
    if "times_the_eager_network" in figures:
        print(f", and is {figures['times_the_eager_network']:.1f} times as fast as the eager network", end="")
    print(".")
    _write_json(args.json, figures)
    return 0


def _export(args: argparse.Namespace) -> "tuple[Config, Path, Network | None]":
    """Return the config, the folder of an export, and the network; None where MODEL is an export.

    Any other network is exported to the cache. Published weights that no override requests are replaced by
    random ones, which take the same time and need no download.
    """
    from ppcls.build import build_fresh, build_to_run
    from ppcls.inference.cache import export_key
    from ppcls.inference.load import export_to_cache

    config, export = read_model(args)
    if export is not None:
        return config, export, None
    requested = {override.partition("=")[0].strip() for override in args.override}
    if config.model.weights == "pretrained" and "model.weights" not in requested:
        config = replace(config, model=replace(config.model, weights=None, variant=None))
    network = build_fresh(config, log) if config.model.weights is None else build_to_run(config, log)
    return config, export_to_cache(export_key(config), network, log), network


def train(args: argparse.Namespace) -> int:
    config = read_config(args)

    from ppcls.build import build_fresh
    from ppcls.data.dataset import open_split, require_split

    data = config.data
    compares = args.kernels is not None or args.beside_torch is not None
    if compares and distributed.world_size() > 1:
        raise ConfigError("--kernels and --beside-torch compare in one process: start without launch.")
    if not args.synthetic and not compares:
        require_split(data, "train")
    network = build_fresh(config, log)  # random weights take the same time
    if compares:
        return side_by_side(args, config, network.preprocessing.crop_size)
    train_set = None
    if not args.synthetic:
        num_classes, names = config.model.num_classes, network.class_names
        train_set = open_split(data, "train", num_classes=num_classes, class_names=names)

    from ppcls.benchmarks.train import STAGES, measure_training
    from ppcls.inference.versions import versions

    own = measure_training(config, network, train_set, num_workers(config), args.steps)
    ranks = distributed.gather(own)
    figures = {
        "model": config.model.name,
        "size": network.preprocessing.crop_size,
        "batch_size": data.batch_size,
        "steps": args.steps,
        "synthetic": args.synthetic,
        "images_per_second": sum(rank["images_per_second"] for rank in ranks),
        "ranks": ranks,
        "processor": processor(),
        "versions": versions(),
    }
    log(
        f"{config.model.name} at {network.preprocessing.crop_size} pixels, batch {data.batch_size} of each "
        f"process, {args.steps} steps, {figures['processor']}"
    )
    log(f"{'':9}{'images':>10}{'median seconds of a step':>32}{'peak':>12}")
    log(f"{'process':9}{'per second':>10}{''.join(f'{part:>10}' for part in STAGES)}{'memory':>12}")
    for number, rank in enumerate(ranks):
        cells = "".join(f"{rank['seconds'][part]:10.3f}" for part in STAGES)
        memory = f"{rank['peak_memory_bytes'] / 2**20:.0f} MiB"
        log(f"{number:<9}{rank['images_per_second']:10.2f}{cells}{memory:>12}")
    log(f"{'all':9}{figures['images_per_second']:10.2f}")
    if distributed.rank() == 0:
        _write_json(args.json, figures)
    return 0


def side_by_side(args: argparse.Namespace, config: Config, size: int) -> int:
    """Compare kernels, and torch, in turns, on images of `size` pixels."""
    from ppcls.benchmarks.side_by_side import measure_side_by_side
    from ppcls.build import build_fresh
    from ppcls.inference.versions import versions

    kernels = args.kernels or [config.kernels]
    rows = measure_side_by_side(
        config,
        lambda: build_fresh(config, lambda line: None),
        kernels,
        args.beside_torch,
        steps=args.steps,
        rounds=args.rounds,
    )
    batch = config.data.batch_size
    print(
        f"{config.model.name} at {size} pixels, batch {batch}, {args.rounds} rounds of {args.steps} steps, "
        f"{processor()}"
    )
    print(f"{'':34}{'images per second':>24}{'ratio to the first':>24}")
    print(f"{'':34}" + f"{'median':>8}{'min':>8}{'max':>8}" * 2)
    for name, row in rows.items():
        cells = [f"{row['images_per_second'][key]:8.2f}" for key in ("median", "min", "max")]
        cells += [f"{row['ratio'][key]:8.2f}" for key in ("median", "min", "max")]
        print(f"{name:34}{''.join(cells)}")
    figures = {"model": config.model.name, "size": size, "batch_size": batch, "rows": rows}
    figures |= {"steps": args.steps, "rounds": args.rounds}
    _write_json(args.json, figures | {"processor": processor(), "versions": versions()})
    return 0


def serve(args: argparse.Namespace) -> int:
    import tempfile

    from ppcls.benchmarks.serve import CLIENTS, LoadProcess, ServerProcess, Sizes, measure_serve
    from ppcls.data.files import find_images
    from ppcls.inference.load import load
    from ppcls.inference.versions import versions

    require_engine(args.engine, "auto", "measure", "eager")
    if args.queue < CLIENTS:
        raise ConfigError(f"--queue must hold the {CLIENTS} clients. Received: {args.queue}")
    files = find_images(args.input)
    predictor = load(args.model, args.engine, log=log)
    options = [args.model, "--engine", args.engine, "--queue", str(args.queue)]
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(options, Path(folder) / "server.log")
        generator = LoadProcess(server.port, "/predict", files)
        try:
            sizes = Sizes(args.rounds, args.seconds, args.requests, args.queue)
            figures = measure_serve(predictor, server, generator, files, sizes)
        finally:
            generator.stop()
            code = server.stop()
    figures |= {"model": args.model, "engine": predictor.engine.name, "files": len(files), "exit_code": code}
    figures |= {"processor": processor(), "versions": versions()}
    _print_serve(figures)
    _write_json(args.json, figures)
    return 0


def _print_serve(figures: dict[str, Any]) -> None:
    print(f"{figures['model']}, {figures['engine']}, {figures['files']} files, {figures['processor']}")
    print(f"{'images per second':28}{'median':>8}{'min':>8}{'max':>8}")
    for name, row in figures["images_per_second"].items():
        print(f"{name:28}" + "".join(f"{row[key]:8.1f}" for key in ("median", "min", "max")))
    share, one, cost = figures["share_of_stream"], figures["milliseconds_of_one"], figures["cost_of_one"]
    print(f"share of the stream's speed {share['median']:8.2f}{share['min']:8.2f}{share['max']:8.2f}")
    print(
        f"one client: {one['server']:.2f} ms, predictor(bytes) {one['predictor']:.2f} ms; the server costs "
        f"{cost['median']:.2f} ms ({cost['min']:.2f} to {cost['max']:.2f})"
    )
    over = figures["overload"]
    counts = ", ".join(f"{count} of {status}" for status, count in over["statuses"].items())
    print(
        f"overload: {over['requests']} arrivals at {over['planned_rate']:.0f} a second: {counts}; goodput "
        f"{over['goodput']:.1f} a second, {over['share_of_capacity']:.2f} of the capacity, "
        f"{over['capacity']:.1f}"
    )
    for name in ("accepted", "rejected"):
        if over[name] is not None:
            print(f"  {name}: " + ", ".join(f"{key} {value:.0f} ms" for key, value in over[name].items()))
    lag, memory = over["generator"]["lag"], over["memory"]
    print(f"  2 x queue / goodput: {over['accepted_limit']:.0f} ms")
    print("  memory of the server: " + ", ".join(f"{key} {value:.0f} MiB" for key, value in memory.items()))
    print(
        f"  the server's event loop used {over['loop_processor_share']:.2f} of a core, the generator "
        f"{over['generator']['processor_share']:.2f}; it was late by {lag['p50']:.1f} ms (p50), "
        f"{lag['p99']:.1f} ms (p99)"
    )


def _write_json(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        write_json(path, figures)
        print(f"written: {path}")
